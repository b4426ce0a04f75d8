"""Every way of the library to a frame gives what a plain decode of the whole file gives.

`_truth` as a program does so for any files, with `shard` and decoder processes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data._streams import encode, without_reorder_depth, x264
from tests.data._truth import examine, faults
from tests.data._videos import SHARED

KINDS = {
    "no_reorder_depth.mp4": lambda: without_reorder_depth(x264("mp4", "bframes=3:keyint=12", 40)),
    "b_frames.avi": lambda: x264("avi", "bframes=3"),
    "uneven.mkv": lambda: encode("mpeg4", "matroska", times=lambda i: 40 * i + 2 * i * i, bf="2"),
}
FILES = [
    path
    for folder in ("androidx-media", "video")
    for path in sorted((SHARED / "faults" / folder).glob("*.*"))
]


@pytest.mark.parametrize("name", KINDS)
def test_made_files(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(KINDS[name]())
    verdicts = examine(path, tmp_path / "work", processes=(0,))
    assert faults(path, verdicts) == []
    assert len(verdicts) == 7 and sum(verdict.frames for verdict in verdicts) > 100


@pytest.mark.skipif(not FILES, reason=f"real videos are not here ({SHARED})")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shared_files(path: Path, tmp_path):
    verdicts = examine(path, tmp_path / "work", processes=(0,), shard=False)
    assert faults(path, verdicts) == []

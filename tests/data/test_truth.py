"""Every way of the library to a frame gives what a plain decode of the whole file gives.

`pytest -m slow -s tests/data/test_truth.py` prints a table of all shared files and ways.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from ._streams import encode, without_reorder_depth, x264
from ._truth import examine, faults, table, truth
from .conftest import SHARED

KINDS = {
    "no_reorder_depth.mp4": lambda: without_reorder_depth(x264("mp4", "bframes=3:keyint=12", 40)),
    "b_frames.avi": lambda: x264("avi", "bframes=3"),
    "uneven.mkv": lambda: encode("mpeg4", "matroska", times=lambda i: 40 * i + 2 * i * i, bf="2"),
}
FILES = [
    path
    for folder in ("edge", "faults/androidx-media", "faults/video")
    for path in sorted((SHARED / folder).rglob("*.*"))
    if path.suffix not in (".txt", ".tar", ".md")
]


@pytest.mark.parametrize("name", KINDS)
def test_made_files(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(KINDS[name]())
    verdicts = examine(path, tmp_path / "work", processes=(0,))
    assert faults(verdicts) == []
    assert len(verdicts) == 7 and sum(verdict.frames for verdict in verdicts) > 100


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason=f"real videos are not here ({SHARED})")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shared_files(path: Path, tmp_path):
    damaged = bool(truth(path.read_bytes()).damaged)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    verdicts = examine(path, tmp_path / "work")
    print("\n" + table({path.name: verdicts}))
    assert max(verdict.seconds for verdict in verdicts) < 60
    assert time.monotonic() - begin < 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    found = faults(verdicts)
    if damaged:  # it is not taken in, and what is taken from it is right
        assert [entry.split(":")[0] for entry in found if "differs" in entry] == []
        assert {verdict.way for verdict in verdicts if verdict.result != "good"} >= {"transcode"}
    else:
        assert found == []

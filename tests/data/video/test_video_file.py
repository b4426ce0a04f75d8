"""Videos are opened in one way, which reads no other file and no network."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import stmeta
from stmeta._errors import DataError
from stmeta.data.decode import pyav, remux
from stmeta.data.ingest.transcode import transcode
from stmeta.data.loading.loader import ClipLoader
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards
from stmeta.data.verify.inspect import find_sample
from stmeta.data.verify.pictures import pictures
from stmeta.data.video.file import open_video
from stmeta.data.video.probe import probe
from tests.data._loading import config, overwrite
from tests.data._shards import check

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video 45678 RTP/AVP 96
a=rtpmap:96 MP4V-ES/90000
"""
TEXTS = {
    "ffconcat": "ffconcat version 1.0\nfile other.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
    "sdp": SDP,
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\ntext\n",
}


@pytest.fixture
def other(make_video, tmp_path, monkeypatch) -> Path:
    """A film beside the working folder's other files, which no shard may choose."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.mp4").write_bytes(make_video(9))
    return tmp_path


@pytest.mark.parametrize("kind", TEXTS)
def test_every_reader_refuses_what_names_other_files(other, kind):
    text = TEXTS[kind].encode()
    for read in (
        lambda: probe(text),
        lambda: pyav.decode(text, np.arange(2)),
        lambda: pyav.decode_yuv(text, np.arange(2)),
        lambda: pyav.read_packets(text),
        lambda: transcode(text),
    ):
        with pytest.raises(DataError):
            read()
    with pytest.raises(ValueError, match="Invalid"):  # FFmpeg's errors are of this type too
        open_video(text)


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("kind", TEXTS)
def test_an_index_that_says_good_opens_nothing_else(make_video, other, kind, processes):
    """The shard was changed after it was indexed: nobody probes it again."""
    samples = [
        EncodedSample(key=f"s{i}", video=make_video(i), extension="mp4", label=0) for i in range(4)
    ]
    write_shards(samples, other / "train", classes=["a"])
    row = ShardIndex.open(other / "train", details=True).row(0)
    hostile = TEXTS[kind].encode().ljust(row.size, b"\n")
    overwrite(other / "train" / row.shard, row.offset, hostile)
    settings = config(train=False, processes=processes, max_error_rate=0.5)
    with ClipLoader(other / "train", settings) as loader:
        keys = [key for batch in loader for key in batch.key]
        assert keys == ["s1", "s2", "s3"]
        assert [skip.key for skip in loader.skipped] == ["s0"]
    assert [bad.key for bad in check(other / "train").bad] == ["s0"]
    assert pictures(find_sample(other / "train", "s0"), 2)[0] == []


def test_a_cut_of_a_film_reads_no_other_file(make_video, other):
    packets = pyav.read_packets(make_video())
    assert packets is not None
    with pytest.raises(DataError):
        remux.remux_packets(TEXTS["ffconcat"].encode(), packets, np.arange(2), np.arange(2))


def test_there_is_one_way_to_open_a_video():
    """Another `av.open` for reading would have no list of formats."""
    root = Path(stmeta.__file__).parent
    found = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "av.open":
                mode = next((k.value for k in node.keywords if k.arg == "mode"), None)
                mode = mode or (node.args[1] if len(node.args) > 1 else None)
                if not (isinstance(mode, ast.Constant) and mode.value == "w"):
                    found.append(path.relative_to(root).as_posix())
    assert found == ["data/video/file.py"]


def test_a_path_is_a_path(make_video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "a:b.mp4", "http:x.mp4", "%03d.mp4"):
        Path(name).write_bytes(make_video())
        with open_video(name) as container:
            assert container.streams.video
    with open_video(Path("-i.mp4").read_bytes()) as container:
        assert container.streams.video

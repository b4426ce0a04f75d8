from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest

from stmeta import cli
from stmeta.data.ingest.encode import EncodeOptions, Encoder, encode_frames
from stmeta.data.shards.writer import EncodedSample, ShardIndex, build_index, write_shards
from stmeta.data.verify.verifier import LEVELS, verify
from stmeta.data.verify.video import decode_fault
from stmeta.data.video.probe import probe
from tests.data._shards import check, found, pack, sample, shards, split, video

__all__ = ["split", "video"]  # fixtures


@pytest.fixture(scope="module")
def noisy() -> Callable[..., bytes]:
    """Noise compresses badly, so every frame has bytes that can be damaged."""

    def make(codec: str, frames: int = 24) -> bytes:
        pixels = np.random.default_rng(0).integers(0, 255, (frames, 144, 160, 3), dtype=np.uint8)
        return encode_frames(pixels, 25, codec=codec, gop=8)

    return make


@pytest.mark.parametrize("level", LEVELS)
def test_good_shards_pass(split, level):
    report = check(split, level)
    assert report.bad == [] and report.level == level and not report.stopped
    assert (report.shards, report.samples) == (len(shards(split)), 9) and report.shards > 2
    assert report.frames == sum(range(8, 17))
    assert report.bytes == sum(path.stat().st_size for path in shards(split))
    assert not list(split.glob("verify*"))  # nothing is written unless asked for


def live_webm(make_video) -> bytes:
    """As a recorder writes it: its length is not in the header."""
    content = bytearray(make_video(1, frames=20, codec="vp8"))
    start = content.index(b"\x18\x53\x80\x67") + 4
    length = 9 - content[start].bit_length()
    content[start : start + length] = ((1 << 7 * length + 1) - 1).to_bytes(length, "big")
    return bytes(content)


def count(frames: int) -> bytes:
    return struct.pack("<i", frames)


@pytest.fixture
def damaged(make_video, video, noisy) -> dict[str, tuple[list, str, str]]:
    """Key to members, the level that must find it, and the reason."""
    long = make_video(frames=40)
    webm = make_video(2, frames=20, codec="vp8")
    live = live_webm(make_video)
    assert probe(live).frames == 20 and probe(live[: len(live) * 6 // 10]).frames < 20
    broken = bytearray(noisy("h264"))
    start = len(broken) // 2
    broken[start : start + 400] = np.random.default_rng(1).bytes(400)
    hollow = noisy("av1")
    hollow = hollow[: len(hollow) // 2].ljust(len(hollow), b"\0")
    return {
        "garbage": (sample("garbage", b"no video" * 99), "header", "not a video"),
        "zeros": (sample("zeros", bytes(4000)), "header", "starts with zeros"),
        "empty": (sample("empty", b""), "tar", "mp4 is empty (0 bytes)"),
        "cut_mp4": (
            sample("cut_mp4", long[: len(long) * 6 // 10], nframes=count(40)),
            "header",
            "truncated: the data ends after",
        ),
        "cut_webm": (
            sample("cut_webm", webm[: len(webm) * 6 // 10], "webm", nframes=count(20)),
            "header",
            "bytes are there",
        ),
        "cut_live": (
            sample("cut_live", live[: len(live) * 6 // 10], "webm", nframes=count(20)),
            "header",
            "nframes says 20 frames, the video has",
        ),
        "count": (
            sample("count", video, nframes=count(9)),
            "header",
            "nframes says 9 frames, the video has 8",
        ),
        "label": (
            sample("label", video, cls=None, json=b"{}"),
            "tar",
            "the label is missing: there is no .cls, and no label in .json",
        ),
        "bad": (sample("bad", bytes(broken), nframes=count(24)), "decode", "1 of 24 frames are"),
        "hollow": (
            sample("hollow", hollow, nframes=count(24)),
            "decode",
            "of 24 frames are zeros in the file, the first is",
        ),
    }


def test_every_kind_of_damage_is_found(damaged, video, tmp_path):
    members = [part for parts, _, _ in damaged.values() for part in parts]
    path = pack(tmp_path / "0.tar", [*members, *sample("good", video)])
    bad = found(check(path))
    assert bad.keys() == damaged.keys()
    for key, (_, level, reason) in damaged.items():
        assert bad[key][0] == level and reason in bad[key][1], (key, bad[key])
    for number, level in enumerate(LEVELS[:2]):  # a level finds its own and those below
        expected = {key for key in damaged if damaged[key][1] in LEVELS[: number + 1]}
        assert found(check(path, level)).keys() == expected


def test_a_changed_byte(split):
    """Within a video; the rest is as it was, and many a decoder shows nothing of it."""
    row = ShardIndex.open(split).row(4)
    shard = split / row.shard
    content = bytearray(shard.read_bytes())
    content[row.offset + row.size - 20] ^= 1
    shard.write_bytes(content)
    assert found(check(split, "header")) == {}
    reason = "sha256 differs from the index's: the file changed since it was indexed"
    assert found(check(split, "hash")) == {"c4": ("hash", reason)}
    assert found(check(split, "decode"))["c4"][0] == "hash"
    build_index(split)  # what is there now is taken as right
    assert found(check(split, "hash")) == {}


def test_what_decoding_tells(noisy, video):
    content = bytearray(noisy("h264"))
    info = probe(bytes(content))
    assert decode_fault(bytes(content), info) == ""
    with av.open(io.BytesIO(content)) as container:
        place = [packet.pos for packet in container.demux(video=0) if packet.size][10]
    content[place : place + 4] = b"\x7f\xff\xff\xff"  # the size of the part that follows
    assert re.match(r"decoding stops after \d+ of 24 frames: I", decode_fault(bytes(content), info))
    info = probe(video)._replace(frames=99)
    assert decode_fault(video, info) == "8 of 99 frames can be decoded"


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_pictures_of_zeros_at_the_end(tmp_path, codec):
    """Luma and chroma 0, as in a buffer that was never filled, are green; black is no damage."""
    for luma, chroma, reason in ((0, 0, "the last 5 of 20 pictures are zeros"), (0, 128, "")):
        path = tmp_path / f"{chroma}.mp4"
        encoder = Encoder(str(path), 64, 48, Fraction(25), EncodeOptions(codec=codec))
        for number in range(20):
            frame = av.VideoFrame(64, 48, encoder.pixels)
            for plane, value in zip(frame.planes, (luma, chroma, chroma), strict=True):
                plane.update(bytes([value if number >= 15 else 90]) * plane.buffer_size)
            encoder.add(frame)
        encoder.close()
        content = path.read_bytes()
        fault = decode_fault(content, probe(content))
        assert reason in fault and bool(reason) == bool(fault)


def test_the_index_must_agree(split, video, tmp_path):
    index = ShardIndex.open(split)
    shard = split / index.row(0).shard
    labels = index.labels.tolist()
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        place = next(m.offset_data for m in tar if m.name == "c0.cls")
    content[place] = ord("2")
    shard.write_bytes(content)
    assert labels[0] == 0
    assert found(check(split)) == {"c0": ("header", "the index says label 0, here it is 2")}
    # Another video under the same key; one key less, one more.
    pack(shard, [*sample("c0", video), *sample("new", video)])
    bad = found(check(split))
    assert bad["new"] == ("header", "it is not in the index; run `stmeta index`")
    gone = {row.key for row in map(index.row, range(9)) if row.shard == shard.name} - {"c0"}
    assert gone and all("but not in the shard" in bad[key][1] for key in gone)
    assert "the index says size" in bad["c0"][1] and bad.keys() == {"new", "c0", *gone}
    assert found(check(split, "tar")) == {}

    pack(split / "extra.tar", sample("x", video))
    assert "the index does not list this shard" in found(check(split / "extra.tar"))[""][1]
    (split / "index.parquet").write_bytes(b"PAR1 broken")
    report = check(split, "hash")
    assert [(bad.shard, bad.level) for bad in report.bad] == [
        (str(split / "index.parquet"), "header")
    ]
    (split / "index.parquet").unlink()
    assert found(check(split, "decode")) == {}  # with nothing to compare, the rest is checked
    assert "there is no index to compare hashes with" in found(check(split, "hash"))[""][1]


def test_a_stale_reason_in_the_index(video, tmp_path):
    pack(tmp_path / "0.tar", sample("a", b"garbage" * 99))
    build_index(tmp_path)
    assert found(check(tmp_path))["a"][1].startswith("not a video")
    pack(tmp_path / "0.tar", sample("a", video))
    assert "but it is good; index it again" in found(check(tmp_path))["a"][1]


def test_stops_at_the_first(video, tmp_path):
    bad = [part for key in "abc" for part in sample(key, b"garbage" * 99)]
    path = pack(tmp_path / "0.tar", [*sample("good", video), *bad])
    report = check(path, on_error="fail")
    assert [entry.key for entry in report.bad] == ["a"] and report.stopped
    assert report.samples == 2
    assert not check(path).stopped and len(check(path).bad) == 3


def test_workers_find_the_same(split):
    shard = shards(split)[1]
    content = bytearray(shard.read_bytes())
    content[1000:1400] = bytes(400)
    shard.write_bytes(content)
    one, two = check(split), verify([split], level="decode", workers=2)
    assert one.bad and one.bad == two.bad and one.frames == two.frames


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_command(split, video, capsys):
    assert run("verify", split, "--workers", 1, "--level", "hash") == 0
    assert "9 samples, 108 frames" in capsys.readouterr().out
    pack(split / "x.tar", [*sample("bad\x1b[31m", video), *sample("b", b"garbage" * 99)])
    assert run("verify", split / "x.tar", "--workers", 1, "--level", "decode") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{split / 'x.tar'}: bad\\x1b[31m: tar: the key ")
    assert lines[1].startswith(f"{split / 'x.tar'}: b: header: not a video")
    assert "3 bad at level decode" in lines[-1]  # the third: the index does not list the shard
    assert run("verify", split, "--json", "--workers", 1, "--on-error", "fail") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["stopped"] and report["samples"] == 10 and report["level"] == "header"
    assert report["bad"][0].keys() == {"shard", "key", "level", "reason"}
    assert run("verify", split / "nothing") == 1
    assert "there is no such file or folder" in capsys.readouterr().err
    assert run("verify") == run("verify", split, "--level", "all") == 2


def test_real_videos(shared_data, tmp_path):
    """Odd, turned and broken clips as they are: all decode but the one that is known as broken."""
    kinds = {".mp4", ".mov", ".avi", ".mkv", ".webm"}
    paths = [path for path in sorted((shared_data / "edge").rglob("*")) if path.suffix in kinds]
    clips = [
        EncodedSample(key=p.stem, video=p.read_bytes(), extension=p.suffix[1:], label=0)
        for p in paths
    ]
    write_shards(clips, tmp_path / "train", classes=["any"], check=False)
    report = verify([tmp_path / "train"], level="decode", workers=1)
    assert report.samples == len(paths) > 15
    assert {key: bad[0] for key, bad in found(report).items()} == {"corrupted": "decode"}
    assert "decoding stops after 28 of 50 frames" in report.bad[0].reason


@pytest.mark.slow
def test_real_videos_through_shard(shared_data, tmp_path, capsys):
    """What `stmeta shard` takes in passes every level; what it does not, it names."""
    out = tmp_path / "out"
    options = ("--short-side", 64, "--fps", 5, "--workers", 1, "--json")
    assert run("shard", shared_data / "edge", "--out", out, *options) == 1
    bad = json.loads(capsys.readouterr().out)["bad"]
    assert [entry["source"] for entry in bad] == ["decord/tests/test_data/corrupted.mp4"]
    assert run("verify", out / "train", "--level", "decode", "--workers", 1) == 0

"""Shards with headers that claim what is not so: named as bad in seconds, the rest stays usable."""

from __future__ import annotations

import io
import itertools
import random
import struct
import tarfile
import time
import tracemalloc

import pytest

from stmeta.data.shards.tar_index import SampleInfo, scan_shard
from stmeta.data.shards.writer import ShardIndex, build_index
from stmeta.data.verify.verifier import verify
from tests.data._shards import END, entry, found, sample


@pytest.fixture(scope="module")
def video(make_video) -> bytes:
    return make_video(0, frames=8)


def whole(key: str, video: bytes) -> bytes:
    return b"".join(entry(name, content) for name, content in sample(key, video))


def pax(*records: bytes) -> bytes:
    content = b""
    for record in records:
        for length in itertools.count(len(record) + 2):
            line = b"%d %s\n" % (length, record)
            if len(line) == length:
                content += line
                break
    return entry("p", content, b"x")


HOSTILE = {
    "negative size": lambda v: entry("h.mp4", v, size=-512),
    "very negative size": lambda v: entry("h.mp4", size=-(2**60)),
    "negative size in PAX": lambda v: pax(b"size=-1536") + entry("h.mp4", v),
    "size of 19 digits in PAX": lambda v: pax(b"size=" + b"9" * 19) + entry("h.mp4", v),
    "size in letters in PAX": lambda v: pax(b"size=many") + entry("h.mp4", v),
    "more than the shard": lambda v: entry("h.mp4", v, size=2**40),
    "a long name of 4 EiB": lambda v: entry("n", size=2**62, kind=b"L") + entry("h.mp4", v),
    "a long link of 2 GiB": lambda v: entry("n", size=2**31, kind=b"K") + entry("h.mp4", v),
    "PAX records of 8 GiB": lambda v: entry("p", size=2**33, kind=b"x") + entry("h.mp4", v),
    "PAX records of -1 byte": lambda v: entry("p", size=-1, kind=b"x") + entry("h.mp4", v),
    "PAX length of 200 kB": lambda v: entry("p", b"1" * 200_000, b"x") + entry("h.mp4", v),
    "PAX length of 0": lambda v: entry("p", b"0 path=a\n", b"x") + entry("h.mp4", v),
    "PAX length past the end": lambda v: entry("p", b"99 path=a\n", b"x") + entry("h.mp4", v),
    "global records for all names": lambda v: entry("g", b"14 path=a.mp4\n", b"g"),
    "3,000 long names": lambda v: entry("n", b"h.mp4\0", b"L") * 3000 + entry("h.mp4", v),
    "3,000 PAX headers": lambda v: pax(b"path=h.mp4") * 3000 + entry("h.mp4", v),
    "a name of 9,000 bytes": lambda v: pax(b"path=" + b"h" * 9000 + b".mp4") + entry("h", v),
    "a name in Latin-1": lambda v: entry(b"h\xe9.mp4", v) + entry(b"h\xe9.cls", b"1"),
    "a name in Latin-1 in PAX": lambda v: pax(b"path=h\xe9.mp4") + entry("h", v),
    "a name with control characters": lambda v: pax(b"path=h\x1b[2J.mp4") + entry("h", v),
    "a sparse file of 8 EiB": lambda v: entry("h.mp4", v, b"S"),
    "an endless sparse map": lambda v: entry("h.mp4", b"\xff" * 5120, b"S"),
    "blocks of noise": lambda v: random.Random(0).randbytes(5120),
    "zeros where members were": lambda v: bytes(2**17),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_claims(video, tmp_path, kind):
    split = tmp_path / "train"
    split.mkdir()
    shard = split / "0.tar"
    shard.write_bytes(whole("a", video) + HOSTILE[kind](video) + whole("b", video) + END)
    begin = time.monotonic()
    tracemalloc.start()
    index = build_index(split)
    report = verify([shard], level="header", workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - begin < 20 and peak < 2**26
    assert index.keys == ["a", "b"] and index.labels.tolist() == [1, 1]
    assert index.bad and report.bad, "nothing is named"
    assert {row.key for row in index.bad} <= {"", "h"} | {k for k in found(report)}
    again = ShardIndex.open(split)
    assert again.keys == ["a", "b"] and len(again.bad) == len(index.bad)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (b"1" * 20, "has 20 digits"),
        (b"0" * 20 + b"1", "has 21 digits"),
        (b"9" * 5000, "has 5000 digits"),
        (b"20000000", "is not in [-1, 1048575]"),
        (b"-2", "is not in"),
        (b"1_0", "neither a number"),
        ("١".encode(), "neither a number"),
        (b"\xff\xfe", "neither a number"),
    ],
)
def test_labels(video, tmp_path, label, reason):
    """One bad row, and no list of 20 million names."""
    members = [*sample("a", video), *sample("h", video, cls=label), *sample("b", video)]
    path = tmp_path / "0.tar"
    path.write_bytes(b"".join(entry(*member) for member in members) + END)
    index = build_index(tmp_path)
    assert index.keys == ["a", "b"] and len(index.classes) == 2
    assert [row.key for row in index.bad] == ["h"] and reason in index.bad[0].error
    assert "h" in found(verify([path], workers=1))


def good(rows: list[SampleInfo]) -> set[tuple]:
    return {(row.key, row.label, row.frames, row.sha256) for row in rows if not row.error}


LAYOUTS = {
    "own": (tarfile.USTAR_FORMAT, "{}", ("mp4", "cls", "nframes", "json")),
    "label last, long names": (tarfile.GNU_FORMAT, "k" * 120 + "{}", ("mp4", "cls")),
    "label first, long names": (tarfile.PAX_FORMAT, "é" * 60 + "{}", ("cls", "mp4")),
    "label in JSON": (tarfile.PAX_FORMAT, "{}", ("mp4", "json")),
}


def layout(name: str, videos: list[bytes]) -> bytes:
    kind, key, fields = LAYOUTS[name]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for i, video in enumerate(videos):
            content = {
                "mp4": video,
                "cls": b"%d" % (i + 1),
                "nframes": struct.pack("<i", 8),
                "json": b'{"label": %d}' % (i + 1),
            }
            for field in fields:
                info = tarfile.TarInfo(f"{key.format(i)}.{field}")
                info.size = len(content[field])
                tar.addfile(info, io.BytesIO(content[field]))
    return out.getvalue()


def headers(content: bytes) -> list[int]:
    """Blocks of headers, extension headers and what they hold."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        places = [range(member.offset, member.offset_data, 512) for member in tar]
    return [place for part in places for place in part]


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_flipped_bit_or_cut_changes_a_label(make_video, tmp_path, monkeypatch, name):
    """What comes out is what went in, or something is named; never other or fewer labels."""
    videos = [make_video(i, frames=8) for i in range(3)]
    content, path = layout(name, videos), tmp_path / "0.tar"
    path.write_bytes(content)
    right = good(scan_shard(path, None))
    assert len(right) == 3
    numbers, places = random.Random(0), headers(content)
    flips = [(8 * (place + byte) + numbers.randrange(8)) for place in places for byte in BYTES]
    end = places[-1] + 1024
    cuts = [*places, *(place + 512 for place in places), *range(300, end, 1571), end - 512, end]
    for bit, cut in [*((bit, None) for bit in flips), *((None, cut) for cut in cuts)]:
        changed = bytearray(content[:cut])
        if bit is not None:
            changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        rows = scan_shard(path, None)
        kept, bad = good(rows), [row for row in rows if row.error]
        assert kept <= right, f"bit {bit}, cut {cut}: {kept - right}"
        assert bad or kept == right, f"bit {bit}, cut {cut}: lost without a word"


# In a header: name, mode, size, checksum, type, link, magic, owner, prefix, padding.
BYTES = (0, 3, 102, 130, 135, 150, 156, 200, 260, 300, 400, 505)


def test_a_flipped_label_header_and_what_is_lost_with_it(video, tmp_path):
    """The sample beside the damage is bad, the one after it good; the shard says where."""
    parts = [entry(n, c) for n, c in [*sample("a", video), *sample("b", video)]]
    for number, lost in ((1, "cls"), (2, "nframes"), (3, "json")):
        broken = [bytearray(part) for part in parts]
        broken[number][4] ^= 1
        path = tmp_path / "0.tar"
        path.write_bytes(b"".join(broken) + END)
        rows = scan_shard(path, None)
        assert [row.key for row in rows if not row.error] == ["b"]
        bad = {row.key: row.error for row in rows if row.error}
        assert f"without {lost}" in bad["a"] and "1024 bytes after byte" in bad[""]


def test_a_tar_cut_before_the_label(video, tmp_path):
    parts = [entry(n, c) for n, c in [*sample("a", video), *sample("b", video)]]
    path = tmp_path / "0.tar"
    path.write_bytes(b"".join(parts[:5]))
    bad = {row.key: row.error for row in scan_shard(path, None) if row.error}
    assert "without cls, json, nframes" in bad["b"] and "end mark is missing" in bad[""]
    path.write_bytes(b"".join(parts))  # nothing is lost, but nobody knows
    rows = scan_shard(path, None)
    assert [row.key for row in rows] == ["a", "b", ""] and "end mark" in rows[2].error
    path.write_bytes(b"".join(parts) + END)
    assert [row.error for row in scan_shard(path, None)] == ["", ""]


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_a_chain_without_an_end_is_walked_once(tmp_path, kind):
    content = b"k.mp4\0" if kind == b"L" else b"14 path=k.mp4\n"
    (tmp_path / "0.tar").write_bytes(entry("n", content, kind) * 5000 + END)
    begin = time.monotonic()
    rows = scan_shard(tmp_path / "0.tar", None)
    assert time.monotonic() - begin < 10 and [row.key for row in rows] == [""]


def test_many_short_gaps_take_no_longer_than_their_bytes(tmp_path):
    noise = random.Random(0).randbytes(512)
    (tmp_path / "0.tar").write_bytes((entry("h.mp4", size=-1) + noise) * 4000 + END)
    begin = time.monotonic()
    rows = scan_shard(tmp_path / "0.tar", None)
    assert time.monotonic() - begin < 10 and rows[0].error and len(rows) == 1


def test_shared_hostile_shards(shared_data, tmp_path):
    shards = sorted((shared_data / "faults").glob("*.tar"))
    if not shards:
        pytest.skip("the hostile shards are not here")
    for number, shard in enumerate(shards):
        split = tmp_path / str(number)
        split.mkdir()
        (split / shard.name).write_bytes(shard.read_bytes())
        begin = time.monotonic()
        index = build_index(split)
        assert len(index) and index.bad and len(index.classes) < 2**20, shard.name
        assert verify([split], workers=1).bad and time.monotonic() - begin < 30

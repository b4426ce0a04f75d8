"""The structure of a shard: what must be found, and what is fine."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

from tests.data._shards import CLASSES, check, found, pack, sample, shards, split, video

__all__ = ["split", "video"]  # fixtures


def test_any_changed_byte_outside_of_json_is_found(split):
    """Headers by their checksum and the gap they leave, members by the index."""
    shard = shards(split)[0]
    content, numbers = shard.read_bytes(), np.random.default_rng(0)
    places: list[int] = []
    with tarfile.open(shard) as tar:
        for member in tar:
            if not member.name.endswith("json"):
                places += (numbers.integers(0, member.size, 2) + member.offset_data).tolist()
            # A header ends with padding.
            places += (numbers.integers(0, 500, 4) + member.offset).tolist()
        places += [len(content) - 1, len(content) - 600]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 0x55
        shard.write_bytes(changed)
        assert check(shard, "hash").bad, f"byte {place} of {shard.name}"


def test_a_shard_cut_anywhere(split):
    shard = shards(split)[1]
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = list(tar)
    ends = [part for member in members for part in (member.offset, member.offset_data)]
    end = -(-(members[-1].offset_data + members[-1].size) // 512) * 512
    for size in {0, 1, 511, *ends, *range(100, end, 1571), end, end + 512}:
        shard.write_bytes(content[:size])
        report = check(shard, "tar")
        assert report.bad and {bad.level for bad in report.bad} == {"tar"}, f"cut at {size}"
    shard.write_bytes(content[: end + 1024])  # the end mark alone is enough
    assert check(shard, "tar").bad == []


def link(name: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry, b""


@pytest.mark.parametrize(
    ("members", "key", "reason"),
    [
        (
            lambda v: [*sample("a", v)[:2], *sample("b", v), *sample("a", v)[2:]],
            "a",
            "next to each",
        ),
        (lambda v: [*sample("a", v), ("a.cls", b"0")], "a", "cls occurs more than once"),
        (lambda v: [*sample("a", v), *sample("b", v), ("a.cls", b"0")], "a", "next to each other"),
        (lambda v: sample("a b", v), "a b", "may only have letters"),
        (lambda v: sample("../a", v), "../a", "leads out of the folder"),
        (lambda v: sample("/etc/a", v), "/etc/a", "leads out of the folder"),
        (lambda v: sample("x\\a", v), "x\\a", "leads out of the folder"),
        (lambda v: [*sample("a", v), link("a.txt", tarfile.SYMTYPE)], "a", "txt is a link"),
        (lambda v: [*sample("a", v), link("a.txt", tarfile.LNKTYPE)], "a", "txt is a link"),
        (lambda v: [*sample("a", v), link("a.txt", tarfile.FIFOTYPE)], "a", "a device"),
        (lambda v: [*sample("a", v), ("README", b"?")], "", "'README' belongs to no sample"),
        (lambda v: [*sample("a", v), ("a.webm", v)], "a", "needs one of mp4"),
        (lambda v: sample("a", v)[1:], "a", "found cls, nframes, json"),
        (
            lambda v: [*sample("a", v, nframes=None), *sample("b", v)],
            "a",
            "nframes is missing",
        ),
        (lambda v: sample("a", v, nframes=b"8"), "a", "nframes has 1 bytes; it is a little"),
        (lambda v: sample("a", v, nframes=bytes(4)), "a", "nframes says 0 frames"),
        (lambda v: sample("a", v, cls=b"3"), "a", "the label 3 has no name among 3 classes"),
        (lambda v: sample("a", v, cls=b"dance"), "a", "'dance' is neither a number nor a known"),
        (lambda v: sample("a", v, cls=b""), "a", "'' is neither a number"),
        (lambda v: sample("a", v, json=b"{"), "a", "json is not a JSON object"),
        (lambda v: sample("a", v, json=b"[" * 99999), "a", "json is not a JSON object"),
        (lambda v: [], "", "the shard has no samples"),
    ],
)
def test_structure(video, tmp_path, members, key, reason):
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    path = pack(tmp_path / "train" / "0.tar", members(video))
    bad = found(check(path, "tar"))
    assert list(bad) == [key] and bad[key][0] == "tar" and reason in bad[key][1], bad


def test_what_other_people_write_is_fine(video, tmp_path):
    """Labels as names or in JSON, folders, webdataset's notes, concatenated shards."""
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    folder = tarfile.TarInfo("./bend")
    folder.type = tarfile.DIRTYPE
    entries = [
        (folder, b""),
        *sample("./bend/a", video),
        *sample("b", video, cls=b"wave\n"),
        *sample("c", video, cls=None),
        *sample("d", video, json=None),
        ("__meta__/notes", b"x"),
    ]
    first = pack(tmp_path / "train" / "0.tar", entries)
    more = pack(tmp_path / "more.tar", sample("e", video))
    first.write_bytes(first.read_bytes() + more.read_bytes())
    report = check(first)
    assert report.bad == [] and report.samples == 5 and report.frames == 40
    with tarfile.open(more, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
        for name, content in sample("f" * 150, video):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    assert check(more).bad == [] and check(more).samples == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged after 0 samples"),
        (b"no tar" * 1000, "not a tar: no header at its start"),
        (bytes(10240), "the shard has no samples"),
        (b"\x1f\x8b" + bytes(99), "gzip-compressed"),
    ],
)
def test_shards_that_are_none(tmp_path, content, reason):
    (tmp_path / "0.tar").write_bytes(content)
    assert reason in found(check(tmp_path))[""][1]

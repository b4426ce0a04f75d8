"""Shards for tests, right ones and wrong ones."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import pytest

from stmeta.data.shards.writer import EncodedSample, write_shards
from stmeta.data.verify.verifier import VerifyReport, verify

CLASSES = ["bend", "jump", "wave"]
END = bytes(1024)
GOOD = {"cls": b"1", "nframes": struct.pack("<i", 8), "json": b'{"label": 1}'}


def pack(
    path: Path, members: list[tuple[str, bytes]] | list[tuple[tarfile.TarInfo, bytes]]
) -> Path:
    """Write a tar as it is told, right or wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def sample(key: str, video: bytes, extension: str = "mp4", **changes: bytes | None):
    """Members of a sample; None leaves one out."""
    members = {extension: video} | GOOD | changes
    return [(f"{key}.{name}", content) for name, content in members.items() if content is not None]


@pytest.fixture(scope="module")
def video(make_video) -> bytes:
    return make_video(5, frames=8)


@pytest.fixture
def split(make_video, tmp_path) -> Path:
    """Nine good samples in three shards."""
    samples = [
        EncodedSample(key=f"c{i}", video=make_video(i, frames=8 + i), extension="mp4", label=i % 3)
        for i in range(9)
    ]
    write_shards(samples, tmp_path / "train", classes=CLASSES, shard_mib=0.005)
    return tmp_path / "train"


def found(report: VerifyReport) -> dict[str, tuple[str, str]]:
    return {bad.key: (bad.level, bad.reason) for bad in report.bad}


def check(path: Path, level: str = "decode", **options) -> VerifyReport:
    return verify([path], level=level, workers=1, **options)


def shards(split: Path) -> list[Path]:
    return sorted(split.glob("*.tar"))


def entry(name: str | bytes, content: bytes = b"", kind: bytes = b"0", size: int | None = None):
    """Bytes of one entry, whatever its header is to claim; the checksum is right."""
    size = len(content) if size is None else size
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    raw = name if isinstance(name, bytes) else name.encode()
    header[:100] = raw[:100].ljust(100, b"\0")
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)

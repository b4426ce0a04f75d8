"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people (Lake et al. 2015, Science).

Read from the official archives, or from the same pictures as arrays; nothing is downloaded:

    images_background.zip, images_evaluation.zip        (github.com/brendenlake/omniglot), or
    images_background.npz, images_evaluation.npz        `images`: bool [n, 20, 105, 105], ink False
      and charid_to_alphabet_character.csv              char_id, split, npz_row, alphabet, character
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stmeta._errors import DataError
from stmeta._util.hashing import hash64

SIDE, DRAWINGS = 105, 20
_CHARACTERS = {"background": 964, "evaluation": 659}
_TRAIN, _SEED = 1200, 0  # of the split `santoro`
_TABLE = "charid_to_alphabet_character.csv"
_VERSION = 1  # change it with anything that changes the pictures: old caches then go unused
_MEMBER = re.compile(r"images_(\w+)/([^/\\\x00-\x1f]{1,64})/(character\d\d)/\d{4}_(\d\d)\.png")
_MAX_PICTURE, _MAX_TABLE = 1 << 16, 1 << 20  # bytes; the real ones have about 200 and 71,000
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x69\0\0\0\x69"
_AGAIN = "get the official images_*.zip from github.com/brendenlake/omniglot (folder python)"
# What a damaged or foreign file can make zipfile, csv, int() and numpy raise.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, csv.Error, tokenize.TokenError),
    *(EOFError, OSError, KeyError, ValueError),
)


@dataclass(frozen=True)
class Omniglot:
    """Classes of hand-drawn characters, in memory."""

    images: Tensor
    """uint8 [classes, 20, size, size]: share of a pixel covered with ink, 0 = none, 255 = all."""
    names: list[str]
    """alphabet/character/rotNNN of each class; NNN = degrees counter-clockwise."""

    def __len__(self) -> int:
        """Classes."""
        return len(self.names)

    @property
    def size(self) -> int:
        """Side of a picture in pixels."""
        return self.images.shape[-1]

    @property
    def alphabets(self) -> list[str]:
        """Alphabet of each class."""
        return [name.split("/")[0] for name in self.names]


def load_omniglot(
    root: str | os.PathLike[str],
    *,
    size: int = 20,
    rotations: bool = True,
    split: Literal["santoro", "official"] = "santoro",
    part: Literal["train", "test"] = "train",
    cache: str | os.PathLike[str] | None = None,
) -> Omniglot:
    """Load one part of a split.

    Pictures shrink by exact area averaging in whole numbers, so every machine gets the same bytes.

    Args:
        root: folder with the files named above; where both kinds lie there, arrays are read.
        size: side of the pictures, 1 ... 105.
        rotations: add each character turned by 90, 180 and 270 degrees as classes of their own,
            next to the upright one. It concerns the part asked for.
        split: "santoro" = 1,200 / 423 of all characters, in a fixed random order (Santoro et al.
            2016, section 4.1); "official" = background (964 characters, 30 alphabets) / evaluation
            (659, 20 other alphabets).
        part: "train" or "test".
        cache: folder that keeps the shrunken pictures, for the next time; None = keep nothing.

    Returns:
        Classes with 20 pictures each: four per character with rotations, otherwise one.

    Raises:
        ValueError: an argument is out of range.
        DataError: a file is missing, damaged, incomplete or something else than Omniglot.
    """
    if not 1 <= size <= SIDE:
        raise ValueError(f"load_omniglot: size must be in 1 ... {SIDE}, got {size}")
    if split not in ("santoro", "official"):
        raise ValueError(f"load_omniglot: split must be santoro or official, got {split!r}")
    if part not in ("train", "test"):
        raise ValueError(f"load_omniglot: part must be train or test, got {part!r}")
    root, cache = Path(root), None if cache is None else Path(cache)
    if split == "official":
        images, names = _load(root, "background" if part == "train" else "evaluation", size, cache)
    else:
        both = [_load(root, name, size, cache) for name in _CHARACTERS]
        images, names = np.concatenate([i for i, _ in both]), [n for _, ns in both for n in ns]
        order = sorted(range(len(names)), key=lambda i: hash64(_SEED, i))
        order = order[:_TRAIN] if part == "train" else order[_TRAIN:]
        images, names = images[order], [names[i] for i in order]
    turns = range(4 if rotations else 1)
    images = np.stack([np.rot90(images, turn, (2, 3)) for turn in turns], 1)
    names = [f"{name}/rot{90 * turn:03d}" for name in names for turn in turns]
    return Omniglot(torch.from_numpy(images.reshape(-1, DRAWINGS, size, size)), names)


def _load(root: Path, part: str, size: int, cache: Path | None) -> tuple[np.ndarray, list[str]]:
    """Pictures of one file, uint8 [n, 20, size, size], and alphabet/character of each, sorted."""
    arrays, pictures = root / f"images_{part}.npz", root / f"images_{part}.zip"
    path = arrays if arrays.is_file() else pictures
    if not path.is_file():
        raise DataError(
            f"{root}: holds neither {arrays.name} (with {_TABLE}) nor {pictures.name}; {_AGAIN}"
        )
    with _reading(path), zipfile.ZipFile(path) as archive:
        names, rows = _array_names(root, part) if path == arrays else _picture_names(archive, part)
        kept = cache / _cache_name(archive, part, size, names) if cache else None
        if kept and (found := _cached(kept, (len(names), DRAWINGS, size, size))) is not None:
            return found, sorted(names)
        drawings = _array_drawings(archive, part) if path == arrays else _drawings(archive, rows)
        weights = _overlaps(size)
        images = np.stack([_shrink(ink, weights) for ink in drawings])
        # Both kinds of file then give the same order.
        images = images[sorted(range(len(names)), key=names.__getitem__)]
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{os.getpid()}-{kept.name}")
        np.save(partial, images)
        os.replace(partial, kept)
    return images, sorted(names)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file, and the remedy, in whatever goes wrong."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}; {_AGAIN}") from error
    except (*_DAMAGE, RuntimeError) as error:  # zipfile: encrypted, or compressed in a strange way
        raise DataError(f"{path}: not an archive of Omniglot ({error}); {_AGAIN}") from error


def _cache_name(archive: zipfile.ZipFile, part: str, size: int, names: list[str]) -> str:
    """A name that follows the contents: an archive's directory has a checksum of each member."""
    members = [(m.filename, m.file_size, m.CRC) for m in archive.infolist()]
    digest = hashlib.sha256(repr((_VERSION, names, members)).encode("utf-8", "replace"))
    return f"omniglot-{part}-{size}-{digest.hexdigest()[:16]}.npy"


def _cached(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """What an earlier call kept, or None where it is missing or damaged."""
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.dtype == np.uint8 and images.shape == shape else None


def _overlaps(size: int) -> np.ndarray:
    """float32 [size, 105]: overlap of new and old pixels, in units in which new ones are 105 wide.

    All sums of such overlaps are whole and below 2**24: float32 products of them are exact.
    """
    new, old = np.arange(size)[:, None] * SIDE, np.arange(SIDE)[None] * size
    overlap = np.minimum(new + SIDE, old + size) - np.maximum(new, old)
    return np.maximum(overlap, 0).astype(np.float32)


def _shrink(ink: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Bool [n, 105, 105] to uint8 [n, size, size]: share of ink, rounded."""
    covered = (weights @ ink.astype(np.float32) @ weights.T).astype(np.int32)
    return ((covered * 510 + SIDE**2) // (2 * SIDE**2)).astype(np.uint8)


def _array_names(root: Path, part: str) -> tuple[list[str], list[list[str]]]:
    """Name of each row of the arrays."""
    path = root / _TABLE
    if not path.is_file():
        raise DataError(f"needs {_TABLE} beside it, which names its rows")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(io.StringIO(file.read(_MAX_TABLE))))
    named: dict[int, str] = {}
    for row in rows:
        if row.get("split") == part:
            number = row.get("npz_row") or ""
            named[int(number)] = f"{row.get('alphabet')}/{row.get('character')}"
    count = _CHARACTERS[part]
    if sorted(named) != list(range(count)) or len(set(named.values())) != count:
        raise DataError(f"{_TABLE} must name rows 0 ... {count - 1} of {part}, got {len(named)}")
    return [named[number] for number in range(count)], []


def _array_drawings(archive: zipfile.ZipFile, part: str) -> Iterator[np.ndarray]:
    """Ink of one character after the other.

    Not by `np.load`, which makes room for whatever a header says.
    """
    count = _CHARACTERS[part]
    expected = (count, DRAWINGS, SIDE, SIDE)
    with archive.open("images.npy") as member:
        np.lib.format.read_magic(member)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member, 256)
        if (shape, fortran, dtype) != (expected, False, np.dtype(bool)):
            order = " in Fortran's order" if fortran else ""
            raise DataError(f"`images` must be bool {expected}, got {dtype} {shape}{order}")
        one = DRAWINGS * SIDE**2
        for number in range(count):
            content = member.read(one)
            if len(content) != one:
                raise DataError(f"truncated: ends in character {number} of {count}")
            yield np.frombuffer(content, np.uint8).reshape(DRAWINGS, SIDE, SIDE) == 0
        if member.read(1):  # reading the end also compares the checksum
            raise DataError("`images` goes on after its last character")


def _picture_names(archive: zipfile.ZipFile, part: str) -> tuple[list[str], list[list[str]]]:
    """Characters of an official archive, and the members with their drawings 01 ... 20.

    Names of members are only ever compared and shown; nothing is written.
    """
    members: dict[str, dict[int, str]] = {}
    for name in archive.namelist():
        if (match := _MEMBER.fullmatch(name)) and match[1] == part:
            members.setdefault(f"{match[2]}/{match[3]}", {})[int(match[4])] = name
    if not members:
        raise DataError(f"holds no images_{part}/ALPHABET/characterNN/NNNN_MM.png")
    for character, found in members.items():
        if sorted(found) != list(range(1, DRAWINGS + 1)):
            raise DataError(
                f"{character} must have drawings 01 ... {DRAWINGS}, has {len(found)} pictures"
            )
    if len(members) != _CHARACTERS[part]:
        raise DataError(f"must hold {_CHARACTERS[part]} characters, got {len(members)}")
    rows = [[found[i] for i in range(1, DRAWINGS + 1)] for found in members.values()]
    return list(members), rows


def _drawings(archive: zipfile.ZipFile, rows: list[list[str]]) -> Iterator[np.ndarray]:
    """Ink of one character after the other, bool [20, 105, 105]."""
    for row in rows:
        pictures = []
        for name in row:
            with archive.open(name) as member:
                content = member.read(_MAX_PICTURE + 1)
            if not content.startswith(_PNG_START) or len(content) > _MAX_PICTURE:
                raise DataError(f"{name}: must be a PNG of {SIDE}×{SIDE} pixels")
            try:
                pictures.append(_ink(content))
            except (OSError, SyntaxError, ValueError, zlib.error) as error:
                raise DataError(f"{name}: damaged, or not grey with at most 8 bits") from error
        yield np.stack(pictures)


def _ink(content: bytes) -> np.ndarray:
    """Bool [105, 105] of a grey PNG.

    By Pillow, as FFmpeg dithers pictures of 1 bit and adds them up.
    """
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        if image.mode not in ("1", "L") or image.info.get("interlace"):
            raise ValueError("neither grey nor plain")
        if not _has_all_rows(content, SIDE * (1 + (SIDE * content[24] + 7) // 8)):
            raise ValueError("rows are missing")
        return np.asarray(image.convert("L")) < 128


def _has_all_rows(content: bytes, size: int) -> bool:
    """Whether the pixels unpack to `size` bytes; Pillow and FFmpeg take missing ones for black."""
    unpacker, unpacked, at = zlib.decompressobj(), 0, 8
    while at < len(content) and unpacked < size:
        length = int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] == b"IDAT":
            chunk = content[at + 8 : at + 8 + length]
            unpacked += len(unpacker.decompress(chunk, size - unpacked))
        at += length + 12
    return unpacked == size

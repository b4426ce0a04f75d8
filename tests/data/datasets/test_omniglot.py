from __future__ import annotations

import csv
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from stmeta._errors import DataError
from stmeta.data.datasets import omniglot
from stmeta.data.datasets.omniglot import load_omniglot

# In this order in the files; sorted, "Alpha" comes first.
NAMES = {
    "background": [
        *("Greek/character01", "Greek/character02", "Alpha/character01"),
        *("Alpha/character02", "Alpha/character10", "Beta/character01"),
    ],
    "evaluation": ["Zeta/character01", "Zeta/character02", "Eta/character01"],
}
TABLE = "charid_to_alphabet_character.csv"


@pytest.fixture(autouse=True)
def small(request, monkeypatch):
    """The real set has 964 + 659 characters; the ones made here 6 + 3, of which 5 train."""
    if "shared_data" not in request.fixturenames:
        monkeypatch.setattr(omniglot, "_CHARACTERS", {"background": 6, "evaluation": 3})
        monkeypatch.setattr(omniglot, "_TRAIN", 5)


def drawings(part: str) -> np.ndarray:
    """bool [n, 20, 105, 105], ink False: strokes that no turn leaves as they are."""
    random = np.random.default_rng(len(NAMES[part]))
    paper = np.ones((len(NAMES[part]), 20, 105, 105), bool)
    for image in paper.reshape(-1, 105, 105):
        for _ in range(4):
            top, left, height, width = random.integers(0, 80, 4)
            image[top : top + 2 + height // 4, left : left + 2 + width // 2] = False
    return paper


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(paper: np.ndarray, depth: int = 1, side: int = 105, filters: bool = False) -> bytes:
    """Grey PNG of a bool [H, W]; 1 bit a pixel, unfiltered, is what the official archives have."""
    rows = np.packbits(paper, axis=1) if depth == 1 else paper.astype(np.uint8) * 255
    coded, previous = [], np.zeros(rows.shape[1] + 1, np.int64)
    for number, row in enumerate(rows):
        now = np.concatenate([[0], row]).astype(np.int64)
        a, b, c = now[:-1], previous[1:], previous[:-1]
        near = np.abs(a + b - c - np.stack([a, b, c])).argmin(0)  # the first one wins a draw
        guesses = [0 * a, a, b, (a + b) // 2, np.stack([a, b, c])[near, np.arange(len(a))]]
        kind = number % 5 if filters else 0
        coded.append(bytes([kind]) + (now[1:] - guesses[kind]).astype(np.uint8).tobytes())
        previous = now
    header = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    content = zlib.compress(b"".join(coded))
    parts = [(b"IHDR", header), (b"tEXt", b"a\0b"), (b"IDAT", content[:50])]
    parts += [(b"IDAT", content[50:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def write_arrays(root: Path, **change) -> Path:
    root.mkdir(exist_ok=True)
    rows = [("char_id", "split", "npz_row", "alphabet", "character")]
    for part, names in NAMES.items():
        labels = np.zeros((len(names), 20), np.int64)
        np.savez_compressed(
            root / f"images_{part}.npz", images=change.get(part, drawings(part)), labels=labels
        )
        rows += [(len(rows), part, i, *name.split("/")) for i, name in enumerate(names)]
    with open(root / TABLE, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def members(part: str, **options) -> dict[str, bytes]:
    return {
        f"images_{part}/{name}/{number:04d}_{i:02d}.png": png(image, **options)
        for number, (name, images) in enumerate(zip(NAMES[part], drawings(part), strict=True), 1)
        for i, image in enumerate(images, 1)
    }


def write_zip(root: Path, part: str, files: dict[str, bytes]) -> None:
    root.mkdir(exist_ok=True)
    # As in archives made on a Mac, or by an enemy.
    more = [f"images_{part}/", f"__MACOSX/images_{part}/Greek/._character01", "../../outside.png"]
    with zipfile.ZipFile(root / f"images_{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in [*more, *reversed(files)]:
            archive.writestr(name, files.get(name, b""))


def shrunk(paper: np.ndarray, size: int) -> np.ndarray:
    """Share of ink, 0 ... 255: every pixel becomes size × size, then blocks of 105 × 105 unite."""
    ink = (~paper).repeat(size, -2).repeat(size, -1)
    blocks = ink.reshape(*paper.shape[:-2], size, 105, size, 105)
    return blocks.mean((-3, -1), dtype=np.float64) * 255


@pytest.mark.parametrize("size", [20, 28, 1])
def test_pictures_are_shares_of_ink(tmp_path, size):
    root = write_arrays(tmp_path)
    data = load_omniglot(root, size=size, split="official", part="test", rotations=False)
    assert data.images.dtype == torch.uint8 and data.images.shape == (3, 20, size, size)
    assert data.size == size and len(data) == 3
    assert data.names == [f"{name}/rot000" for name in sorted(NAMES["evaluation"])]
    assert data.alphabets == ["Eta", "Zeta", "Zeta"]
    paper = drawings("evaluation")[[2, 0, 1], :3]
    error = np.abs(data.images[:, :3].numpy() - shrunk(paper, size))
    assert error.max() <= 0.5 + 1e-9


@pytest.mark.parametrize("options", [{}, {"filters": True}, {"depth": 8}])
def test_archives_and_arrays_give_the_same(tmp_path, options):
    arrays = write_arrays(tmp_path / "arrays")
    for part in NAMES:
        write_zip(tmp_path / "zips", part, members(part, **options))
    for part in ("train", "test"):
        one = load_omniglot(arrays, part=part)
        other = load_omniglot(tmp_path / "zips", part=part)
        assert one.names == other.names and torch.equal(one.images, other.images)
    assert not list(tmp_path.rglob("outside*"))


def test_turned_characters_are_classes(tmp_path):
    plain = load_omniglot(write_arrays(tmp_path), rotations=False)
    data = load_omniglot(tmp_path, rotations=True)
    assert data.images.shape == (20, 20, 20, 20) and len(set(data.names)) == 20
    assert data.names[:4] == [plain.names[0][:-3] + turn for turn in ("000", "090", "180", "270")]
    for turn in range(4):
        assert torch.equal(data.images[turn::4], torch.rot90(plain.images, turn, (2, 3)))
        # Turning the drawing itself would have given the same.
        turned = {p: np.rot90(drawings(p), turn, (2, 3)) for p in NAMES}
        first = load_omniglot(write_arrays(tmp_path / f"{turn}", **turned), rotations=False)
        assert torch.equal(first.images, data.images[turn::4])
    assert not torch.equal(data.images[0], data.images[2])


def test_splits(tmp_path):
    write_arrays(tmp_path)

    def names(split: str, part: str) -> list[str]:
        data = load_omniglot(tmp_path, split=split, part=part, rotations=False)
        return [name.removesuffix("/rot000") for name in data.names]

    assert names("official", "train") == sorted(NAMES["background"])
    assert names("official", "test") == sorted(NAMES["evaluation"])
    train, test = names("santoro", "train"), names("santoro", "test")
    assert (len(train), len(test)) == (5, 4)
    assert sorted(train + test) == sorted(NAMES["background"] + NAMES["evaluation"])


def test_cache(tmp_path, monkeypatch):
    write_arrays(tmp_path / "data")
    cache = tmp_path / "new" / "cache"
    first = load_omniglot(tmp_path / "data", cache=cache)
    files = sorted(cache.iterdir())
    assert len(files) == 2

    with monkeypatch.context() as patch:
        patch.delattr(omniglot, "_array_drawings")
        again = load_omniglot(tmp_path / "data", cache=cache)
        with pytest.raises(NameError):  # another size has to be read
            load_omniglot(tmp_path / "data", cache=cache, size=14)
    assert again.names == first.names and torch.equal(again.images, first.images)
    files[0].write_bytes(files[0].read_bytes()[:-100])
    assert torch.equal(load_omniglot(tmp_path / "data", cache=cache).images, first.images)
    # Other pictures in files of the same names are not taken for the old ones.
    write_arrays(tmp_path / "data", background=~drawings("background"))
    other = load_omniglot(tmp_path / "data", cache=cache)
    assert other.names == first.names and not torch.equal(other.images, first.images)
    kept = list(cache.iterdir())
    assert len(kept) == 3 and set(files) < set(kept) and not list(cache.glob(".*"))


def test_arguments(tmp_path):
    for options, message in (
        ({"size": 106}, r"size must be in 1 ... 105, got 106"),
        ({"split": "lake"}, "split must be santoro or official, got 'lake'"),
        ({"part": "val"}, "part must be train or test, got 'val'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_omniglot(tmp_path, **options)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"neither images_background.npz .* nor images_background."):
        load_omniglot(tmp_path)
    write_arrays(tmp_path)
    (tmp_path / TABLE).unlink()
    with pytest.raises(DataError, match=rf"background.npz: needs {TABLE} .*; get the official"):
        load_omniglot(tmp_path)


def test_damaged_arrays(tmp_path):
    def load(part: str = "train"):
        return load_omniglot(tmp_path, split="official", part=part)

    path = write_arrays(tmp_path) / "images_background.npz"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"images_background.npz: not an archive .*not a zip"):
        load()
    middle = len(content) // 3
    path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    with pytest.raises(DataError, match=r"images_background.npz: not an archive"):
        load()
    np.savez(path, pictures=np.zeros(3))
    with pytest.raises(DataError, match=r"not an archive .*images.npy"):
        load()
    for wrong in (drawings("evaluation"), drawings("background").astype(np.uint8)):
        np.savez_compressed(path, images=wrong)
        with pytest.raises(DataError, match=r"must be bool \(6, 20, 105, 105\), got \w+ \(\d, 20"):
            load()
    np.savez_compressed(path, images=np.asfortranarray(drawings("background")))
    with pytest.raises(DataError, match=r"must be bool .* in Fortran's order"):
        load()
    np.savez_compressed(path, images=np.array([{}], dtype=object))  # would run code, unpickled
    with pytest.raises(DataError, match=r"must be bool .*, got object"):
        load()
    rows = (tmp_path / TABLE).read_text().splitlines()
    for table in (rows[:-1], [rows[0], *rows[2:]], [*rows[:-1], rows[-1].replace(",2,", ",7,")]):
        (tmp_path / TABLE).write_text("\n".join(table))
        with pytest.raises(DataError, match=r"must name rows 0 ... \d of"):
            load("train" if table[1] != rows[1] else "test")


@pytest.mark.parametrize("change", [-1, 1])
def test_an_array_of_another_length_than_its_header(tmp_path, change):
    path = write_arrays(tmp_path) / "images_evaluation.npz"
    with zipfile.ZipFile(path) as archive:
        content = archive.read("images.npy")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content[:-1] if change < 0 else content + b"\0")
    expected = "truncated: ends in character 2 of 3" if change < 0 else "goes on after its last"
    with pytest.raises(DataError, match=expected):
        load_omniglot(tmp_path, split="official", part="test")


@pytest.mark.parametrize(
    "header", ["(" * 99, "-" * 9000 + "1", "{}", "[1]", "{'descr': '|b1'}", ""]
)
def test_an_array_with_a_hostile_header(tmp_path, header):
    path = write_arrays(tmp_path) / "images_evaluation.npz"
    start = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", start + header.encode())
    with pytest.raises(DataError, match=r"images_evaluation.npz: not an archive of Omniglot"):
        load_omniglot(tmp_path, split="official", part="test")


def test_damaged_archives(tmp_path):
    good = members("evaluation")
    first = next(iter(good))

    def check(message: str, files: dict[str, bytes]) -> None:
        write_zip(tmp_path, "evaluation", files)
        with pytest.raises(DataError, match=message):
            load_omniglot(tmp_path, split="official", part="test")

    check(r"holds no images_evaluation/ALPHABET", members("background"))
    check(r"Zeta/character01 must have drawings 01 ... 20, has 19", dict(list(good.items())[1:]))
    check("must hold 3 characters, got 2", dict(list(good.items())[20:]))
    more = {name.replace("Eta", "Theta"): good[name] for name in good if "Eta" in name}
    check("must hold 3 characters, got 4", good | more)
    blank = np.ones((105, 105), bool)
    for content in (b"GIF89a", b"", png(blank, side=60000), png(blank) + bytes(1 << 20)):
        check(f"{first}: must be a PNG of 105×105", good | {first: content})
    old = good[first]
    flags = [old[:i] + bytes([3]) + old[i + 1 :] for i in (24, 25, 26, 27, 28)]
    for content in (png(blank[:104]), old[:90], old[:40], old[:60] + b"?", *flags):
        check(f"{first}: damaged, or not grey", good | {first: content})
    (tmp_path / "images_evaluation.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"images_evaluation.zip: not an archive of Omniglot"):
        load_omniglot(tmp_path, split="official", part="test")


@pytest.fixture
def real(shared_data):
    if not (shared_data / "omniglot").is_dir():
        pytest.skip(f"Omniglot is not here ({shared_data})")
    return shared_data / "omniglot"


def test_real_pictures(real):
    parts = [load_omniglot(real, part=part, rotations=False) for part in ("train", "test")]
    assert [len(part) for part in parts] == [1200, 423]
    assert len({name for part in parts for name in part.names}) == 1623
    assert len({a for part in parts for a in part.alphabets}) == 50
    # The split is part of every published result: it must never move.
    assert parts[0].names[0] == "Syriac_(Serto)/character20/rot000"
    assert parts[1].names[:2] == ["Armenian/character13/rot000", "N_Ko/character27/rot000"]
    for part in parts:
        images = part.images.float() / 255
        assert 0.07 < images.mean() < 0.09  # ink, not paper: strokes cover 8 %
        assert images.amax((-1, -2)).min() > 0.2  # Braille has dots smaller than a pixel


def test_real_official_split(real):
    data = load_omniglot(real, split="official", part="test", size=28)
    assert data.images.shape == (659 * 4, 20, 28, 28)
    assert len(set(data.alphabets)) == 20 and data.names[1] == "Angelic/character01/rot090"
    raw = np.load(real / "images_evaluation.npz")["images"][3, :4]
    assert data.names[12] == "Angelic/character04/rot000"
    assert np.abs(data.images[12, :4].numpy() - shrunk(raw, 28)).max() <= 0.5 + 1e-9

"""Turned and mirrored films, and pixels that are not square, come as a viewer shows them."""

from __future__ import annotations

import io

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from stmeta.data.augment.crop import Window, shown_window
from stmeta.data.decode import pyav
from stmeta.data.ingest.encode import encode_frames
from stmeta.data.ingest.transcode import transcode
from stmeta.data.shards.index_checks import table_fault
from stmeta.data.shards.index_file import INDEX_NAME
from stmeta.data.shards.writer import EncodedSample, ShardIndex, write_shards
from stmeta.data.verify.inspect import find_sample, summarise
from stmeta.data.verify.pictures import pictures
from stmeta.data.video.display import AS_STORED, Display
from stmeta.data.video.probe import probe
from tests.data._loading import all_same, batches, copied, needs_dali
from tests.data._videos import decode

# (rotation, mirror) and what it does to rows and columns: numpy's transpose, then flips of both.
WAYS = {
    (0, False): lambda v: v,
    (90, False): lambda v: v.swapaxes(1, 2)[:, :, ::-1],
    (180, False): lambda v: v[:, ::-1, ::-1],
    (270, False): lambda v: v.swapaxes(1, 2)[:, ::-1],
    (0, True): lambda v: v[:, :, ::-1],  # hflip
    (180, True): lambda v: v[:, ::-1],  # vflip
    (90, True): lambda v: v.swapaxes(1, 2),  # transpose
    (270, True): lambda v: v.swapaxes(1, 2)[:, ::-1, ::-1],  # transverse
}


def corners(frames: int = 4, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 [T, H, W, 3]: four corners of different greys, all smooth."""
    down = np.linspace(0, 120, height)[:, None]
    across = np.linspace(0, 60, width)[None]
    return np.broadcast_to(
        (40 + down + across).astype(np.uint8)[None, ..., None], (frames, height, width, 3)
    )


def split_of(video: bytes, folder, extension: str = "mp4"):
    sample = EncodedSample(key="a", video=video, extension=extension, label=0)
    write_shards([sample], folder / "train", classes=["a"])
    return folder / "train"


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_to_turn_and_mirror(way, tmp_path):
    video = encode_frames(corners(), 25, rotation=way[0], mirror=way[1], crf=4)
    expected = WAYS[way](decode(video))
    info = probe(video)
    assert (info.rotation, info.mirror, info.aspect) == (*way, 1)
    every, packets = np.arange(4), pyav.read_packets(video)
    np.testing.assert_array_equal(info.display.upright(decode(video)), expected)
    for listed in (None, packets):
        found = pyav.decode(video, every, packets=listed, display=info.display).video
        np.testing.assert_array_equal(found, expected)
    stored = decode(transcode(video, fps=None, short_side=None, crf=4))
    assert stored.shape == expected.shape
    difference = stored.astype(int) - expected
    assert np.abs(difference).mean() < 1 and abs(difference.mean()) < 0.1
    split = split_of(video, tmp_path)
    shown, reason = pictures(find_sample(split, "a"), 4)
    assert not reason
    np.testing.assert_array_equal([picture.image for picture in shown], expected)
    assert summarise(split).rotated == (way != (0, False))
    settings = {"frames": 4, "size": 64, "crop": "plain", "train": False}
    top, left = (expected.shape[1] - 64) // 2, (expected.shape[2] - 64) // 2
    middle = expected[:, top : top + 64, left : left + 64]
    for processes in (0, 1):
        (batch,) = batches(split, processes=processes, **settings)
        np.testing.assert_array_equal(batch.video[0].permute(0, 2, 3, 1).numpy(), middle)


@needs_dali
@pytest.mark.parametrize("way", [(180, True), (90, True)], ids=str)
def test_dali_gets_them_upright(way, tmp_path):
    split = split_of(encode_frames(corners(), 25, rotation=way[0], mirror=way[1]), tmp_path)
    settings = {"frames": 4, "size": 64, "crop": "plain", "train": False}
    assert all_same(
        batches(split, decoder="dali", **settings), batches(split, decoder="pyav", **settings)
    )


@pytest.mark.parametrize("name", ["hflip", "vflip", "transpose", "transverse"])
def test_real_matrices(shared_data, name):
    path = shared_data / "faults" / "video" / f"matrix_{name}.mp4"
    if not path.exists():
        pytest.skip("faults are not here")
    ways = {"hflip": (0, True), "vflip": (180, True), "transpose": (90, True)}
    info = probe(path)
    assert (info.rotation, info.mirror) == ways.get(name, (270, True))


def test_a_matrix_of_nothing_and_one_that_is_skewed():
    frames, matrices = corners(2), ([0] * 9, [65536, 3000, 0, -3000, 65536, 0, 0, 0, 1 << 30])
    for matrix in matrices:
        out = io.BytesIO()
        with av.open(io.BytesIO(encode_frames(frames, 25)), "r") as source:
            with av.open(out, "w", format="mp4") as target:
                stream = target.add_stream_from_template(source.streams.video[0])
                stream.set_display_matrix(matrix)
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        target.mux(packet)
        assert probe(out.getvalue()).display == AS_STORED


def disc(height: int, width: int, aspect: float) -> np.ndarray:
    """A bright disc whose outline is a circle once pixels are `aspect` times as wide as high."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2 + 0.5) * aspect) ** 2 + (y - height / 2 + 0.5) ** 2 < 24**2
    return np.where(inside, 220, 30).astype(np.uint8)[None, ..., None].repeat(3, 3).repeat(4, 0)


def roundness(picture: np.ndarray) -> float:
    """Width over height of what is bright."""
    bright = picture[..., 0] > 125
    return bright.any(0).sum() / bright.any(1).sum()


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("aspect", [2.0, 1.5, 0.5])
@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_pixels_that_are_not_square(codec, aspect, rotation, tmp_path):
    if codec == "mjpeg" and rotation:
        pytest.skip("AVI has no matrix")
    options = {"codec": codec, "aspect": aspect, "rotation": rotation}
    video = encode_frames(disc(128, 144, aspect), 25, **options)
    info = probe(video)
    assert info.aspect == aspect
    assert abs(roundness(decode(video)[0]) * aspect - 1) < 0.1
    stored = decode(transcode(video, fps=None, short_side=None))
    assert abs(roundness(stored[0]) - 1) < 0.1
    assert probe(transcode(video, fps=None)).aspect == 1
    split = split_of(video, tmp_path, {"h264": "mp4", "mjpeg": "avi"}[codec])
    assert abs(roundness(pictures(find_sample(split, "a"), 1)[0][0].image) - 1) < 0.1
    assert summarise(split).stretched == 1
    for settings in ({"crop": "resized"}, {"crop": "plain"}):
        for processes in (0, 1):
            (batch,) = batches(
                split, frames=4, size=64, train=False, processes=processes, **settings
            )
            assert abs(roundness(batch.video[0, 0].permute(1, 2, 0).numpy()) - 1) < 0.1


@needs_dali
@pytest.mark.parametrize("codec", ["h264", "mjpeg"])  # the second one is decoded by DALI itself
def test_dali_makes_pixels_square(codec, tmp_path):
    extension = {"h264": "mp4", "mjpeg": "avi"}[codec]
    video = encode_frames(disc(128, 144, 2.0), 25, codec=codec, aspect=2.0)
    split = split_of(video, tmp_path, extension)
    (batch,) = batches(split, frames=4, size=64, train=False, decoder="dali")
    assert abs(roundness(batch.video[0, 0].permute(1, 2, 0).numpy()) - 1) < 0.1


@pytest.mark.parametrize("aspect", [1.0, 0.4, 3.0])
@pytest.mark.parametrize("turn", [0, 90])
def test_windows_stay_inside(aspect, turn):
    for drawn in (Window(0, 0, 1, 1, True), Window(10, 3, 20, 30, False)):
        found = shown_window(lambda *_, drawn=drawn: drawn, 0, 48, 64, Display(turn, False, aspect))
        assert 0 <= found.top and found.top + found.height <= 48 and found.height > 0
        assert 0 <= found.left and found.left + found.width <= 64 and found.width > 0
    whole = shown_window(
        lambda seed, height, width: Window(0, 0, height, width, True),
        0,
        48,
        64,
        Display(turn, False, aspect),
    )
    assert whole == Window(0, 0, 48, 64, True)


def test_an_index_of_an_earlier_version_is_read(make_video, tmp_path):
    split = split_of(make_video(), tmp_path)
    table = pq.read_table(split / INDEX_NAME)
    pq.write_table(table.drop_columns(["mirror", "aspect"]), split / INDEX_NAME)
    before = (split / INDEX_NAME).read_bytes()
    for details in (False, True):
        row = ShardIndex.open(split, details=details).row(0)
        assert row.display == AS_STORED and row.frames == 20
    assert (split / INDEX_NAME).read_bytes() == before  # nobody made a new one
    (tmp_path / "more").mkdir()
    assert batches(copied(split, tmp_path / "more"), train=False)


def test_an_absurd_shape_of_pixels(make_video, tmp_path):
    assert probe(encode_frames(corners(2), 25, aspect=100.0)).aspect == 1
    split = split_of(make_video(), tmp_path)
    index = ShardIndex.open(split, details=True)
    shards = {path.name: [path.stat().st_size, 0] for path in split.glob("*.tar")}
    assert not table_fault(index._table, shards, index.classes)
    place = index._table.column_names.index("aspect")
    for value in (float("nan"), 0.0, 1e9):
        bad = index._table.set_column(place, "aspect", [[value]])
        assert "aspect must be in" in table_fault(bad, shards, index.classes)

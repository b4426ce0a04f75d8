"""How clips are chosen, cut and delivered: the settings of a loader."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from stmeta.data.augment import crop
from stmeta.data.augment.photometric import Photometric
from stmeta.data.augment.rand_augment import RandAugment
from stmeta.data.augment.random_erasing import RandomErasing
from stmeta.data.loading.sampler import ClipSampler
from stmeta.data.storage.config import StorageConfig
from stmeta.data.storage.folder import stored_stride

if TYPE_CHECKING:
    from stmeta.data.shards.index import ShardIndex


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How clips are chosen, cut and delivered."""

    batch_size: int = 32
    frames: int = 16
    """Frames of a clip."""
    stride: int = 1
    """Source frames from one clip frame to the next."""
    fps: float | None = None
    """Frames of a clip a second, in place of `stride`: each is the video's frame that is nearest in
    time, also where a video's rate varies, and clips start at any time."""
    align: Literal["auto"] | int = "auto"
    """Clips start at multiples of this. "auto": where shards were made for this stride (`stmeta
    shard --stride`), so that a clip is decoded without the frames between; else 1."""
    size: int = 64
    """Height and width of a clip in pixels."""
    train: bool = True
    """Random order, starts, crops, flips, and whole batches only; or in order, centred, all."""
    views: int = 1
    """Clips per video in an evaluation, next to each other, spread over its length."""
    repeats: int = 1
    """Training clips of one video, next to each other in the batch: the same frames, decoded once,
    with other crops, flips and changes of colour. `batch_size` counts clips and is a multiple,
    which the plan of a loader checks."""
    labelled_share: float | None = None
    """Part of every training batch that has a label; the rest is unlabelled (-1), as for
    semi-supervised training. Each part is shuffled for itself; the shorter one goes round again
    until the longer one ends. None = labels as they come."""
    crop: Literal["resized", "plain"] = "resized"
    """Resize a window of any shape to `size`, or cut size × size pixels out (costs nothing)."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the frame's area that a random resized crop takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a random resized crop."""
    hflip: float = 0.5
    """Chance of a left-right flip in training."""
    brightness: float = 0.0
    """Training clips get brighter by a factor in [1 - brightness, 1 + brightness]."""
    contrast: float = 0.0
    """The same for the distance from the clip's mean grey."""
    saturation: float = 0.0
    """The same for the distance from each pixel's grey."""
    rand_augment: str = ""
    """RandAugment in training, such as "rand-m7-mstd0.5-inc1"; "" = none. See
    `stmeta.data.augment.rand_augment`."""
    erase_chance: float = 0.0
    """Chance that one box is erased from all frames of a training clip."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Share of the picture that is erased."""
    erase_ratio: tuple[float, float] = (0.3, 10 / 3)
    """Width / height of the erased box; uniform in the logarithm."""
    erase_fill: Literal["noise", "mean"] = "noise"
    """What is put there: random pixels, the same in all frames, or the clip's mean colour."""
    decoder: Literal["auto", "dali", "pyav"] = "auto"
    processes: Literal["auto"] | int = "auto"
    """Processes that PyAV decodes in; 0 = the threads below. "auto": one for each thread, but none
    where at most two are requested, the cache holds all videos, or clips start where shards were
    made for their stride."""
    device: str = "auto"
    """Where batches are delivered: auto, cpu, cuda or cuda:N."""
    threads: int = 2
    prefetch: int = 2
    """Batches made ahead of the one that is being used."""
    seed: int = 0
    max_error_rate: float = 0.05
    """Share of unreadable samples above which loading stops with their list."""
    cache_mib: float = 1024
    """Memory for decoded video; a set that fits is decoded once."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """How shards are read that lie at an address."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "frames", "stride", "size", "views", "repeats", "threads"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        if self.processes != "auto":
            self._require("processes", self.processes >= 0, "0 or more, or auto")
        if self.align != "auto":
            self._require("align", self.align >= 1, "1 or more, or auto")
        for name in ("prefetch", "cache_mib"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("hflip", "max_error_rate", "brightness", "contrast", "saturation"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        if self.labelled_share is not None:
            self._require("labelled_share", 0 <= self.labelled_share <= 1, "in [0, 1], or None")
        low, high = self.crop_scale
        self._require("crop_scale", 0 < low <= high <= 1, "(low, high), ascending in (0, 1]")
        low, high = self.crop_ratio
        self._require("crop_ratio", 0 < low <= high, "(low, high), ascending and above 0")
        self._require("crop", self.crop in ("resized", "plain"), "resized or plain")
        self._require("decoder", self.decoder in ("auto", "dali", "pyav"), "auto, dali or pyav")
        if self.fps is not None:
            self._require("fps", 0 < self.fps < math.inf, "above 0, or None")
            self._require("stride", self.stride == 1, "1 where fps says which frames are taken")
            self._require("align", self.align in ("auto", 1), "auto where fps is given")
        self.photometric()  # checks its own part

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"LoaderConfig: {name} must be {rule}, got {getattr(self, name)!r}")

    def window(self, seed: int, height: int, width: int) -> crop.Window:
        """The window of a clip; see `stmeta.data.augment.crop`.

        Raises:
            DataError: `crop` is "plain" and the frame is smaller than `size`.
        """
        plain = self.crop == "plain"
        if not self.train:
            return crop.centre_window(height, width, size=self.size if plain else None)
        if plain:
            return crop.plain_window(seed, height, width, size=self.size, hflip=self.hflip)
        return crop.random_window(
            seed, height, width, scale=self.crop_scale, ratio=self.crop_ratio, hflip=self.hflip
        )

    def photometric(self) -> Photometric | None:
        """What changes the pixels of training clips once they are cut; None = nothing.

        Raises:
            ValueError: a setting is not understood or out of range.
        """
        made = Photometric(
            jitter=(self.brightness, self.contrast, self.saturation),
            rand_augment=RandAugment.parse(self.rand_augment) if self.rand_augment else None,
            erasing=RandomErasing(
                self.erase_chance, self.erase_area, self.erase_ratio, self.erase_fill
            ),
        )
        return made if self.train and made.active else None

    def sampler(self, index: ShardIndex, *, rank: int = 0, world_size: int = 1) -> ClipSampler:
        """The sampler of a split's clips, as a loader has it.

        Raises:
            ValueError: a setting is out of range, or the split has no samples with (or without) a
                label where `labelled_share` needs both.
        """
        return ClipSampler(
            index.frames,
            labels=index.labels,
            clip_frames=self.frames,
            stride=self.stride,
            fps=self.fps,
            batch_size=self.batch_size,
            train=self.train,
            views=self.views,
            repeats=self.repeats,
            labelled_share=self.labelled_share,
            align=self._alignment(index),
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def _alignment(self, index: ShardIndex) -> int:
        if self.fps is not None:
            return 1
        if self.align != "auto":
            return self.align
        stride = stored_stride(index.root)
        return stride if self.stride % stride == 0 else 1

    def host_only(self, *, gpu: bool) -> str:
        """Which settings DALI's graph does not serve on this kind of device; "" = none."""
        if gpu and self.train and self.repeats > 1:
            return f"repeats = {self.repeats}: decoded once, on the CPU"
        return ""

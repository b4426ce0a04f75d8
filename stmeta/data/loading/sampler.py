"""Which clips are read, and when: a pure function of (seed, epoch, position, rank, world size).

Nothing is drawn in advance and nothing is stored, so a position is all that a checkpoint needs, and
every rank, process and backend reads the same clips.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stmeta._util.hashing import hash64, shuffled, uniform
from stmeta.data.loading.labelled_sampler import LabelledSampler, positions

__all__ = ["ClipRequest", "ClipSampler", "nearest_frames"]


class ClipRequest(NamedTuple):
    """One clip to read.

    Attributes:
        sample: position in the index.
        start: first frame; where clips are sampled by time, the share of the time that the clip
            leaves over which passes before it starts, in [0, 1].
        seed: of the sample in this epoch, 64 bits.
        repeat: 0, 1, ...: number of this clip among those of the same frames.
    """

    sample: int
    start: float
    seed: int
    repeat: int = 0

    @property
    def augment_seed(self) -> int:
        """Source of everything random in the augmentation of this clip, 64 bits."""
        return hash64(self.seed, 3, self.repeat) if self.repeat else self.seed

    def shares_frames(self, other: ClipRequest) -> bool:
        """Whether both show the same frames of the same sample."""
        return (self.sample, self.start) == (other.sample, other.start)


def nearest_frames(seconds: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Frames that are nearest in time; the earlier of two that are equally near.

    Args:
        seconds: float64 [F], time of each frame, ascending.
        wanted: float64 [T], in any order.

    Returns:
        int64 [T].
    """
    middles = (seconds[1:] + seconds[:-1]) / 2
    # A clip that starts in the middle between two frames must not waver by rounding.
    return np.searchsorted(middles, wanted - 1e-6).astype(np.int64)


class ClipSampler:
    """Says which clips make up a batch.

    Training: each epoch is a new permutation of the samples, dealt out to the ranks batch by batch;
    what does not fill a batch on every rank is dropped. A set smaller than one batch on every rank
    goes round again until it fills one. Clips start anywhere in the video. With `repeats`, every
    sample gives so many clips next to each other, all of the same frames and each augmented anew
    (repeated sampling: Hoffer et al. 2020; Feichtenhofer et al. 2022, section 3). With a
    `labelled_share`, so many clips of every batch have a label; see `LabelledSampler`.

    Evaluation: samples in order, `views` clips of each next to each other, spread evenly from the
    start to the end of the video (one view = the centre). Every rank gets the same number of
    batches; the last is short, and shared out evenly.

    A clip that is longer than its video holds the video's last frame.
    """

    def __init__(
        self,
        frames: np.ndarray,
        *,
        clip_frames: int,
        batch_size: int,
        stride: int = 1,
        fps: float | None = None,
        labels: np.ndarray | None = None,
        train: bool = True,
        views: int = 1,
        repeats: int = 1,
        labelled_share: float | None = None,
        align: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Plan over n samples.

        Args:
            frames: int [n], frames of each video, at least 1.
            clip_frames: frames of a clip.
            batch_size: clips in a batch on one rank.
            stride: source frames from one clip frame to the next.
            fps: frames of a clip a second, picked by their times, in place of a stride.
            labels: int [n]; a bad sample is then replaced by one with the same label.
            train: shuffle and start anywhere, or read in order.
            views: clips of one video in an evaluation.
            repeats: clips of one video in training; divides `batch_size`.
            labelled_share: part of each training batch that has a label, to the nearest number of
                clips (of videos, where they are repeated); None = labels as they come.
            align: clips start at multiples of this.
            seed: other seeds give other orders, starts and augmentations.
            rank: this process, 0 ... world_size - 1.
            world_size: number of processes that share the epoch.

        Raises:
            ValueError: an argument is out of range.
        """
        for name, value in {
            "clip_frames": clip_frames,
            "batch_size": batch_size,
            "stride": stride,
            "views": views,
            "repeats": repeats,
            "align": align,
            "world_size": world_size,
        }.items():
            if value < 1:
                raise ValueError(f"ClipSampler: {name} must be at least 1, got {value}")
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"ClipSampler: fps must be above 0, got {fps}")
        if train and batch_size % repeats:
            raise ValueError(
                "ClipSampler: batch_size counts clips and must be a multiple of repeats = "
                f"{repeats}, got {batch_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"ClipSampler: rank must be in [0, {world_size}), got {rank}")
        if len(frames) == 0 or int(np.min(frames)) < 1:
            raise ValueError(
                f"ClipSampler: every one of the {len(frames)} samples (at least 1) must have "
                "frames; index the shards again"
            )
        self.frames, self.labels = frames, labels
        self.clip_frames, self.stride, self.batch_size = clip_frames, stride, batch_size
        self.train, self.views, self.seed = train, 1 if train else views, seed
        self.repeats = repeats if train else 1
        self.align, self.fps = align, fps
        self.rank, self.world_size = rank, world_size
        self.span = (clip_frames - 1) * stride + 1
        self.labelled_sampler = (
            None if labelled_share is None or not train else self._label(labelled_share)
        )
        self._members: dict[int, np.ndarray] = (
            {-1: self.labelled_sampler.parts[0]} if self.labelled_sampler else {}
        )

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        clips = len(self.frames) * self.views * self.repeats
        share = self.batch_size * self.world_size
        if self.labelled_sampler:
            return max(1, self.labelled_sampler.batches(self.world_size))
        return max(1, clips // share) if self.train else -(-clips // share)

    def batch(self, epoch: int, index: int) -> list[ClipRequest]:
        """Clips of this rank's batch `index` of an epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        share = self.batch_size * self.world_size
        if self.train:
            first = index * share + self.rank * self.batch_size
            return [self.request(epoch, first + i) for i in range(self.batch_size)]
        first, clips = index * share, len(self.frames) * self.views
        count = min(share, clips - first)
        if count < self.world_size:  # no rank may go without, or the others would wait for it
            return [self.request(epoch, first + self.rank % count)]
        begin = first + self.rank * count // self.world_size
        end = first + (self.rank + 1) * count // self.world_size
        return [self.request(epoch, position) for position in range(begin, end)]

    def request(self, epoch: int, position: int) -> ClipRequest:
        """The clip at a position of an epoch; positions count over all ranks."""
        count = len(self.frames)
        if self.train:
            position, repeat = divmod(position, self.repeats)
            if self.labelled_sampler:
                sample, cycle = self.labelled_sampler.sample(position, hash64(self.seed, epoch))
            else:
                cycle, position = divmod(position, count)
                sample = shuffled(position, count, hash64(self.seed, epoch))
            return self.clip(sample, epoch=epoch, cycle=cycle)._replace(repeat=repeat)
        return self.clip(position // self.views, view=position % self.views)

    def clip(self, sample: int, *, epoch: int = 0, cycle: int = 0, view: int = 0) -> ClipRequest:
        """The clip that a sample contributes to an epoch (training) or a view (evaluation)."""
        seed = hash64(self.seed, epoch, sample, cycle) if self.train else hash64(self.seed, sample)
        return ClipRequest(sample, self._start(sample, seed, view), seed)

    def substitute(self, request: ClipRequest, attempt: int) -> ClipRequest | None:
        """A clip in place of one that cannot be read: same label, other sample.

        Repeats of one clip are replaced by repeats of one clip.

        Args:
            request: the clip that was planned.
            attempt: 0, 1, 2, ...: how many substitutes were tried before.

        Returns:
            The next candidate, or None when every sample with this label was tried.
        """
        label = -1 if self.labels is None else int(self.labels[request.sample])
        if label not in self._members:
            known = np.full(len(self.frames), -1) if self.labels is None else self.labels
            self._members[label] = positions(known == label)
        members = self._members[label]
        if attempt >= len(members):
            return None
        sample = int(members[(hash64(request.seed, 1) + attempt) % len(members)])
        seed = hash64(request.seed, 2, attempt)
        return ClipRequest(sample, self._start(sample, seed, 0), seed, request.repeat)

    def indices(self, request: ClipRequest, seconds: np.ndarray | None = None) -> np.ndarray:
        """Frames of a clip, int64 [clip_frames]; the last frame repeats past the end.

        Args:
            request: the clip.
            seconds: float64 [F], times of the sample's frames, where the plan has an `fps`.
        """
        if self.fps is not None:
            assert seconds is not None
            steps = np.arange(self.clip_frames) / self.fps
            room = max(0.0, float(seconds[-1] - seconds[0] - steps[-1]))
            return nearest_frames(seconds, seconds[0] + request.start * room + steps)
        last = int(self.frames[request.sample]) - 1
        steps = np.arange(self.clip_frames, dtype=np.int64) * self.stride
        return np.minimum(int(request.start) + steps, last)

    def _label(self, share: float) -> LabelledSampler:
        if not 0 <= share <= 1:
            raise ValueError(f"ClipSampler: labelled_share must be in [0, 1] or None, got {share}")
        if self.labels is None:
            raise ValueError("ClipSampler: labelled_share needs labels, got none; pass labels=")
        videos = self.batch_size // self.repeats
        labelled = round(share * videos)
        if 0 < share < 1 and labelled in (0, videos):
            raise ValueError(
                f"ClipSampler: labelled_share = {share} of {videos} videos in a batch rounds to "
                f"{labelled}; use a larger batch, another share, or {labelled // videos} if that "
                "is what is meant"
            )
        return LabelledSampler(self.labels, labelled=labelled, of=videos)

    def _start(self, sample: int, seed: int, view: int) -> float:
        if self.fps is not None:  # times are known where the file is read: a share is enough here
            if self.train:
                return uniform(seed, 0)
            return 0.5 if self.views == 1 else view / (self.views - 1)
        room = max(0, int(self.frames[sample]) - self.span) // self.align
        if self.train:
            place = int(uniform(seed, 0) * (room + 1))
        elif self.views == 1:
            place = room // 2
        else:
            place = round(room * view / (self.views - 1))
        return place * self.align

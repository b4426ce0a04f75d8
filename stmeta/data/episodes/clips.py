"""Episodes of clips, read from shards, and of features of clips, from a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stmeta._util.hashing import hash64
from stmeta.data.loading.loader import ClipLoader


class ClipSource:
    """Clips, uint8 [B, L, T, C, H, W], each episode with new starts and crops.

    Args:
        clips: reads the clips of a split, over whose labels the sampler is. The caller closes it.
    """

    def __init__(self, clips: ClipLoader) -> None:
        self.clips, self.ahead = clips, clips.config.prefetch

    def start(
        self, samples: np.ndarray, seeds: np.ndarray
    ) -> Callable[[], tuple[Tensor, list[list[str]]]]:
        """Begin to decode; see `stmeta.data.episodes.loader.Source`."""
        requests = [
            self.clips.sampler.clip(int(sample), epoch=int(seed))
            for row, seed in zip(samples, seeds, strict=True)
            for sample in row
        ]
        decoded, (size, length) = self.clips.submit(requests), samples.shape

        def finish() -> tuple[Tensor, list[list[str]]]:
            self.clips.collator.require_same_process()
            batch = self.clips.deliver(decoded.result())
            keys = [batch.key[i * length : (i + 1) * length] for i in range(size)]
            return batch.video.unflatten(0, (size, length)), keys

        return finish


class FeatureSource:
    """Features [B, L, D] of a frozen encoder; each step takes one of the views.

    Args:
        features: [views, n, D].
        keys: n names.

    Raises:
        ValueError: sizes disagree.
    """

    ahead = 0

    def __init__(self, features: Tensor, keys: Sequence[str]) -> None:
        if features.ndim != 3:
            raise ValueError(
                f"FeatureSource: features must be [views, n, D], got {list(features.shape)}"
            )
        if len(keys) != features.shape[1]:
            raise ValueError(
                f"FeatureSource: keys must name the {features.shape[1]} columns of features, got "
                f"{len(keys)}"
            )
        self.features, self.keys = features, list(keys)

    def start(
        self, samples: np.ndarray, seeds: np.ndarray
    ) -> Callable[[], tuple[Tensor, list[list[str]]]]:
        """Look the features up; see `stmeta.data.episodes.loader.Source`."""
        views = len(self.features)
        chosen = torch.zeros(samples.shape, dtype=torch.int64)
        if views > 1:
            steps = range(samples.shape[1])
            chosen = torch.tensor([[hash64(int(s), t) % views for t in steps] for s in seeds])
        x = self.features[chosen, torch.from_numpy(samples)]
        keys = [[self.keys[i] for i in row] for row in samples.tolist()]
        return lambda: (x, keys)

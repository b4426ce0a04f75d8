"""What changes the pixels of a clip after it is cut: colour jitter, RandAugment, random erasing."""

from __future__ import annotations

from dataclasses import dataclass, field

from stmeta.data.augment import pixel_ops
from stmeta.data.augment.rand_augment import RandAugment
from stmeta.data.augment.random_erasing import RandomErasing
from stmeta.data.augment.rng import Rng

_JITTER = (pixel_ops.brightness, pixel_ops.contrast, pixel_ops.saturation)


@dataclass(frozen=True)
class Photometric:
    """Three changes, in this order; each is a pure function of the clip's seed."""

    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Brightness, contrast and saturation are each multiplied by a factor in [1 - x, 1 + x], in
    random order (Howard 2013)."""
    rand_augment: RandAugment | None = None
    erasing: RandomErasing = field(default_factory=RandomErasing)

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return any(self.jitter) or self.rand_augment is not None or self.erasing.chance > 0

    def __call__(self, clip: pixel_ops.Clip, seed: int) -> None:
        """Change a clip in place, all its frames alike; uint8 [T, H, W, 3]."""
        changed = self._jitter(clip, Rng(seed, "jitter")) if any(self.jitter) else clip
        if self.rand_augment is not None:
            changed = self.rand_augment(changed, Rng(seed, "rand"))
        if changed is not clip:
            clip[...] = changed
        self.erasing(clip, Rng(seed, "erase"))

    def _jitter(self, clip: pixel_ops.Clip, rng: Rng) -> pixel_ops.Clip:
        factors = [1 + rng.uniform(-x, x) for x in self.jitter]
        order = [0, 1, 2]
        for i in (2, 1):  # a random order (Durstenfeld 1964)
            j = rng.integer(i + 1)
            order[i], order[j] = order[j], order[i]
        for kind in order:
            if self.jitter[kind]:
                clip = _JITTER[kind](clip, factors[kind])
        return clip

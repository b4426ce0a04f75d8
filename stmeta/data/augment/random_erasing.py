"""Random erasing (Zhong et al. 2020), one box for all frames of a clip."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stmeta.data.augment import pixel_ops
from stmeta.data.augment.rng import Rng


@dataclass(frozen=True)
class RandomErasing:
    """How often, how much and with what is erased."""

    chance: float = 0.0
    area: tuple[float, float] = (0.02, 1 / 3)
    """Share of the picture."""
    ratio: tuple[float, float] = (0.3, 10 / 3)
    """Width / height, uniform in the logarithm."""
    fill: str = "noise"
    """"noise": random pixels, the same in all frames. "mean": the clip's mean colour."""

    def __post_init__(self) -> None:
        for name, holds, rule in (
            ("chance", 0 <= self.chance <= 1, "in [0, 1]"),
            ("area", 0 < self.area[0] <= self.area[1] <= 1, "(low, high), ascending in (0, 1]"),
            ("ratio", 0 < self.ratio[0] <= self.ratio[1], "(low, high), ascending and above 0"),
            ("fill", self.fill in ("noise", "mean"), "noise or mean"),
        ):
            if not holds:
                raise ValueError(f"erase_{name} must be {rule}, got {getattr(self, name)!r}")

    def box(self, rng: Rng, height: int, width: int) -> tuple[int, int, int, int] | None:
        """Draw (top, left, height, width); None = nothing is erased.

        A box that does not fit is drawn again, up to ten times.
        """
        if rng.random() >= self.chance:
            return None
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.area)
            aspect = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h < height and 0 < w < width:
                return rng.integer(height - h + 1), rng.integer(width - w + 1), h, w
        return None

    def __call__(self, clip: pixel_ops.Clip, rng: Rng) -> None:
        """Erase in place; uint8 [T, H, W, 3]."""
        box = self.box(rng, *clip.shape[1:3])
        if box is not None:
            noise = rng.pixels(*box[2:], 3) if self.fill == "noise" else None
            pixel_ops.erase(clip, box, noise)

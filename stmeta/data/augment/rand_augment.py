"""RandAugment (Cubuk et al. 2020), with the settings and strings of the timm library.

`rand-m7-mstd0.5-inc1`, as video models are fine-tuned with (Feichtenhofer et al. 2022):

    m     magnitude, 0 ... 10
    n     operations for a clip, drawn with replacement; 2 unless given
    mstd  standard deviation of the magnitude, drawn anew for each operation; above 100: the
          magnitude is uniform in [0, m]; 0 unless given
    mmax  largest magnitude after that; 10 unless given
    inc   1: every operation gets stronger with its magnitude; 0 unless given: as first published,
          posterize, solarize, colour, contrast, brightness and sharpness do not
    p     chance that a drawn operation is applied; 0.5 unless given

All frames of a clip get the same operations with the same strength.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stmeta.data.augment import pixel_ops
from stmeta.data.augment.rng import Rng

_FIELDS = {
    "m": "magnitude",
    "n": "layers",
    "mstd": "deviation",
    "mmax": "largest",
    "inc": "increasing",
    "p": "chance",
}
# (clip, level in [0, 1], sign, increasing) -> clip
_Operation = Callable[[Any, float, int, bool], Any]


@dataclass(frozen=True)
class RandAugment:
    """A policy; `parse` reads it from a string."""

    magnitude: float = 9
    layers: int = 2
    deviation: float = 0.0
    largest: float = 10
    increasing: bool = False
    chance: float = 0.5

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """Read a policy such as "rand-m7-mstd0.5-inc1".

        Raises:
            ValueError: it is not one; the message names the part.
        """
        name, *parts = text.split("-")
        if name != "rand":
            raise ValueError(
                f"rand_augment: a policy begins with 'rand', as in 'rand-m7-mstd0.5-inc1'; "
                f"got {text!r}"
            )
        values: dict[str, float] = {}
        for part in parts:
            found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            if not found or found[1] not in _FIELDS or _FIELDS[found[1]] in values:
                raise ValueError(
                    f"rand_augment: each part is one of {', '.join(_FIELDS)}, once, and a number; "
                    f"got {part!r} in {text!r}"
                )
            values[_FIELDS[found[1]]] = float(found[2])
        layers, increasing = values.pop("layers", 2), values.pop("increasing", 0)
        made = cls(layers=int(layers), increasing=bool(increasing), **values)
        for part, holds, rule in (
            ("m", made.magnitude <= 10, "0 ... 10"),
            ("n", layers == made.layers, "a whole number"),
            ("mmax", made.largest <= 10, "0 ... 10"),
            ("inc", increasing in (0, 1), "0 or 1"),
            ("p", made.chance <= 1, "0 ... 1"),
        ):
            if not holds:
                raise ValueError(f"rand_augment: {part} must be {rule}, got {text!r}")
        return made

    def sample(self, rng: Rng) -> list[tuple[str, float, int]]:
        """Draw what is done to one clip: operations, their levels in [0, 1], and signs."""
        names, chosen = list(OPERATIONS), []
        for name in [names[rng.integer(len(names))] for _ in range(self.layers)]:
            applied, sign = rng.random() < self.chance, rng.sign()
            if self.deviation > 100:
                level = rng.uniform(0, self.magnitude)
            else:
                level = self.magnitude + self.deviation * rng.normal()
            if applied:
                chosen.append((name, min(max(level, 0.0), self.largest) / 10, sign))
        return chosen

    def __call__(self, clip: pixel_ops.Clip, rng: Rng) -> pixel_ops.Clip:
        """Return the augmented clip, uint8 [T, H, W, 3]."""
        for name, level, sign in self.sample(rng):
            clip = OPERATIONS[name](clip, level, sign, self.increasing)
        return clip


def _plain(run: Callable[[Any], Any]) -> _Operation:
    return lambda clip, level, sign, increasing: run(clip)


def _signed(run: Callable[[Any, float], Any], most: float) -> _Operation:
    return lambda clip, level, sign, increasing: run(clip, sign * level * most)


def _enhance(run: Callable[[Any, float], Any]) -> _Operation:
    def apply(clip: Any, level: float, sign: int, increasing: bool) -> Any:
        return run(clip, max(0.1, 1 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level)

    return apply


def _posterize(clip: Any, level: float, sign: int, increasing: bool) -> Any:
    bits = math.floor(level * 4)
    return pixel_ops.posterize(clip, 4 - bits if increasing else bits)


def _solarize(clip: Any, level: float, sign: int, increasing: bool) -> Any:
    threshold = math.floor(level * 256)
    return pixel_ops.solarize(clip, 256 - threshold if increasing else threshold)


def _solarize_add(clip: Any, level: float, sign: int, increasing: bool) -> Any:
    return pixel_ops.solarize_add(clip, math.floor(level * 110))


OPERATIONS: dict[str, _Operation] = {
    "autocontrast": _plain(pixel_ops.autocontrast),
    "equalize": _plain(pixel_ops.equalize),
    "invert": _plain(pixel_ops.invert),
    "rotate": _signed(pixel_ops.rotate, 30),
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(pixel_ops.saturation),
    "contrast": _enhance(pixel_ops.contrast),
    "brightness": _enhance(pixel_ops.brightness),
    "sharpness": _enhance(pixel_ops.sharpness),
    "shear_x": _signed(pixel_ops.shear_x, 0.3),
    "shear_y": _signed(pixel_ops.shear_y, 0.3),
    "translate_x": _signed(pixel_ops.translate_x, 0.45),
    "translate_y": _signed(pixel_ops.translate_y, 0.45),
}
"""Names, and what is done at a level in [0, 1] with a sign; the strengths are the published."""

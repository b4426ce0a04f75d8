"""Random values of one clip: a sequence that its seed alone decides."""

from __future__ import annotations

import math

import numpy as np

from stmeta._util.hashing import hash64, uniform


class Rng:
    """Random values, one after the other.

    Two streams of one seed are independent, so that one kind of augmentation, switched on, leaves
    the others as they are.
    """

    def __init__(self, seed: int, stream: str) -> None:
        """Begin a stream; its name is at most 8 bytes long."""
        self._seed = hash64(seed, 4, int.from_bytes(stream.encode(), "little"))
        self._count = 0

    def random(self) -> float:
        """Uniform in [0, 1)."""
        self._count += 1
        return uniform(self._seed, self._count)

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + self.random() * (high - low)

    def integer(self, count: int) -> int:
        """One of 0 ... count - 1."""
        return int(self.random() * count)

    def sign(self) -> int:
        """-1 or 1."""
        return -1 if self.random() < 0.5 else 1

    def normal(self) -> float:
        """From the standard normal distribution (Box and Muller 1958)."""
        radius = math.sqrt(-2 * math.log(1 - self.random()))
        return radius * math.cos(2 * math.pi * self.random())

    def pixels(self, *shape: int) -> np.ndarray:
        """Uniform bytes, uint8 of this shape."""
        count = math.prod(shape)
        self._count += 1
        # The raw bits of a generator stay the same from one version of numpy to the next.
        bits = np.random.PCG64(hash64(self._seed, self._count)).random_raw(-(-count // 8))
        return bits.astype("<u8").view(np.uint8)[:count].reshape(shape)

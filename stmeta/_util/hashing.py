"""Random numbers and orders that are computed where they are needed, and stored nowhere."""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1


def hash64(*values: int) -> int:
    """Hash integers to 64 well-mixed bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def uniform(seed: int, number: int) -> float:
    """The `number`-th of a seed's random values in [0, 1)."""
    return (hash64(seed, number) >> 11) * 2.0**-53


def uniforms(seeds: np.ndarray, steps: int, numbers: int) -> np.ndarray:
    """Random values in [0, 1), float64 [B, steps, numbers]: `uniform` for many at once.

    Args:
        seeds: uint64 [B].
        steps: L.
        numbers: values per step.
    """
    state = np.array([hash64(int(seed)) for seed in seeds], np.uint64)[:, None]
    state = (state ^ np.arange(steps * numbers, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return ((state >> np.uint64(11)) * 2.0**-53).reshape(len(seeds), steps, numbers)


def shuffled(position: int, count: int, seed: int) -> int:
    """Element `position` of a random permutation of 0 ... count - 1, computed without a table.

    A Feistel network on a grid of about √count × √count cells (Black and Rogaway 2002); positions
    that leave the range are sent through again, which happens less than √count times in count.
    """
    rows = max(1, round(count**0.5))
    columns = -(-count // rows)
    while True:
        high, low = divmod(position, columns)
        for round_number in range(4):
            high = (high + hash64(seed ^ 2 * round_number, low)) % rows
            low = (low + hash64(seed ^ 2 * round_number + 1, high)) % columns
        position = high * columns + low
        if position < count:
            return position

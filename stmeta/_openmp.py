"""How threads of torch wait for each other: asleep, and not in a loop that keeps their core busy.

torch's threads meet at the end of every parallel loop. GCC's OpenMP, which torch's own builds for
the CPU use, lets those that wait spin for some milliseconds. Beside another busy process they spin
on cores that the late ones need, and each loop takes a time slice. `OMP_WAIT_POLICY`, which GCC's,
LLVM's and Intel's OpenMP all know, makes them sleep. It is read once, when torch is loaded.

This module is imported before torch, and so imports nothing.
"""

from __future__ import annotations

import os
import sys

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables with which a person chooses how threads wait; one that is set stays as it is."""


def asleep() -> dict[str, str]:
    """What to set before torch is loaded, so that threads that wait sleep; {} = a person chose."""
    if "torch" in sys.modules or any(name in os.environ for name in SETTINGS):
        return {}
    return {"OMP_WAIT_POLICY": "PASSIVE"}


def wait_asleep() -> str:
    """Set it, for this process and those that it starts.

    Returns:
        A line that says how threads wait; "" where torch was loaded before.
    """
    if "torch" in sys.modules:
        return ""
    os.environ.update(asleep())
    chosen = ", ".join(f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ)
    return f"{chosen}: how threads wait for each other (set it yourself to choose another way)"

"""What the kernels cannot take though eager can: sizes by their letters, for each backend and op.

`auto` goes past a backend whose limit a call exceeds; a backend that is named raises with the
reason. The numbers are those of the kernels, which check them once more. Each op gives its rules
to `register`; those that several have are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

# The kernels' own, which a test compares.
CPU_HEADS = 32
CUDA_HEADS = 16
CUDA_WIDTH = 256
CUDA_PLANES = 32  # shifts, and channels of a video
CUDA_TOKENS = 2**21  # of random_masking
TRITON_ROW = 2**20  # numbers of the largest block

Sizes = Mapping[str, int]
Rule = Callable[[Sizes], str]  # the reason why a call of these sizes cannot run, or ""
Limits = dict[str, tuple[Rule, ...]]  # backend -> rules

LIMITS: dict[str, dict[str, tuple[Rule, ...]]] = {"cpu": {}, "cuda": {}, "triton": {}}


def at_most(most: int, what: str, *letters: str) -> Rule:
    """At most so many of `what`, whose number is the product of the letters' sizes."""

    def rule(sizes: Sizes) -> str:
        count = 1
        for letter in letters:  # a generator within would break graphs of torch.compile
            count *= sizes[letter]
        return "" if count <= most else f"it takes at most {most} {what}, got {count}"

    return rule


def of_memory(heads: str, *, row_in_registers: bool = True) -> dict[str, tuple[Rule, ...]]:
    """Of an op on a memory [B, N, M] whose kernels keep something for each head.

    Args:
        heads: letter of the number of heads.
        row_in_registers: the CUDA kernels hold a row of M numbers at once.
    """
    cuda = (
        at_most(CUDA_HEADS, "heads", heads),
        at_most(2**26, "rows N", "N"),
        at_most(2**31 - 1, "rows B * N", "B", "N"),
    )
    row = (at_most(CUDA_WIDTH, "numbers M of a row", "M"),)
    return {
        "cpu": (at_most(CPU_HEADS, "heads", heads),),
        "cuda": (*cuda, *row) if row_in_registers else cuda,
        "triton": (at_most(TRITON_ROW, "rows N", "N"),),
    }


def joined(*limits: Limits) -> dict[str, tuple[Rule, ...]]:
    """All rules of several."""
    backends = dict.fromkeys(name for each in limits for name in each)
    return {
        name: tuple(rule for each in limits for rule in each.get(name, ())) for name in backends
    }


def some_heads(letter: str) -> Rule:
    """Of a kernel that looks for the last of the least used rows."""
    return lambda sizes: "" if sizes[letter] else "it takes at least 1 head, got 0"


def _all_different(sizes: Sizes) -> str:
    rule = "its gradient takes ids of which no two in a row are alike, got one twice"
    return rule if sizes.get("twice") else ""


DIFFERENT_IDS: Limits = dict.fromkeys(("cpu", "cuda", "triton"), (_all_different,))


def exceeded(op: str, backend: str, sizes: Sizes) -> str:
    """The first limit of the backend's kernel that these sizes exceed, or ""."""
    for rule in LIMITS[backend].get(op, ()):
        reason = rule(sizes)
        if reason:
            return reason
    return ""

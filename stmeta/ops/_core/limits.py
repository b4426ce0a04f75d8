"""What the kernels cannot take though eager can: sizes by their letters, for each backend and op.

`auto` goes past a backend whose limit a call exceeds; a backend that is named raises with the
reason. The numbers are those of the kernels, which check them once more.
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


def at_most(most: int, what: str, *letters: str) -> Rule:
    """At most so many of `what`, whose number is the product of the letters' sizes."""

    def rule(sizes: Sizes) -> str:
        count = 1
        for letter in letters:  # a generator within would break graphs of torch.compile
            count *= sizes[letter]
        return "" if count <= most else f"it takes at most {most} {what}, got {count}"

    return rule


def _memory(heads: str, *more: str) -> tuple[Rule, ...]:
    """Of a CUDA op on a memory [B, N, M]."""
    rules = (
        at_most(CUDA_HEADS, "heads", heads),
        at_most(2**26, "rows N", "N"),
        at_most(2**31 - 1, "rows B * N", "B", "N"),
    )
    return (*rules, at_most(CUDA_WIDTH, "numbers M of a row", "M")) if "M" in more else rules


def _in_registers(sizes: Sizes) -> str:
    """Of a Triton scan, whose programs keep the memory of an episode (see its _common.py)."""
    rows, width, heads = [1 << max(sizes[x] - 1, 0).bit_length() for x in "NMH"]
    if sizes["H"] > 0 and max(rows * width, 4 * rows * heads) <= 8192:
        return ""
    return (
        "it keeps the memory in registers: N * M and 4 N H, each size rounded up to a power of "
        f"two, must be at most 8192 and H at least 1, got [N, M] = [{sizes['N']}, {sizes['M']}] "
        f"and H = {sizes['H']} heads"
    )


def _single(sizes: Sizes) -> str:
    rule = "it multiplies in fp32 and recurrent and interface are bf16; use .float()"
    return rule if sizes["bf16"] else ""


def _some_heads(letter: str) -> Rule:
    """Of a kernel that looks for the last of the least used rows."""
    return lambda sizes: "" if sizes[letter] else "it takes at least 1 head, got 0"


def _all_different(sizes: Sizes) -> str:
    rule = "its gradient takes ids of which no two in a row are alike, got one twice"
    return rule if sizes.get("twice") else ""


_STEPS = {"location_addressing": "H", "ntm_step": "H", "lrua_step": "R", "memory_read": "H"}
_STEPS |= {"content_addressing": "H", "erase_add": "W"}
_SCANS = {"memory_scan": "H", "ntm_scan": "H"}  # H: all heads

LIMITS: dict[str, dict[str, tuple[Rule, ...]]] = {
    "cpu": {op: (at_most(CPU_HEADS, "heads", x),) for op, x in (_STEPS | _SCANS).items()},
    "cuda": {
        **{op: _memory(x, "" if op == "location_addressing" else "M") for op, x in _STEPS.items()},
        **{op: _memory("H", "M") for op in _SCANS},
        "patch_shift": (
            at_most(CUDA_PLANES, "shifts", "S"),
            at_most(CUDA_PLANES, "channels", "C"),
            at_most(2**30 - 1, "tokens B * K", "B", "K"),
        ),
        "masked_patch_loss": (
            at_most(CUDA_PLANES, "channels", "C"),
            at_most(2**30 - 1, "rows B * Q", "B", "Q"),
        ),
        "locality_attention": (at_most(128, "features E of a head", "E"),),
        "allocation": (at_most(2**29, "rows N", "N"), at_most(2**31 - 1, "elements B", "B")),
        "temporal_link": (at_most(2**30 - 1, "rows N", "N"),),
        "random_masking": (
            at_most(CUDA_TOKENS - 1, "tokens N", "N"),
            at_most(2**31 - 1, "elements B", "B"),
        ),
        "gather_tokens": (at_most(2**31 - 1, "tokens B * N", "B", "N"),),
        "restore_tokens": (at_most(2**31 - 1, "tokens B * N", "B", "N"),),
    },
    "triton": {
        **{op: (at_most(TRITON_ROW, "rows N", "N"),) for op in _STEPS},
        **{op: (_in_registers,) for op in _SCANS},
    },
}
LIMITS["cuda"]["shifted_patch_embed"] = LIMITS["cuda"]["patch_shift"]
for _limits in LIMITS.values():
    for _op in ("gather_tokens", "restore_tokens", "patch_shift"):
        _limits[_op] = (*_limits.get(_op, ()), _all_different)
for _backend in ("cpu", "cuda"):
    LIMITS[_backend]["lrua_step"] += (_some_heads("R"),)
    LIMITS[_backend]["memory_scan"] += (_some_heads("H"),)
for _backend in ("cuda", "triton"):
    LIMITS[_backend]["memory_scan"] += (_single,)


def exceeded(op: str, backend: str, sizes: Sizes) -> str:
    """The first limit of the backend's kernel that these sizes exceed, or ""."""
    for rule in LIMITS.get(backend, {}).get(op, ()):
        reason = rule(sizes)
        if reason:
            return reason
    return ""

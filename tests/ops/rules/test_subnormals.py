"""No CPU kernel works with subnormal numbers: an Intel CPU takes some 150 cycles for each of them.

A softmax, a power or a chain of products leaves them where something does not count, and what is
multiplied by them next is slow, in silence. The processor keeps a flag of every operation that met
one, so nothing has to be timed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from stmeta.ops import (
    allocation,
    availability,
    content_addressing,
    erase_add,
    locality_attention,
    location_addressing,
    lrua_scan,
    lrua_step,
    memory_read,
    ntm_scan,
    ntm_step,
    temporal_link,
)
from tests.ops._harness.calls import differentiate, with_gradients
from tests.ops.conftest import use_instruction_set
from tests.ops.scan import test_lrua_scan, test_ntm_scan

MET_SUBNORMAL = 0x02  # DE in MXCSR: an operand was a subnormal number
FLAGS = 0x3F
PLACE_OF_MXCSR = 28  # in glibc's fenv_t

B, H, N, M = 2, 2, 21, 9


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def _fading(*shape: int) -> Tensor:
    """Weights of which each is a tenth of that before it, down to the smallest normal number."""
    powers = -torch.arange(float(shape[-1])) * 37 / max(1, shape[-1] - 1)
    return (10**powers).expand(shape).contiguous()


def _scan_state(scan: dict[str, Tensor], strength: list[int]) -> dict[str, Tensor]:
    """A scan whose heads are as sharp as 100: what is not alike gets e^-100 and less."""
    bias = scan["bias"].clone()
    bias[strength] = 100.0
    return {name: x.float() for name, x in (scan | {"bias": bias}).items()}


def _lrua_scan() -> dict[str, Tensor]:
    scan = test_lrua_scan.make((2, 5, 6, 2, N, M))
    return _scan_state(scan, [2 * M, 4 * M + 2])


def _ntm_scan() -> dict[str, Tensor]:
    scan = test_ntm_scan.make((2, 5, 6, 1, 1, N, M))
    return _scan_state(scan, [i * (M + 6) + M + k for i in range(2) for k in range(2)])


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "locality_attention": (
        locality_attention,  # padded keys and the query's own, whose logits are cut
        lambda: {"qkv": _normal(2, N, 3, 2, 16), "temperature": torch.full((2,), 0.25)},
    ),
    "locality_attention_sharp": (
        locality_attention,
        lambda: {"qkv": 4 * _normal(2, N, 3, 2, 16), "temperature": torch.ones(2)},
    ),
    "content_addressing": (
        content_addressing,
        lambda: {
            "memory": _normal(B, N, M),
            "key": _normal(B, H, M),
            "strength": torch.full((B, H), 120.0),
        },
    ),
    "location_addressing": (
        location_addressing,
        lambda: {
            "content": torch.softmax(_normal(B, H, N), 2),
            "previous": torch.softmax(_normal(B, H, N), 2),
            "gate": torch.rand(B, H),
            "shift": torch.softmax(_normal(B, H, 3), 2),
            "sharpen": torch.full((B, H), 60.0),
        },
    ),
    "ntm_step": (
        ntm_step,
        lambda: {
            "memory": _normal(B, N, M),
            "previous": _fading(B, H, N),
            "key": _normal(B, H, M),
            "strength": torch.full((B, H), 120.0),
            "gate": torch.rand(B, H),
            "shift": torch.softmax(_normal(B, H, 3), 2),
            "sharpen": torch.full((B, H), 9.0),
            "erase": torch.rand(B, 1, M),
            "add": _normal(B, 1, M),
            "reads": 1,
        },
    ),
    "lrua_step": (
        lrua_step,
        lambda: {
            "memory": _normal(B, N, M),
            "usage": torch.rand(B, N),
            "previous": _fading(B, H, N),
            "key": _normal(B, H, M),
            "strength": torch.full((B, H), 120.0),
            "gate": torch.rand(B, H),
            "add": _normal(B, H, M),
        },
    ),
    "lrua_scan": (lrua_scan, _lrua_scan),
    "ntm_scan": (ntm_scan, _ntm_scan),
    "allocation": (allocation, lambda: {"usage": 0.1 * torch.rand(B, 60)}),
    "memory_read": (
        memory_read,
        lambda: {"memory": 0.01 * _normal(B, N, M), "weight": _fading(B, H, N)},
    ),
    "erase_add": (
        erase_add,
        lambda: {
            "memory": _normal(B, N, M),
            "weight": _fading(B, H, N),
            "erase": torch.rand(B, H, M),
            "add": 0.01 * _normal(B, H, M),
        },
    ),
    "temporal_link": (
        temporal_link,
        lambda: {
            "link": _fading(B, H, N, N),
            "precedence": _fading(B, H, N),
            "write_weight": _fading(B, H, N),
        },
    ),
}
DTYPES = (torch.float32, torch.bfloat16)
CASES = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype)[6:]}")
    for name in CALLS
    for dtype in (DTYPES if "scan" not in name else DTYPES[:1])
]


@pytest.fixture(params=["plain", "avx2", "avx512", "bf16dot"])
def capability(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instruction set of the CPU kernels."""
    yield from use_instruction_set(request.param)


@contextmanager
def one_thread() -> Iterator[None]:
    """All work is done by this thread, whose flags can be read."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Flags:
    """What this thread's SSE unit has met since `clear`."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(ctypes.util.find_library("m"))
        self._environment = (ctypes.c_uint8 * 64)()

    def _word(self) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_buffer(self._environment, PLACE_OF_MXCSR)

    def read(self) -> int:
        """The flags."""
        self._library.fegetenv(self._environment)
        return self._word().value & FLAGS

    def clear(self) -> None:
        """Take them all down."""
        self.read()
        word = self._word()
        word.value &= ~FLAGS
        self._library.fesetenv(self._environment)


def _arguments(name: str, dtype: torch.dtype) -> tuple[Callable[..., Any], dict[str, Any]]:
    function, make = CALLS[name]
    torch.manual_seed(0)
    keep = ("temperature",)
    arguments = {
        key: x.to(dtype) if isinstance(x, Tensor) and key not in keep else x
        for key, x in make().items()
    }
    return function, arguments


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="reads flags of x86 by glibc"
)
@pytest.mark.skipif(bool(availability("erase_add")["cpu"]), reason="needs the compiled kernels")
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_no_operation_meets_a_subnormal_number(name, dtype, capability):
    function, arguments = _arguments(name, dtype)
    ready, leaves = with_gradients(arguments)
    flags = Flags()
    with one_thread():
        flags.clear()
        outputs = function(**ready, backend="cpu")
        forward = flags.read()
        flags.clear()
        gradients = differentiate(outputs, leaves)
        backward = flags.read()
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    left = [x.detach() for x in (*outputs, *gradients) if x.is_floating_point()]
    assert not forward & MET_SUBNORMAL and not backward & MET_SUBNORMAL
    assert sum(_subnormal(x) for x in left) == 0


def _subnormal(x: Tensor) -> int:
    """How many numbers are, as floats: what the next op would trip over."""
    size = x.float().view(torch.int32) & 0x7FFFFFFF
    return int(((size > 0) & (size < 0x00800000)).sum())


def test_the_flag_is_seen():
    """A product with a subnormal number, in plain torch, raises what the test above looks at."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("reads flags of x86 by glibc")
    small, flags = torch.full((64,), 1e-40), Flags()
    with one_thread():
        flags.clear()
        assert not flags.read()
        small * 0.5
        assert flags.read() & MET_SUBNORMAL


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_weight_that_is_cut_is_zero(dtype, capability):
    """However large what it is multiplied by: the query's own value, and nothing of padded keys."""
    torch.manual_seed(0)
    qkv = torch.randn(1, 5, 3, 1, 8)
    qkv[:, :, 2] *= 1e4
    qkv[0, 0, 2] = 3e38 if dtype == torch.float32 else 6e4
    qkv = qkv.to(dtype)
    temperature = torch.ones(1)
    ours = locality_attention(qkv, temperature, backend="cpu")
    exact = locality_attention(qkv.double(), temperature.double(), backend="eager")
    torch.testing.assert_close(ours[0, 0], exact[0, 0].to(dtype), rtol=1e-2, atol=1.0)

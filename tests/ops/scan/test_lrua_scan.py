"""lrua_scan: an episode in one call against the reference in float64, value and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from stmeta._errors import BackendUnavailableError
from stmeta.ops import lrua_scan, lrua_scan_ref
from tests.ops._harness.rounding import check_rounding
from tests.ops.conftest import use_instruction_set

Frozen = tuple[tuple[str, Any], ...]

OPTIONS = {
    "usual": {},
    "read_last": {"read_first": False},
    "shared": {"shared": True},
    "paper": {"read_first": False, "shared": True, "strength": False, "write_key": True},
    "key_and_add": {"write_key": True},
    "blind": {"fed": False},
}
WEIGHTS = ("recurrent", "interface", "bias")
SIZES = {  # B, T, H, R, N, M
    "usual": (3, 9, 20, 4, 16, 12),
    "odd": (5, 7, 13, 3, 11, 5),
    "wide": (2, 6, 48, 4, 32, 48),
    "one": (1, 1, 1, 1, 1, 1),
    "step": (17, 1, 33, 2, 8, 20),
    "long": (2, 200, 8, 2, 6, 4),
    "tiles_of_8": (18, 3, 6, 2, 200, 64),  # of the batch, where a memory is large
    "tiles_of_4": (9, 3, 6, 2, 1024, 64),
}


FACTOR = 2.0


@pytest.fixture(params=["plain", "avx2", "avx512"])
def capability(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instruction set of the CPU kernels."""
    yield from use_instruction_set(request.param)


def make(
    sizes: tuple[int, ...],
    *,
    fed: bool = True,
    write_key: bool = False,
    extra: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments in float64."""
    batch, steps, hidden, heads, rows, width = sizes
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=g, dtype=torch.float64)

    known = hidden + heads * width if fed else hidden
    per_head = (1 if write_key else 2) * width + 2
    arguments = {
        "gates": normal(batch, steps, 4 * hidden),
        "recurrent": normal(4 * hidden, known, scale=known**-0.5),
        "interface": normal(heads * per_head, hidden, scale=2 * hidden**-0.5),
        "bias": normal(heads * per_head),
        "memory": normal(batch, rows, width, scale=0.5),
        "usage": torch.rand(batch, rows, generator=g, dtype=torch.float64),
        "previous": torch.softmax(normal(batch, heads, rows), 2),
        "reads": normal(batch, heads * width, scale=0.3),
        "h": torch.tanh(normal(batch, hidden)),
        "c": normal(batch, hidden),
    }
    if extra:
        arguments["key"] = normal(batch, steps, heads, width, scale=0.5)
        arguments["add"] = normal(batch, steps, heads, width, scale=0.5)
    return arguments


def run(
    arguments: dict[str, Tensor],
    dtype: torch.dtype,
    backend: str,
    products: torch.dtype | None = None,
    **options,
) -> list[Tensor]:
    """Outputs, and gradients of all inputs but usage; `products`, dtype of the two matrices."""
    leaves = {}
    for name, x in arguments.items():
        matrix = products is not None and name in WEIGHTS[:2]
        x = x if name == "lengths" else x.to(products if matrix else dtype)
        leaves[name] = x.requires_grad_(name not in ("usage", "lengths"))
    out = lrua_scan(**leaves, backend=backend, **options)
    g = torch.Generator().manual_seed(1)
    parts = [out.y, out.memory, out.weight, out.c]
    loss = sum(
        (x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(dtype)).sum() for x in parts
    )
    wanted = [x for x in leaves.values() if x.requires_grad]
    grads = torch.autograd.grad(loss, wanted, materialize_grads=True)
    return [x.detach() for x in (*out, *grads)]


@lru_cache(maxsize=16)
def references(sizes: tuple[int, ...], made: Frozen, passed: Frozen) -> list[tuple]:
    """Arguments of each draw, and the results in float64 and of eager, made once."""
    draws = []
    steps, rows, width = sizes[1], *sizes[4:]
    for seed in range(10 if steps * rows * width < 2000 else 4):  # few numbers: more draws
        arguments = make(sizes, seed=seed, **dict(made))
        lengths = dict(passed).get("lengths")
        if lengths is not None:
            arguments["lengths"] = torch.tensor(lengths)
        options = {k: v for k, v in passed if k != "lengths"}
        both = [
            run(arguments, dtype, "eager", **options) for dtype in (torch.float64, torch.float32)
        ]
        draws.append((arguments, options, *both))
    return draws


def compare(sizes: tuple[int, ...], made: dict | None = None, **passed) -> None:
    """Errors of the kernels against float64, beside those of eager in fp32: see _rounding.py."""
    draws = []
    frozen = tuple((made or {}).items()), tuple(passed.items())
    for arguments, options, exact, eager in references(sizes, *frozen):
        fused = run(arguments, torch.float32, "cpu", **options)
        given = [name for name in arguments if name not in ("usage", "lengths")]
        names = ["y", "memory", "usage", "weight", "c", *(f"grad {name}" for name in given)]
        draws.append([dict(zip(names, x, strict=True)) for x in (exact, eager, fused)])
    check_rounding(draws, FACTOR)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_reference(options, capability):
    made = {k: v for k, v in options.items() if k in ("fed", "write_key")}
    passed = {k: v for k, v in options.items() if k != "fed"}
    compare(SIZES["usual"], made | {"extra": options is not OPTIONS["paper"]}, **passed)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_sizes(sizes, capability):
    compare(sizes)


def test_fifty_steps_of_the_usual_memory(capability):
    compare((2, 50, 200, 4, 128, 40))


@pytest.mark.parametrize("lengths", [(9, 4, 0), (1, 9, 5), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("options", [{}, {"read_first": False}, {"shared": True}], ids=str)
def test_ragged_episodes(lengths, options, capability):
    compare(SIZES["usual"], {"extra": True}, lengths=lengths, **options)


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_short_episode_is_the_same_alone(backend):
    arguments = {name: x.float() for name, x in make(SIZES["usual"]).items()}
    lengths = torch.tensor([9, 4, 0])
    ragged = lrua_scan(**arguments, lengths=lengths, backend=backend)
    first = {n: x if n in WEIGHTS else x[1:2] for n, x in arguments.items()}
    first["gates"] = first["gates"][:, :4]
    alone = lrua_scan(**first, backend=backend)
    torch.testing.assert_close(ragged.y[1:2, :4], alone.y)
    assert not ragged.y[1, 4:].any() and not ragged.y[2].any()
    for ours, theirs in zip(ragged[1:], alone[1:], strict=True):
        torch.testing.assert_close(ours[1:2], theirs)
    torch.testing.assert_close(ragged.memory[2], arguments["memory"][2], rtol=0, atol=0)


def test_two_halves_are_one_episode():
    arguments = {name: x.float() for name, x in make((3, 10, 20, 4, 16, 12)).items()}
    whole = lrua_scan(**arguments)
    gates = arguments.pop("gates")
    first = lrua_scan(gates=gates[:, :5], **arguments)
    state = {
        "memory": first.memory,
        "usage": first.usage,
        "previous": first.weight,
        "reads": first.y[:, -1, 20:],
        "h": first.y[:, -1, :20],
        "c": first.c,
    }
    second = lrua_scan(gates=gates[:, 5:], **(arguments | state))
    torch.testing.assert_close(torch.cat([first.y, second.y], 1), whole.y, rtol=0, atol=0)
    for ours, theirs in zip(second[1:], whole[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("size", [50.0, 95.0, 200.0, 1e5])
@pytest.mark.parametrize("name", ["gates", "c"])
def test_saturated(name, size, capability):
    """Where an exponential is past the largest float, a gate is open or shut, and no NaN."""
    arguments = {k: x.float() for k, x in make(SIZES["usual"]).items()}
    arguments[name] = size * arguments[name]
    ours, eager = (lrua_scan(**arguments, backend=backend) for backend in ("cpu", "eager"))
    torch.testing.assert_close(ours.y, eager.y, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.c, eager.c, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("steps", [0, 2])
def test_empty(batch, steps):
    arguments = make((batch, steps, 8, 2, 4, 3))
    out = run(arguments, torch.float32, "auto")
    assert out[0].shape == (batch, steps, 8 + 6)


def test_a_nan_stays_in_its_episode(capability):
    arguments = {name: x.float() for name, x in make(SIZES["usual"]).items()}
    clean = lrua_scan(**arguments)
    arguments["gates"] = arguments["gates"].clone()
    arguments["gates"][1, 4, 0] = float("nan")
    broken = lrua_scan(**arguments)
    assert broken.y[1, 4:, 0].isnan().all()
    for ours, theirs in zip(broken, clean, strict=True):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])


@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(ragged):
    arguments = {name: x.float() for name, x in make((2, 3, 4, 2, 4, 3)).items()}
    order = ("gates", "key", "add", "recurrent", "interface", "bias", "memory", "usage")
    order += ("previous", "reads", "h", "c", "lengths")
    tensors = [arguments.get(name) for name in order]
    for x in tensors:
        if x is not None and x is not arguments["usage"]:
            x.requires_grad_()
    if ragged:
        tensors[-1] = torch.tensor([3, 1])
    options = (0.99, True, False, True, False, 1e-8)
    torch.library.opcheck(torch.ops.stmeta.lrua_scan.default, (*tensors, *options))


def test_compiles_whole():
    arguments = {name: x.float().requires_grad_() for name, x in make(SIZES["usual"]).items()}

    def loss(**tensors: Tensor) -> Tensor:
        return lrua_scan(**tensors).y.square().sum()

    eager = loss(**arguments)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(**arguments)
    torch.testing.assert_close(compiled, eager)


def test_reference_is_the_reference():
    """Gradients of the reference against differences, in float64."""
    arguments = make((1, 3, 3, 2, 4, 3))
    usage = arguments.pop("usage")
    names = list(arguments)

    def function(*tensors: Tensor) -> Tensor:
        out = lrua_scan(**dict(zip(names, tensors, strict=True)), usage=usage, backend="eager")
        return out.y

    leaves = [x.requires_grad_() for x in arguments.values()]
    assert torch.autograd.gradcheck(function, leaves)


def test_errors():
    arguments = {name: x.float() for name, x in make(SIZES["usual"]).items()}
    with pytest.raises(ValueError, match=r"at least as many rows N as heads R = 4, got 3"):
        lrua_scan(
            **arguments
            | {k: arguments[k][..., :3].contiguous() for k in ("usage", "previous")}
            | {"memory": arguments["memory"][:, :3]}
        )
    with pytest.raises(ValueError, match=r"recurrent must be \[4 H, K\] with H = 20"):
        lrua_scan(**arguments | {"recurrent": arguments["recurrent"][:, :30]})
    with pytest.raises(ValueError, match=r"interface must be \[R \* P, H\]"):
        lrua_scan(**arguments, write_key=True)
    with pytest.raises(ValueError, match=r"lrua_scan: gates must be fp32"):
        lrua_scan(**arguments | {"gates": arguments["gates"].bfloat16()})
    with pytest.raises(ValueError, match=r"recurrent and interface must be in bf16 both"):
        lrua_scan(**arguments | {"recurrent": arguments["recurrent"].bfloat16()})
    with pytest.raises(ValueError, match=r"lrua_scan: c must be \[B, H\]"):
        lrua_scan(**arguments | {"c": arguments["c"][:1]})
    with pytest.raises(BackendUnavailableError, match=r"triton"):
        lrua_scan(**arguments, backend="triton")
    with pytest.raises(ValueError, match=r"lengths must be int64 \[B\] = \[3\].*\[2\]"):
        lrua_scan(**arguments, lengths=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"lengths must be in 0 \.\.\. T = 9, got 1 \.\.\. 10"):
        lrua_scan(**arguments, lengths=torch.tensor([1, 2, 10]))


def test_reference_needs_no_kernel():
    arguments = make(SIZES["one"])
    out = lrua_scan(**arguments, backend="eager")
    order = ("recurrent", "interface", "bias", "memory", "usage", "previous", "reads", "h", "c")
    again = lrua_scan_ref(
        arguments["gates"], None, None, *(arguments[name] for name in order),
        None, 0.99, True, False, True, False, 1e-8,
    )  # fmt: skip
    for ours, theirs in zip(out, again, strict=True):
        assert torch.equal(ours, theirs)

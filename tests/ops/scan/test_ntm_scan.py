"""ntm_scan: a sequence in one call against the reference in float64, value and gradient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from stmeta._errors import BackendUnavailableError
from stmeta._extension import extension
from stmeta.ops import availability, ntm_scan, ntm_scan_ref
from stmeta.ops.memory.content_addressing import EPS

OPTIONS = {
    "usual": {},
    "read_last": {"read_first": False},
    "bounded": {"tanh_key": True, "tanh_add": True},
    "one_tap": {"taps": 1},
    "five_taps": {"taps": 5, "read_first": False},
    "blind": {"fed": False},
}
WEIGHTS = ("recurrent", "interface", "bias")
STATE = ("memory", "weights", "reads", "h", "c")
SIZES = {  # B, T, H, R, W, N, M
    "usual": (3, 9, 20, 2, 1, 16, 12),
    "odd": (5, 7, 13, 1, 3, 11, 5),
    "wide": (2, 6, 48, 4, 4, 32, 48),
    "one": (1, 1, 1, 1, 1, 3, 1),
    "step": (17, 1, 33, 1, 1, 8, 20),
    "long": (2, 200, 8, 1, 2, 6, 4),
    "tiles_of_8": (18, 3, 6, 2, 1, 200, 64),  # of the batch, where a memory is large
    "tiles_of_4": (9, 3, 6, 2, 1, 1024, 64),
}


@pytest.fixture(params=["plain", "avx2", "avx512"])
def capability(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instruction set of the CPU kernels."""
    if availability("ntm_scan")["cpu"]:
        pytest.skip(availability("ntm_scan")["cpu"])
    before = extension.cpu_capability()
    try:
        extension.set_cpu_capability(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield
    extension.set_cpu_capability(before)


def make(sizes: tuple[int, ...], *, fed: bool = True, taps: int = 3) -> dict[str, Tensor]:
    """Arguments in float64."""
    batch, steps, hidden, reading, writing, rows, width = sizes
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=g, dtype=torch.float64)

    known = hidden + reading * width if fed else hidden
    numbers = (reading + writing) * (width + 3 + taps) + 2 * writing * width
    return {
        "gates": normal(batch, steps, 4 * hidden),
        "recurrent": normal(4 * hidden, known, scale=known**-0.5),
        "interface": normal(numbers, hidden, scale=2 * hidden**-0.5),
        "bias": normal(numbers),
        "memory": normal(batch, rows, width, scale=0.5),
        "weights": torch.softmax(normal(batch, reading + writing, rows), 2),
        "reads": normal(batch, reading * width, scale=0.3),
        "h": torch.tanh(normal(batch, hidden)),
        "c": normal(batch, hidden),
    }


def single(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in float32."""
    return {name: x.float() for name, x in arguments.items()}


def run(arguments: dict[str, Tensor], dtype: torch.dtype, backend: str, **options) -> list[Tensor]:
    """Outputs, and gradients of all inputs."""
    leaves = {
        name: x if name == "lengths" else x.to(dtype).requires_grad_()
        for name, x in arguments.items()
    }
    out = ntm_scan(**leaves, backend=backend, **options)
    g = torch.Generator().manual_seed(1)
    loss = sum(
        (x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(dtype)).sum() for x in out
    )
    wanted = [x for x in leaves.values() if x.requires_grad]
    grads = torch.autograd.grad(loss, wanted, materialize_grads=True)
    return [x.detach() for x in (*out, *grads)]


def compare(arguments: dict[str, Tensor], factor: float = 4.0, **options) -> None:
    """Within `factor` errors of eager in fp32, the worst of four.

    Sharp heads multiply the error of a step in the next ones, by luck more or less: so eager also
    runs on inputs that differ by a rounding.
    """
    exact = run(arguments, torch.float64, "eager", **options)
    fused = run(arguments, torch.float32, "cpu", **options)
    g = torch.Generator().manual_seed(2)
    eager = [run(arguments, torch.float32, "eager", **options)]
    for _ in range(3):
        near = {
            name: x + 6e-8 * x * torch.randn(x.shape, generator=g) if name != "lengths" else x
            for name, x in arguments.items()
        }
        eager.append(run(near, torch.float32, "eager", **options))
    given = [f"gradient of {name}" for name in arguments if name != "lengths"]
    names = ["y", "memory", "weights", "c", *given]
    for name, truth, ours, *plain in zip(names, exact, fused, *eager, strict=True):
        assert ours.shape == truth.shape and ours.dtype == torch.float32
        if not truth.numel():
            continue
        error, *others = (float((x.double() - truth).abs().max()) for x in (ours, *plain))
        allowed = factor * (max(others) + 6e-8 * float(truth.abs().max()))
        assert error <= allowed, f"{name}: {error}, {allowed} is allowed"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_reference(options, capability):
    made = {k: v for k, v in options.items() if k in ("fed", "taps")}
    passed = {k: v for k, v in options.items() if k != "fed"}
    compare(make(SIZES["usual"], **made), **passed)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_sizes(sizes, capability):
    compare(make(sizes))


def test_fifty_steps_of_the_usual_memory(capability):
    compare(make((2, 50, 100, 1, 1, 128, 20)))


def test_heads_that_leave_nothing_for_a_slope(capability):
    """Saturated gates, erase vectors, shifts and strengths: all gradients stay finite."""
    arguments = make(SIZES["usual"])
    arguments["bias"] = 40 * torch.sign(arguments["bias"])
    out = run(arguments, torch.float32, "cpu")
    assert all(x.isfinite().all() for x in out)


@pytest.mark.parametrize("lengths", [[9, 4, 0], [1, 9, 5], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("options", [{}, {"read_first": False, "tanh_key": True}], ids=str)
def test_ragged_sequences(lengths, options, capability):
    arguments = make(SIZES["usual"]) | {"lengths": torch.tensor(lengths)}
    compare(arguments, 8.0, **options)  # short ones: eager's own error is then that of few numbers


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_short_sequence_is_the_same_alone(backend):
    arguments = single(make(SIZES["usual"]))
    ragged = ntm_scan(**arguments, lengths=torch.tensor([9, 4, 0]), backend=backend)
    first = {n: x if n in WEIGHTS else x[1:2] for n, x in arguments.items()}
    first["gates"] = first["gates"][:, :4]
    alone = ntm_scan(**first, backend=backend)
    torch.testing.assert_close(ragged.y[1:2, :4], alone.y)
    assert not ragged.y[1, 4:].any() and not ragged.y[2].any()
    for ours, theirs in zip(ragged[1:], alone[1:], strict=True):
        torch.testing.assert_close(ours[1:2], theirs)
    for name in ("memory", "weights", "c"):
        assert torch.equal(getattr(ragged, name)[2], arguments[name][2])


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_nothing_comes_from_behind_the_end(backend):
    """Gates behind the end change nothing, and get no gradient."""
    arguments = single(make(SIZES["usual"]))
    lengths = torch.tensor([9, 4, 0])
    other = arguments["gates"].clone()
    other[1, 4:], other[2] = 7.0, -3.0
    outs = [
        run(arguments | {"gates": gates, "lengths": lengths}, torch.float32, backend)
        for gates in (arguments["gates"], other)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
    of_gates = outs[0][4]
    assert of_gates[1, :4].any() and not of_gates[1, 4:].any() and not of_gates[2].any()


def test_two_halves_are_one_sequence():
    arguments = single(make((3, 10, 20, 2, 2, 16, 12)))
    whole = ntm_scan(**arguments)
    gates = arguments.pop("gates")
    first = ntm_scan(gates=gates[:, :5], **arguments)
    last = {"h": first.y[:, -1, :20], "reads": first.y[:, -1, 20:]}
    last |= {"memory": first.memory, "weights": first.weights, "c": first.c}
    second = ntm_scan(gates=gates[:, 5:], **(arguments | last))
    assert torch.equal(torch.cat([first.y, second.y], 1), whole.y)
    for ours, theirs in zip(second[1:], whole[1:], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("steps", [0, 2])
def test_empty(batch, steps):
    arguments = make((batch, steps, 8, 2, 1, 4, 3))
    out = run(arguments, torch.float32, "auto")
    assert out[0].shape == (batch, steps, 8 + 6)
    assert [x.shape for x in out[4:]] == [x.shape for x in arguments.values()]


def test_any_strides_and_no_input_is_written(capability):
    plain = single(make(SIZES["usual"]))
    turned = {name: x.mT.contiguous().mT if x.ndim > 1 else x for name, x in plain.items()}
    turned["memory"] = plain["memory"][:1].expand(3, -1, -1)
    plain["memory"] = turned["memory"].contiguous()
    kept = {name: x.clone() for name, x in plain.items()}
    for ours, theirs in zip(ntm_scan(**turned), ntm_scan(**plain), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(kept[name], x) for name, x in plain.items())


def test_the_same_bits_twice(capability):
    arguments = make((5, 20, 20, 2, 1, 16, 12))
    once, again = (run(arguments, torch.float32, "cpu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_gradient_without_strides():
    arguments = {name: x.requires_grad_() for name, x in single(make(SIZES["usual"])).items()}
    fused, eager = (
        torch.autograd.grad(ntm_scan(**arguments, backend=name).y.sum(), arguments["gates"])[0]
        for name in ("auto", "eager")
    )
    torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-5)


def test_a_nan_stays_in_its_sequence(capability):
    arguments = single(make(SIZES["usual"]))
    clean = ntm_scan(**arguments)
    arguments["gates"][1, 4, 0] = float("nan")
    leaves = {name: x.requires_grad_() for name, x in arguments.items()}
    broken = ntm_scan(**leaves)
    assert broken.y[1, :4].isfinite().all()
    assert broken.y[1, 4, 0].isnan() and broken.y[1, 4, 20:].isnan().all()
    assert broken.y[1, 5:].isnan().all()
    for ours, theirs in zip(broken, clean, strict=True):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
    grads = torch.autograd.grad(broken.y.sum(), [leaves[name] for name in ("gates", *STATE)])
    for x in grads:
        assert x[1].isnan().any() and x[[0, 2]].isfinite().all()


@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(ragged):
    arguments = single(make((2, 3, 4, 1, 1, 4, 3)))
    tensors = [arguments[name].requires_grad_() for name in ("gates", *WEIGHTS, *STATE)]
    lengths = torch.tensor([3, 1]) if ragged else None
    options = (3, True, False, True, 1e-8)
    torch.library.opcheck(torch.ops.stmeta.ntm_scan.default, (*tensors, lengths, *options))


def test_compiles_whole():
    arguments = {name: x.requires_grad_() for name, x in single(make(SIZES["usual"])).items()}

    def loss(**tensors: Tensor) -> Tensor:
        return ntm_scan(**tensors).y.square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value = function(**arguments)
        results.append((value, *torch.autograd.grad(value, list(arguments.values()))))
    for compiled, eager in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_reference_is_the_reference():
    """Gradients of the reference against differences, in float64."""
    arguments = make((1, 3, 3, 1, 2, 4, 3))
    names = list(arguments)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return ntm_scan(**dict(zip(names, tensors, strict=True)), backend="eager")

    leaves = [x.requires_grad_() for x in arguments.values()]
    assert torch.autograd.gradcheck(function, leaves)


def test_errors():
    arguments = single(make(SIZES["usual"]))

    def fails(match: str, **other) -> None:
        with pytest.raises(ValueError, match=match):
            ntm_scan(**arguments | other)

    fails(r"ntm_scan: shift must have an odd number S of taps.*got 4", taps=4)
    fails(r"ntm_scan: taps must be at least 1, got -1", taps=-1)
    fails(r"recurrent must be \[4 H, K\] with H = 20", recurrent=arguments["recurrent"][:, :30])
    fails(r"interface must be \[P, H\] = \[84, 20\].*S = 5 taps, got \[78, 20\]", taps=5)
    fails(r"ntm_scan: gates must be fp32", gates=arguments["gates"].bfloat16())
    fails(r"ntm_scan: c must be \[B, H\]", c=arguments["c"][:1])
    fails(r"weights must be \[B, R\+W, N\]", weights=arguments["weights"][..., :3])
    fails(r"1 <= R < R \+ W = 3, got 36 numbers", reads=torch.zeros(3, 36))
    fails(r"lengths must be int64 \[B\] = \[3\].*\[2\]", lengths=torch.tensor([1, 2]))
    fails(r"lengths must be in 0 \.\.\. T = 9, got 1 \.\.\. 10", lengths=torch.tensor([1, 2, 10]))
    with pytest.raises(BackendUnavailableError, match=r"triton"):
        ntm_scan(**arguments, backend="triton")


def test_reference_needs_no_kernel():
    arguments = make(SIZES["one"])
    out = ntm_scan(**arguments, backend="eager")
    tensors = (arguments[name] for name in ("gates", *WEIGHTS, *STATE))
    again = ntm_scan_ref(*tensors, None, 3, True, False, False, EPS)
    for ours, theirs in zip(out, again, strict=True):
        assert torch.equal(ours, theirs)

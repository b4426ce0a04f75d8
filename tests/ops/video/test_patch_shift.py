"""patch_shift: the reference against the definition, and the CPU kernels against the reference.

Whatever runs on every backend runs here on those that this machine has.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stmeta.ops import patch_shift, patch_shift_ref, shift_offsets
from tests.ops.video._patch_shift_cases import (
    CASES,
    MEAN,
    STD,
    Case,
    check,
    make_inputs,
    run_backend,
)

OP = "patch_shift"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MORE = (
    Case(name="no_clips", shape=(0, 3, 2, 8, 8), tubelet=2, patch=4, video=torch.float32),
    Case(name="streamed", shape=(18, 3, 4, 64, 64), tubelet=2, patch=8),
    Case(name="windows", shape=(1, 3, 2, 8, 1032), tubelet=2, patch=8, video=torch.float16),
    Case(name="two_channels", shape=(2, 2, 2, 8, 8), tubelet=1, patch=4, layout="cthw", keep=3),
)


def test_reference_is_the_definition():
    """Every feature of every token, one at a time, by the formula in the docstring."""
    tubelet, patch, eps = 2, 2, 1e-3
    offsets = (*shift_offsets("diagonal", tubelet, patch, temporal=True), (0, 3, 1))
    video = torch.randint(0, 256, (2, 3, 4, 4, 6), dtype=torch.uint8)
    tokens = []
    for clip in video.double() / 255:
        for t, y, x in ((t, y, x) for t in (0, 2) for y in (0, 2) for x in (0, 2, 4)):
            token = []
            for dt, dy, dx in ((i, j, k) for i in range(2) for j in range(2) for k in range(2)):
                for ot, oy, ox in offsets:
                    place = (t + dt + ot, y + dy + oy, x + dx + ox)
                    inside = all(0 <= i < n for i, n in zip(place, (4, 4, 6), strict=True))
                    for c in range(3):
                        pixel = (clip[(c, *place)] - MEAN[c]) / STD[c] if inside else 0.0
                        token.append(float(pixel))
            tokens.append(token)
    expected = torch.tensor(tokens, dtype=torch.float64).unflatten(0, (2, 12))
    kwargs = {"tubelet": 2, "patch": 2, "shifts": offsets, "mean": MEAN[:3], "std": STD[:3]}
    scaled = video.double() / 255
    torch.testing.assert_close(patch_shift_ref(scaled, **kwargs), expected)
    torch.testing.assert_close(patch_shift_ref(video, **kwargs), expected.float())

    weight, bias = (torch.randn(expected.shape[-1], dtype=torch.float64) for _ in range(2))
    ids = torch.tensor([[7, 0, 11], [3, 4, 2]])
    centred = expected - expected.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias
    kept = torch.stack([row[index] for row, index in zip(normed, ids, strict=True)])
    norm = {"norm_weight": weight, "norm_bias": bias, "eps": eps, "ids_keep": ids}
    torch.testing.assert_close(patch_shift_ref(scaled, **kwargs, **norm), kept)


def test_reference_gradients():
    weight, bias = (torch.randn(40, dtype=torch.float64, requires_grad=True) for _ in range(2))
    video = torch.randn(1, 1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[3, 1]])

    def function(*inputs):
        kwargs = {"tubelet": 2, "patch": 2, "mean": [0.3], "std": [0.2], "ids_keep": ids}
        return patch_shift_ref(inputs[0], norm_weight=inputs[1], norm_bias=inputs[2], **kwargs)

    assert torch.autograd.gradcheck(function, (video, weight, bias))


def test_shift_offsets():
    assert shift_offsets("none", 2, 8) == ((0, 0, 0),)
    assert shift_offsets("diagonal", 2, 9)[1:3] == ((0, -4, -4), (0, -4, 4))
    assert shift_offsets("cardinal", 2, 8, temporal=True)[-3:] == ((0, 1, 0), (-1, 0, 0), (1, 0, 0))
    assert shift_offsets("none", 1, 8, temporal=True)[1:] == ((-1, 0, 0), (1, 0, 0))
    with pytest.raises(ValueError, match=r"shifts must be one of .* got 'round'"):
        shift_offsets("round", 2, 8)


@pytest.mark.parametrize("case", [*CASES, *MORE], ids=lambda case: case.name)
def test_matches_reference(case, backend):
    inputs = make_inputs(case, backend.device)
    check(inputs, run_backend(inputs, backend.name))


@pytest.mark.parametrize("case", [*CASES, *MORE], ids=lambda case: case.name)
def test_instruction_sets(case, instruction_set):
    inputs = make_inputs(case)
    check(inputs, run_backend(inputs, "cpu"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("video", [torch.uint8, *FLOATS])
def test_dtypes(video, dtype, instruction_set):
    inputs = make_inputs(replace(CASES[0], video=video, dtype=dtype))
    check(inputs, run_backend(inputs, "cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversions(dtype, instruction_set):
    """All numbers of 16 bits come in as torch reads them; fp32 goes out as torch rounds it."""
    kwargs = {"tubelet": 1, "patch": 4, "shifts": "none", "backend": "cpu"}
    small = torch.arange(2**16).to(torch.int16).view(dtype).reshape(1, 1, 1, 4, -1)
    tokens = patch_shift(small, dtype=torch.float32, **kwargs)
    expected = patch_shift_ref(small.float(), tubelet=1, patch=4, shifts="none")
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0, equal_nan=True)

    bits = torch.randint(-(2**31), 2**31, (1, 1, 1, 4, 2**14), dtype=torch.int32)
    near = torch.randn(1, 1, 1, 4, 2**14) * 2.0 ** torch.arange(-30, 18).repeat(342)[: 2**14]
    halfway = expected.reshape(1, 1, 1, 4, -1) * (1 + 2.0**-9)
    for large in (bits.view(torch.float32), near, halfway):
        tokens = patch_shift(large, dtype=dtype, **kwargs)
        expected = patch_shift_ref(large, tubelet=1, patch=4, shifts="none", dtype=dtype)
        torch.testing.assert_close(tokens, expected, rtol=0, atol=0, equal_nan=True)


def test_layouts(layout, backend):
    inputs = make_inputs(replace(CASES[0], video=torch.float32), backend.device)
    inputs.video = layout(inputs.video)
    check(inputs, run_backend(inputs, backend.name))


def test_layouts_of_the_gradient(layout, backend):
    inputs = make_inputs(replace(CASES[0], video=torch.float32), backend.device)
    inputs.grad = layout(inputs.grad)
    before = inputs.grad.clone()
    check(inputs, run_backend(inputs, backend.name))
    assert torch.equal(inputs.grad, before)


def test_bright_token_with_little_contrast(backend):
    """LayerNorm's variance must not come from the difference of two large numbers."""
    inputs = make_inputs(replace(CASES[2], keep=None, shape=(1, 3, 2, 8, 8)), backend.device)
    inputs.video = 10 + inputs.video * 1e-3
    inputs.kwargs |= {"shifts": ((0, 0, 0),), "mean": None, "std": None}
    features = 2 * 8 * 8 * 3
    inputs.weight, inputs.bias = (x[:features] for x in (inputs.weight, inputs.bias))
    inputs.grad = torch.randn(1, 1, features, device=backend.device)
    check(inputs, run_backend(inputs, backend.name))


def test_kept_tokens_have_the_same_bits(backend):
    inputs = make_inputs(replace(MORE[1], keep=7), backend.device)
    kept, *_ = run_backend(inputs, backend.name)
    everything = replace(inputs, ids_keep=None, grad=inputs.grad[:, :1].expand(-1, 128, -1))
    tokens, *_ = run_backend(everything, backend.name)
    ids = inputs.ids_keep[:, :, None].expand_as(kept)
    assert torch.equal(kept, tokens.gather(1, ids))


@pytest.mark.parametrize("video", [torch.uint8, torch.float32])
def test_same_bits_twice(video, backend, threads):
    """Also from one thread and from three, forward and backward."""
    inputs = make_inputs(replace(MORE[1], video=video), backend.device)
    first = run_backend(inputs, backend.name)
    for count in (1, 3):
        threads(count)
        for a, b in zip(first, run_backend(inputs, backend.name), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_parameters_in_other_dtypes(backend):
    """LayerNorm's parameters may be 16 bits or views; their gradients have their dtype."""
    inputs = make_inputs(CASES[0], backend.device)
    wide = torch.randn(inputs.weight.shape[0], 2, device=backend.device, dtype=torch.bfloat16)
    inputs.weight, inputs.bias = wide.unbind(1)
    results = run_backend(inputs, backend.name)
    check(inputs, results)
    assert results[2].dtype == torch.bfloat16


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape(data):
    """Shapes, strides, shifts and dtypes that nobody thought of."""
    if not torch.ops.stmeta.patch_shift.default.has_kernel_for_dispatch_key("CPU"):
        pytest.skip("stmeta._C is not built")
    small = st.integers(1, 3)
    t, p, c = data.draw(small), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    grid = [data.draw(small) for _ in range(3)]
    shift = st.tuples(*[st.integers(-7, 7)] * 3)
    shifts = ((0, 0, 0), *data.draw(st.lists(shift, max_size=4)))
    batch = data.draw(st.integers(0, 2))
    case = Case(
        name="any",
        shape=(batch, c, grid[0] * t, grid[1] * p, grid[2] * p),
        tubelet=t,
        patch=p,
        shifts=shifts,
        video=data.draw(st.sampled_from([torch.uint8, *FLOATS])),
        layout=data.draw(st.sampled_from(["thwc", "cthw", "wc"])),
        norm=data.draw(st.booleans()),
        keep=data.draw(st.integers(0, grid[0] * grid[1] * grid[2]) | st.none()) if batch else None,
        grad=data.draw(st.sampled_from(["dense", "transposed", "expanded"])),
    )
    if case.video == torch.uint8 and not case.norm:
        case = replace(case, video=torch.float32)  # else nothing has a gradient
    inputs = make_inputs(case)
    check(inputs, run_backend(inputs, "cpu"))

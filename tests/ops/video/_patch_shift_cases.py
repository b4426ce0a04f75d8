"""Cases of patch_shift, and the rule that every implementation of it must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from stmeta.ops.video.patch_shift import patch_shift, patch_shift_ref, shift_offsets

MEAN, STD = (0.45, 0.4, 0.5, 0.35, 0.6), (0.2, 0.25, 0.3, 0.22, 0.28)
FAR = ((0, 0, 0), (0, 9, -50), (-1, 0, 0), (1, 1, 2))  # needs one window for each shift


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call. `layout` is the memory order of the video; `grad` that of the gradient."""

    name: str
    shape: tuple[int, int, int, int, int]  # [B, C, T, H, W]
    tubelet: int
    patch: int
    shifts: Any = "diagonal"
    video: torch.dtype = torch.uint8
    dtype: torch.dtype = torch.float32
    layout: str = "thwc"  # or "cthw", or "wc": [W, C] swapped with strides that nothing divides
    norm: bool = True
    keep: int | None = None
    grad: str = "dense"  # or "transposed", or "expanded" (stride 0)


CASES = (
    Case(name="bytes", shape=(2, 3, 4, 8, 16), tubelet=2, patch=4, keep=3),
    Case(name="planar", shape=(2, 3, 4, 8, 16), tubelet=2, patch=4, layout="cthw"),
    Case(
        name="float",
        shape=(2, 3, 2, 16, 8),
        tubelet=2,
        patch=8,
        video=torch.float32,
        layout="cthw",
        keep=2,
        grad="transposed",
    ),
    Case(
        name="half",
        shape=(1, 5, 2, 6, 9),
        tubelet=2,
        patch=3,
        shifts="cardinal",
        video=torch.float16,
        dtype=torch.float16,
    ),
    Case(
        name="odd",
        shape=(1, 1, 3, 9, 6),
        tubelet=1,
        patch=3,
        shifts=FAR,
        video=torch.float32,
        layout="wc",
        grad="expanded",
    ),
    Case(
        name="plain",
        shape=(2, 3, 2, 8, 8),
        tubelet=1,
        patch=4,
        shifts="none",
        video=torch.float32,
        norm=False,
        keep=5,
        grad="expanded",
    ),
    Case(name="empty", shape=(2, 3, 2, 8, 8), tubelet=2, patch=4, video=torch.float32, keep=0),
)


@dataclass
class Inputs:
    """Arguments of `patch_shift`, and the gradient of its result."""

    video: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    ids_keep: torch.Tensor | None
    grad: torch.Tensor
    kwargs: dict[str, Any]


def make_inputs(case: Case, device: str = "cpu") -> Inputs:
    """Random inputs, the same each time."""
    generator = torch.Generator().manual_seed(0)
    batch, channels, frames, height, width = case.shape
    video = _video(case, generator, device)
    offsets = case.shifts
    if isinstance(offsets, str):
        offsets = shift_offsets(offsets, case.tubelet, case.patch)
    features = case.tubelet * case.patch**2 * len(offsets) * channels
    tokens = (frames // case.tubelet) * (height // case.patch) * (width // case.patch)
    ids_keep = None
    if case.keep is not None:
        ids = [torch.randperm(tokens, generator=generator)[: case.keep] for _ in range(batch)]
        ids_keep = torch.stack(ids).to(device)
    size = (batch, tokens if case.keep is None else case.keep, features)
    if case.grad == "expanded":
        grad = torch.tensor(0.7, dtype=case.dtype, device=device).expand(size)
    else:
        grad = torch.randn(size, generator=generator).to(device, case.dtype)
    if case.grad == "transposed":
        grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
    weight, bias = (
        torch.randn(features, generator=generator).to(device) if case.norm else None
        for _ in range(2)
    )
    kwargs = {
        "tubelet": case.tubelet,
        "patch": case.patch,
        "shifts": offsets,
        "mean": MEAN[:channels],
        "std": STD[:channels],
        "dtype": case.dtype,
    }
    return Inputs(video, weight, bias, ids_keep, grad, kwargs)


def _video(case: Case, generator: torch.Generator, device: str) -> torch.Tensor:
    video = torch.randint(0, 256, case.shape, generator=generator, dtype=torch.uint8).to(device)
    if case.video != torch.uint8:
        video = (video.float() / 255).to(case.video)
    if case.layout == "thwc":
        return video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    if case.layout == "wc":
        wide = video.new_zeros(*case.shape[:3], case.shape[4], 2 * case.shape[3] + 1)
        wide[..., 1::2] = video.transpose(3, 4)
        return wide[..., 1::2].transpose(3, 4)
    return video


Results = tuple[torch.Tensor | None, ...]  # tokens; gradients of video, weight, bias


def run(function: Callable[..., torch.Tensor], inputs: Inputs, **options: Any) -> Results:
    """Result and gradients of `patch_shift` or `patch_shift_ref`."""
    leaves = [
        None if x is None else x.detach().requires_grad_(x.is_floating_point())
        for x in (inputs.video, inputs.weight, inputs.bias)
    ]
    video, weight, bias = leaves
    tokens = function(
        video,
        norm_weight=weight,
        norm_bias=bias,
        ids_keep=inputs.ids_keep,
        **(inputs.kwargs | options),
    )
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    grads = iter(torch.autograd.grad(tokens, wanted, inputs.grad.to(tokens.dtype)))
    return tokens.detach(), *(
        next(grads) if x is not None and x.requires_grad else None for x in leaves
    )


def run_exact(inputs: Inputs) -> Results:
    """The reference in float64."""
    video = inputs.video.double() / (255 if inputs.video.dtype == torch.uint8 else 1)
    double = [None if x is None else x.double() for x in (inputs.weight, inputs.bias, inputs.grad)]
    results = run(
        patch_shift_ref,
        replace(inputs, video=video, weight=double[0], bias=double[1], grad=double[2]),
        dtype=torch.float64,
    )
    without = inputs.video.dtype == torch.uint8
    return (results[0], None if without else results[1], *results[2:])


def run_eager(inputs: Inputs) -> Results:
    """The reference in the dtypes of the inputs."""
    return run(patch_shift_ref, inputs)


def run_backend(inputs: Inputs, backend: str) -> Results:
    """The public op."""
    return run(patch_shift, inputs, backend=backend)


def check(inputs: Inputs, fused: Results) -> None:
    """Error of the backend against float64: at most twice that of eager, and one rounding."""
    names = ("tokens", "grad video", "grad weight", "grad bias")
    both = zip(names, run_exact(inputs), run_eager(inputs), fused, strict=True)
    for name, exact, eager, ours in both:
        if exact is None:
            continue
        assert ours is not None, name
        assert ours.shape == exact.shape and ours.dtype == eager.dtype, name
        if exact.numel() == 0:
            continue
        bound = 2 * _error(eager, exact) + torch.finfo(ours.dtype).eps * float(exact.abs().max())
        assert _error(ours, exact) <= bound, f"{name}: {_error(ours, exact)} > {bound}"


def _error(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x.double() - exact).abs().max())

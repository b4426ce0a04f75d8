"""Every op once, small, forward and backward, against eager in float64.

    python tests/gpu_smoke.py                 on a GPU: CUDA C++ and Triton
    python tests/gpu_smoke.py --device cpu    the CPU kernels

It needs torch, numpy and pytest, and neither video libraries, data nor a network: for a GPU machine
that has little else, and for compute-sanitizer and ncu, under which the test suite takes too long.
Exits with 1 where a result is wrong, an op fails, or nothing ran.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

if __name__ == "__main__":  # run as a file, the folder of the project is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import stmeta.ops
from stmeta.ops import availability
from tests.ops import _harness
from tests.ops.scan import test_lrua_scan, test_ntm_scan
from tests.ops.video import _patch_shift_cases

FUSED = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
SCANS = {"lrua_scan": test_lrua_scan, "ntm_scan": test_ntm_scan}
OPS = (*_harness.ALL_OPS, "patch_shift", *SCANS)


def harness_op(name: str, backend: str, device: str) -> None:
    """An op of tests/ops/cases, with its usual case."""
    op = _harness.load(name)
    inputs = _harness.make_inputs(op, op.cases[0], op.dtypes[0], device)
    _harness.check(inputs, _harness.run_backend(inputs, backend))


def patch_shift(_: str, backend: str, device: str) -> None:
    inputs = _patch_shift_cases.make_inputs(_patch_shift_cases.CASES[0], device)
    _patch_shift_cases.check(inputs, _patch_shift_cases.run_backend(inputs, backend))


class Scan:
    """A sequence of nine steps, forward and backward, with gradients that are drawn once."""

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        self.function = getattr(stmeta.ops, name)
        made = SCANS[name].make(SCANS[name].SIZES["usual"])
        self.leaves = {key: x.to(device, dtype) for key, x in made.items()}
        self.wanted = [x.requires_grad_() for key, x in self.leaves.items() if key != "usage"]
        generator = torch.Generator().manual_seed(1)
        self.grads = [
            torch.randn(x.shape, generator=generator, dtype=torch.float64).to(device, dtype)
            for x in self._differentiable("eager")
        ]

    def _differentiable(self, backend: str) -> list[Tensor]:
        return [x for x in self.function(**self.leaves, backend=backend) if x.requires_grad]

    def run(self, backend: str) -> list[Tensor]:
        """Outputs, and gradients of all inputs but the usage."""
        outputs = self._differentiable(backend)
        grads = torch.autograd.grad(outputs, self.wanted, self.grads, materialize_grads=True)
        return [x.detach() for x in (*outputs, *grads)]


def scan(name: str, backend: str, device: str) -> None:
    """Errors of a chain of steps multiply, hence eight times eager's, as in its tests."""
    exact = Scan(name, device, torch.float64).run("eager")
    single = Scan(name, device, torch.float32)
    eager, fused = single.run("eager"), single.run(backend)
    for place, (truth, plain, ours) in enumerate(zip(exact, eager, fused, strict=True)):
        error, allowed = (float((x.double() - truth).abs().max()) for x in (ours, plain))
        bound = 8 * (allowed + torch.finfo(torch.float32).eps / 2 * float(truth.abs().max()))
        assert error <= bound, f"result {place}: error {error:.3g} > {bound:.3g}"


def check_of(name: str) -> Callable[[str, str, str], None]:
    """What runs an op and holds its results to the rule of its tests."""
    if name in SCANS:
        return scan
    return patch_shift if name == "patch_shift" else harness_op


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=FUSED, default=default)
    parser.add_argument("--backend", nargs="+", help="those of them to run (default: all)")
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS, metavar="OP")
    options = parser.parse_args()
    ran, failed = 0, []
    for backend in options.backend or FUSED[options.device]:
        for name in options.op:
            missing = availability(name)[backend]
            if missing:
                print(f"{name}, {backend}: left out: {missing}")
                continue
            torch.manual_seed(0)
            start = time.perf_counter()
            try:
                check_of(name)(name, backend, options.device)
            except Exception as error:  # whatever an op raises, the others are run
                failed.append(f"{name}, {backend}")
                print(f"{failed[-1]}: FAILED: {type(error).__name__}: {error}", flush=True)
                continue
            ran += 1
            print(f"{name}, {backend}: ok, {time.perf_counter() - start:.2f} s", flush=True)
    print(f"{ran} ok, {len(failed)} failed" + (f": {'; '.join(failed)}" if failed else ""))
    return int(bool(failed) or ran == 0)


if __name__ == "__main__":
    sys.exit(main())

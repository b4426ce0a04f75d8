"""The demo's pretraining alone and beside busy processes, with threads that sleep and that spin.

    python -m benchmarks.beside_others [--busy 1] [--steps 60] [--eager]

Prints clips per second. `spinning` is what GCC's OpenMP does where nothing is set; see
`stmeta._openmp`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stmeta import _openmp
from stmeta.data.datasets import motions

# libgomp's own count where neither variable is set; only so can it be had beside `_openmp`.
WAYS = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "asleep": {"OMP_WAIT_POLICY": "PASSIVE"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--busy", type=int, default=1, help="other busy processes (default 1)")
    parser.add_argument("--steps", type=int, default=60, help="training steps (default 60)")
    parser.add_argument("--eager", action="store_true", help="without the fused ops")
    options = parser.parse_args()
    motions.build()  # else the first run would make the clips
    print(f"{os.cpu_count()} cores; clips per second")
    print(f"{'threads':10} {'alone':>8} {f'beside {options.busy}':>10} {'share':>7}")
    for name, setting in WAYS.items():
        alone = clips_per_second(setting, options)
        with competitors(options.busy):
            beside = clips_per_second(setting, options)
        print(f"{name:10} {alone:8.0f} {beside:10.0f} {beside / alone:7.0%}", flush=True)


def clips_per_second(setting: dict[str, str], options: argparse.Namespace) -> float:
    """Speed of one run of the trainer, in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if k not in _openmp.SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "stmeta.train", "--stage", "pretrain", "--out", str(out)]
        command += ["--max-steps", str(options.steps), "--pretrain.evals", "1"]
        command += ["--no-fused" if options.eager else "--fused"]
        subprocess.run(command, env=kept | setting, check=True, stdout=subprocess.DEVNULL)
        return json.loads((out / "metrics.json").read_text())["stages"]["pretrain"][
            "clips_per_second"
        ]


@contextlib.contextmanager
def competitors(count: int) -> Iterator[None]:
    """So many processes that do nothing but count."""
    code = "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()

"""Training by torchrun on two processes: the same as one with twice the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
ARGUMENTS = (
    "--recipe demo --fused --stage pretrain fewshot --max-steps 4 --pretrain.evals 1 "
    "--clip.threads 1 --save-every 2 --fewshot.encoder pretrain --fewshot.ways 3 "
    "--fewshot.instances 4 --fewshot.views 1 --fewshot.test-episodes 8 --fewshot.evals 1"
).split()


@pytest.fixture(scope="module")
def data(tiny_motions) -> Path:
    return tiny_motions


def train(processes: int, batch: int, out: Path, data: Path) -> dict:
    spread = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", *(spread if processes > 1 else []), "stmeta.train"),
            *(*ARGUMENTS, "--data", str(data), "--out", str(out)),
            *("--pretrain.batch-size", str(batch)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "metrics.json").read_text())["stages"]


def test_two_processes_train_as_one_with_twice_the_batch(data, tmp_path):
    one = train(1, 8, tmp_path / "one", data)
    two = train(2, 4, tmp_path / "two", data)
    # The few-shot task is trained by the first process, while the other one waits.
    for task, tolerance in (("pretrain", 1e-4), ("fewshot", 1e-3)):
        ours, theirs = ([item["loss"] for item in run[task]["history"]] for run in (two, one))
        assert len(ours) == 4
        assert ours == pytest.approx(theirs, rel=tolerance)
    a, b = (load_file(tmp_path / name / "pretrain/last.safetensors") for name in ("two", "one"))
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in b)

"""The examples run as the documents say, and learn something."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(name: str, steps: int, data: Path) -> str:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", "--steps", str(steps), "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"loss ([0-9.]+)", text)]


@pytest.mark.parametrize(("name", "steps"), [("ntm_on_encoder", 40), ("spt_masked_vit", 40)])
def test_loss_falls(name, steps, tiny_motions):
    first, last = losses(run(name, steps, tiny_motions))
    assert last < first


def test_finetune_videomae(tiny_motions):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers: no such module")
    out = run("finetune_videomae", 3, tiny_motions)
    assert out.count("0 left alone") == 2 and "VideoMAEEmbeddings" in out
    # Too few steps to learn anything: the loss of both parts at both ends is that of a guess.
    assert len(losses(out)) == 4 and all(0.5 < loss < 5 for loss in losses(out))

"""The examples run as the documents say, and learn something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stmeta.data.datasets import motions

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return motions.build(tmp_path_factory.mktemp("motions"), size="tiny", workers=1)


@pytest.mark.parametrize(("name", "steps"), [("ntm_on_encoder", 40), ("spt_masked_vit", 40)])
def test_loss_falls(name, steps, data):
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", "--steps", str(steps), "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    losses = [float(text) for text in re.findall(r"loss ([0-9.]+)", done.stdout)]
    assert len(losses) == 2 and losses[-1] < losses[0]

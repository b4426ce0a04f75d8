"""How torch's threads wait: chosen before torch is loaded, and left to a person who chose."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stmeta import _openmp

TRAIN = ("-m", "stmeta.train", "--recipe", "ntm_copy", "--max-steps", "1")
SMALL = ("--sequences.test-lengths", "3", "--sequences.max-length", "3", "--sequences.evals", "1")

TORCH = Path(*importlib.util.find_spec("torch").submodule_search_locations)  # type: ignore
OPENMP = next(iter([*TORCH.glob("lib/libgomp*"), *TORCH.parent.glob("torch.libs/libgomp*")]), "")
LOAD = f"import ctypes; ctypes.CDLL({str(OPENMP)!r})"  # what loading torch loads, in no time


def started(*command, **setting):
    """A program with what its OpenMP says of itself as it is loaded, and its environment."""
    mine = (*_openmp.SETTINGS, "PYTEST_XDIST_WORKER")  # benchmarks refuse to run beside others
    env = {k: v for k, v in os.environ.items() if k not in mine}
    env |= {"OMP_DISPLAY_ENV": "verbose", **setting}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if found is None:
        pytest.skip("torch's OpenMP is not GCC's, and does not say how it waits")
    return int(found[1]), done


def test_trainer_waits_asleep_and_says_so(tmp_path):
    count, done = started(*TRAIN, *SMALL, "--out", str(tmp_path / "run"))
    assert count == 0
    assert done.stdout.count("OMP_WAIT_POLICY=PASSIVE") == 1


def test_commands_wait_asleep(tmp_path):
    code = "from stmeta import cli; cli.main(['stream', '--help'])"
    count, done = started("-c", code)
    assert count == 0 and "OMP_WAIT_POLICY" not in done.stdout


@pytest.mark.parametrize("setting", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "123"}])
def test_a_persons_own_choice_stays(setting):
    code = f"from stmeta import _openmp; print(_openmp.wait_asleep()); {LOAD}"
    count, done = started("-c", code, **setting)
    assert count > 0
    ((name, value),) = setting.items()
    assert done.stdout.startswith(f"{name}={value}: ")


def test_processes_inherit_it():
    code = (
        "import subprocess, sys; from stmeta import _openmp; _openmp.wait_asleep();"
        f"subprocess.run([sys.executable, '-c', {LOAD!r}], check=True)"
    )
    assert started("-c", code)[0] == 0


def test_benchmarks_wait_asleep():
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    file = str(next(folder.rglob("bench_*.py")))
    options = ("--collect-only", "-q", "-s", "-p", "no:cacheprovider")
    assert started("-m", "pytest", file, *options)[0] == 0

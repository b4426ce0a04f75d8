"""The losses of the first steps of every recipe, to compare two commits.

    python -m benchmarks.first_losses --omniglot FOLDER --out now.json
    python -m benchmarks.first_losses --compare before.json now.json

Each recipe runs from the command line in fp32, with its own seed, and with `--root` on another
checkout. Clips are the small set of motions. The comparison exits with 1 where a loss differs by
more than 1e-6 of itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 20
CLIPS = ("demo", "small_set")
EPISODES = ("mann_omniglot", "lstm_omniglot", "ntm_omniglot")
SEQUENCES = ("ntm_copy", "dnc_copy", "dnc_recall")
# Recipe -> options by which it evaluates less often; they change no loss of training.
LESS = {
    "demo": (
        *("--pretrain.evals", "1", "--classify.evals", "1", "--classify-masked.evals", "1"),
        *("--fewshot.evals", "1", "--fewshot.test-episodes", "32"),
        *("--fewshot.ways", "3", "--fewshot.instances", "4"),  # as many as the small set has
    ),
    "small_set": ("--pretrain.evals", "1", "--classify.evals", "1"),
    **dict.fromkeys(EPISODES, ("--episodes.evals", "1", "--episodes.test-episodes", "64")),
    **dict.fromkeys(SEQUENCES, ("--sequences.evals", "1")),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--omniglot", type=Path, help="folder with Omniglot; none = leave it out")
    parser.add_argument("--recipe", nargs="*", default=[*LESS], help="only these")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "NOW"))
    options = parser.parse_args()
    if options.compare:
        return compare(*(json.loads(path.read_text()) for path in options.compare))
    with tempfile.TemporaryDirectory() as folder:
        losses = {
            name: run(name, options, Path(folder))
            for name in options.recipe
            if options.omniglot or name not in EPISODES
        }
    text = json.dumps(losses, indent=1)
    options.out.write_text(text) if options.out else print(text)
    return 0


def run(recipe: str, options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Stage -> losses of its first steps."""
    out, less = folder / recipe, [*LESS[recipe]]
    if (options.root / "stmeta" / "train.py").exists():  # before options had the task's name
        less = [word.replace("--episodes.", "--").replace("--sequences.", "--") for word in less]
    data = {**dict.fromkeys(CLIPS, clips(folder)), **dict.fromkeys(EPISODES, options.omniglot)}
    command = [sys.executable, "-m", "stmeta.train", "--recipe", recipe, "--out", str(out)]
    command += ["--max-steps", str(STEPS), "--fused", *less]
    if recipe in data:
        command += ["--data", str(data[recipe].resolve())]
    env = {**os.environ, "PYTHONPATH": str(options.root), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    stages = json.loads((out / "metrics.json").read_text())["stages"]
    print(f"{recipe}: {', '.join(stages)}", file=sys.stderr)
    return {name: [item["loss"] for item in record["history"]] for name, record in stages.items()}


def clips(folder: Path) -> Path:
    """The same clips for both commits, made by this one."""
    from stmeta.data.datasets import motions

    return motions.build(folder / "motions", size="tiny", workers=1)


def compare(before: dict, now: dict) -> int:
    worst = 0.0
    print(f"{'recipe':16} {'stage':16} {'steps':>5} {'first':>9} {'last':>9} {'difference':>10}")
    for recipe, stages in before.items():
        for name, theirs in stages.items():
            ours = now[recipe][name]
            shares = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
            most = max(math.inf if math.isnan(share) else share for share in shares)
            worst = max(worst, most)
            print(
                f"{recipe:16} {name:16} {len(theirs):5} {theirs[0]:9.5f} {theirs[-1]:9.5f} "
                f"{most:10.1e}"
            )
    return int(worst > 1e-6)


if __name__ == "__main__":
    raise SystemExit(main())

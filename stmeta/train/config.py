"""What a run is made of: frozen dataclasses, each of which builds what it configures.

A recipe (`stmeta.recipes`) is a function that returns a `RunConfig`; the command line is made from
the same fields (`python -m stmeta.train --help`), those of its tasks among them. Nothing reads a
global, and there is no list of kinds: a recipe names the classes it wants, and JSON keeps them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from stmeta._util.dataclass_json import build, to_values
from stmeta.data.loading.config import LoaderConfig
from stmeta.models._encoder import VideoEncoderConfig
from stmeta.train import old_runs
from stmeta.train.tasks._base import TaskConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run: its tasks, what they share, where it writes and how it executes."""

    recipe: str = "demo"
    """Name of the recipe that these values came from."""
    out: Path | None = None
    """Folder of the run; none = runs/<recipe>."""
    fused: bool = False
    """Use the fused ops; off = the eager reference."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    """Compile the model with torch.compile."""
    seed: int = 0
    max_steps: int = 0
    """Stop every task after so many steps; 0 = no limit. For trying things out."""
    save_every: int = 100
    """Steps between checkpoints."""
    data: Literal["motions"] | Path | None = None
    """Folder of the data set: with train/, val/ (and heldout/) shards, or with Omniglot; "motions"
    = the built-in motion clips; none = the tasks need no data."""
    stage: tuple[str, ...] = ()
    """Tasks to run, in order; none = all."""
    model: VideoEncoderConfig | None = None
    """Encoder of the tasks that read clips; frames, size, mean and std of clips are set here too.
    """
    clip: LoaderConfig | None = None
    """How clips are cut from videos, augmented and read. Their number in a batch is the tasks'."""
    tasks: Annotated[dict[str, TaskConfig], tyro.conf.arg(name="")] = field(default_factory=dict)
    """Name -> task. A task's folder, its random numbers and its options have its name."""

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.out or Path("runs") / self.recipe

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the tasks to run, in order."""
        return self.stage or tuple(self.tasks)

    def check_order(self) -> None:
        """Check that there are tasks to run.

        Raises:
            ValueError: there are none, one is not of this run, or one comes twice.
        """
        if not self.order or len(set(self.order)) < len(self.order):
            raise ValueError(
                f"--stage must name at least one task, and each once, got {list(self.order)}"
            )
        if unknown := set(self.order) - set(self.tasks):
            raise ValueError(
                f"--stage must be of the tasks {', '.join(self.tasks)}, got {sorted(unknown)}"
            )


def to_json(config: RunConfig) -> str:
    """Serialise a config, paths as strings, with the classes that its fields hold."""
    return json.dumps(to_values(config, RunConfig), indent=2)


def from_json(text: str | bytes) -> RunConfig:
    """Read back what `to_json` wrote, in this version or before tasks had configs of their own.

    Raises:
        ValueError: it is no JSON, names a field or a class that this version does not know, or a
            value is of another type than its field.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config: it is no JSON ({type(error).__name__}: {error})") from error
    if isinstance(values, dict) and "tasks" not in values:
        values = old_runs.convert_config(values)
    config = build(RunConfig, values)
    config.check_order()
    return config

"""Train from the command line: `python -m stmeta.train --recipe demo --fused`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.logging import RichHandler

from stmeta import distributed, recipes
from stmeta._errors import BackendUnavailableError, DataError
from stmeta.config import MemoryConfig, TrainConfig, from_json


def parse(argv: Sequence[str]) -> tuple[TrainConfig | MemoryConfig, bool]:
    """Turn the command line into a config and whether to resume.

    The recipe gives the defaults; every field can be changed (`--help` lists them).
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="demo")
    first.add_argument("--resume", nargs="?", const="", default=None)
    known, rest = first.parse_known_args(argv)
    default = recipes.get(known.recipe)
    if known.resume:  # a folder: its config is the default, so the bare command goes on
        default = from_json((Path(known.resume) / "config.json").read_text())
        default = dataclasses.replace(default, out=Path(known.resume))
    config = tyro.cli(
        type(default),
        prog="python -m stmeta.train",
        description=(
            "Train the stages of a recipe. --recipe NAME chooses the defaults "
            f"({', '.join(recipes.names())}); --resume [DIR] goes on where a run stopped."
        ),
        default=default,
        args=rest,
    )
    return config, known.resume is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0 done, 1 failed, 130 interrupted."""
    with distributed.together():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    console = Console(quiet=not distributed.is_first())
    logging.basicConfig(
        level=logging.INFO if distributed.is_first() else logging.ERROR,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False, show_time=False)],
    )
    config, resume = parse(argv)
    from stmeta import memory_pipeline, pipeline
    from stmeta.trainer import NonFiniteLossError

    try:
        if isinstance(config, MemoryConfig):
            memory_pipeline.run(config, resume=resume, console=console)
        else:
            pipeline.run(config, resume=resume, console=console)
    except KeyboardInterrupt:
        console.print(f"saved; go on with: python -m stmeta.train --resume {config.folder}")
        return 130
    except (BackendUnavailableError, DataError, NonFiniteLossError, ValueError) as error:
        console.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

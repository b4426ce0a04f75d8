"""Train from the command line: `python -m stmeta.train --recipe demo --fused`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from stmeta import _openmp
from stmeta._errors import BackendUnavailableError, DataError
from stmeta._util.terminal import plain, unbroken

if TYPE_CHECKING:
    from stmeta.train.config import RunConfig

_log = logging.getLogger("stmeta.train")


def parse(argv: Sequence[str]) -> tuple[RunConfig, bool]:
    """Turn the command line into a config and whether to resume.

    The recipe gives the defaults; every field can be changed (`--help` lists them).

    Raises:
        DataError: `--resume` names a folder without a run, or whose config.json is damaged.
        ValueError: there is no such recipe.
    """
    from stmeta import recipes
    from stmeta.train.config import RunConfig
    from stmeta.train.run_folder import read_config

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="demo")
    first.add_argument("--resume", nargs="?", const="", default=None)
    known, rest = first.parse_known_args(argv)
    default = recipes.get(known.recipe)
    if known.resume:  # a folder: its config is the default, so the bare command goes on
        default = dataclasses.replace(read_config(Path(known.resume)), out=Path(known.resume))
    config = tyro.cli(
        RunConfig,
        prog="python -m stmeta.train",
        description=(
            "Train the tasks of a recipe. --recipe NAME chooses the defaults "
            f"({', '.join(recipes.names())}); --resume [DIR] continues an interrupted run."
        ),
        default=default,
        args=rest,
        config=(tyro.conf.AvoidSubcommands,),  # a field is of the class that the recipe names
    )
    return config, known.resume is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0 done, 1 failed, 130 interrupted; 2 for unknown options."""
    waiting = _openmp.wait_asleep()
    from stmeta.train import distributed  # loads torch

    with unbroken(), distributed.process_group():
        return _main(sys.argv[1:] if argv is None else argv, waiting)


def _main(argv: Sequence[str], waiting: str) -> int:
    from stmeta.train import distributed, run
    from stmeta.train.trainer import NonFiniteLossError

    console = Console(quiet=not distributed.is_main_process())
    logging.basicConfig(
        level=logging.INFO if distributed.is_main_process() else logging.ERROR,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False, show_time=False)],
    )
    try:
        config, resume = parse(argv)
        if waiting:
            _log.info("%s", waiting)
        try:
            run.run(config, resume=resume, console=console)
        except KeyboardInterrupt:
            console.print(f"saved; continue with: python -m stmeta.train --resume {config.folder}")
            return 130
    except (BackendUnavailableError, DataError, NonFiniteLossError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        console.print(
            f"[red]error:[/] {escape(plain(str(error), lines=True))}",
            highlight=False,
            soft_wrap=True,
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

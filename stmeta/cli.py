"""The `stmeta` command: makes, checks and reads data sets of videos.

stmeta shard VIDEOS/ --out DATA/
stmeta verify DATA/train --level decode
stmeta inspect DATA/train
stmeta stream DATA/train
stmeta bench DATA/train
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape

from stmeta import __version__, _openmp
from stmeta._errors import BackendUnavailableError, DataError
from stmeta._util.terminal import plain, unbroken

COMMANDS = {
    "shard": "Turn a folder of videos into a data set of shards.",
    "index": "Index the shards of a split again, or shards that other tools wrote.",
    "dataset": "Make a data set: the built-in clips, or Kinetics and TinyVIRAT as one.",
    "verify": "Look for damage in shards, and name each bad sample with its reason.",
    "inspect": "Show what is in a split, a shard or one sample.",
    "stream": "Run the loader as training would, and print how fast it is and where time goes.",
    "bench": "Find the fastest settings for these shards on this machine, and the limit.",
}
"""Name of each command, which is a class of that name in `stmeta.commands.<name>`, and a line."""


def command_class(name: str) -> type[Any]:
    """Import a command: a dataclass of options with a method `run` that returns the exit code."""
    return getattr(importlib.import_module(f"stmeta.commands.{name}"), name.capitalize())


def parse(args: Sequence[str]) -> Any:
    """Read a command line; leaves the program with 2 where it is wrong."""
    # Only the command that is named is imported: `stream` needs torch, which takes seconds.
    if args and args[0] in COMMANDS:
        return tyro.cli(command_class(args[0]), args=args[1:], prog=f"stmeta {args[0]}")
    if args and args[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    if args and args[0] == "--version":
        print(f"stmeta {__version__}")
        sys.exit(0)
    received = f"got {args[0]!r}" if args else "got none"
    print(f"stmeta: a command comes first, {received}\n\n{_overview()}", file=sys.stderr)
    sys.exit(2)


def _overview() -> str:
    commands = "\n".join(f"  {name:8} {line}" for name, line in COMMANDS.items())
    return f"{__doc__}\nCommands; `stmeta COMMAND --help` lists the options:\n\n{commands}"


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (bad data) or 2 (wrong use)."""
    with unbroken():
        _main(args)


def _main(args: Sequence[str] | None) -> None:
    waiting = _openmp.wait_asleep()  # before a command loads torch
    command = parse(sys.argv[1:] if args is None else args)
    if waiting and "torch" in sys.modules:
        print(waiting, file=sys.stderr)
    try:
        code = command.run()
    except (BackendUnavailableError, DataError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        Console(stderr=True, soft_wrap=True).print(
            f"[red]error:[/] {escape(plain(str(error), lines=True))}", highlight=False
        )
        code = 1 if isinstance(error, (DataError, OSError)) else 2
    except KeyboardInterrupt:
        hint = "; continue with --resume" if getattr(command, "resumable", False) else ""
        print(f"stopped{hint}", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()

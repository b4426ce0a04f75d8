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
from tyro.extras import subcommand_cli_from_dict

from stmeta._errors import BackendUnavailableError, DataError

COMMANDS = {
    "shard": "Shard",
    "index": "Index",
    "dataset": "Dataset",
    "verify": "Verify",
    "inspect": "Inspect",
    "stream": "Stream",
    "bench": "Bench",
}
"""Name of each command to its class in `stmeta.commands.<name>`."""


def command_class(name: str) -> type[Any]:
    """Import a command: a dataclass of options with a method `run` that returns the exit code."""
    return getattr(importlib.import_module(f"stmeta.commands.{name}"), COMMANDS[name])


def parse(args: Sequence[str]) -> Any:
    """Read a command line; leaves the program with 2 where it is wrong."""
    # Only the command that is named is imported: `stream` needs torch, which takes seconds.
    if args and args[0] in COMMANDS:
        return tyro.cli(command_class(args[0]), args=args[1:], prog=f"stmeta {args[0]}")
    every = {name: command_class(name) for name in COMMANDS}
    return subcommand_cli_from_dict(every, args=args, prog="stmeta", description=__doc__)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (bad data) or 2 (wrong use)."""
    command = parse(sys.argv[1:] if args is None else args)
    try:
        code = command.run()
    except (BackendUnavailableError, DataError, ValueError) as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[red]error:[/] {escape(str(error))}", highlight=False
        )
        code = 1 if isinstance(error, DataError) else 2
    except KeyboardInterrupt:
        hint = "; go on with --resume" if getattr(command, "resumable", False) else ""
        print(f"stopped{hint}", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()

"""`python -m stmeta` is the `stmeta` command."""

from stmeta.cli import main

if __name__ == "__main__":
    main()

"""Shows stored results again: `python -m benchmarks.report benchmarks/results/NAME.json`.

By default the table of the benchmark; `--markdown` prints the tables of docs/ops.md; `--plot`
draws the picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks._plot import plot
from benchmarks._table import across, load, markdown, print_table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON of `pytest benchmarks`")
    parser.add_argument("--op", action="append", help="only this op; may be given again")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table per op")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the picture")
    arguments = parser.parse_args()
    results = load(arguments.results)
    ops = list(dict.fromkeys(row["op"] for row in results["rows"]))
    ops = [op for op in ops if not arguments.op or op in arguments.op]
    results["rows"] = [row for row in results["rows"] if row["op"] in ops]
    if arguments.markdown:
        for op in ops:
            print(f"### {op}\n\n{markdown(results['rows'], op)}\n")
        print("\n".join(across(results["rows"])))
    else:
        print_table(results["rows"], results["left_out"])
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()

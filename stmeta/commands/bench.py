"""`stmeta bench`: which settings load a split fastest on this machine, and what the limit is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes, Positional

from stmeta.commands._show import plain, print_bad, skip_rows
from stmeta.data.loading.config import LoaderConfig

if TYPE_CHECKING:
    from stmeta.data.profile.compare import Comparison

_KEEP = 1.05  # other settings are named where they are faster by more than this
_WORDS = {
    "decode": "decoding",
    "augment": "cropping, resizing and what else changes the pixels",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Find the fastest settings for these shards on this machine, and the limit.

    Runs the loader as given, decoding in threads, in processes and by DALI, and with all videos in
    memory, in turn; beside them two ceilings: FFmpeg alone on the same frames ("raw decode"), and
    one finished batch handed out again and again ("cached batch", the most that a trainer could
    take). The last line says what limits, and which settings to use. Samples that cannot be read
    are listed; the exit code is then 1.
    """

    split: Positional[str]
    """Folder of the split, or its address (http://..., s3://...)."""
    seconds: float = 2.0
    """Time for each way in each round."""
    rounds: int = 3
    """Times that every way is measured, in turn; speeds are the median."""
    save: Path | None = None
    """Draw the speeds and the limits to this PNG file."""
    json: bool = False
    """Print the result as JSON, and nothing else."""
    loader: OmitArgPrefixes[LoaderConfig] = dataclasses.field(default_factory=LoaderConfig)
    """How clips are chosen, cut and delivered."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"bench: seconds must be above 0, got {self.seconds}")
        if self.rounds < 1:
            raise ValueError(f"bench: rounds must be 1 or more, got {self.rounds}")
        if self.save and not self.save.absolute().parent.is_dir():
            raise ValueError(f"bench: the folder of --save must exist, got {self.save}; make it")

    def run(self) -> int:
        """Run the command; return the exit code."""
        from stmeta.data.profile.compare import FILL, compare
        from stmeta.data.shards.writer import ShardIndex

        index = ShardIndex.open(self.split, self.loader.storage)
        if not self.json:
            print(
                f"up to seven ways, {self.rounds} times {self.seconds:g} s each, and up to "
                f"{FILL * self.seconds:g} s to read all videos into memory",
                flush=True,
            )
        found = compare(index, self.loader, seconds=self.seconds, rounds=self.rounds)
        verdict = judge(found, remote=not isinstance(index.root, Path))
        if self.save:
            size = self.loader.size
            shape = f"{self.loader.frames} × {size} × {size}, batches of {self.loader.batch_size}"
            _plot(found, verdict["use"], [f"{index.root}", f"clips of {shape}"], self.save)
        rows = skip_rows(found.skips)
        if self.json:
            record = {
                "split": str(index.root),
                "samples": len(index),
                "seconds": self.seconds,
                "rounds": self.rounds,
                "ways": found.results,
                "settings": found.settings,
                "left_out": found.left_out,
                "unfilled": found.unfilled,
                **verdict,
                "skips": rows,
            }
            print(json.dumps(record, indent=1))
            return 1 if rows else 0
        _print_table(found)
        for name, reason in found.left_out.items():
            print(f"{name} is left out: {plain(reason)}")
        if found.unfilled:
            print(f"as given: faster once all videos are in memory; {found.unfilled}")
        print_bad("skipped", [(f"{row['shard']}: {row['key']}", row["reason"]) for row in rows])
        print(verdict["verdict"])
        return 1 if rows else 0


def judge(found: Comparison, *, remote: bool) -> dict[str, Any]:
    """Which way to use, what limits it, and both in words.

    Args:
        found: what was measured.
        remote: shards are read from an address.

    Returns:
        use (name of a way), bound ("read", "decode", "augment" or "delivery"), verdict (a line).
    """
    from stmeta.data.profile.compare import BATCH, GIVEN, RAW

    rates = {name: result["clips_per_second"] for name, result in found.results.items()}
    candidates = {name: rate for name, rate in rates.items() if name not in (RAW, BATCH)}
    best = max(candidates, key=candidates.__getitem__)
    if candidates[best] <= _KEEP * candidates[GIVEN]:
        best = GIVEN
    work = found.results[best]["work_share"]
    if candidates[best] >= 0.8 * rates[BATCH]:
        bound = "delivery"
        text = f"delivery: a finished batch handed out again gives {rates[BATCH]:,.0f} clips/s"
    else:
        bound = max(work, key=work.__getitem__)
        words = _WORDS | {"read": f"reading from {'the network' if remote else 'the disk'}"}
        text = f"{words[bound]}, {work[bound]:.0%} of the loader's work"
        if bound == "decode" and RAW in rates:
            text += f" (FFmpeg alone: {rates[RAW]:,.0f} clips/s)"
    if best == GIVEN:
        advice = f"The given settings are the fastest: {candidates[GIVEN]:,.0f} clips/s."
    else:
        options = flags(found.settings[best])
        faster = candidates[best] / candidates[GIVEN]
        advice = (
            f"Use {options}: {candidates[best]:,.0f} clips/s, {faster:.2f} times those "
            f"given{', which were still filling their memory' if found.unfilled else ''}."
        )
    return {"use": best, "bound": bound, "verdict": f"What limits is {text}. {advice}"}


def flags(settings: dict[str, Any]) -> str:
    """Settings as they are written on a command line."""
    return " ".join(
        f"--{name.replace('_', '-')} {value:g}"
        if isinstance(value, float)
        else f"--{name.replace('_', '-')} {value}"
        for name, value in settings.items()
    )


def _print_table(found: Comparison) -> None:
    print(
        "way             clips/s  frames/s  first ms   batch p50 / p95 / p99 ms  CPU ms/clip"
        "  RSS MiB  of the limit        skips"
    )
    for name, result in found.results.items():
        ms, share = result["batch_ms"], result["share_of_limit"]
        batch = f"{ms['p50']:9.1f} {ms['p95']:7.1f} {ms['p99']:7.1f}" if ms else f"{'-':>25}"
        limit = f"{share:.0%} of {result['limit']}" if result["limit"] else "a limit"
        print(
            f"{name:<14} {result['clips_per_second']:8,.0f} {result['frames_per_second']:9,.0f} "
            f"{_number(result['first_batch_ms'], '.0f'):>9}  {batch} "
            f"{_number(result['cpu_ms_per_clip'], '.2f'):>12} "
            f"{_number(result['rss_growth_mib'], '+.0f'):>8}  {limit:<20}{result['skipped']:>4}"
        )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _plot(found: Comparison, use: str, title: list[str], path: Path) -> None:
    """Bars of clips a second, the limits as lines."""
    from matplotlib.figure import Figure

    from stmeta.data.profile.compare import BATCH, RAW
    from stmeta.train.plots import BLUE, GREY, ORANGE, save_figure

    rates = {name: result["clips_per_second"] for name, result in found.results.items()}
    limits = {name: rates.pop(name) for name in (RAW, BATCH) if name in rates}
    names = list(rates)[::-1]
    figure = Figure(figsize=(7.2, 1.7 + 0.42 * len(names)), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(
        names,
        [rates[name] for name in names],
        color=[BLUE if name == use else "#b8bec6" for name in names],
        height=0.62,
    )
    axis.bar_label(bars, fmt="{:,.0f}", padding=4, fontsize=9)
    # A limit far away would leave nothing to see of the bars.
    seen = max(rates.values())
    in_range = {name: rate for name, rate in limits.items() if rate <= 2.5 * seen}
    for (name, rate), shade in zip(in_range.items(), (ORANGE, GREY), strict=False):
        axis.axvline(rate, color=shade, lw=1.4, ls="--", label=f"{name}: {rate:,.0f}")
    off_scale = [
        f"{name}: {rate:,.0f} (not shown)" for name, rate in limits.items() if name not in in_range
    ]
    for text in off_scale:
        axis.plot([], [], " ", label=text)
    axis.set_xlim(0, 1.16 * max([seen, *in_range.values()]))
    axis.set_xlabel("clips per second")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower right", frameon=False, fontsize=8
    )
    lines = [text if len(text) <= 70 else f"... {text[-66:]}" for text in map(plain, title)]
    # A path may hold "$", which would start a formula.
    axis.set_title("\n".join(lines).replace("$", r"\$"), fontsize=10, loc="left")
    save_figure(figure, path)

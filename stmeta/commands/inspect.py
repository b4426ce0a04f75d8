"""`stmeta inspect`: what is in a split, a shard or a sample."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal
from tyro.conf import Positional

from stmeta.commands._show import count, plain, print_bad, print_json, print_table

if TYPE_CHECKING:
    from stmeta.data.verify.inspect import Sample, Summary
    from stmeta.data.verify.pictures import Picture

_LISTED = 40  # classes and sizes that are shown; --json has all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what is in a split, a shard or one sample.

    Prints counts, classes, codecs, sizes, lengths, and the samples that cannot be used with their
    reasons; of one sample, all fields. The exit code is 1 if there are bad samples.
    """

    path: Positional[str]
    """Folder of a split, its address (http://..., s3://...), or one shard (*.tar)."""
    sample: str | None = None
    """Key of a sample to show."""
    save: Path | None = None
    """Draw frames of the sample, with their times, to this PNG file."""
    frames: int = 12
    """Frames to draw, evenly spaced."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> int:
        """Run the command; return the exit code."""
        if self.save and self.sample is None:
            raise ValueError("inspect: --save draws one sample, got no --sample; name its key")
        if self.save and not self.save.absolute().parent.is_dir():
            raise ValueError(f"inspect: the folder of --save must exist, got {self.save}; make it")
        if self.sample is not None:
            return self._sample(self.sample)
        from stmeta.data.verify.inspect import summarise

        summary = summarise(self.path)
        if self.json:
            ranges = {name: spread._asdict() for name, spread in summary.ranges.items()}
            record = dataclasses.asdict(summary) | {"ranges": ranges}
            print_json(record)
        else:
            _print_summary(summary)
        return 1 if summary.bad else 0

    def _sample(self, key: str) -> int:
        from stmeta.data.verify.inspect import find_sample
        from stmeta.data.verify.pictures import pictures

        sample = find_sample(self.path, key)
        fields = _fields(sample)
        if self.json:
            print_json(fields)
        else:
            print_table(key, "field value", ((k, _short(v)) for k, v in fields.items()))
        if self.save:
            shown, reason = pictures(sample, self.frames)
            sample.faults += [reason] if reason else []
            if shown:
                _plot(sample, shown, self.save)
            print_bad("wrong with the pictures", [(key, reason)] if reason else [])
        return 1 if sample.faults else 0


def _print_summary(summary: Summary) -> None:
    hours = f"{summary.seconds / 3600:.1f} h" if summary.seconds >= 5400 else ""
    print(
        f"{summary.path}: {count(summary.shards, 'shard')}, {count(summary.samples, 'sample')}, "
        f"{count(summary.frames, 'frame')}, {hours or f'{summary.seconds / 60:.1f} min'}, "
        f"{decimal(summary.bytes)}, {len(summary.bad)} bad"
    )
    _print_counts("class", summary.classes)
    _print_counts("codec", summary.codecs)
    _print_counts("size", summary.sizes)
    rows = [
        (name.replace("_", " "), *(f"{v:.4g}" for v in r)) for name, r in summary.ranges.items()
    ]
    print_table("", "of_a_video >min >median >max", rows)
    if summary.variable_rate or summary.rotated or summary.stretched:
        print(
            f"{summary.variable_rate} with a varying frame rate, {summary.rotated} turned or "
            f"mirrored, {summary.stretched} with pixels that are not square"
        )
    print_bad(
        "cannot be used", [(f"{row['shard']}: {row['key']}", row["reason"]) for row in summary.bad]
    )


def _print_counts(heading: str, counts: dict[str, int]) -> None:
    top, total = max(counts.values(), default=0), sum(counts.values())
    rows = [
        (name, number, f"{number / total:.1%}", "█" * round(24 * number / top))
        for name, number in list(counts.items())[:_LISTED]
        if total
    ]
    print_table("", f"{heading} >samples >share _", rows)
    if len(counts) > _LISTED:
        print(f"... and {len(counts) - _LISTED} more; --json lists all")


def _fields(sample: Sample) -> dict[str, object]:
    """Everything that is known of a sample, for people and for programs."""
    fields: dict[str, object] = sample.info._asdict()
    del fields["error"]
    return {
        **fields,
        "class": sample.class_name,
        "members": {name: list(place) for name, place in sample.members.items()},
        "json": sample.meta,
        "faults": sample.faults,
    }


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _plot(sample: Sample, shown: list[Picture], path: Path) -> None:
    """Frames in rows, each with its position and time."""
    from matplotlib.figure import Figure

    from stmeta.train.plots import save_figure

    height, width = shown[0].image.shape[:2]
    columns = min(len(shown), 6 if width < 2 * height else 4)
    rows = -(-len(shown) // columns)
    cell = 1.9 if columns == 6 else 2.8
    size = (cell * columns, rows * (cell * height / width + 0.28) + 0.45)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, picture in zip(axes, shown, strict=False):
        axis.imshow(picture.image)
        axis.set_title(f"frame {picture.index}, {picture.seconds:.2f} s", fontsize=8)
    info = sample.info
    label = sample.class_name or ("unlabelled" if info.label < 0 else f"label {info.label}")
    # Names come from files: "$" would start a formula.
    title = plain(f"{info.key}: {label}").replace("$", r"\$")
    rotated = f", turned by {info.rotation}°" if info.rotation else ""
    rotated += ", mirrored" if info.mirror else ""
    figure.suptitle(f"{title}, {info.codec} {info.width}×{info.height}{rotated}", fontsize=10)
    save_figure(figure, path)

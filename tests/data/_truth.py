"""Every way of the library to a frame, against a plain decode of the whole file.

`examine` takes one file through all of them and compares each frame that it gets: which frame it
is, when it is, and its pixels. For any files, with a table of what came out:

    python -m tests.data._truth FILE...
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stmeta.data.augment.crop import centre_window, crop_resize
from stmeta.data.ingest.encode import EncodeOptions
from stmeta.data.ingest.sharding import ingest
from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.data.shards.writer import ShardIndex, build_index
from stmeta.data.verify.inspect import find_sample
from stmeta.data.verify.pictures import pictures
from stmeta.data.verify.verifier import verify
from tests.data._shards import pack
from tests.data._streams import Truth, truth

SIZE, LEAST = 48, 16  # of clips in pixels; frames that a clip is taken of


class Verdict(NamedTuple):
    """What one way made of a file.

    Attributes:
        way: its name.
        result: "good", or the reason why the file was refused.
        frames: frames that were compared.
        faults: what was not as it should be.
        seconds: that it took.
    """

    way: str
    result: str
    frames: int
    faults: list[str]
    seconds: float


def examine(
    path: Path, folder: Path, processes: Iterable[int] = (0, 2), shard: bool = True
) -> list[Verdict]:
    """Take a file through index, verify, inspect, the loader and both ways of `shard`."""
    video = path.read_bytes()
    exact = truth(video)
    verdicts: list[Verdict] = []

    def run(way: str, work) -> str:
        begin = time.monotonic()
        result, frames, faults = work()
        verdicts.append(Verdict(way, result, frames, faults, time.monotonic() - begin))
        return result

    root = folder / "foreign"
    extension = path.suffix[1:].lower()
    pack(root / "000000.tar", [(f"it.{extension}", video), ("it.cls", b"0")])
    if run("index", lambda: _index(root, exact)) == "good":
        run("verify", lambda: _verify(root, exact))
        run("inspect", lambda: _inspect(root, exact))
        for count in processes:
            run(f"stride, {count}", lambda: _load(root, exact, stride=2, processes=count))  # noqa: B023
            run(f"fps, {count}", lambda: _load(root, exact, fps=7.0, processes=count))  # noqa: B023
    for way, copy in (("copy", True), ("transcode", False)) if shard else ():
        run(way, lambda: _shard(path, folder / way, exact, copy))  # noqa: B023
    shutil.rmtree(folder)
    return verdicts


def faults(path: Path, verdicts: list[Verdict]) -> list[str]:
    """Where a whole file was refused, or a way gave something else than the truth."""
    damaged = bool(truth(path.read_bytes()).damaged)
    found = []
    for verdict in verdicts:
        if damaged and verdict.way in ("verify", "transcode") and verdict.result == "good":
            found.append(f"{verdict.way}: the file is damaged, and nothing is said")
        if verdict.faults or (verdict.result != "good" and not damaged):
            found.append(f"{verdict.way}: {'; '.join(verdict.faults) or verdict.result}")
        if verdict.seconds > 60:
            found.append(f"{verdict.way}: it takes {verdict.seconds:.0f} s")
    return found


def main(paths: list[str]) -> int:
    """Examine files and print the table; returns the exit code."""
    wrong = 0
    for path in map(Path, paths):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with tempfile.TemporaryDirectory() as folder:
            verdicts = examine(path, Path(folder) / "work")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10
        print(f"{table({path.name: verdicts})}\n{path.name[:44]:44} memory     {grown:5} MiB more")
        found = faults(path, verdicts) + (["memory"] if grown > 1024 else [])
        wrong += bool(found)
    print(f"{wrong or 'none'} of {len(paths)} files with faults")
    return 1 if wrong else 0


def table(found: dict[str, list[Verdict]]) -> str:
    """Verdicts of files, a line each."""
    lines = []
    for name, verdicts in found.items():
        for verdict in verdicts:
            said = "; ".join(verdict.faults) or verdict.result
            took = f"{verdict.frames:5} {verdict.seconds:6.1f} s"
            lines.append(f"{name[:44]:44} {verdict.way:10} {took}  {said}")
    return "\n".join(lines)


def _index(root: Path, exact: Truth) -> tuple[str, int, list[str]]:
    index = build_index(root)
    if index.bad:
        return index.bad[0].error, 0, []
    row, faults = index.row(0), []
    if not exact.damaged and row.frames != len(exact.frames):
        faults.append(f"{row.frames} frames, a decode gives {len(exact.frames)}")
    return "good", 0, faults


def _verify(root: Path, exact: Truth) -> tuple[str, int, list[str]]:
    report = verify([root], level="decode", workers=1)
    # Foreign shards need no frame count of their own.
    reasons = [bad.reason.removeprefix("nframes is missing").strip("; ") for bad in report.bad]
    reasons = [reason for reason in reasons if reason]
    faults = ["nothing is found, but it is damaged"] if exact.damaged and not reasons else []
    return "; ".join(reasons) or "good", 0, faults


def _inspect(root: Path, exact: Truth) -> tuple[str, int, list[str]]:
    found, reason = pictures(find_sample(root, "it"), 9)
    index, faults = ShardIndex.open(root).row(0), []
    for picture in found:
        if not np.array_equal(picture.image, exact.frames[picture.index]):
            faults.append(f"frame {picture.index} differs")
        faults += _late(picture.seconds, exact.seconds[picture.index], index.fps)
    return reason or "good", len(found), faults


def _late(found: float, exact: float, fps: float) -> list[str]:
    # A constant rate serves for times up to a quarter of a frame, or a coarse tick.
    wrong = abs(found - exact) > 0.25 / fps + 0.016
    return [f"{found:.3f} s, but it is at {exact:.3f} s"] if wrong else []


def _load(root: Path, exact: Truth, **options) -> tuple[str, int, list[str]]:
    frames = min(8, len(exact.frames))
    config = LoaderConfig(
        batch_size=3, frames=frames, size=SIZE, train=False, views=3, device="cpu", cache_mib=0,
        max_error_rate=1.0, **options,
    )  # fmt: skip
    faults: list[str] = []
    count = 0
    with ClipLoader(root, config) as loader:
        fps = float(loader.index.row(0).fps)
        for batch in loader:
            for clip, places, times in zip(
                batch.video, batch.frame_index.numpy(), batch.pts_seconds.numpy(), strict=True
            ):
                count += len(places)
                faults += _compare(clip.permute(0, 2, 3, 1).numpy(), places, times, exact, fps)
        if not exact.damaged and config.fps:
            faults += _nearest(loader, exact, fps)
        skipped = "; ".join(skip.reason for skip in loader.skipped)
    return skipped or "good", count, faults


def _compare(clip, places, times, exact: Truth, fps: float) -> list[str]:
    expected = np.empty_like(clip)
    pixels = np.ascontiguousarray(exact.frames[places])
    crop_resize(pixels, centre_window(*pixels.shape[1:3]), expected)
    faults = [f"frame {i} differs" for i in places[(clip != expected).any((1, 2, 3))]]
    for place, seconds in zip(places, times, strict=True):
        faults += _late(float(seconds), float(exact.seconds[place]), fps)
    return faults


def _nearest(loader: ClipLoader, exact: Truth, fps: float) -> list[str]:
    """Whether sampling by time takes frames that are nearest to their moments."""
    steps = np.arange(loader.config.frames) / (loader.config.fps or 1)
    room = max(0.0, exact.seconds[-1] - steps[-1])
    for request in loader.sampler.batch(0, 0):
        moments = request.start * room + steps
        found = exact.seconds[loader.collator.indices(request)]
        least = np.abs(exact.seconds - moments[:, None]).min(1)
        if (np.abs(found - moments) > least + 0.5 / fps + 0.016).any():
            return [
                f"a clip by time takes {found.round(3).tolist()} for {moments.round(3).tolist()}"
            ]
    return []


def _shard(path: Path, out: Path, exact: Truth, copy: bool) -> tuple[str, int, list[str]]:
    videos = out / "videos"
    videos.mkdir(parents=True)
    shutil.copy(path, videos / path.name)
    options = EncodeOptions(short_side=None, fps=None, gop=10_000 if copy else 16)
    report = ingest(videos, out / "set", encode=options, copy=copy, workers=1)
    if report.bad:
        return report.bad[0].reason, 0, []
    index = ShardIndex.open(out / "set" / "train")
    stored = truth(index.read(0))
    result, count, faults = _load(out / "set" / "train", stored, stride=1, processes=0)
    if index.row(0).frames != len(stored.frames):
        faults.append(f"{index.row(0).frames} frames, a decode gives {len(stored.frames)}")
    return result, count, faults + _same_film(stored, exact, 1 / index.row(0).fps)


def _same_film(stored: Truth, exact: Truth, step: float) -> list[str]:
    """Whether a stored film shows at each time what the source shows, coding aside."""
    faults = []
    if not exact.damaged and abs(stored.seconds[-1] - exact.seconds[-1]) > 1.5 * step:
        faults.append(f"lasts {stored.seconds[-1]:.2f} s instead of {exact.seconds[-1]:.2f} s")
    height, width = 32, 32
    small = [_shrunk(part.frames, height, width) for part in (stored, exact)]
    for number, picture in enumerate(small[0]):
        away = np.abs(exact.seconds - stored.seconds[number])
        near = away <= max(1.01 * step, float(away.min()))  # the last frame stays
        errors = np.abs(small[1] - picture).mean((1, 2, 3))
        if errors[near].min() > errors.min() + 2:
            faults.append(f"at {stored.seconds[number]:.2f} s it shows frame {errors.argmin()}")
        elif errors[near].min() > 12:
            faults.append(f"frame {number} is {errors[near].min():.0f} grey levels off")
    nearest = np.abs(exact.seconds - stored.seconds[:, None]).argmin(1)
    if small[1].std() < 4:  # one colour: nothing to fit
        return faults[:5]
    slope, offset = np.polyfit(small[1][nearest].ravel(), small[0].ravel(), 1)
    # A range that is taken for another one makes them 1.16 and -19, or 0.86 and 16.
    if abs(slope - 1) > 0.08 and abs(offset) > 6:
        faults.append(f"the levels are {slope:.2f} x {offset:+.1f}")
    return faults[:5]


def _shrunk(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = np.linspace(0, frames.shape[1] - 1, height).astype(int)
    columns = np.linspace(0, frames.shape[2] - 1, width).astype(int)
    return frames[:, rows][:, :, columns].astype(np.float32)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

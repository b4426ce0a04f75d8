"""`stmeta dataset composite`: many actions from Kinetics-400, Mini-Kinetics-200 and TinyVIRAT."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from stmeta._util.progress import ProgressBar
from stmeta.commands._show import print_bad, print_table
from stmeta.commands._store import StoreOptions

if TYPE_CHECKING:
    from stmeta.data.datasets.composite import CompositeReport


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetComposite:
    """Make one data set of Kinetics-400, Mini-Kinetics-200 and TinyVIRAT, split by class.

    From annotation files and videos on this machine; nothing is downloaded. Classes of the same
    name are merged. Clips are 100 frames at 10 frames per second; shorter ones keep what they have.
    Videos that are missing or cannot be read are listed in manifest.json; the exit code is 1 if
    some cannot be read. --resume continues an interrupted run.
    """

    out: Path
    """Folder of the data set to make."""
    kinetics: tuple[Path, ...] = ()
    """CSV files of Kinetics: label,youtube_id,time_start,time_end,split."""
    kinetics_videos: tuple[Path, ...] = ()
    """Folders with its videos, ID_000010_000020.mp4 or ID.mp4, flat or in any subfolders."""
    minikinetics: tuple[Path, ...] = ()
    """Mini-Kinetics-200 lists of YouTube ids: only these clips of Kinetics are taken."""
    tinyvirat: tuple[Path, ...] = ()
    """JSON files of TinyVIRAT, version 1 or 2."""
    tinyvirat_videos: tuple[Path, ...] = ()
    """Folders with its videos."""
    test_fraction: float = 0.2
    """Part of the classes that is held out: split "heldout"."""
    val_fraction: float = 0.0
    """Part of the clips of each other class that becomes the split "val"."""
    frames: int = 100
    """Maximum number of frames of a clip."""
    min_frames: int = 10
    """Clips with fewer are left out."""
    fps: float = 10
    """Frames per second."""
    seed: int = 0
    """Of the splits and the order."""
    json: bool = False
    """Print the manifest, without a progress bar."""
    store: OmitArgPrefixes[StoreOptions] = dataclasses.field(default_factory=StoreOptions)

    @property
    def resumable(self) -> bool:
        """Whether an interrupted run can be continued."""
        return True

    def run(self) -> int:
        """Run the command; return the exit code."""
        from stmeta.data.datasets import composite

        with ProgressBar(hidden=self.json) as bar:
            report = composite.build(
                self.out,
                kinetics=self.kinetics,
                kinetics_videos=self.kinetics_videos,
                minikinetics=self.minikinetics,
                tinyvirat=self.tinyvirat,
                tinyvirat_videos=self.tinyvirat_videos,
                test_fraction=self.test_fraction,
                val_fraction=self.val_fraction,
                frames=self.frames,
                min_frames=self.min_frames,
                seed=self.seed,
                encode=self.store.encode_options(self.fps),
                shard_mib=self.store.shard_mib,
                workers=self.store.workers,
                resume=self.store.resume,
                progress=bar,
            )
        if self.json:
            print(json.dumps(report.manifest, indent=1))
        else:
            self._print(report)
        return 1 if report.broken else 0

    def _print(self, report: CompositeReport) -> None:
        counts = report.manifest["splits"]
        keys = ("classes", "clips", "short", "unlabelled")
        rows = [(name, *(f"{part[key]:,}" for key in keys)) for name, part in counts.items()]
        print_table("", f"split >classes >clips >below_{self.frames}_frames >unlabelled", rows)
        keys = ("listed", "missing", "refused", "repeated")
        rows = [
            (
                name,
                *(f"{part.get(key, 0):,}" for key in keys),
                f"{sum(part.get(split, 0) for split in counts):,}",
            )
            for name, part in report.manifest["datasets"].items()
        ]
        print_table("", "source >listed >missing >refused >repeated >stored", rows)
        print(f"{report.out}, {report.seconds:.1f} s; manifest.json lists what was left out")
        print_bad("cannot be read", report.broken.items())

"""Clips for a composite; annotation files are made up, in the formats that the sets publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stmeta.data.ingest.encode import EncodeOptions

HEAD = "label,youtube_id,time_start,time_end,split,is_cc\n"
CLASSES = (
    "riding a bike",
    "petting animal (not cat)",
    "massaging person's head",
    "abseiling",
    "windsurfing",
)
SMALL = EncodeOptions(fps=10, short_side=48)


def youtube(number: int) -> str:
    return f"-a_{number:08d}"


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def clips(make_video) -> list[bytes]:
    """Three of 2 s, and one of 10.4 s at 25 frames per second."""
    return [*(make_video(i, frames=30, fps=15) for i in range(3)), make_video(9, frames=260)]


@pytest.fixture(scope="module")
def local(clips, tmp_path_factory) -> Path:
    """What `write_local` writes, in a folder of its own."""
    return write_local(tmp_path_factory.mktemp("local"), clips)


def write_local(root: Path, clips: list[bytes]) -> Path:
    """20 clips of Kinetics, of which 4 are missing and 1 is broken, and 6 of TinyVIRAT."""
    rows = [HEAD]
    for i in range(20):
        label = CLASSES[i % 5]
        rows.append(f"{label},{youtube(i)},{i},{i + 10},train,0\n")
        name = f"{youtube(i)}_{i:06d}_{i + 10:06d}.mp4"
        # Half in class folders, which some tools write with "_" and without punctuation.
        folder = root / "k400" / (label.replace(" ", "_").replace("'", "") if i % 2 else "")
        if i not in (4, 8, 12, 16):
            content = clips[3] if i < 2 else b"<html>gone</html>" if i == 17 else clips[i % 3]
            write(folder / name, content)
    write(root / "train.csv", "".join(rows))
    parent = "VIRAT_S_000204_04_000738_000977"
    labels = [["Riding_A_Bike", "Talking"], ["Talking"], ["vehicle_moving"], ["Opening"], [], None]
    records = []
    for i, label in enumerate(labels):
        path = f"{parent}/{i:06d}.mp4"
        record = {"id": f"{i:06d}", "video_id": parent, "path": path, "dim": [30, 48, 64]}
        records.append(record | ({"label": label} if label is not None else {}))
        write(root / "TinyVIRAT_V2" / "videos" / "train" / path, clips[i % 3])
    write(root / "tiny_train_v2.json", json.dumps(records))
    return root

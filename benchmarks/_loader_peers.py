"""Ways to read clips, each run in a process of its own: `python -m benchmarks._loader_peers JOB`.

JOB is a JSON file: {"way", "clips": [[path, start], ...], "split", "tar", "frames", "stride",
"size", "batch", "seconds"}. It prints {"clips", "seconds"}: clips delivered as uint8 batches
[B, T, 3, size, size] on two threads or processes, after a first batch that does not count.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def centre(video: Any, size: int) -> Any:
    """The centre square of uint8 [T, 3, H, W], resized as the loader does it."""
    import torch
    from torch.nn import functional as F

    side = min(video.shape[2:])
    top, left = ((length - side) // 2 for length in video.shape[2:])
    video = video[:, :, top : top + side, left : left + side]
    video = video.contiguous(memory_format=torch.channels_last)
    return F.interpolate(video, (size, size), mode="bilinear", antialias=True)


def wanted(job: Job, start: int) -> list[int]:
    """Frames of a clip."""
    return [start + i * job["stride"] for i in range(job["frames"])]


def torchcodec(job: Job, path: str, start: int) -> Any:
    """One clip by torchcodec, one FFmpeg thread, no scan of the file."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(
        path, num_ffmpeg_threads=1, seek_mode="approximate", dimension_order="NHWC"
    )
    frames = decoder.get_frames_at(wanted(job, start)).data
    return centre(frames.permute(0, 3, 1, 2), job["size"])


def decord(job: Job, path: str, start: int) -> Any:
    """One clip by decord."""
    import torch
    from decord import VideoReader

    frames = VideoReader(path, num_threads=1).get_batch(wanted(job, start)).asnumpy()
    return centre(torch.from_numpy(frames).permute(0, 3, 1, 2), job["size"])


_local = threading.local()  # a scaler serves one thread


def _frames(job: Job, file: Any, start: int) -> Iterator[tuple[int, Any]]:
    """Number and frame, from the key frame before a clip to the clip's last frame."""
    import av

    last = wanted(job, start)[-1]
    with av.open(file) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        tick, rate, first = stream.time_base, stream.average_rate, stream.start_time or 0
        container.seek(int(first + start / rate / tick), stream=stream, backward=True)
        for frame in container.decode(stream):
            number = round((frame.pts - first) * tick * rate)
            yield number, frame
            if number >= last:
                return


def pyav(job: Job, path: Any, start: int) -> Any:
    """One clip by PyAV, as well as a person would write it: seek, one scaler, wanted frames."""
    import numpy as np
    import torch
    from av.video.reformatter import VideoReformatter

    if not hasattr(_local, "scaler"):
        _local.scaler = VideoReformatter()
    chosen = set(wanted(job, start))
    pictures = [
        _local.scaler.reformat(frame, format="rgb24", threads=1).to_ndarray()
        for number, frame in _frames(job, path, start)
        if number in chosen
    ]
    # An open group's first frames may be missing after a seek: the last one stands in for them.
    pictures += pictures[-1:] * (job["frames"] - len(pictures))
    return centre(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), job["size"])


def _threads(job: Job, read: Callable[..., Any]) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    clips, batch = job["clips"], job["batch"]
    with ThreadPoolExecutor(2) as pool:
        began, count, place = 0.0, 0, 0
        while count == 0 or time.perf_counter() - began < job["seconds"]:
            part = [clips[(place + i) % len(clips)] for i in range(batch)]
            torch.stack(list(pool.map(lambda clip: read(job, *clip), part)))
            if place == 0:
                began = time.perf_counter()
            else:
                count += batch
            place += batch
        return {"clips": count, "seconds": time.perf_counter() - began}


def _raw_share(job: Job, part: int) -> tuple[int, float]:
    clips = job["clips"][part::2]
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < job["seconds"]:
        for _ in _frames(job, *clips[count % len(clips)]):
            pass
        count += 1
    return count, time.perf_counter() - began


def raw(job: Job) -> dict[str, float]:
    """The limit: FFmpeg decodes the clips' frames, two processes, nothing is converted."""
    with get_context("spawn").Pool(2) as pool:
        shares = pool.starmap(_raw_share, [(job, 0), (job, 1)])
    return {"clips": sum(count for count, _ in shares), "seconds": max(s for _, s in shares)}


class _FromTar:
    """A webdataset sample to a clip; picklable, for the workers of a DataLoader."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, sample: dict[str, Any]) -> Any:
        import random

        frames = int.from_bytes(sample["nframes"], "little")
        room = frames - (self.job["frames"] - 1) * self.job["stride"]
        start = random.randrange(max(1, room))
        return pyav(self.job, io.BytesIO(sample["mp4"]), start)


def _long_enough(sample: dict[str, Any], least: int) -> bool:
    return int.from_bytes(sample["nframes"], "little") >= least


def webdataset(job: Job) -> dict[str, float]:
    """webdataset and PyAV in a DataLoader of two workers, random clips of the same shards."""
    from functools import partial

    import torch
    import webdataset as wds

    torch.set_num_threads(1)
    least = (job["frames"] - 1) * job["stride"] + 1
    data = (
        wds.WebDataset(job["tars"], shardshuffle=False, empty_check=False, nodesplitter=None)
        .repeat()
        .select(partial(_long_enough, least=least))
        .map(_FromTar(job))
        .batched(job["batch"], collation_fn=torch.stack)
    )
    began = count = 0
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    for number, batch in enumerate(loader):
        if number < 2:  # both workers have started
            began = time.perf_counter()
            continue
        count += len(batch)
        if time.perf_counter() - began > job["seconds"]:
            break
    return {"clips": count, "seconds": time.perf_counter() - began}


def stmeta(job: Job) -> dict[str, float]:
    """Our loader; nothing is kept decoded, and each video's packets are listed beforehand."""
    import torch

    from stmeta.data.loading.loader import ClipLoader, LoaderConfig

    torch.set_num_threads(1)
    config = LoaderConfig(
        batch_size=job["batch"],
        frames=job["frames"],
        stride=job["stride"],
        size=job["size"],
        cache_mib=0,
        device="cpu",
        **job.get("options", {}),
    )
    with ClipLoader(job["split"], config) as loader:
        for _ in range(2):
            for _ in loader:
                pass
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < job["seconds"]:
            for batch in loader:
                count += len(batch)
        return {"clips": count, "seconds": time.perf_counter() - began}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    way = job["way"]
    if way in ("torchcodec", "decord", "pyav"):
        result = _threads(job, globals()[way])
    else:
        result = globals()[way](job)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

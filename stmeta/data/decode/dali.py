"""Decode and augment with NVIDIA DALI: one graph of crop, resize and flip behind three sources.

    frames   decoded clips [T, H, W, 3] from memory   → crop → resize → flip    CPU or GPU
    encoded  video files, VP8, VP9 or MJPEG           → decoded frames          CPU
    encoded  video files, most codecs                 → decode → crop → ...     GPU (NVDEC)

DALI is imported when a pipeline is built. What DALI does with damaged files decides the shape of
this module: an error in one sample fails the batch and leaves the pipeline unusable, and frames
past the end, or in a file cut short, come back black without an error. So a pipeline is thrown away
when it fails and built anew (10 ms), callers find the culprit by running samples alone, and `black`
tells which clips need a second look.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stmeta.data.augment.crop import Window
from stmeta.data.video.display import Display

# What `fn.decoders.video` decodes on a CPU, and on a GPU with the smallest (width, height) that the
# hardware takes.
CPU_CODECS = {"vp8", "vp9", "mjpeg"}
GPU_CODECS = {
    "h264": (48, 16),
    "hevc": (144, 144),
    "vp8": (48, 16),
    "vp9": (128, 128),
    "av1": (128, 128),
    "mpeg4": (48, 16),
    "mjpeg": (64, 64),
}


class PipelineError(RuntimeError):
    """DALI could not process a batch; the pipeline will be built anew."""


def decodes(codec: str, width: int, height: int, display: Display, *, gpu: bool) -> bool:
    """Whether DALI decodes such a video here; it neither turns nor mirrors."""
    if not display.stored:
        return False
    if not gpu:
        return codec in CPU_CODECS
    least = GPU_CODECS.get(codec)
    return least is not None and width >= least[0] and height >= least[1]


def black(clips: Tensor) -> list[int]:
    """Clips of a batch with an entirely black frame.

    Args:
        clips: uint8 [B, T, H, W, C].
    """
    if clips.numel() == 0:
        return []
    return (clips.flatten(2).amax(2) == 0).any(1).nonzero().flatten().tolist()


class DaliGraph:
    """Pipelines for one loader, built when first used and again after an error.

    Not for several threads at once.
    """

    def __init__(
        self, *, batch_size: int, frames: int, size: int, threads: int, device: str = "cpu"
    ) -> None:
        """Prepare pipelines.

        Args:
            batch_size: largest number of clips in one run.
            frames: frames of a clip, T.
            size: height and width of the result.
            threads: CPU threads of DALI.
            device: "cpu", "cuda" or "cuda:N"; where results lie.
        """
        self.batch_size, self.frames, self.size, self.threads = batch_size, frames, size, threads
        where = torch.device(device)
        self.gpu = where.type == "cuda"
        self.device = torch.device("cuda", where.index or 0) if self.gpu else where
        self.device_id = self.device.index if self.gpu else None
        self._stream: Any = None
        self._built: dict[str, Any] = {}

    def augment(self, clips: Sequence[np.ndarray], windows: Sequence[Window]) -> Tensor:
        """Crop, resize and flip decoded clips of any size.

        Args:
            clips: uint8 [T, H, W, 3] each.
            windows: one per clip.

        Returns:
            uint8 [B, T, size, size, 3].

        Raises:
            PipelineError: DALI failed.
        """
        clips = [np.ascontiguousarray(clip) for clip in clips]
        return self._tensor(self._run("frames", {"video": clips, **_windows(windows)}))

    def decode(self, videos: Sequence[bytes], indices: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Decode frames on the CPU.

        Args:
            videos: whole files.
            indices: frames of each, in any order.

        Returns:
            uint8 [F, H, W, 3] per video; frames that the file lacks are black.

        Raises:
            PipelineError: at least one file cannot be decoded.
        """
        result = self._run("decode", _files(videos, indices))
        return [np.array(result[i], copy=True) for i in range(len(videos))]

    def decode_augment(
        self, videos: Sequence[bytes], indices: Sequence[np.ndarray], windows: Sequence[Window]
    ) -> Tensor:
        """Decode on the GPU, then crop, resize and flip there; see `decode` and `augment`."""
        return self._tensor(self._run("nvdec", _files(videos, indices) | _windows(windows)))

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Run what torch does on a stream of its own, not behind the model's; waits for its end."""
        if not self.gpu:
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device_id)
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def close(self) -> None:
        """Free the pipelines."""
        self._built.clear()

    def _run(self, kind: str, inputs: dict[str, list[np.ndarray]]) -> Any:
        pipeline = self._built.get(kind)
        if pipeline is None:
            pipeline = self._built[kind] = self._build(kind)
        try:
            for name, values in inputs.items():
                pipeline.feed_input(name, values)
            return pipeline.run()[0]
        except (RuntimeError, ValueError, TypeError) as error:
            del self._built[kind]
            raise PipelineError(_first_reason(str(error))) from error

    def _build(self, kind: str) -> Any:
        module: Any = importlib.import_module("nvidia.dali")  # its type stubs lag behind
        importlib.import_module("nvidia.dali.fn")
        fn, types = module.fn, module.types
        pipeline = module.Pipeline(
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=self.device_id,
            prefetch_queue_depth=1,  # inputs are fed by hand
            exec_dynamic=True,  # results may outlive the next run
            seed=0,
        )

        def source(name: str, dtype: Any, ndim: int, **more: Any) -> Any:
            # The caller keeps the arrays until the run has ended: no copy is needed.
            return fn.external_source(name=name, dtype=dtype, ndim=ndim, no_copy=True, **more)

        with pipeline:
            if kind == "frames":
                video = source("video", types.UINT8, 4, layout="FHWC")
            else:
                video = fn.decoders.video(
                    source("video", types.UINT8, 1),
                    device="mixed" if kind == "nvdec" else "cpu",
                    frames=source("indices", types.INT32, 1),
                    # Loaders of several ranks must not pin themselves to the same cores.
                    **({"affine": False} if kind == "nvdec" else {}),
                )
            if kind != "decode":
                begin, end = source("begin", types.INT32, 1), source("end", types.INT32, 1)
                # Cut first, so that no pixel outside the window is mixed in.
                video = fn.slice(video, start=begin, end=end, axis_names="HW")
                video = video.gpu() if self.gpu and kind == "frames" else video
                video = fn.resize(
                    video,
                    size=[self.size, self.size],
                    interp_type=types.INTERP_LINEAR,
                    antialias=True,
                )
                video = fn.flip(video, horizontal=source("flip", types.INT32, 0))
            pipeline.set_outputs(video)
        pipeline.build()
        return pipeline

    def _tensor(self, result: Any) -> Tensor:
        """Take a batch over as a tensor [B, T, size, size, 3]."""
        if not self.gpu:
            # The dynamic executor gives its buffers away: no copy.
            return torch.from_dlpack(result.as_tensor())
        with self.beside():
            return torch.from_dlpack(result.as_tensor()).clone()


def _files(videos: Sequence[bytes], indices: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    return {
        "video": [np.frombuffer(video, np.uint8) for video in videos],
        "indices": [item.astype(np.int32) for item in indices],
    }


def _windows(windows: Sequence[Window]) -> dict[str, list[np.ndarray]]:
    return {
        "begin": [np.array([w.top, w.left], np.int32) for w in windows],
        "end": [np.array([w.top + w.height, w.left + w.width], np.int32) for w in windows],
        "flip": [np.array(w.flip, np.int32) for w in windows],
    }


def _first_reason(text: str) -> str:
    """The part of DALI's report that says what happened, without its traces."""
    _, found, rest = text.partition("encountered:")
    return (rest if found else text).partition("C++ context")[0].strip() or "unknown error"

"""Chooses between the decoders: `pyav` on the CPU, `dali` on CPU and GPU."""

from __future__ import annotations

import importlib
from typing import Literal, NamedTuple

from stmeta._errors import BackendUnavailableError

Decoder = Literal["dali", "pyav"]


class DecoderChoice(NamedTuple):
    """What decodes, where the clips arrive, and why."""

    decoder: Decoder
    device: str
    reason: str


def dali_problem() -> str:
    """Why DALI cannot be imported here; "" if it can."""
    try:
        importlib.import_module("nvidia.dali")
    except Exception as error:  # a broken installation may raise anything
        return f"nvidia.dali cannot be imported ({error})"
    return ""


def choose_decoder(decoder: str, device: str, *, fits: bool) -> DecoderChoice:
    """Settle "auto".

    On a CPU, `auto` is PyAV and torch: decoding costs the same as in DALI, which knows VP8, VP9 and
    MJPEG only, and torch's resize of uint8 takes a fifth of the CPU time of DALI's.

    Args:
        decoder: "auto", "dali" or "pyav".
        device: "auto", "cpu" or "cuda", or a device with its number such as "cuda:1".
        fits: whether all decoded videos fit into `cache_mib`.

    Raises:
        BackendUnavailableError: what was named is not there.
    """
    import torch  # here, as a decoder's process does without it

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"ClipLoader: device={device!r}, but torch finds no GPU; use device='cpu'"
        )
    if decoder == "pyav":
        return DecoderChoice("pyav", device, "requested")
    if decoder == "auto" and not on_gpu:
        return DecoderChoice("pyav", device, "on a CPU it takes the least CPU time")
    if decoder == "auto" and fits:
        return DecoderChoice("pyav", device, "all decoded videos fit into cache_mib")
    problem = dali_problem()
    if decoder == "dali" and problem:
        raise BackendUnavailableError(
            f"ClipLoader: decoder='dali', but {problem}; "
            "pip install nvidia-dali-cuda130, or use decoder='pyav'"
        )
    if problem:
        return DecoderChoice("pyav", device, problem)
    return DecoderChoice(
        "dali", device, "decodes and resizes on the GPU" if on_gpu else "requested"
    )

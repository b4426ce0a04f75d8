"""What a run writes to go on from: its state and its weights, whole, and checked when read.

`last.pt` is torch's zip file with the SHA-256 of all that is before it as the zip's comment; torch
itself checks nothing. Weights are safetensors with a SHA-256 of all tensors among their metadata.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stmeta._errors import DataError
from stmeta._util.files import open_regular, replaced
from stmeta.train.old_runs import convert_names

_REMEDY = "delete the folder {folder} to begin this task again, or bring the file back"
_MARK = b"sha256 "
FIGURES: dict[str, Any] = {"best": float, "seconds": float, "waited": float, "clips": int}
"""Plain numbers of a state, beside `step`, `history`, `evals`, `model`, `optimizer` and `data`."""


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a state, whole or not at all."""
    with replaced(path) as partial:
        torch.save(dict(state), partial)
        with open(partial, "r+b") as file:
            file.seek(-2, io.SEEK_END)  # a zip ends with the length of its comment, here none
            file.write(struct.pack("<H", len(_MARK) + 64))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.write(_MARK + digest.encode())


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state and check that it is one, with every byte as it was written.

    Raises:
        DataError: the file is empty, cut off, changed, or holds something else.
    """
    with open(open_regular(path), "rb") as file:
        content = file.read()
    if reason := _damage(content):
        raise _unusable(path, reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of pickles that others wrote
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise _unusable(
            path, f"is no state of a run ({reason[0] if reason else error!r})"
        ) from error
    except (EOFError, AttributeError, IndexError, ImportError, RecursionError) as error:
        raise _unusable(path, f"is no state of a run ({type(error).__name__})") from error
    if reason := _malformed(state):
        raise _unusable(path, reason)
    return state


def _damage(content: bytes) -> str:
    """What is wrong with a file before it is read, or ""."""
    before, mark, digest = content[-len(_MARK) - 64 :].rpartition(_MARK)
    if mark and before:
        return "is cut off"
    if mark:
        if hashlib.sha256(content[: -len(_MARK) - 64]).hexdigest().encode() != digest:
            return "is damaged: it does not have the hash that it was written with"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # torch stores its members as they are; packed ones could be of any size once unpacked.
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                return "is no checkpoint, as its members are packed"
            if damaged := archive.testzip():
                return f"is damaged: {damaged} is not what was written"
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        return f"is empty, cut off or no checkpoint ({error})"
    return ""


def _malformed(state: Any) -> str:
    """What a state lacks, or ""."""
    if not isinstance(state, dict):
        return f"holds {type(state).__name__}, and not the state of a run"
    rules = {
        "model": lambda v: isinstance(v, dict) and all(isinstance(t, Tensor) for t in v.values()),
        "optimizer": lambda v: isinstance(v, dict) and isinstance(v.get("state"), dict),
        "data": lambda v: isinstance(v, dict) and all(type(n) is int for n in v.values()),
        "step": lambda v: type(v) is int and v >= 0,
        "history": lambda v: _is_table(v, {"step", "loss", "lr"}),
        "evals": lambda v: _is_table(v, {"step"}),
        **{name: lambda v, kind=kind: _is_number(v, kind) for name, kind in FIGURES.items()},
    }
    for name, holds in rules.items():
        if name not in state:
            return f"has no {name!r}"
        if not holds(state[name]):
            return f"holds {state[name]!r:.60} as {name!r}"
    if len(state["history"]) != state["step"]:
        return f"has {len(state['history'])} steps of history at step {state['step']}"
    return ""


def _is_number(value: Any, kind: type) -> bool:
    whole = type(value) is int
    return whole or (kind is float and type(value) is float and not math.isnan(value))


def _is_table(value: Any, needed: set[str]) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, dict)
        and needed <= set(row)
        and all(type(n) in (int, float) for n in row.values())
        for row in value
    )


def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    names: set[str],
) -> None:
    """Put a state into a model and its optimizer; how fast it learns stays as it is set now.

    Args:
        state: from `load_state`.
        model: gets the weights.
        optimizer: gets its moments.
        path: of the state, for errors.
        names: what this kind of optimizer remembers of a parameter.

    Raises:
        DataError: the state is of another model, or of another kind of optimizer.
    """
    mine = {name: _form(tensor) for name, tensor in model.state_dict().items()}
    weights = convert_names(state["model"])
    theirs = {name: _form(tensor) for name, tensor in weights.items()}
    if differences := _differences(theirs, mine):
        raise DataError(
            f"--resume: {path} is of another model than the one that --model, the tasks or the "
            f"classes of the data make now ({differences}); use the settings and the data of that "
            "run, or train into another --out"
        )
    model.load_state_dict(weights)
    groups = optimizer.state_dict()["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = state["optimizer"]["state"]
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in moments and not _fits(moments[number], parameter, names):
            raise _unusable(path, "has a state of the optimizer that is of another model")
    if set(moments) - set(numbers):
        raise _unusable(path, "has a state of the optimizer with more parameters than the model")
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _fits(moment: Any, parameter: Tensor, names: set[str]) -> bool:
    """Whether what an optimizer remembers is of this parameter: numbers, or as large as it is."""
    if not isinstance(moment, dict) or set(moment) != names:
        return False
    for name, value in moment.items():
        wanted = {"float32 []"} if name == "step" else {_form(parameter)}
        if not isinstance(value, Tensor) or _form(value) not in wanted:
            return False
    return "step" not in moment or bool(moment["step"] >= 0)


def _form(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {list(tensor.shape)}" + ("" if tensor.layout == torch.strided else ", sparse")


def _differences(theirs: Mapping[str, str], mine: Mapping[str, str]) -> str:
    found = [f"{name} is not there" for name in mine if name not in theirs]
    found += [f"{name} is there alone" for name in theirs if name not in mine]
    found += [
        f"{name} is {theirs[name]} there and {form} now"
        for name, form in mine.items()
        if name in theirs and theirs[name] != form
    ]
    more = f"; {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors with its hash, whole or not at all."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with replaced(path) as partial:
        save_file(tensors, partial, metadata={"sha256": _digest(tensors)})


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read weights, and check them where they tell their hash.

    Raises:
        DataError: the file is missing, cut off or changed.
    """
    try:
        with safe_open(str(path), "pt") as file:
            wanted = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"weights: {path} cannot be read: {error}; train that task again"
        ) from error
    if wanted is not None and wanted != _digest(tensors):
        raise DataError(
            f"weights: {path} is damaged: it does not have the hash that it was written with; "
            "train that task again, or bring the file back"
        )
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _unusable(path: Path, reason: str) -> DataError:
    return DataError(f"--resume: {path} {reason}; {_REMEDY.format(folder=path.parent)}")

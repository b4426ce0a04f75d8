"""Runs of stmeta 0.1.0 before tasks had configs of their own: their config.json and weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")
_ADAMW = "stmeta.train.optim:AdamWConfig"
_TASKS = {
    "pretrain": "stmeta.train.tasks.pretrain:PretrainConfig",
    "classify": "stmeta.train.tasks.classify:ClassifyConfig",
    "classify_masked": "stmeta.train.tasks.classify:ClassifyConfig",
    "fewshot": "stmeta.train.tasks.fewshot:FewShotConfig",
}
_SEQUENCES = {"copy": "CopyConfig", "repeat_copy": "RepeatCopyConfig", "recall": "RecallConfig"}
_CELLS = {"mann": "MANNConfig", "ntm": "NTMConfig", "dnc": "DNCConfig", "lstm": "LSTMConfig"}
# Fields of the memory runs that their one task has now.
_SHARED = ("steps", "batch_size", "optim", "evals")
_OF_EPISODES = ("matching", "ways", "instances", "image_size", "shift", "rotation", "test_episodes")
_OF_SEQUENCES = ("max_length", "test_lengths", "bits")


def convert_config(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a `RunConfig`, from those of a `TrainConfig` or a `MemoryConfig`.

    Raises:
        ValueError: a field that tells kinds apart has a value that it never had.
    """
    return _memory_run(dict(values)) if "task" in values else _clip_run(dict(values))


def convert_names(weights: Mapping[str, _T]) -> dict[str, _T]:
    """Weights by the names that models have now: two that stood inside others are gone."""
    return {re.sub(r"^(few_shot|sequence)\.", "", name): value for name, value in weights.items()}


def _clip_run(values: dict[str, Any]) -> dict[str, Any]:
    tasks = {name: values.pop(name, {}) for name in _TASKS}
    size = _get(tasks["classify"], "batch_size")
    for name, kind in _TASKS.items():
        tasks[name] = _classed(kind, _with_optim(tasks[name]))
    if isinstance(tasks["fewshot"], dict):
        fewshot = tasks["fewshot"]
        fewshot |= {"model": _few_shot_model(fewshot.pop("head", {}))}
        fewshot |= {} if size is None else {"clip_batch_size": size}
    values["stage"] = values.get("stage", [*_TASKS])
    values["data"] = values.get("data") or "motions"
    values["model"] = _classed("stmeta.models.small_vit:SmallViTConfig", values.get("model", {}))
    values.setdefault("clip", {})
    return values | {"tasks": tasks}


def _few_shot_model(head: Any) -> Any:
    if not isinstance(head, dict):
        return head
    head = dict(head)
    mann, kind = head.pop("mann", {}), head.pop("memory", "mann")
    gate, sees = head.pop("gate_bias", -2.0), head.pop("controller_features", False)
    if kind == "lstm":
        inputs = ["features", "label"] + ["last_features"] * head.get("bind", True)
        memory = _cell("lstm", {"hidden": _get(mann, "hidden", 64)})
        head |= {"direct_keys": False, "bind": False}
    else:
        inputs = ["features", "label"] if sees else ["label"]
        memory = _cell("mann", mann, gate_bias=gate)
    return head | {"memory": memory, "inputs": inputs}


def _memory_run(values: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: values.pop(name, {}) for name in ("mann", "ntm", "dnc")}
    sizes["lstm"] = {"hidden": values.pop("lstm_hidden", 200)}
    kind = _known("memory", values.pop("memory", "mann"), _CELLS)
    task = values.pop("task")
    filters, widths = values.pop("filters", []), values.pop("encoder", [])
    augment = values.pop("augment", False)
    own = {name: values.pop(name) for name in _SHARED if name in values}
    episodes = {name: values.pop(name) for name in _OF_EPISODES if name in values}
    sequences = {name: values.pop(name) for name in _OF_SEQUENCES if name in values}
    if task != "omniglot":
        name = _known("task", task, _SEQUENCES)
        own |= sequences | {"memory": _cell(kind, sizes[kind])}
        made = _classed(f"stmeta.train.tasks.sequences:{name}", _with_optim(own))
        return values | {"tasks": {"sequences": made}}
    own |= episodes
    own["model"] = _image_model(kind, sizes[kind], filters, widths, augment)
    if not widths:
        own["matching"] = 0.0
    made = _classed("stmeta.train.tasks.episodes:OmniglotConfig", _with_optim(own))
    return values | {"tasks": {"episodes": made}}


def _image_model(kind: str, size: Any, filters: Any, widths: Any, augment: Any) -> dict[str, Any]:
    """The four networks that there were: without an encoder, and by how labels come in."""
    plain = {"direct_keys": False, "bind": False, "augment": augment}
    if not widths:
        sees = {"standardise": False, "inputs": ["features", "label"]}
        return plain | sees | {"augment": False, "memory": _cell(kind, size)}
    encoder = _classed(
        "stmeta.models.image_encoder:ImageEncoderConfig", {"filters": filters, "widths": widths}
    )
    if kind == "mann":
        memory = _cell(kind, size, gate_bias=-2.0)
        return {"encoder": encoder, "memory": memory, "augment": augment}
    order = {"lstm": ["features", "label", "last_features"]}
    inputs = order.get(kind, ["features", "last_features", "label"])
    plain |= {"encoder": encoder, "memory": _cell(kind, size), "inputs": inputs}
    return plain if kind == "lstm" else plain | {"augment": False}


def _cell(kind: str, size: Any, **more: Any) -> Any:
    if isinstance(size, dict):
        size = {"num_heads" if k == "reads" else k: v for k, v in size.items()} | more
    return _classed(f"stmeta.memory.{kind}:{_CELLS[kind]}", size)


def _with_optim(task: Any) -> Any:
    if isinstance(task, dict) and "optim" in task:
        return task | {"optim": _classed(_ADAMW, task["optim"])}
    return task


def _classed(kind: str, values: Any) -> Any:
    return {"class": kind, **values} if isinstance(values, dict) else values


def _get(values: Any, name: str, other: Any = None) -> Any:
    return values.get(name, other) if isinstance(values, dict) else other


def _known(name: str, value: Any, kinds: Mapping[str, str]) -> str:
    if not isinstance(value, str) or value not in kinds:
        raise ValueError(f"config: {name} must be one of {', '.join(kinds)}, got {value!r:.60}")
    return value if name == "memory" else kinds[value]

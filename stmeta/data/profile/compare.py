"""Which settings load a split's clips fastest on this machine, and what the limits are."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from stmeta._errors import BackendUnavailableError, DataError
from stmeta.data.decode.choice import dali_problem
from stmeta.data.loading.config import LoaderConfig
from stmeta.data.profile.candidates import (
    CachedBatchCandidate,
    Candidate,
    LoaderCandidate,
    RawDecodeCandidate,
)
from stmeta.data.profile.usage import free_memory
from stmeta.data.shards.index import BadSample, ShardIndex

GIVEN, THREADS, PROCESSES = "as given", "threads", "processes"
DALI, CACHED = "dali", "all in memory"
BATCH, RAW = "cached batch", "raw decode"
FILL = 20
"""A cache is filled for as long as so many slots."""


@dataclasses.dataclass
class Comparison:
    """What was measured.

    Attributes:
        results: of each way, by its name, ceilings last; see `LoaderCandidate.result`.
        settings: of each way, what differs from those given.
        left_out: ways that were not measured, and why.
        unfilled: why the given cache was not full yet, though it holds all videos; "" = it was.
        skips: samples that could not be read.
    """

    results: dict[str, dict[str, Any]]
    settings: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    unfilled: str
    skips: list[BadSample]


def compare(index: ShardIndex, config: LoaderConfig, *, seconds: float, rounds: int) -> Comparison:
    """Measure every way for `seconds`, `rounds` times, in turn.

    Raises:
        DataError: too many samples cannot be read.
        BackendUnavailableError: the decoder or device that was named is not there.
        ValueError: the settings do not fit the split.
    """
    found = Comparison({}, {}, {}, "", [])
    with ExitStack() as stack:
        candidates: dict[str, Candidate] = {}
        candidates[GIVEN] = given = stack.enter_context(closing(LoaderCandidate(index, config)))
        if decoded_bytes(index, config)[0] <= config.cache_mib * 2**20:
            found.unfilled = given.fill(FILL * seconds)
        for name, changed in _variants(index, given, found.left_out).items():
            if changed == _resolved(given):
                found.left_out[name] = "it is what was given"
                continue
            found.settings[name] = differences(config, changed)
            try:
                candidate = stack.enter_context(closing(LoaderCandidate(index, changed)))
                reason = candidate.fill(FILL * seconds) if name == CACHED else ""
                if reason:
                    found.left_out[name] = reason
                else:
                    candidates[name] = candidate
            except (BackendUnavailableError, ValueError) as error:
                found.left_out[name] = str(error)
        try:
            candidates[RAW] = stack.enter_context(closing(RawDecodeCandidate(given.loader)))
        except DataError as error:
            found.left_out[RAW] = str(error)
        candidates[BATCH] = stack.enter_context(closing(CachedBatchCandidate(index, config)))
        for number in range(rounds):
            # There and back again: what warms up or slows down then does so for all.
            for candidate in list(candidates.values())[:: -1 if number % 2 else 1]:
                candidate.slot(seconds)
        found.results = {name: candidate.result() for name, candidate in candidates.items()}
        loaders = [
            candidate.loader
            for candidate in candidates.values()
            if isinstance(candidate, LoaderCandidate)
        ]
        skips = {(skip.shard, skip.key): skip for loader in loaders for skip in loader.skipped}
        found.skips = list(skips.values())
    _add_limits(found.results)
    return found


def _resolved(given: LoaderCandidate) -> LoaderConfig:
    """The given settings, with a number in place of "auto"."""
    return dataclasses.replace(given.loader.config, processes=given.loader.collator.processes)


def differences(given: LoaderConfig, other: LoaderConfig) -> dict[str, Any]:
    """Settings of another configuration that are not those given."""
    names = [field.name for field in dataclasses.fields(given)]
    return {n: getattr(other, n) for n in names if getattr(other, n) != getattr(given, n)}


def _variants(
    index: ShardIndex, given: LoaderCandidate, left_out: dict[str, str]
) -> dict[str, LoaderConfig]:
    """Settings worth a try; why others are not goes into `left_out`."""
    config, device = given.loader.config, given.loader.choice.device
    # On a CPU, "auto" is PyAV whatever else is set.
    same = config.decoder == "auto" and device == "cpu"
    plain = dataclasses.replace(
        config, decoder="auto" if same else "pyav", processes=0, cache_mib=0
    )
    candidates = {
        THREADS: plain,
        PROCESSES: dataclasses.replace(plain, processes=config.threads),
    }
    if problem := dali_problem():
        left_out[DALI] = problem
    else:
        candidates[DALI] = dataclasses.replace(
            config, decoder="dali", processes="auto", cache_mib=0
        )
    needed, largest = decoded_bytes(index, config)
    free = free_memory()
    if needed <= config.cache_mib * 2**20 and config.decoder != "dali":
        left_out[CACHED] = "the given cache_mib holds all"
    elif needed > free / 2:
        left_out[CACHED] = (
            f"decoded, the videos take {needed / 2**20:,.0f} MiB; free memory is "
            f"{free / 2**20:,.0f} MiB, of which half is used at most"
        )
    else:
        # A cache takes no video of more than an eighth of it.
        room = max(needed, 8 * largest) // 2**20 + 2
        candidates[CACHED] = dataclasses.replace(plain, cache_mib=float(room))
    return candidates


def decoded_bytes(index: ShardIndex, config: LoaderConfig) -> tuple[int, int]:
    """Memory that all decoded videos take (of an evaluation, all clips), and the largest one."""
    rows = [index.row(i) for i in range(0, len(index), -(-len(index) // 1024))]
    sizes = np.array([row.width * row.height * 3 for row in rows], np.float64)
    frames = np.array([row.frames for row in rows], np.float64)
    if not config.train:
        frames = np.minimum(frames, config.frames) * config.views
    spread = 1.0 if len(rows) == len(index) else 1.1  # for those that were not looked at
    total = float((sizes * frames).mean()) * len(index) * spread
    return int(total), int((sizes * frames).max())


def _add_limits(results: dict[str, dict[str, Any]]) -> None:
    """Say of each way what it cannot pass, and which part of that it reaches."""
    top = results[BATCH]["clips_per_second"]
    for name, result in results.items():
        limit = BATCH
        if RAW in results and result["from_memory"] < 0.5:
            limit = min(RAW, BATCH, key=lambda n: results[n]["clips_per_second"])
        bound = results[limit]["clips_per_second"] or top
        result["limit"] = "" if name in (RAW, BATCH) else limit
        result["share_of_limit"] = result["clips_per_second"] / bound if result["limit"] else None

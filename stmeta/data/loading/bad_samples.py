"""Samples that could not be read: listed, counted against a limit, and not tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from stmeta._errors import DataError
from stmeta.data.loading.sampler import ClipRequest
from stmeta.data.shards.index import BadSample, ShardIndex

_CLIPS = 100_000  # remembered at most; 15 MB
_log = logging.getLogger("stmeta.data")


class BadSamples:
    """Remembers clips that failed, and samples of which no clip can be read.

    A sample that is damaged in one place is left out there alone. If it were left out from then on,
    later batches would depend on what was read before, and a loader that resumes from a state would
    deliver other clips than one that was never interrupted.

    Attributes:
        skipped: samples that were left out so far, with reasons; those of the index first.
    """

    def __init__(self, index: ShardIndex, max_error_rate: float) -> None:
        """Start with the bad samples of an index.

        Raises:
            DataError: the index has more bad samples than `max_error_rate` allows.
        """
        self.skipped = bad_in_index(index)
        self._root, self._max_error_rate = str(index.root), max_error_rate
        self._total = len(index) + len(self.skipped)
        self._samples: dict[int, str] = {}
        self._clips: dict[tuple[int, float], str] = {}
        self._recorded: set[int] = set()
        self._check_rate()

    def reason(self, request: ClipRequest) -> str | None:
        """Why a clip is left out; None = it has not failed before."""
        reason = self._samples.get(request.sample)
        return reason or self._clips.get((request.sample, request.start))

    def record(
        self, request: ClipRequest, bad: BadSample, is_unreadable: Callable[[int], bool]
    ) -> None:
        """Remember a clip that cannot be read, and list its sample once.

        Args:
            request: the clip.
            bad: names its sample, and says why.
            is_unreadable: whether no clip of a sample can be read; called once a sample.

        Raises:
            DataError: more samples than `max_error_rate` allows are bad.
        """
        sample, reason = request.sample, bad.reason
        first = sample not in self._recorded
        self._recorded.add(sample)
        if first and is_unreadable(sample):
            self._samples[sample] = reason
        elif len(self._clips) < _CLIPS:
            self._clips[sample, request.start] = reason
        if first:
            self.skipped.append(bad)
            _log.warning("skipped %s of %s: %s", bad.key, bad.shard, reason)
            self._check_rate()

    def listing(self) -> str:
        """The first samples that were left out, a line each."""
        return _listing(self.skipped)

    def _check_rate(self) -> None:
        check_error_rate(self._root, self.skipped, self._total, self._max_error_rate)


def check_error_rate(
    root: str, bad: Sequence[BadSample], total: int, max_error_rate: float
) -> None:
    """Stop where a larger share of a split's samples than `max_error_rate` cannot be read.

    Raises:
        DataError: the share is larger; the message lists the samples.
    """
    if len(bad) > max_error_rate * total:
        raise DataError(
            f"{root}: {len(bad)} of {total} samples cannot be read, more than max_error_rate = "
            f"{max_error_rate:g}\n{_listing(bad)}"
        )


def bad_in_index(index: ShardIndex) -> list[BadSample]:
    """The samples that the index itself leaves out."""
    return [BadSample(row.shard, row.key, row.error) for row in index.bad]


def _listing(bad: Sequence[BadSample]) -> str:
    lines = [f"  {sample.key} ({sample.shard}): {sample.reason}" for sample in bad[:10]]
    more = len(bad) - len(lines)
    return "\n".join(lines + ([f"  ... and {more} more"] if more > 0 else []))

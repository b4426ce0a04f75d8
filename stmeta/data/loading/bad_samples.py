"""What could not be read, so that it is not tried again."""

from __future__ import annotations

from collections.abc import Callable

from stmeta.data.loading.sampler import ClipRequest

_CLIPS = 100_000  # remembered at most; 15 MB


class Quarantine:
    """Remembers clips that failed, and samples of which every clip would.

    A sample that is damaged at one place is left out there alone. Were it left out from then on,
    what comes next would depend on what was read before, and a loader that goes on from a state
    would deliver other clips than one that was never stopped.
    """

    def __init__(self) -> None:
        self._samples: dict[int, str] = {}
        self._clips: dict[tuple[int, float], str] = {}
        self._met: set[int] = set()

    def reason(self, request: ClipRequest) -> str | None:
        """Why a clip is left out; None = it was not tried before."""
        reason = self._samples.get(request.sample)
        return reason or self._clips.get((request.sample, request.start))

    def add(self, request: ClipRequest, reason: str, hopeless: Callable[[int], bool]) -> bool:
        """Remember a clip; return whether it is the first of its sample.

        `hopeless` says whether no clip of a sample can be read; it is asked once.
        """
        sample = request.sample
        first = sample not in self._met
        self._met.add(sample)
        if first and hopeless(sample):
            self._samples[sample] = reason
        elif len(self._clips) < _CLIPS:
            self._clips[sample, request.start] = reason
        return first

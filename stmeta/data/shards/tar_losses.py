"""Finds the samples of a damaged shard that may have lost a member, such as their label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stmeta.data.shards.sample import Sample

_READ = ("cls", "json", "nframes")  # what the index reads beside a video, by its last extension


def find_losses(samples: Sequence[Sample]) -> None:
    """Refuse samples that may have lost a member, such as their label, to damage beside them.

    They are compared with the others. Beside damage, or beside members that belong to no video, a
    sample must have all that any of the others has; after zeros that are no usual end of a shard,
    what every one has. A name without a checksum may have changed: then one field is missing that
    all others have, and one is there that none has.
    """
    whole = [s for s in samples if s.has_video and not s.beside and not s.faults]
    whole = whole or (samples if len(samples) > 1 else [])
    counts = Counter(f for s in whole for f in s.members if f.rpartition(".")[2] in _READ)
    written = Counter(field for sample in whole for field in sample.members)
    rests = {
        i
        for i, sample in enumerate(samples)
        if (True in sample.beside and sample.faults) or not (sample.has_video or sample.special)
    }
    for i, sample in enumerate(samples):
        if sample.faults or not sample.has_video:
            continue
        damaged = True in sample.beside
        if damaged or sample.stray or {i - 1, i + 1} & rests:
            lost = counts.keys() - sample.members.keys()
        elif False in sample.beside:
            lost = {f for f in counts if counts[f] == len(whole)} - sample.members.keys()
        elif not sample.checksummed and any(written[field] == 1 for field in sample.members):
            lost = {f for f in counts if counts[f] == len(whole) - 1} - sample.members.keys()
        else:
            continue
        if lost or (damaged and not whole):
            what = f"without {', '.join(sorted(lost))}" if lost else "with nothing to compare"
            sample.faults.append(f"lies beside damaged bytes of the shard, {what}: not whole")

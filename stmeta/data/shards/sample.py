"""A sample of a shard: the members of its tar that belong together."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from stmeta._errors import DataError
from stmeta.data.video.containers import EXTENSIONS

Members = dict[str, tuple[int, int]]
"""Members of a sample: field, such as "mp4" or "left.mp4", to offset and size in the shard."""


class Video(NamedTuple):
    """A video of a sample.

    Attributes:
        key: of the sample; where that has several videos, and their prefix: "ev.left".
        field: of the video, such as "mp4" or "left.mp4".
    """

    key: str
    field: str

    @property
    def extension(self) -> str:
        """Of its name, without a dot."""
        return self.field.rpartition(".")[2]


@dataclasses.dataclass
class Sample:
    """Members of a tar that belong together."""

    key: str
    members: Members = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)
    """Why it cannot be used."""
    special: list[str] = dataclasses.field(default_factory=list)
    """Fields that are links, devices, pipes and the like."""
    repeated: list[str] = dataclasses.field(default_factory=list)
    """Fields that occur more than once."""
    scattered: bool = False
    """Whether members of others lie between its own."""
    paths: list[str] = dataclasses.field(default_factory=list)
    """Names of members that lead out of a folder, were they used as paths."""
    checksummed: bool = True
    """Whether a checksum protects the names of all its members."""
    stray: bool = False
    """Whether it lies beside a file that belongs to no sample."""
    beside: set[bool] = dataclasses.field(default_factory=set)
    """Whether it lies beside a gap: one with damage (True), one that may be as it was written."""

    @property
    def printable_key(self) -> str:
        """The key as it can be stored and printed."""
        return self.key[:200].encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    @property
    def has_video(self) -> bool:
        """Whether one of its fields is a video, by its name."""
        return any(field.rpartition(".")[2] in EXTENSIONS for field in self.members)

    def videos(self) -> list[Video]:
        """Its videos.

        Raises:
            DataError: there is none, or it is not clear which one is meant.
        """
        by_prefix: dict[str, list[str]] = {}
        for field in self.members:
            prefix, _, extension = field.rpartition(".")
            if extension in EXTENSIONS:
                by_prefix.setdefault(prefix, []).append(field)
        for prefix, fields in by_prefix.items():
            # Beside a video, a GIF is its preview.
            films = [field for field in fields if not field.endswith("gif")] or fields
            if len(films) > 1:
                raise DataError(f"a sample needs one of {', '.join(films)}, and has all")
            by_prefix[prefix] = films
        if not by_prefix:
            found = ", ".join(self.members) or "nothing"
            raise DataError(f"a sample needs one of {', '.join(EXTENSIONS)}; found {found}")
        alone = len(by_prefix) == 1
        return [
            Video(self.key if alone or not prefix else f"{self.key}.{prefix}", fields[0])
            for prefix, fields in by_prefix.items()
        ]

    def beside_video(self, video: Video, extension: str) -> str | None:
        """Field that goes with a video, such as its label; None = there is none.

        Args:
            video: one of `videos`.
            extension: of the field: "left.cls" goes with "left.mp4", and so does "cls".
        """
        prefix = video.field.rpartition(".")[0]
        for field in (f"{prefix}.{extension}", extension):
            if field in self.members:
                return field
        if video.key != self.key:
            return None
        # Of a sample with one video, whatever its fields are called.
        found = [field for field in self.members if field.endswith(f".{extension}")]
        return found[0] if len(found) == 1 else None

"""Frames of one sample of a shard: reads the bytes that it needs, and decodes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from stmeta._errors import DataError
from stmeta._util.fill_once_cache import FillOnceCache
from stmeta._util.timers import Timers
from stmeta.data.decode import pyav, remux, yuv
from stmeta.data.storage.folder import folder_of
from stmeta.data.video.display import Display

if TYPE_CHECKING:
    from stmeta.data.storage.folder import Root

_Frames = TypeVar("_Frames")
Listing: TypeAlias = pyav.PacketList | pyav.WholeFile
_PACKETS_MIB = 64  # for lists of packets: about 25 bytes a frame


class VideoPlace(NamedTuple):
    """Where a video lies, and what the index says of it.

    Attributes:
        shard: file name in the split's folder.
        offset: first byte in the shard.
        size: bytes.
        frames: that it should have.
        rotation: clockwise degrees to turn each frame by.
        fps: gives the times of frames that bear none.
        variable_rate: whether `fps` does not give the times of frames.
        mirror: whether to mirror each frame left to right, once it is turned.
    """

    shard: str
    offset: int
    size: int
    frames: int
    rotation: int
    fps: float
    variable_rate: bool = False
    mirror: bool = False


class EncodedFrames(NamedTuple):
    """Frames, not decoded yet.

    Attributes:
        file: a video.
        places: int64 [F], where the frames are in it.
        pts_seconds: float64 [F], their times in the sample.
    """

    file: bytes
    places: np.ndarray
    pts_seconds: np.ndarray

    def some(self, part: np.ndarray) -> EncodedFrames:
        """Some of the frames, int64 [F]."""
        return EncodedFrames(self.file, self.places[part], self.pts_seconds[part])


class FrameSource(Protocol):
    """Decodes frames of samples; may be called from many threads."""

    def decode(
        self, sample: int, place: VideoPlace, indices: np.ndarray, timers: Timers
    ) -> pyav.Frames:
        """Decode frames.

        Args:
            sample: position in the index.
            place: of the sample.
            indices: int64 [F], ascending, without repeats.
            timers: receives seconds of "read" and "decode", and what `Folder.read` adds.

        Raises:
            DataError: a frame is missing or damaged; the message is the reason alone.
            StorageError: the place of the shards does not answer.
        """
        ...

    def decode_yuv(
        self, sample: int, place: VideoPlace, indices: np.ndarray, timers: Timers
    ) -> pyav.YuvFrames | pyav.Frames:
        """The same, not converted to RGB where `YuvVideo` serves frames of this kind."""
        ...

    def close(self) -> None:
        """Free what the source holds."""
        ...


class SampleDecoder:
    """Decodes on the calling thread, and remembers where the packets of each video lie."""

    def __init__(self, root: Root) -> None:
        """Serve the shards of a split."""
        self._folder = folder_of(root)
        self._packets = FillOnceCache(_PACKETS_MIB * 2**20)

    def decode(
        self, sample: int, place: VideoPlace, indices: np.ndarray, timers: Timers
    ) -> pyav.Frames:
        """See `FrameSource`."""
        return self._decode(pyav.decode, sample, place, indices, timers)

    def decode_yuv(
        self,
        sample: int,
        place: VideoPlace,
        indices: np.ndarray,
        timers: Timers,
        accept: Callable[[yuv.Kind], bool] = yuv.agrees,
    ) -> pyav.YuvFrames | pyav.Frames:
        """See `FrameSource`; `accept` says which kinds of frames not to convert."""
        decode = functools.partial(pyav.decode_yuv, accept=accept)
        return self._decode(decode, sample, place, indices, timers)

    def encoded(
        self, sample: int, place: VideoPlace, indices: np.ndarray, timers: Timers
    ) -> EncodedFrames | None:
        """Return a file that has some frames of a sample, the packets of the sample counted.

        Returns:
            None where the file's packets are not its frames: who decodes it by their numbers would
            give others.

        Raises:
            DataError: the file is damaged; the message is the reason alone.
        """
        video, packets = self._file(sample, place, timers)
        if not isinstance(packets, pyav.PacketList) or not packets.one_frame_per_packet:
            return None
        with timers.measure("decode"):
            file, places = remux.drop_disposable(video, packets, indices)
        return EncodedFrames(file, places, packets.seconds(indices))

    def seconds(self, sample: int, place: VideoPlace, timers: Timers) -> np.ndarray:
        """Times of all frames of a sample after its first one, float64; see `encoded`."""
        _, packets = self._file(sample, place, timers)
        return packets.seconds(np.arange(place.frames))

    def close(self) -> None:
        """See `FrameSource`."""

    def _file(self, sample: int, place: VideoPlace, timers: Timers) -> tuple[bytes, Listing]:
        video = self._read(place, 0, place.size, timers)
        with timers.measure("decode"):
            return video, self._packets.get(sample) or self._list(sample, place, video)

    def _read(self, place: VideoPlace, begin: int, end: int, timers: Timers) -> bytes:
        with timers.measure("read"):
            return self._folder.read(place.shard, place.offset + begin, end - begin, timers)

    def _decode(
        self,
        decode: Callable[..., _Frames],
        sample: int,
        place: VideoPlace,
        indices: np.ndarray,
        timers: Timers,
    ) -> _Frames:
        packets = self._packets.get(sample)
        listed = isinstance(packets, pyav.PacketList)
        begin, end = packets.byte_range(indices) if listed else (0, place.size)
        video = self._read(place, begin, end, timers)
        with timers.measure("decode"):
            packets = packets or self._list(sample, place, video)
            display = Display(place.rotation, place.mirror)
            decode = functools.partial(decode, display=display)
            if not isinstance(packets, pyav.PacketList):
                return decode(video, indices, packets=packets)
            try:
                return decode(video, indices, packets=packets, first_byte=begin)
            except DataError as error:
                reason = error
        # A decoder that started later than the file may miss what one from the start has.
        whole = pyav.WholeFile(
            packets.frames, place.fps, packets.seconds(np.arange(packets.frames))
        )
        video = self._read(place, 0, place.size, timers)
        with timers.measure("decode"):
            try:
                return decode(video, indices, packets=whole)
            except DataError:
                raise reason from None

    def _list(self, sample: int, place: VideoPlace, video: bytes) -> Listing:
        packets = pyav.read_packets(video)
        if packets is None:
            seconds = pyav.read_times(video) if place.variable_rate else None
            frames = place.frames if seconds is None else len(seconds)
            packets = pyav.WholeFile(frames, place.fps, seconds)
        if packets.frames != place.frames:
            raise DataError(f"the index says {place.frames} frames, the file has {packets.frames}")
        if self._packets.get(sample) is None and self._packets.reserve(packets.nbytes):
            self._packets.fill(sample, packets, packets.nbytes)
        return packets

"""Any media file that FFmpeg reads -> a stream of `UserUnit`s, with bounded memory.

`read_units`   opens a file, checks it, returns a `UnitReader`
`UnitReader`   iterates the file in units of 160 ms: audio mono 24 kHz, video 25 fps

Each track is read through a container of its own. A file whose tracks are far apart on disk (all video first, then
all audio) therefore needs no more memory than an interleaved one.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from wan_streamer.data.sound import Mono
from wan_streamer.errors import MediaError
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_S, UserUnit

MAX_SIDE = 640  # the longer side of a frame is scaled down to this many pixels while it is decoded
GAP = SAMPLE_RATE // 25  # timestamps may jitter by this many samples before silence is put in or samples are dropped
RESTART = SAMPLE_RATE  # a step back of more samples than this is a clock that started again, not an overlap
TAIL_S = 0.025  # a rest shorter than this (the padding of an audio codec's last frame) makes no unit of its own
TEXT_CODECS = {"ansi", "bintext", "xbin", "idf"}  # FFmpeg would draw a text file as a picture


def read_units(path: str | Path, max_side: int = MAX_SIDE) -> "UnitReader":
    """Open `path`, which may have any container, size, rate and channel count; a track may be missing.

    Raises MediaError if the file is missing, a folder, not media, or holds neither sound nor picture.
    """
    path = Path(path)
    if path.is_dir():
        raise MediaError(f"{path}: expected a media file, got a folder")
    if not path.exists():
        raise MediaError(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise MediaError(f"{path}: expected a media file, got an empty file")
    return UnitReader(path, max_side)


def read_sound(path: str | Path) -> np.ndarray:
    """The whole sound track of a file as float32 [T], mono, 24 kHz. Raises MediaError if it has none."""
    with read_units(path) as units:
        pieces = [unit.audio for unit in units if unit.audio is not None]
    if not pieces:
        raise MediaError(f"{path}: expected a sound track, found none")
    return np.concatenate(pieces)


class UnitReader(contextlib.AbstractContextManager["UnitReader"]):
    """Iterate once; close with `close()` or as a context manager.

    path       the file
    duration   seconds, as the container says it (None if it does not)
    units      estimate of the number of units (None if the duration is unknown)
    has_audio, has_video   which tracks exist; the other side of every unit is None
    """

    def __init__(self, path: Path, max_side: int = MAX_SIDE) -> None:
        self.path = path
        self._audio = AudioTrack.open(path)
        self._video = VideoTrack.open(path)
        tracks = [track for track in (self._audio, self._video) if track is not None]
        if not tracks:
            raise MediaError(f"{path}: holds neither sound nor moving pictures that can be decoded")
        if self._video is not None:
            self._video.max_side = max_side
        self.has_audio, self.has_video = self._audio is not None, self._video is not None
        self.duration = tracks[0].duration
        self.units = None if self.duration is None else max(1, math.ceil((self.duration - TAIL_S) / UNIT_S))
        origin = min(track.first_s for track in tracks)
        for track in tracks:
            track.origin = origin
        self._tracks = tracks

    def __iter__(self) -> Iterator[UserUnit]:
        try:
            for index in itertools.count():
                audio = self._audio.take() if self._audio else None
                video = self._video.take() if self._video else None
                if index > 0 and all(track.end <= index * UNIT_S + TAIL_S for track in self._tracks):
                    return
                yield UserUnit(audio=audio, video=video)
        except (av.error.FFmpegError, OSError, MemoryError) as error:
            raise MediaError(f"{self.path}: cannot be decoded ({_reason(error)})") from error
        finally:
            self.close()

    def close(self) -> None:
        for track in self._tracks:
            track.container.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


class _Track:
    """The best stream of one kind, decoded frame by frame.

    first_s    when the first frame begins, on the clock of the file, seconds
    origin     what is time 0 of the units on that clock: the begin of the earlier track
    end        when the last frame ends, from time 0; infinite until the track is exhausted
    """

    kind: Literal["audio", "video"]

    def __init__(self, path: Path, container: InputContainer, index: int) -> None:
        self.path, self.container = path, container
        self.stream = container.streams[index]
        self.duration = None if container.duration is None else container.duration / av.time_base
        self.origin, self.end = 0.0, math.inf
        self._frames = self._decode()
        self._first = next(self._frames, None)
        self.first_s = (self._first.time or 0.0) if self._first is not None else 0.0

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Open the file for this kind of track; None if it has none that can be decoded."""
        try:
            # "file:" keeps a name such as "concat:a" or "http:a" a plain file name
            container = av.open(f"file:{path}", metadata_errors="ignore")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"{path}: not a media file that FFmpeg can read ({_reason(error)})") from error
        stream = container.streams.best(cls.kind)
        context = None if stream is None else stream.codec_context
        # an attached picture is the cover of a record, not a camera
        if stream is not None and context is not None and not stream.disposition & Disposition.attached_pic:
            if context.name in TEXT_CODECS:
                raise MediaError(f"{path}: expected a media file, got text")
            track = cls(path, container, stream.index)
            if track._first is not None:
                return track
        container.close()
        return None

    def _decode(self) -> Iterator:
        """Decoded frames. A damaged packet is left out, as a player does."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
            except av.error.EOFError:
                return
            except (av.error.InvalidDataError, av.error.PatchWelcomeError, av.error.UndefinedError):
                continue

    def frames(self) -> Iterator:
        """All frames, with the one that `open` looked at."""
        first, self._first = self._first, None  # not kept alive
        yield first
        yield from self._frames

    @property
    def limit(self) -> float:
        """Seconds from time 0 beyond which a timestamp is broken."""
        return math.inf if self.duration is None else self.duration + 10.0


class AudioTrack(_Track):
    """Mono float32 at 24 kHz without gaps from time 0 on."""

    kind = "audio"

    def __init__(self, path: Path, container: InputContainer, index: int) -> None:
        super().__init__(path, container, index)
        self._blocks = self._placed()
        self._rest = np.zeros(0, np.float32)

    def _converted(self) -> Iterator[tuple[float | None, np.ndarray]]:
        """(time of the input frame or None, resampled mono block)."""
        mono = Mono()
        for frame in self.frames():
            yield frame.time, mono(frame)
        yield None, mono.finish()

    def _placed(self) -> Iterator[np.ndarray]:
        """The same blocks with silence where the timestamps leave a gap and without what overlaps."""
        written = 0
        for time, block in self._converted():
            missing = 0
            if time is not None and time - self.origin < self.limit:
                missing = round((time - self.origin) * SAMPLE_RATE) - written
            if missing > GAP or (missing > 0 and written == 0):
                for start in range(0, missing, SAMPLE_RATE):
                    yield np.zeros(min(SAMPLE_RATE, missing - start), np.float32)
                written += missing
            elif -RESTART < missing < -GAP:
                block = block[-missing:]
            written += len(block)
            yield block
        self.end = written / SAMPLE_RATE

    def take(self) -> np.ndarray:
        """The next 3 840 samples; zeros once the track has ended."""
        parts, have = [self._rest], len(self._rest)
        while have < SAMPLES_PER_UNIT:
            block = next(self._blocks, None)
            if block is None:
                block = np.zeros(SAMPLES_PER_UNIT - have, np.float32)
            parts.append(block)
            have += len(block)
        samples = np.concatenate(parts)
        self._rest = samples[SAMPLES_PER_UNIT:]
        return np.clip(samples[:SAMPLES_PER_UNIT], -1.0, 1.0)


class VideoTrack(_Track):
    """RGB frames at 25 fps: at each moment the last frame that has begun; black before the first."""

    kind = "video"
    max_side = MAX_SIDE

    def __init__(self, path: Path, container: InputContainer, index: int) -> None:
        stream = cast(VideoStream, container.streams[index])
        # one thread keeps up with 1080p and leaves the other cores to the model
        stream.codec_context.thread_count = 1 if stream.width * stream.height <= 1920 * 1088 else 2
        super().__init__(path, container, index)
        rate, aspect = float(stream.average_rate or 0), float(stream.sample_aspect_ratio or 0)
        self._nominal_s = 1 / rate if rate > 0 else 1 / FPS
        self._pixel_aspect = aspect if aspect > 0 else 1.0
        self._timed = self._times()
        self._next: tuple[float, av.VideoFrame] | None = None
        self._shown: av.VideoFrame | None = None  # the frame on screen, until it is converted
        self._image: np.ndarray | None = None  # the frame on screen, converted
        self._size: tuple[int, int] | None = None  # height and width of every image
        self._taken = 0

    def _times(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """(seconds from time 0, frame), always increasing."""
        last = -math.inf
        for frame in self.frames():
            time = None if frame.time is None else frame.time - self.origin
            if time is None or time <= last or time > self.limit:  # missing, repeated or broken
                time = last + self._nominal_s if last > -math.inf else 0.0
            last = time
            seconds = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            self._last_end = last + (seconds if 0 < last + seconds < self.limit else self._nominal_s)
            yield time, frame
        self.end = self._last_end

    def take(self) -> np.ndarray | None:
        """The next 4 frames, uint8 [4, H, W, 3]; None as long as the track has not begun."""
        images: list[np.ndarray | None] = []
        for number in range(self._taken, self._taken + FRAMES_PER_UNIT):
            self._advance((number + 0.5) / FPS)
            if self._shown is not None:
                self._image, self._shown = self._convert(self._shown), None
            images.append(self._image)
        self._taken += FRAMES_PER_UNIT
        if images[-1] is None:
            return None
        return np.stack([np.zeros_like(images[-1]) if image is None else image for image in images])

    def _advance(self, until: float) -> None:
        while True:
            if self._next is None:
                self._next = next(self._timed, None)
            if self._next is None or self._next[0] > until:
                return
            self._shown, self._next = self._next[1], None

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        """RGB with square pixels, upright, not larger than `max_side`; all images have the size of the first."""
        turns = round(frame.rotation / 90) % 4  # quarter turns, counterclockwise
        if self._size is None:
            height, width = float(frame.height), frame.width * self._pixel_aspect
            if turns % 2:
                height, width = width, height
            scale = min(1.0, self.max_side / max(height, width))
            self._size = max(2, round(height * scale)), max(2, round(width * scale))
        height, width = self._size if turns % 2 == 0 else self._size[::-1]
        image = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, turns))

"""The sound and the pictures of a media file, each decoded frame by frame, placed in time and cut for units.

`AudioTrack`   mono 24 kHz without gaps
`VideoTrack`   RGB pictures at 25 fps

What is damaged is left out and counted (`skipped`). Each track is read through a container of its own. A file whose
tracks are far apart on disk (all video first, then all audio) therefore needs no more memory than an interleaved one.
"""

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

from wan_streamer.data.pictures import Scaler, one_size
from wan_streamer.data.sound import Mono
from wan_streamer.errors import MediaError
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT

MAX_SIDE = 640  # the longer side of a frame is scaled down to this many pixels while it is decoded
GAP = SAMPLE_RATE // 25  # timestamps may jitter by this many samples before silence is put in or samples are dropped
RESTART = SAMPLE_RATE  # a step back of more samples than this is a clock that started again, not an overlap
TEXT_CODECS = {"ansi", "bintext", "xbin", "idf"}  # FFmpeg would draw a text file as a picture
LISTS = {"hls", "concat", "dash"}  # formats that name other files, perhaps without an end
LOST = 100  # a demuxer that fails so often in a row will not find the next packet


def reason(error: BaseException) -> str:
    """What FFmpeg or the system says about an error, short."""
    return getattr(error, "strerror", None) or type(error).__name__


def _is_cut(path: Path, error: BaseException) -> bool:
    """Whether this begins as an MP4 or MOV, whose index is often at the end."""
    if not isinstance(error, av.error.InvalidDataError):
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


class _Track:
    """The best stream of one kind, decoded frame by frame.

    first_s    when the first frame begins, on the clock of the file, seconds
    origin     what is time 0 of the units on that clock: the begin of the earlier track, and what `skip` left out
    end        when the last frame ends, from time 0; infinite until the track is exhausted
    skipped    packets that were damaged and left out
    """

    kind: Literal["audio", "video"]

    def __init__(self, path: Path, container: InputContainer, index: int) -> None:
        self.path, self.container = path, container
        self.stream = container.streams[index]
        self.duration = None if container.duration is None else container.duration / av.time_base
        self.origin, self.end = 0.0, math.inf
        self.skipped, self._left_out_s = 0, 0.0
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
            why = "its index is missing: was it cut off?" if _is_cut(path, error) else reason(error)
            raise MediaError(f"{path}: not a media file that FFmpeg can read ({why})") from error
        if container.format.name in LISTS:
            container.close()
            raise MediaError(f"{path}: expected a media file, got a list of files")
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
        packets, failed = self.container.demux(self.stream), 0
        while failed < LOST:
            try:
                packet = next(packets, None)
            except av.error.EOFError:
                return
            except (av.error.FFmpegError, IndexError):  # IndexError: a packet of a stream that damage has invented
                self.skipped, failed = self.skipped + 1, failed + 1
                packets = self.container.demux(self.stream)  # a generator that has raised is over
                continue
            if packet is None:
                return
            failed = 0
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.skipped += 1
                continue
            yield from frames

    def frames(self) -> Iterator:
        """All frames, with the one that `open` looked at."""
        first, self._first = self._first, None  # not kept alive
        yield first
        yield from self._frames

    @property
    def limit(self) -> float:
        """Seconds from time 0 beyond which a timestamp is broken."""
        return math.inf if self.duration is None else self.duration + 10.0 - self._left_out_s

    def upcoming(self) -> float | None:
        """When the next frame that `take` has not reached begins, seconds from time 0; None if there is none."""
        raise NotImplementedError

    def skip(self, seconds: float) -> None:
        """Leave out so much time, in whole units, before the `upcoming` frame."""
        self.origin += seconds
        self._left_out_s += seconds


class AudioTrack(_Track):
    """Mono float32 at 24 kHz without gaps from time 0 on."""

    kind = "audio"

    def __init__(self, path: Path, container: InputContainer, index: int) -> None:
        super().__init__(path, container, index)
        self._blocks = self._placed()
        self._silence = 0  # samples that come before `_rest`
        self._rest = np.zeros(0, np.float32)
        self._placed_to = self._taken = 0  # samples from time 0: up to the end of `_rest`, handed out

    def _converted(self) -> Iterator[tuple[float | None, np.ndarray]]:
        """(time of the input frame or None, resampled mono block)."""
        mono = Mono()
        for frame in self.frames():
            time = frame.time
            try:
                block = mono(frame)
            except (av.error.FFmpegError, ValueError):  # damage that looks like a frame of an impossible format
                self.skipped += 1
                continue
            yield time, block
        yield None, mono.finish()

    def _placed(self) -> Iterator[tuple[int, np.ndarray]]:
        """(silence where the timestamps leave a gap, the same blocks without what overlaps)."""
        for time, block in self._converted():
            missing = silence = 0
            if time is not None and time - self.origin < self.limit:
                missing = round((time - self.origin) * SAMPLE_RATE) - self._placed_to
            if missing > GAP or (missing > 0 and self._placed_to == 0):
                silence = missing
            elif -RESTART < missing < -GAP:
                block = block[-missing:]
            self._placed_to += silence + len(block)
            yield silence, block
        self.end = self._placed_to / SAMPLE_RATE

    def upcoming(self) -> float | None:
        while not len(self._rest):
            item = next(self._blocks, None)
            if item is None:
                return None
            self._silence, self._rest = self._silence + item[0], item[1]
        return (self._taken + self._silence) / SAMPLE_RATE

    def skip(self, seconds: float) -> None:
        super().skip(seconds)
        left_out = min(self._silence, round(seconds * SAMPLE_RATE))
        self._silence -= left_out
        self._placed_to -= left_out

    def take(self) -> np.ndarray:
        """The next 3 840 samples; zeros once the track has ended."""
        samples, have = np.zeros(SAMPLES_PER_UNIT, np.float32), 0
        while have < SAMPLES_PER_UNIT and self.upcoming() is not None:
            silent = min(self._silence, SAMPLES_PER_UNIT - have)
            heard = self._rest[: SAMPLES_PER_UNIT - have - silent]
            samples[have + silent : have + silent + len(heard)] = heard
            self._silence, self._rest = self._silence - silent, self._rest[len(heard) :]
            have += silent + len(heard)
            self._taken += silent + len(heard)
        self._taken += SAMPLES_PER_UNIT - have
        return np.clip(samples, -1.0, 1.0)


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
        self._scale = Scaler(self._fit, aspect if aspect > 0 else 1.0)
        self._timed = self._times()
        self._last = -math.inf  # time of the latest decoded frame
        self._next: tuple[float, av.VideoFrame] | None = None
        self._shown: av.VideoFrame | None = None  # the frame on screen, until it is converted
        self._image: np.ndarray | None = None  # the frame on screen, converted
        self._taken = 0

    def _times(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """(seconds from time 0, frame), always increasing."""
        seconds = 0.0
        for frame in self.frames():
            last, time = self._last, None if frame.time is None else frame.time - self.origin
            if time is None or time <= last or time > self.limit:  # missing, repeated or broken
                time = last + self._nominal_s if last > -math.inf else 0.0
            self._last = time
            seconds = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            if not 0 < time + seconds < self.limit:
                seconds = self._nominal_s
            yield time, frame
        self.end = self._last + seconds

    def take(self) -> np.ndarray | None:
        """The next 4 frames, uint8 [4, H, W, 3]; None as long as the track has not begun."""
        images: list[np.ndarray | None] = []
        for number in range(self._taken, self._taken + FRAMES_PER_UNIT):
            self._advance((number + 0.5) / FPS)
            if self._shown is not None:
                try:
                    self._image = self._scale(self._shown)
                except (av.error.FFmpegError, ValueError):  # damage that looks like a frame of an impossible format
                    self.skipped += 1
                self._shown = None
            images.append(self._image)
        self._taken += FRAMES_PER_UNIT
        if images[-1] is None:
            return None
        return one_size([np.zeros_like(images[-1]) if image is None else image for image in images])

    def upcoming(self) -> float | None:
        if self._next is None:
            self._next = next(self._timed, None)
        return None if self._next is None else self._next[0]

    def skip(self, seconds: float) -> None:
        super().skip(seconds)
        self._last -= seconds
        if self._next is not None:
            self._next = self._next[0] - seconds, self._next[1]

    def _advance(self, until: float) -> None:
        while (time := self.upcoming()) is not None and time <= until:
            assert self._next is not None
            self._shown, self._next = self._next[1], None

    def _fit(self, height: float, width: float) -> tuple[int, int]:
        scale = min(1.0, self.max_side / max(height, width))
        return max(2, round(height * scale)), max(2, round(width * scale))

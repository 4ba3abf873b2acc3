"""Both sides of a recording, unit by unit and on one clock, with bounded memory.

`survey`       one fast pass without decoding pictures: lengths, levels of the sound, warnings
`read_sides`   the second pass: aligned sound and pictures of both sides, in whole units
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream

from wan_streamer.data.film import fill
from wan_streamer.data.media import TAIL_S
from wan_streamer.data.recordings.sources import SIDES, Item, Side
from wan_streamer.data.tracks import AudioTrack, VideoTrack
from wan_streamer.data.voice_activity import HOP_S, EnergyMeter
from wan_streamer.errors import MediaError
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, UNIT_S

HEIGHT, WIDTH = 192, 336
APART_S = 0.5  # a difference in length or start that is worth a warning


class _Channel(AudioTrack):
    """One channel of a sound track."""

    channel = 0

    def frames(self) -> Iterator:
        for frame in super().frames():
            count = frame.layout.nb_channels
            if self.channel >= count:
                raise MediaError(f"{self.path}: expected two channels, got {count} in the middle of the file")
            samples = frame.to_ndarray()
            one_T = samples[self.channel] if frame.format.is_planar else samples.reshape(-1, count)[:, self.channel]
            mono = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(one_T)[None], format=frame.format.packed.name, layout="mono"
            )
            mono.sample_rate, mono.time_base, mono.pts = frame.sample_rate, frame.time_base, frame.pts
            yield mono


class _SideReader:
    """The tracks of one side. Time 0 is the begin of the file; sound and picture of two files begin together."""

    def __init__(self, name: str, side: Side) -> None:
        self.name, self.side = name, side
        sound = _open(side.sound, AudioTrack if side.channel is None else _Channel)
        if sound is None:
            raise MediaError(f"the {name} has no sound ({side.sound.name})")
        self.sound: AudioTrack = sound
        channels = cast(AudioStream, sound.stream).codec_context.layout.nb_channels
        if isinstance(sound, _Channel):
            if channels != 2:
                raise MediaError(
                    f"no partner: expected NAME.user and NAME.agent, or 2 channels in {side.sound.name}, got {channels}"
                )
            sound.channel = side.channel or 0
        self.picture: VideoTrack | None = None if side.picture is None else _open(side.picture, VideoTrack)
        # a dual-channel film keeps the clock of its pictures even if they are not used
        clock = self.picture or (_open(side.sound, VideoTrack) if side.channel is not None else None)
        if clock is not None and clock.path == side.sound:
            self.sound.origin = clock.origin = min(self.sound.first_s, clock.first_s)
        else:
            self.sound.origin = self.sound.first_s
            if clock is not None:
                clock.origin = clock.first_s
        if clock is not None and clock is not self.picture:
            clock.container.close()

    @property
    def picture_start(self) -> float:
        return 0.0 if self.picture is None else self.picture.first_s - self.picture.origin

    def close(self) -> None:
        for track in (self.sound, self.picture):
            if track is not None:
                track.container.close()


def _framed(side: Side, frames_THWC: np.ndarray | None) -> np.ndarray:
    """The pictures of one side, uint8 [4, 192, 336, 3]; black before the first one."""
    if frames_THWC is None:
        return np.zeros((FRAMES_PER_UNIT, HEIGHT, WIDTH, 3), np.uint8)
    if side.half is not None:
        middle = frames_THWC.shape[2] // 2
        frames_THWC = frames_THWC[:, :, :middle] if side.half == 0 else frames_THWC[:, :, middle:]
    return fill(frames_THWC, HEIGHT, WIDTH)


def _open(path: Path, kind: Any) -> Any:
    if not path.stat().st_size:
        raise MediaError(f"{path.name} is empty (0 bytes)")
    return kind.open(path)


@contextlib.contextmanager
def _opened(item: Item) -> Iterator[dict[str, _SideReader]]:
    """The readers of both sides. Whatever goes wrong with the files inside is a `MediaError`."""
    readers: dict[str, _SideReader] = {}
    try:
        for name in SIDES:
            readers[name] = _SideReader(name, getattr(item, name))
        yield readers
    except MediaError:
        raise
    except Exception as error:  # files of strangers: whatever they break, the run goes on without them
        reason = getattr(error, "strerror", None) or str(error) or "no more is known"
        raise MediaError(f"cannot be decoded ({type(error).__name__}: {reason})") from error
    finally:
        for reader in readers.values():
            reader.close()


@dataclass(frozen=True)
class Survey:
    """What is known before the pictures are decoded.

    first, last   the units in which every track is there (last is exclusive)
    levels        {side: dB of every 10 ms}, from the begin of the recording
    cameras       {side: whether there is a picture}
    warnings      what a person should know
    """

    first: int
    last: int
    levels: dict[str, np.ndarray]
    cameras: dict[str, bool]
    warnings: list[str]


def survey(item: Item) -> Survey:
    """Decode the sound, measure everything. Raises `MediaError` with the reason if the item cannot be used."""
    warnings: list[str] = []
    levels, ends, cameras, starts = {}, {}, {}, [0.0]
    with _opened(item) as readers:
        for name, reader in readers.items():
            sound, picture = reader.sound, reader.picture
            rate = cast(AudioStream, sound.stream).codec_context.sample_rate
            if rate < SAMPLE_RATE:
                warnings.append(f"{name}: {rate / 1000:g} kHz sound was upsampled")
            late = sound.first_s - sound.origin
            if late > APART_S:
                warnings.append(f"{name}: the sound starts {late:.1f} s late; silence was put in")
            meter = EnergyMeter()
            while sound.end == math.inf:
                meter.add(sound.take())
            levels[name] = meter.levels()[: round(sound.end / HOP_S)]  # without the padding of the last unit
            ends[f"{name} sound"] = sound.end
            cameras[name] = picture is not None
            if picture is not None:
                ends[f"{name} picture"] = _end_of(picture)
                starts.append(reader.picture_start)
                warnings += _picture_warnings(reader)
    warnings += _length_warnings(ends)
    # frame 0 shows the moment 0.02 s: a picture that begins until then misses nothing
    first = max(0, math.ceil((max(starts) - 0.5 / FPS) / UNIT_S - 1e-6))
    if first:
        warnings.append(f"a picture starts {max(starts):.2f} s late; the first {first * UNIT_S:.2f} s were left out")
    return Survey(first, math.floor((min(ends.values()) + TAIL_S) / UNIT_S), levels, cameras, warnings)


def _picture_warnings(reader: _SideReader) -> list[str]:
    assert reader.picture is not None
    stream: Any = reader.picture.stream
    warnings = []
    width = stream.width if reader.side.half is None else stream.width // 2
    if width < WIDTH or stream.height < HEIGHT:
        warnings.append(f"{reader.name}: the picture of {width}x{stream.height} was enlarged")
    if stream.average_rate and stream.average_rate < 0.8 * FPS:
        warnings.append(f"{reader.name}: {float(stream.average_rate):.3g} pictures a second; some were repeated")
    return warnings


def _end_of(track: VideoTrack) -> float:
    """When the last picture ends, from time 0, read from the packets without decoding them."""
    end = -math.inf
    with (
        av.open(f"file:{track.path}", metadata_errors="ignore") as container,
        contextlib.suppress(av.error.FFmpegError),
    ):
        for packet in container.demux(container.streams[track.stream.index]):
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None and packet.time_base is not None:
                length = float(packet.duration * packet.time_base) if packet.duration else 1 / FPS
                seconds = float(time * packet.time_base) - track.origin
                if seconds < track.limit:
                    end = max(end, seconds + length)
    return end if end > -math.inf else math.inf


def _length_warnings(ends: dict[str, float]) -> list[str]:
    warnings = []
    apart = abs(ends["user sound"] - ends["agent sound"])
    if apart > APART_S:
        warnings.append(f"sides differ in length by {apart:.1f} s; the longer one was cut")
    for name in SIDES:
        sound, picture = ends[f"{name} sound"], ends.get(f"{name} picture", math.inf)
        if math.isfinite(picture) and abs(sound - picture) > APART_S:
            warnings.append(f"{name}: {sound:.1f} s of sound and {picture:.1f} s of pictures; the longer one was cut")
    return warnings


@dataclass(frozen=True)
class SidesUnit:
    """One unit of both sides: audio {side: float32 [3840]}, video {side: uint8 [4, 192, 336, 3] or None}."""

    audio: dict[str, np.ndarray]
    video: dict[str, np.ndarray | None]


def read_sides(item: Item, first: int, last: int) -> Iterator[SidesUnit]:
    """Units [first, last), fewer if a damaged file ends earlier than `survey` could know. Raises `MediaError`."""
    with _opened(item) as readers:
        shared = item.user.half is not None  # one picture with both sides in it is decoded once
        for unit in range(last):
            audio = {name: reader.sound.take() for name, reader in readers.items()}
            raw: dict[str, np.ndarray | None] = {}
            video: dict[str, np.ndarray | None] = {}
            for name, reader in readers.items():
                if reader.picture is not None:
                    raw[name] = raw["user"] if shared and name == "agent" else reader.picture.take()
                video[name] = None if reader.picture is None else _framed(reader.side, raw[name])
            tracks = [t for reader in readers.values() for t in (reader.sound, reader.picture) if t is not None]
            if min(track.end for track in tracks) + TAIL_S < (unit + 1) * UNIT_S:
                return
            if unit >= first:
                yield SidesUnit(audio, video)

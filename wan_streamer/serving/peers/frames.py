"""Encoded media as binary messages of a WebSocket, and their codecs.

`Packet`        one message: `pack`, `unpack`
`SoundReader`, `PictureReader`   packets -> frames of the uplink
`SoundWriter`, `PictureWriter`   frames of the playout -> packets

A message is 10 bytes and the encoded data: kind (1: Opus, 2: PCM, 3: VP8), flags (bit 0: key frame), and the time in
microseconds, signed, big endian. Each direction has one clock for sound and picture; its zero means nothing.
"""

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np

from wan_streamer.serving.messages import EventError
from wan_streamer.units import FPS, SAMPLE_RATE

HEADER = struct.Struct(">BBq")
KINDS: dict[int, Literal["opus", "pcm", "vp8"]] = {1: "opus", 2: "pcm", 3: "vp8"}
KEY = 1
MAX_SOUND = 48_000  # bytes: a second of PCM
MAX_SIDE, MAX_PIXELS = 2048, 1920 * 1080  # of a camera's picture, checked before it is decoded
OPUS_RATE = 48_000
OPUS_BITS, VIDEO_BITS = 40_000, 700_000  # per second
KEY_EVERY = 4 * FPS  # frames: who has to begin anew waits 4 s at most
MICROSECOND = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class Packet:
    """time_us: when its sound or picture begins."""

    kind: Literal["opus", "pcm", "vp8"]
    key: bool
    time_us: int
    data: bytes

    def pack(self) -> bytes:
        kind = next(number for number, name in KINDS.items() if name == self.kind)
        return HEADER.pack(kind, KEY if self.key else 0, self.time_us) + self.data

    @classmethod
    def unpack(cls, message: bytes) -> "Packet":
        """Raises `EventError` that says what was expected; the codecs see only what passes here."""
        if len(message) <= HEADER.size:
            raise _bad(f"at least {HEADER.size + 1} bytes")
        number, flags, time_us = HEADER.unpack_from(message)
        if number not in KINDS or flags not in (0, KEY):
            raise _bad(f"a kind of {list(KINDS)} and flags of 0 or {KEY}")
        kind, data = KINDS[number], message[HEADER.size :]
        if kind != "vp8" and len(data) > MAX_SOUND:
            raise _bad(f"at most {MAX_SOUND} bytes of sound")
        if kind == "pcm" and len(data) % 2:
            raise _bad("16-bit samples")
        return cls(kind, kind != "vp8" or _check_picture(data, bool(flags & KEY)), time_us, data)


def _check_picture(data: bytes, says_key: bool) -> bool:
    """Whether it is a key frame (RFC 6386, 9.1), of a size that may be decoded."""
    key = not data[0] & 1
    if key != says_key:
        raise _bad("the key flag on VP8 key frames, and on no others")
    if key:
        if len(data) < 10 or data[3:6] != b"\x9d\x01\x2a":
            raise _bad("a whole VP8 key frame")
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
            raise _bad(f"a picture of at most {MAX_PIXELS} pixels and {MAX_SIDE} a side")
    return key


def _bad(expected: str) -> EventError:
    return EventError(f"media: expected {expected}", "invalid_media")


def _context(name: str, mode: Literal["r", "w"]) -> Any:
    context = av.CodecContext.create(name, mode)
    context.thread_count = 1  # more threads cost three times as much for pictures of this size
    return context


class SoundReader:
    """Opus, or PCM (16 bit, little endian, 24 kHz, one channel); which may change in a call."""

    def __init__(self) -> None:
        self._opus = _context("opus", "r")

    def __call__(self, packet: Packet) -> list[av.AudioFrame]:
        """Raises `EventError` if it cannot be decoded."""
        if packet.kind == "pcm":
            frame = av.AudioFrame.from_ndarray(np.frombuffer(packet.data, "<i2")[None], format="s16", layout="mono")
            frame.sample_rate, frames = SAMPLE_RATE, [frame]
        else:
            frames = _decode(self._opus, packet)
        at = packet.time_us
        for frame in frames:
            frame.time_base = Fraction(1, frame.sample_rate)
            frame.pts = at * frame.sample_rate // 1_000_000
            at += frame.samples * 1_000_000 // frame.sample_rate
        return frames


class PictureReader:
    """VP8 from one key frame on; after a picture that cannot be decoded, from the next."""

    def __init__(self) -> None:
        self._codec: Any = None

    def __call__(self, packet: Packet) -> list[av.VideoFrame]:
        """Raises `EventError` if it cannot be decoded."""
        if self._codec is None:
            if not packet.key:
                return []
            self._codec = _context("vp8", "r")
        try:
            return _decode(self._codec, packet)
        except EventError:
            self._codec = None
            raise


def _decode(codec: Any, packet: Packet) -> list[Any]:
    try:
        return codec.decode(av.Packet(packet.data))
    except (av.FFmpegError, ValueError):
        raise _bad(f"{packet.kind} that can be decoded") from None


class SoundWriter:
    """48 kHz frames of 20 ms with channels that are alike -> Opus, one channel."""

    def __init__(self) -> None:
        self._codec = _context("libopus", "w")
        self._codec.sample_rate, self._codec.layout, self._codec.format = OPUS_RATE, "mono", "s16"
        self._codec.bit_rate = OPUS_BITS
        self._codec.options = {"application": "voip", "frame_duration": "20"}
        self._pts = 0

    def __call__(self, frame: av.AudioFrame) -> list[Packet]:
        assert frame.pts is not None
        pcm = np.ascontiguousarray(frame.to_ndarray().reshape(-1, 2)[:, 0], np.int16)
        mono = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        mono.sample_rate, mono.time_base = OPUS_RATE, Fraction(1, OPUS_RATE)
        mono.pts, self._pts = self._pts, self._pts + mono.samples  # without the gaps of what a slow reader misses
        time_us = frame.pts * 1_000_000 // OPUS_RATE
        return [Packet("opus", True, time_us, bytes(packet)) for packet in self._codec.encode(mono)]


class PictureWriter:
    """RGB frames -> VP8. The first and one every four seconds is a key frame."""

    def __init__(self) -> None:
        self._codec: Any = None
        self._count = 0

    def __call__(self, frame: av.VideoFrame) -> list[Packet]:
        assert frame.pts is not None
        assert frame.time_base is not None
        if self._codec is None or (self._codec.width, self._codec.height) != (frame.width, frame.height):
            self._codec = self._open(frame.width, frame.height)
        time_us = int(frame.pts * frame.time_base / MICROSECOND)
        picture = frame.reformat(format="yuv420p")
        picture.pts, self._count = self._count, self._count + 1
        picture.time_base = Fraction(1, FPS)
        return [Packet("vp8", packet.is_keyframe, time_us, bytes(packet)) for packet in self._codec.encode(picture)]

    @staticmethod
    def _open(width: int, height: int) -> Any:
        codec = _context("libvpx", "w")
        codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
        codec.time_base, codec.framerate = Fraction(1, FPS), Fraction(FPS)
        codec.bit_rate, codec.gop_size = VIDEO_BITS, KEY_EVERY
        codec.options = {"deadline": "realtime", "cpu-used": "-6", "lag-in-frames": "0", "quality": "realtime"}
        return codec

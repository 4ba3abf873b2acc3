"""Low-latency replacements for what aiortc does between the network and the decoder, and one RTP extension.

`VideoJitterBuffer`     a frame is complete on its marker bit, not when the next frame begins
`AudioJitterBuffer`     a packet in order is delivered at once, not after four more, and lost ones are not waited for
`KEY_FRAMES`            for each codec, whether a packet belongs to the beginning of a key frame
`use_low_latency`       puts them into a receiver
`use_playout_delay`     asks the browser to show our video without its render delay

aiortc has no hook for any of this, so private attributes of aiortc 1.16 are replaced (the dependency is pinned and
`tests/test_serving_buffers.py` fails if they move). Its own buffers add about 70 ms to audio, stay full after a loss,
and hold each video frame until the next one starts.
"""

from collections.abc import Callable, Iterator

from aiortc import RTCRtpReceiver, RTCRtpSender
from aiortc.codecs import HEADER_EXTENSIONS
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters
from aiortc.rtp import (
    HeaderExtensions,
    HeaderExtensionsMap,
    RtpPacket,
    pack_header_extensions,
    unpack_header_extensions,
)

from wan_streamer.serving.peers.private import private

VIDEO_CLOCK = 90_000  # RTP ticks per second of every video codec
REPAIR_MS = 250  # how long a hole waits for its retransmission before a new picture is asked for
PLI_EVERY_MS = 300
MAX_PACKETS = 512
AUDIO_HOLD = 2  # packets that may arrive behind a hole before it counts as lost: 40 ms, where packets overtake others
AUDIO_STEADY = 1_500  # packets without that, half a minute, after which a hole counts as lost at once
RESTART = 1_000  # a jump of the sequence number beyond this is a new stream
NAL_TYPE, STAP_A, FU_A, FU_START = 0x1F, 24, 28, 0x80  # of H.264 in RTP
H264_KEY_UNITS = (5, 7)  # an IDR slice; the sequence parameters, which come with it
PLAYOUT_DELAY_URI = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"


class _Sequence:
    """Unwraps 16-bit sequence numbers."""

    def __init__(self) -> None:
        self._last: int | None = None

    def unwrap(self, number: int) -> int:
        if self._last is None:
            self._last = number
        step = (number - self._last + 0x8000) % 0x10000 - 0x8000
        value = self._last + step
        self._last = max(self._last, value) if abs(step) <= RESTART else value
        return value


class AudioJitterBuffer:
    """In order, at once. Lost sound is not sent again, so a hole is waited for only where the network has lately let
    packets overtake others, and while at most `AUDIO_HOLD` packets stand behind it.
    """

    def __init__(self, emit: Callable[[RtpPacket, JitterFrame], None]) -> None:
        self._emit, self._sequence = emit, _Sequence()
        self._packets: dict[int, RtpPacket] = {}
        self._next: int | None = None
        self._given_up: set[int] = set()
        self._steady_from = 0  # the packet from which on none is waited for

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """aiortc's contract: (ask for a new picture, the next encoded frame or None). Earlier ones go to `emit`."""
        number = self._sequence.unwrap(packet.sequence_number)
        if self._next is None or abs(number - self._next) > RESTART:
            self._next = self._steady_from = number
            self._packets.clear()
            self._given_up.clear()
        if number < self._next:
            if number in self._given_up:  # overtaken, not lost
                self._steady_from = self._next + AUDIO_STEADY
            return False, None
        if self._packets and number < max(self._packets):
            self._steady_from = number + AUDIO_STEADY
        self._packets[number] = packet
        return False, _hand_out(list(self._ready()), self._emit)

    def _ready(self) -> Iterator[tuple[RtpPacket, JitterFrame]]:
        assert self._next is not None
        while self._packets:
            if self._next not in self._packets:
                hold = AUDIO_HOLD if self._next < self._steady_from else 0
                if len(self._packets) <= hold:
                    return
                found = min(self._packets)
                self._given_up = {n for n in self._given_up if n > found - RESTART} | {*range(self._next, found)}
                self._next = found
            packet = self._packets.pop(self._next)
            self._next += 1
            data: bytes = packet._data  # type: ignore[attr-defined]
            if data:
                yield packet, JitterFrame(data=data, timestamp=packet.timestamp)


class VideoJitterBuffer:
    """A frame leaves when its packets are contiguous up to the marker bit.

    A hole waits `REPAIR_MS` for the retransmission that aiortc asks for; then everything before the next key frame is
    dropped and a new picture is requested.

    is_key  tells whether a packet belongs to the beginning of a key frame
    """

    def __init__(self, emit: Callable[[RtpPacket, JitterFrame], None], is_key: Callable[[RtpPacket], bool]) -> None:
        self._emit, self._is_key, self._sequence = emit, is_key, _Sequence()
        self._packets: dict[int, RtpPacket] = {}
        self._next: int | None = None
        self._waits_for_key = False
        self._asked_at: int | None = None

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """aiortc's contract: (ask for a new picture, the next encoded frame or None). Earlier ones go to `emit`."""
        number = self._sequence.unwrap(packet.sequence_number)
        if self._next is None or abs(number - self._next) > RESTART:
            self._waits_for_key = self._next is not None
            self._next = number
            self._packets.clear()
        if number < self._next:
            return False, None
        self._packets[number] = packet
        if self._is_broken(packet):
            self._waits_for_key = True
        if self._waits_for_key:
            self._skip_to_key()
        frame = _hand_out(list(self._ready()), self._emit)
        return self._asks(packet), frame

    def _is_broken(self, newest: RtpPacket) -> bool:
        assert self._next is not None
        if self._next in self._packets or not self._packets:
            return False
        oldest = self._packets[min(self._packets)]
        waited = _ticks(newest.timestamp, oldest.timestamp)
        return waited > REPAIR_MS * VIDEO_CLOCK // 1000 or len(self._packets) > MAX_PACKETS

    def _skip_to_key(self) -> None:
        keys = [number for number, packet in self._packets.items() if self._is_key(packet)]
        if keys:
            newest = self._packets[max(keys)].timestamp  # H.264 begins with packets of parameters, in the same frame
            start = min(number for number, packet in self._packets.items() if packet.timestamp == newest)
            self._next, self._waits_for_key, self._asked_at = start, False, None
            self._packets = {number: packet for number, packet in self._packets.items() if number >= start}
        else:
            self._next = max(self._packets) + 1
            self._packets.clear()

    def _asks(self, newest: RtpPacket) -> bool:
        if not self._waits_for_key:
            return False
        if self._asked_at is None or _ticks(newest.timestamp, self._asked_at) > PLI_EVERY_MS * VIDEO_CLOCK // 1000:
            self._asked_at = newest.timestamp
            return True
        return False

    def _ready(self) -> Iterator[tuple[RtpPacket, JitterFrame]]:
        assert self._next is not None
        number = self._next
        while (packet := self._packets.get(number)) is not None:
            number += 1
            if packet.marker:
                parts = [self._packets.pop(n) for n in range(self._next, number)]
                self._next = number
                data = b"".join(part._data for part in parts)  # type: ignore[attr-defined]
                if data:
                    yield packet, JitterFrame(data=data, timestamp=packet.timestamp)


def _ticks(newer: int, older: int) -> int:
    return (newer - older + 0x80000000) % 0x100000000 - 0x80000000


def _hand_out(
    ready: list[tuple[RtpPacket, JitterFrame]], emit: Callable[[RtpPacket, JitterFrame], None]
) -> JitterFrame | None:
    """aiortc takes one frame per packet; the earlier ones of a burst are emitted so that no backlog stays."""
    if not ready:
        return None
    for packet, frame in ready[:-1]:
        emit(packet, frame)
    return ready[-1][1]


def starts_vp8_key_frame(packet: RtpPacket) -> bool:
    """RFC 7741: first packet of partition 0, and the first bit of the VP8 frame header is 0."""
    data: bytes = packet._data  # type: ignore[attr-defined]
    return bool(packet.payload) and packet.payload[0] & 0x1F == 0x10 and bool(data) and data[0] & 1 == 0


def starts_h264_key_frame(packet: RtpPacket) -> bool:
    """RFC 6184: an IDR slice or its parameters, alone, aggregated (STAP-A), or as the first fragment (FU-A)."""
    payload = packet.payload
    if len(payload) < 2:
        return False
    kind = payload[0] & NAL_TYPE
    if kind == FU_A:
        return bool(payload[1] & FU_START) and payload[1] & NAL_TYPE in H264_KEY_UNITS
    if kind != STAP_A:
        return kind in H264_KEY_UNITS
    at = 1
    while at + 2 < len(payload):  # each unit has its size before it
        if payload[at + 2] & NAL_TYPE in H264_KEY_UNITS:
            return True
        at += 2 + int.from_bytes(payload[at : at + 2], "big")
    return False


KEY_FRAMES = {"VP8": starts_vp8_key_frame, "H264": starts_h264_key_frame}  # all that aiortc decodes


def use_low_latency(receiver: RTCRtpReceiver) -> None:
    """Replace the receiver's jitter buffer. Call after the offer was applied and before media arrives."""
    codecs = private(receiver, "_RTCRtpReceiver__codecs")
    decoder_queue = private(receiver, "_RTCRtpReceiver__decoder_queue")
    mapper = private(receiver, "_RTCRtpReceiver__timestamp_mapper")
    private(receiver, "_RTCRtpReceiver__jitter_buffer")

    def emit(packet: RtpPacket, frame: JitterFrame) -> None:
        frame.timestamp = mapper.map(frame.timestamp)
        decoder_queue.put((codecs[packet.payload_type], frame))

    def is_key(packet: RtpPacket) -> bool:
        codec = codecs.get(packet.payload_type)
        return codec is not None and codec.name in KEY_FRAMES and KEY_FRAMES[codec.name](packet)

    video = private(receiver, "_RTCRtpReceiver__kind") == "video"
    receiver._RTCRtpReceiver__jitter_buffer = VideoJitterBuffer(emit, is_key) if video else AudioJitterBuffer(emit)  # type: ignore[attr-defined]


class _PlayoutDelayMap(HeaderExtensionsMap):
    """Adds the playout-delay extension (12 bits minimum, 12 bits maximum, in units of 10 ms) to every packet."""

    def __init__(self, delay_ms: int) -> None:
        super().__init__()
        steps = max(0, min(delay_ms // 10, 0xFFF))
        self._value = (steps << 12 | steps).to_bytes(3, "big")
        self._id: int | None = None

    def configure(self, parameters: RTCRtpParameters) -> None:
        super().configure(parameters)
        self._id = next((ext.id for ext in parameters.headerExtensions if ext.uri == PLAYOUT_DELAY_URI), None)

    def set(self, values: HeaderExtensions) -> tuple[int, bytes]:
        profile, packed = super().set(values)
        if self._id is None:
            return profile, packed
        return pack_header_extensions([*unpack_header_extensions(profile, packed), (self._id, self._value)])


def accept_playout_delay() -> None:
    """Let answers accept the extension when a browser offers it. Process-wide, harmless to call twice."""
    if all(ext.uri != PLAYOUT_DELAY_URI for ext in HEADER_EXTENSIONS["video"]):
        HEADER_EXTENSIONS["video"].append(RTCRtpHeaderExtensionParameters(id=4, uri=PLAYOUT_DELAY_URI))


def use_playout_delay(sender: RTCRtpSender, delay_ms: int) -> None:
    """Stamp the sender's packets with minimum = maximum = delay_ms. Call before the answer is applied."""
    private(sender, "_RTCRtpSender__rtp_header_extensions_map")
    sender._RTCRtpSender__rtp_header_extensions_map = _PlayoutDelayMap(delay_ms)  # type: ignore[attr-defined]

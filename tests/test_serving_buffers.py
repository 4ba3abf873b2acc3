"""What stands between the network and the units: jitter buffers, the uplink, the playout queue, page messages."""

import asyncio
import json

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters
from aiortc.rtcrtpsender import RTCEncodedFrame
from aiortc.rtp import HeaderExtensions, RtpPacket, unpack_header_extensions

from wan_streamer.errors import ServingError
from wan_streamer.serving.messages import (
    Devices,
    Ping,
    StatsEvent,
    TextInput,
    parse_page_message,
)
from wan_streamer.serving.meter import Meter
from wan_streamer.serving.peers import jitter
from wan_streamer.serving.peers.jitter import AudioJitterBuffer, VideoJitterBuffer
from wan_streamer.serving.peers.tails import use_tails

KEY, DELTA = b"\x00k", b"\x01d"  # the first bit of a VP8 frame header: 0 = key frame


def packet(
    number: int, timestamp: int = 0, data: bytes = DELTA, *, marker: bool = True, first: bool = True
) -> RtpPacket:
    made = RtpPacket(sequence_number=number % 65536, timestamp=timestamp, marker=int(marker))
    made.payload = bytes([0x10 if first else 0x00]) + data
    made._data = data  # type: ignore[attr-defined]
    return made


class Sink:
    """Collects what a jitter buffer hands out, in order."""

    def __init__(self, kind: type[AudioJitterBuffer] | type[VideoJitterBuffer]) -> None:
        self.out: list[int] = []
        self.asked = 0
        emit = lambda _, frame: self.out.append(frame.timestamp)  # noqa: E731
        self.buffer = kind(emit) if kind is AudioJitterBuffer else VideoJitterBuffer(emit, jitter.starts_vp8_key_frame)

    def add(self, *packets: RtpPacket) -> list[int]:
        before = len(self.out)
        for one in packets:
            pli, frame = self.buffer.add(one)
            self.asked += pli
            if isinstance(frame, JitterFrame):
                self.out.append(frame.timestamp)
        return self.out[before:]


def test_a_video_frame_leaves_with_its_marker() -> None:
    sink = Sink(VideoJitterBuffer)
    assert sink.add(packet(10, 0, KEY, marker=False)) == []
    assert sink.add(packet(11, 0, first=False)) == [0]
    assert sink.add(packet(12, 3600)) == [3600]
    assert sink.asked == 0


def test_a_late_video_packet_releases_everything_behind_it() -> None:
    sink = Sink(VideoJitterBuffer)
    sink.add(packet(65534, 0, KEY))
    assert sink.add(packet(0, 7200), packet(1, 10800)) == []
    assert sink.add(packet(65535, 3600)) == [3600, 7200, 10800]
    assert sink.add(packet(65535, 3600)) == []  # a duplicate


def test_a_lost_video_packet_asks_for_a_picture_and_goes_on_with_the_key_frame() -> None:
    sink = Sink(VideoJitterBuffer)
    sink.add(packet(1, 0, KEY))
    late = [packet(3 + i, 3600 * (2 + i)) for i in range(10)]
    assert sink.add(*late) == []
    assert sink.asked == 1
    assert sink.add(packet(13, 3600 * 12)) == []  # still waits: a delta frame would decode to rubbish
    assert sink.add(packet(14, 3600 * 13, KEY), packet(15, 3600 * 14)) == [3600 * 13, 3600 * 14]


def audio(number: int) -> RtpPacket:
    return packet(number, number)


def test_audio_leaves_at_once_and_lost_audio_is_not_waited_for() -> None:
    """Nobody sends it again."""
    sink = Sink(AudioJitterBuffer)
    assert sink.add(audio(1), audio(2)) == [1, 2]
    assert sink.add(audio(5)) == [5]
    assert sink.add(audio(6), audio(6), audio(2)) == [6]  # the same again is not late
    assert sink.add(audio(8)) == [8]


def test_where_packets_overtake_others_a_hole_is_waited_for_by_two() -> None:
    sink = Sink(AudioJitterBuffer)
    sink.add(audio(1), audio(3))
    assert sink.add(audio(2)) == []  # late, and lost this time
    assert sink.add(audio(5)) == []
    assert sink.add(audio(4)) == [4, 5]
    assert sink.add(audio(7), audio(8)) == []
    assert sink.add(audio(9)) == [7, 8, 9]
    assert sink.add(audio(10)) == [10]  # the delay does not stay
    steady = [*range(11, jitter.AUDIO_STEADY)]
    assert sink.add(*map(audio, steady)) == steady
    assert sink.add(audio(steady[-1] + 2)) == []  # still remembered
    end = steady[-1] + 1
    assert sink.add(*map(audio, range(end + 2, end + 9))) == [*range(end + 1, end + 9)]
    assert sink.add(audio(end + 10)) == [end + 10]  # long ago: it counts as lost at once


def test_who_still_overtakes_is_still_waited_for() -> None:
    """Also where nothing came too late."""
    sink = Sink(AudioJitterBuffer)
    sink.add(audio(1), audio(3), audio(2))
    for number in range(4, 2 * jitter.AUDIO_STEADY, 500):
        assert sink.add(*map(audio, range(number, number + 498))) == [*range(number, number + 498)]
        assert sink.add(audio(number + 499)) == []
        assert sink.add(audio(number + 498)) == [number + 498, number + 499]


def test_a_new_stream_of_sequence_numbers_is_accepted() -> None:
    sink = Sink(AudioJitterBuffer)
    sink.add(packet(30_000, 0))
    assert sink.add(packet(5, 960), packet(6, 1920)) == [960, 1920]


def test_the_private_names_of_aiortc_that_are_replaced_exist() -> None:
    async def replace() -> None:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        for kind, cls in (("audio", AudioJitterBuffer), ("video", VideoJitterBuffer)):
            transceiver = pc.addTransceiver(kind)
            jitter.use_low_latency(transceiver.receiver)
            assert isinstance(transceiver.receiver._RTCRtpReceiver__jitter_buffer, cls)  # type: ignore[attr-defined]
        jitter.use_playout_delay(transceiver.sender, 40)
        use_tails(transceiver.sender)
        await pc.close()

    asyncio.run(replace())


def test_behind_every_picture_goes_an_empty_packet() -> None:
    """At once, and it is part of none: where the last packet of a picture is lost, the receiver knows."""
    pictures = [RTCEncodedFrame([b"a", b"b"], 0, None), None, RTCEncodedFrame([b"c"], 3600, None)]

    class Sender:
        async def _next_encoded_frame(self, codec: str) -> RTCEncodedFrame | None:
            return pictures.pop(0)

    async def sent() -> list[RTCEncodedFrame | None]:
        sender = Sender()
        use_tails(sender)  # type: ignore[arg-type]
        return [await sender._next_encoded_frame("VP8") for _ in range(5)]

    sequence = asyncio.run(sent())
    assert [one and (one.payloads, one.timestamp) for one in sequence] == [
        ([b"a", b"b"], 0), ([b""], 0), None, ([b"c"], 3600), ([b""], 3600)]  # fmt: skip
    sink = Sink(VideoJitterBuffer)
    assert sink.add(packet(1, 0, KEY)) == [0]
    empty = packet(2, 0, b"")
    assert sink.add(empty, packet(3, 3600)) == [3600]
    assert sink.add(packet(5, 3600, b"")) == []
    assert sink.add(packet(4, 3600)) == [3600]


def test_the_playout_delay_extension_has_the_published_layout() -> None:
    extensions = jitter._PlayoutDelayMap(120)
    assert extensions.set(HeaderExtensions()) == (0, b"")  # not negotiated: nothing is sent
    extensions.configure(RTCRtpParameters(
        headerExtensions=[RTCRtpHeaderExtensionParameters(id=6, uri=jitter.PLAYOUT_DELAY_URI)]))  # fmt: skip
    profile, value = extensions.set(HeaderExtensions())
    assert unpack_header_extensions(profile, value) == [(6, bytes([0x00, 0xC0, 0x0C]))]  # 12 and 12 units of 10 ms


# ------------------------------------------------------------------------------------------------------ messages


def test_page_messages_are_read_strictly() -> None:
    assert parse_page_message('{"type": "text", "text": " hi "}') == TextInput("hi")
    assert parse_page_message('{"type": "ping", "t": 3}') == Ping(3.0)
    assert parse_page_message('{"type": "devices", "microphone": true, "camera": false}') == Devices(True, False)
    long = json.dumps({"type": "text", "text": "x" * 3000})
    ping, devices = '{"type": "ping"}', '{"type": "devices", "microphone": 1, "camera": 0}'
    for bad in ("", "[]", "{}", '{"type": "text", "text": ""}', long, ping, devices, b"\x00", "x" * 20_000):
        with pytest.raises(ServingError, match="expected"):
            parse_page_message(bad)


def test_events_are_json_with_a_type() -> None:
    meter = Meter()
    for ms in (10.0, 20.0, 30.0):
        meter.add("solve", ms)
        meter.add_latency(ms)
    event = StatsEvent(3, 0, 0, 0, 1, 40.0, meter.model_latency(), meter.event_latency(), meter.stages())
    fields = json.loads(event.to_json())
    assert fields["type"] == "stats"
    assert fields["stage_ms"] == {"solve": {"p50": 20.0, "p95": 29.0}}
    assert fields["model_latency_ms"]["p50"] == 20.0
    assert fields["event_latency_ms"]["p50"] == 100.0

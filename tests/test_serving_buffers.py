"""What stands between the network and the units: jitter buffers, the uplink, the playout queue, page messages."""

import asyncio
import json
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters
from aiortc.rtp import HeaderExtensions, RtpPacket, unpack_header_extensions

from wan_streamer.data.media import read_sound
from wan_streamer.data.pictures import Scaler
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
from wan_streamer.serving.playout import OUT_SAMPLES, STEP_MS, Playout, Upsampler
from wan_streamer.serving.uplink import AudioInput, Uplink, VideoInput, fit
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT, AgentUnit, UserUnit

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


def test_audio_leaves_at_once_and_reorders_shortly() -> None:
    sink = Sink(AudioJitterBuffer)
    assert sink.add(packet(1, 0), packet(2, 960)) == [0, 960]
    assert sink.add(packet(4, 2880)) == []
    assert sink.add(packet(3, 1920)) == [1920, 2880]


def test_lost_audio_is_waited_for_by_two_packets_only() -> None:
    sink = Sink(AudioJitterBuffer)
    sink.add(packet(1, 0))
    assert sink.add(packet(3, 1920), packet(4, 2880)) == []
    assert sink.add(packet(5, 3840)) == [1920, 2880, 3840]
    assert sink.add(packet(6, 4800)) == [4800]  # the delay does not stay


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
        await pc.close()

    asyncio.run(replace())


def test_the_playout_delay_extension_has_the_published_layout() -> None:
    extensions = jitter._PlayoutDelayMap(120)
    assert extensions.set(HeaderExtensions()) == (0, b"")  # not negotiated: nothing is sent
    extensions.configure(RTCRtpParameters(
        headerExtensions=[RTCRtpHeaderExtensionParameters(id=6, uri=jitter.PLAYOUT_DELAY_URI)]))  # fmt: skip
    profile, value = extensions.set(HeaderExtensions())
    assert unpack_header_extensions(profile, value) == [(6, bytes([0x00, 0xC0, 0x0C]))]  # 12 and 12 units of 10 ms


# -------------------------------------------------------------------------------------------------------- uplink


def sound(n: int, pts: int, rate: int = 48_000) -> av.AudioFrame:
    t = (np.arange(n) + pts) / rate
    pcm = (10_000 * np.sin(2 * np.pi * 500 * t)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.repeat(pcm, 2)[None], format="s16", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = rate, pts, Fraction(1, rate)
    return frame


def test_the_microphone_becomes_whole_units() -> None:
    audio = AudioInput()
    assert audio.take(0.0) is None
    units = []
    for i in range(96):  # 12 units of 8 frames
        audio.push(sound(960, i * 960), i * 0.02)
        if i % 8 == 7:
            units.append(audio.take(i * 0.02))
    assert all(unit.shape == (SAMPLES_PER_UNIT,) and unit.dtype == np.float32 for unit in units)
    whole = np.concatenate(units)[SAMPLES_PER_UNIT:]
    spectrum = np.abs(np.fft.rfft(whole * np.hanning(len(whole))))
    peak = np.argmax(spectrum) * SAMPLE_RATE / len(whole)
    assert abs(peak - 500) < 2
    assert spectrum[np.abs(np.arange(len(spectrum)) * SAMPLE_RATE / len(whole) - 500) > 20].max() < spectrum.max() / 300
    assert audio.underruns == 0


def test_a_late_microphone_is_padded_and_the_delay_is_taken_back() -> None:
    audio = AudioInput()
    pts, now = 0, 0.0

    def push(frames: int) -> None:
        nonlocal pts
        for _ in range(frames):
            audio.push(sound(960, pts), now)
            pts += 960

    push(8)
    assert audio.take(now) is not None
    push(6)
    assert audio.take(now) is not None
    assert audio.underruns == 1
    push(2)  # the late ones
    for _ in range(40):
        now += 0.16
        push(8)
        assert audio.take(now) is not None
    assert audio.trimmed > 0
    assert audio._available < SAMPLE_RATE // 25


def test_after_a_stall_only_the_newest_sound_is_kept() -> None:
    audio = AudioInput()
    for i in range(100):  # two seconds at once
        audio.push(sound(960, i * 960), 2.0)
    audio.catch_up()
    kept, fresh = audio.take(2.0), AudioInput()
    fresh.push(sound(96_000, 0), 0.0)
    whole = np.concatenate([fresh.take(0.0) for _ in range(12)])
    assert np.abs(kept[:3000] - whole[-3000:]).max() < 1  # both are there
    assert audio._available == 0
    assert 40_000 < audio.trimmed < 48_000


def test_a_fast_camera_is_remembered_as_long_as_a_slow_one() -> None:
    """Units are cut up to a second late; their pictures are those of their time, at 60 a second too."""
    video = VideoInput()
    for number in range(150):
        video.push(np.full((4, 6, 3), number, np.uint8), number / 60)
    late = 149 / 60 - 1.0
    shown = video.take(late)
    assert shown is not None
    assert [int(picture[0, 0, 0]) for picture in shown] == [int((late - i / 25) * 60 + 1e-6) for i in (3, 2, 1, 0)]
    assert len(video._pictures) < 100


def test_a_switched_off_microphone_is_none_and_a_hole_is_silence() -> None:
    audio = AudioInput()
    for i in (*range(4), *range(6, 8)):  # 40 ms are missing in the middle
        audio.push(sound(960, i * 960), 0.0)
    unit = audio.take(0.1)
    assert unit is not None
    assert (unit == 0).sum() >= 960
    assert audio.take(1.0) is None
    assert audio.take(2.0) is None


HUM = (0.25 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 48_000)).astype(np.float32)
MICROPHONES = {  # channels in, what is heard as a multiple of HUM
    "mono": ([HUM], 1.0),
    "stereo": ([HUM, HUM], 1.0),
    "one side": ([HUM, 0 * HUM], 0.5),
    "opposite sides": ([HUM, -HUM], 0.0),
    "loud": ([3.9 * HUM, 3.9 * HUM], 3.9),
}


@pytest.mark.parametrize("name", MICROPHONES)
@pytest.mark.parametrize("source", ["call", "film"])
def test_channels_are_averaged(name: str, source: str, tmp_path: Path) -> None:
    channels, gain = MICROPHONES[name]
    layout = "mono" if len(channels) == 1 else "stereo"
    pcm = np.round(np.stack(channels, axis=1) * 32767).astype(np.int16)
    if source == "film":
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setnchannels(len(channels))
            file.setsampwidth(2)
            file.setframerate(48_000)
            file.writeframes(pcm.tobytes())
        heard = read_sound(tmp_path / "a.wav")[:SAMPLES_PER_UNIT]
    else:
        audio = AudioInput()
        for start in range(0, len(pcm), 960):
            frame = av.AudioFrame.from_ndarray(pcm[start : start + 960].reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
            audio.push(frame, 0.0)
        unit = audio.take(0.0)
        assert unit is not None
        heard = unit
    middle = heard[1000:-1000]
    assert np.abs(middle).max() == pytest.approx(0.25 * gain, abs=0.003)
    # a clipped sine is louder than its peak says
    assert middle.std() == pytest.approx(0.25 * gain / np.sqrt(2), abs=0.003)


def test_a_microphone_may_change_its_format() -> None:
    audio = AudioInput()
    for i in range(8):
        audio.push(sound(960, i * 960), 0.0)
    mono = av.AudioFrame.from_ndarray(np.full((1, 7680), 8000, np.int16), format="s16", layout="mono")
    mono.sample_rate, mono.pts, mono.time_base = 48_000, 8 * 960, Fraction(1, 48_000)
    audio.push(mono, 0.0)
    assert audio.take(0.0) is not None
    unit = audio.take(0.0)
    assert unit is not None
    assert unit[200:-200] == pytest.approx(8000 / 32768, abs=0.002)


def picture(value: int, height: int = 192, width: int = 256) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_the_camera_is_sampled_at_the_four_ticks() -> None:
    video = VideoInput()
    for i in range(5):  # 30 fps while the unit is 25 fps
        video.push(picture(50 * i), i / 30)
    unit = video.take(0.16)
    assert unit is not None
    assert unit[:, 0, 0, 0].tolist() == [50, 100, 150, 200]  # newest at 0.04, 0.08, 0.12, 0.16 s
    assert video.take(0.32) is not None  # a still camera repeats its picture for a while
    video.push(picture(7, 96, 168), 0.4)
    turned = video.take(0.41)  # the size changed within a unit
    assert turned is not None
    assert turned.shape == (4, 96, 168, 3)
    assert video.take(2.0) is None


def test_camera_frames_of_any_format_become_fitted_rgb() -> None:
    frame = av.VideoFrame.from_ndarray(np.full((480, 640, 3), (200, 30, 60), np.uint8), format="rgb24")
    converted = Scaler(fit)(frame.reformat(format="yuv420p"))
    assert converted.shape == (192, 256, 3)
    assert np.abs(converted.astype(int) - (200, 30, 60)).max() < 8


@pytest.mark.parametrize(("size", "expected"), [((192, 336), (192, 336)), ((1080, 1920), (188, 336)),
                                                ((480, 640), (192, 256)), ((1280, 720), (192, 108)),
                                                ((90, 160), (90, 160)), ((3, 4000), (2, 336))])  # fmt: skip
def test_pictures_are_fitted_and_never_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit(*size) == expected


def test_typed_text_goes_out_one_message_per_unit_and_survives_a_restart() -> None:
    uplink = Uplink()
    uplink.push_text("one")
    uplink.push_text("two")
    uplink.discard(0.1)
    assert [uplink.take(0.2).text for _ in range(3)] == ["one", "two", ""]


def test_what_a_muted_device_sends_reaches_nobody() -> None:
    uplink = Uplink()

    def send(now: float) -> UserUnit:
        uplink.video.push(np.zeros((8, 8, 3), np.uint8), now)
        for k in range(8):
            uplink.audio.push(sound(960, round(now / 0.02) * 960 + k * 960), now)
        return uplink.take(now)

    assert send(1.0).audio is not None
    uplink.muted |= {"microphone", "camera"}
    muted = send(1.16)
    assert muted.audio is None
    assert muted.video is None
    uplink.muted.clear()
    after = send(1.32)
    assert after.audio is not None
    assert after.video is not None
    assert uplink.audio._available < SAMPLES_PER_UNIT, "what was said meanwhile is gone"


# ------------------------------------------------------------------------------------------------------- playout


def unit(index: int, value: int = 0, level: float = 0.5) -> AgentUnit:
    video = np.full((4, 8, 8, 3), value, np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    return AgentUnit(index, np.full(SAMPLES_PER_UNIT, level, np.float32), video)


def play(playout: Playout, steps: int) -> tuple[np.ndarray, list[int | None]]:
    out = [playout.step() for _ in range(steps)]
    return np.concatenate([s for s, _ in out]), [None if p is None else int(p[0, 0, 0]) for _, p in out]


def make_playout(**options: int) -> Playout:
    async def build() -> Playout:
        return Playout(**{"prebuffer_ms": 0, "max_ms": 480, **options})

    return asyncio.run(build())


def test_the_upsampler_doubles_the_rate_chunk_by_chunk() -> None:
    t = np.arange(4800) / SAMPLE_RATE
    x = np.sin(2 * np.pi * 1000 * t).astype(np.float32)
    whole, chunked = Upsampler(), Upsampler()
    y = whole(x)
    np.testing.assert_allclose(np.concatenate([chunked(c) for c in x.reshape(10, 480)]), y, atol=1e-6)
    want = np.sin(2 * np.pi * 1000 * (np.arange(9600) - Upsampler.TAPS // 2) / 48_000)
    np.testing.assert_allclose(y[200:-200], want[200:-200], atol=0.01)


def test_units_play_gapless_with_a_picture_every_40_ms() -> None:
    playout = make_playout()
    assert play(playout, 2)[1] == [None, None]  # no picture before the first unit
    playout.push(unit(0, 10))
    playout.push(unit(1, 20))
    samples, pictures = play(playout, 17)
    assert pictures[1:] == [10, None, 11, None, 12, None, 13, None, 20, None, 21, None, 22, None, 23, None]
    assert samples.shape == (17 * OUT_SAMPLES,)
    steady = samples[3 * OUT_SAMPLES :]
    np.testing.assert_allclose(steady, 0.5, atol=0.02)
    assert playout.late == 0


def test_a_late_unit_is_bridged_by_silence_and_the_last_picture() -> None:
    playout = make_playout()
    playout.push(unit(0, 10))
    play(playout, 9)
    samples, pictures = play(playout, 4)
    assert pictures == [13, None, 13, None]
    assert np.abs(samples[OUT_SAMPLES:]).max() < 0.01
    assert np.abs(np.diff(samples)).max() < 0.05  # faded, no click
    assert playout.late == 4
    playout.push(unit(1, 20))
    assert [p for p in play(playout, 8)[1] if p is not None] == [20, 21, 22, 23]


def test_delay_that_nobody_needs_is_taken_back_in_a_pause() -> None:
    playout = make_playout()
    for k in range(3):
        playout.push(unit(k, level=0.0))
    waits = []
    for k in range(3, 120):
        play(playout, 8)
        waits.append(playout.queued_ms)
        playout.push(unit(k, level=0.0))
    assert waits[0] >= 300
    assert waits[-1] <= 2 * STEP_MS
    assert playout.late == 0


def test_speech_is_not_cut_for_a_little_delay_but_a_long_queue_is() -> None:
    playout = make_playout()
    for k in range(2):
        playout.push(unit(k))
    for k in range(2, 60):
        play(playout, 8)
        playout.push(unit(k))
    assert playout.dropped == 0
    for k in range(60, 64):
        playout.push(unit(k))
    assert playout.queued_ms <= 480
    assert playout.dropped > 0


def test_clear_drops_what_is_queued_and_begins_anew() -> None:
    playout = make_playout(prebuffer_ms=60)
    playout.push(unit(0, 10), 0)
    playout.push(unit(1, 20), 160)
    play(playout, 3 + 5)
    assert playout.position_ms == 100
    assert playout.clear() == 220
    assert (playout.position_ms, playout.queued_ms) == (100, 0)
    samples, pictures = play(playout, 5)
    assert not samples[960:].any()
    assert set(pictures) <= {None, 12}  # the last one stays
    playout.push(unit(3, 40), 480)
    assert 40 not in play(playout, 3)[1], "the prebuffer"
    assert 40 in play(playout, 1)[1]
    assert (playout.position_ms, playout.late) == (500, 0)


def test_units_without_devices_are_played_as_silence() -> None:
    playout = make_playout()
    playout.push(UserUnit(), 0)
    samples, pictures = play(playout, 9)
    assert not samples.any()
    assert set(pictures) == {None}
    assert playout.position_ms == 160


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

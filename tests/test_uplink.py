"""What a visitor sends becomes whole units."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from wan_streamer.data.media import read_sound
from wan_streamer.data.pictures import Scaler
from wan_streamer.serving.uplink import AudioInput, Uplink, VideoInput, fit
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT, UserUnit

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

"""Recordings of every kind become shards that read back right; what is broken is named, and the run goes on."""

import json
import shutil
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from films import make_film

from wan_streamer.data.recordings.prepare import PrepareOptions, prepare
from wan_streamer.data.shards import read_episodes
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT

TRAIN = PrepareOptions(split="train")
WORDS = {"user": [{"text": "hi", "start": 0.9, "end": 1.3}], "agent": [{"text": "hey", "start": 1.4, "end": 1.7}]}


def pair(folder: Path, name: str = "a", **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for side in ("user", "agent"):
        make_film(folder / f"{name}.{side}.mp4", **({"seconds": 2.1, "layout": "mono"} | changes))
    return folder


def write_wave(path: Path, audio_TC: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(audio_TC.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((audio_TC * 32767).astype("<i2").tobytes())
    return path


def beep(start: float, seconds: float = 2.4, rate: int = SAMPLE_RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return np.where((time >= start) & (time < start + 0.2), 0.5 * np.sin(2 * np.pi * 1000 * time), 0.0)


def only(report: dict) -> dict:
    (item,) = report["items"]
    return item


def onsets(audio_T: np.ndarray, video_THWC: np.ndarray | None) -> tuple[float, float | None]:
    """When the tone and the flash begin, seconds; a frame counts from its begin."""
    heard = float(np.argmax(np.abs(audio_T) > 0.1)) / SAMPLE_RATE
    if video_THWC is None:
        return heard, None
    return heard, float(np.argmax(video_THWC.mean(axis=(1, 2, 3)) > 150)) / FPS


@pytest.mark.parametrize(
    "changes",
    [
        {"fps": 30, "rate": 44_100, "layout": "stereo"},
        {"fps": Fraction(30000, 1001), "rate": 44_100},
        {"audio_start": 0.2},
        {"fps": 10, "size": (90, 60)},
        {"pts": [*range(0, 400, 33), *range(400, 900, 100), *range(990, 1210, 10), *range(1250, 2101, 50)]},
    ],
    ids=["30fps-44k-stereo", "29.97fps", "late-sound", "10fps-upright", "variable-rate"],
)
def test_flash_and_beep_stay_together(tmp_path, changes):
    report = prepare(pair(tmp_path / "src", **changes), tmp_path / "out", TRAIN)
    assert (report["accepted"], only(report)["episodes"]) == (1, 1), report
    (episode,) = read_episodes(tmp_path / "out" / "train")
    assert episode.units == 13
    for audio_T, video_THWC in (
        (episode.user_audio, episode.user_video),
        (episode.agent_audio, episode.agent_video),
    ):
        assert audio_T.shape == (13 * SAMPLES_PER_UNIT,)
        assert video_THWC.shape == (13 * FRAMES_PER_UNIT, 192, 336, 3)
        heard, seen = onsets(audio_T, video_THWC)
        assert abs(heard - 1.0) < 0.02
        assert abs(seen - 1.0) <= 0.04 + 1e-6
        assert abs(heard - seen) <= 0.04 + 1e-6
    (speech,) = [event for event in episode.labels["events"] if event["side"] == "user"]
    assert abs(speech["start"] - 1.0) <= 0.04
    assert abs(speech["end"] - 1.2) <= 0.04


def test_sides_in_folders_with_other_containers_and_words(tmp_path):
    folder = tmp_path / "src" / "talk"
    folder.mkdir(parents=True)
    make_film(folder / "user.webm", seconds=2.6, codecs=("libvpx", "libopus"), tone=(1, 1.3), flash=(1, 1.3))
    make_film(folder / "agent.mkv", seconds=5.8, tone=(2, 2.2), flash=(2, 2.2))
    (folder / "user.json").write_text(json.dumps(WORDS["user"]))
    (folder / "agent.srt").write_text("1\n00:00:02,000 --> 00:00:02,200\nhello there\n")
    item = only(prepare(tmp_path / "src", tmp_path / "out", TRAIN))
    assert any("sides differ in length by 3.2 s" in warning for warning in item["warnings"])
    (episode,) = read_episodes(tmp_path / "out" / "train")
    labels = episode.labels
    assert episode.units == 16
    assert abs(onsets(episode.agent_audio, episode.agent_video)[1] - 2.0) <= 0.04
    assert labels["words"]["user"] == WORDS["user"]
    assert [word["text"] for word in labels["words"]["agent"]] == ["hello", "there"]
    assert (labels["source"], labels["recording"], labels["start"]) == ("recorded", "talk", 0.0)
    assert labels["transcribed"] == {"user": True, "agent": True}
    spans = {event["side"]: (event["start"], event["end"]) for event in labels["events"]}
    assert spans["user"][0] <= 0.9, "an utterance holds its words"
    assert 1.3 <= spans["user"][1] < 1.4


def test_one_side_without_camera_and_without_transcript(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    write_wave(source / "a.user.wav", beep(1.0)[:, None], SAMPLE_RATE)
    make_film(source / "a.agent.mp4", seconds=2.4)
    prepare(source, tmp_path / "out", TRAIN)
    (episode,) = read_episodes(tmp_path / "out" / "train")
    assert episode.user_video is None
    assert episode.labels["user"] == {"camera": False}
    assert episode.labels["transcribed"] == {"user": False, "agent": False}
    assert episode.labels["words"] == {"user": [], "agent": []}
    assert "mouth_open" not in episode.labels


@pytest.mark.parametrize("user_channel", [0, 1])
def test_dual_channel_sound(tmp_path, user_channel):
    source = tmp_path / "src"
    source.mkdir()
    write_wave(source / "call.wav", np.stack([beep(0.5, rate=8000), beep(1.5, rate=8000)], axis=1), 8000)
    refused = only(prepare(source, tmp_path / "out", TRAIN))
    assert (refused["accepted"], "--audio-only" in refused["reason"]) == (False, True)
    options = PrepareOptions(split="valid", audio_only=True, user_channel=user_channel)
    item = only(prepare(source, tmp_path / "out", options))
    assert [w for w in item["warnings"] if "8 kHz sound was upsampled" in w]
    (episode,) = read_episodes(tmp_path / "out" / "valid")
    assert (episode.user_video, episode.agent_video) == (None, None)
    heard = [onsets(audio, None)[0] for audio in (episode.user_audio, episode.agent_audio)]
    assert np.allclose(heard if user_channel == 0 else heard[::-1], [0.5, 1.5], atol=0.01)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_dual_channel_film_with_a_picture_of_both(tmp_path, codec):
    source = tmp_path / "src"
    source.mkdir()
    with av.open(str(source / "both.mkv"), "w") as film:
        video = film.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 120, 320, "yuv420p"
        audio = film.add_stream(codec, rate=SAMPLE_RATE, layout="stereo")
        for number in range(60):
            image = np.zeros((120, 320, 3), np.uint8)
            image[:, :160] = 255 if number >= 20 else 10
            image[:, 160:] = 255 if number >= 40 else 10
            film.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(video.encode(None))
        sound = np.stack([beep(0.8), beep(1.6)]).astype(np.float32)
        for first in range(0, sound.shape[1], 960):
            block = np.ascontiguousarray(sound[:, first : first + 960])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
            for part in av.AudioResampler(audio.format.name, "stereo", SAMPLE_RATE).resample(frame):
                film.mux(audio.encode(part))
        film.mux(audio.encode(None))
    prepare(source, tmp_path / "out", PrepareOptions(split="train", split_picture=True))
    (episode,) = read_episodes(tmp_path / "out" / "train")
    assert np.allclose(onsets(episode.user_audio, episode.user_video), 0.8, atol=0.04)
    assert np.allclose(onsets(episode.agent_audio, episode.agent_video), 1.6, atol=0.04)


def test_seamless_interaction_both_ways(tmp_path):
    folder = tmp_path / "src" / "improvised" / "dev" / "0000" / "0005"
    folder.mkdir(parents=True)
    for who, start in (("P0947", 1.0), ("P0059A", 1.6)):
        name = f"V00_S0809_I00000582_{who}"
        make_film(folder / f"{name}.mp4", seconds=2.4, rate=None, flash=(start, start + 0.2))
        write_wave(folder / f"{name}.wav", beep(start)[:, None], SAMPLE_RATE)
        (folder / f"{name}.npz").touch()
        word = {"word": who, "start": start, "end": start + 0.2, "score": 0.9}
        segment = {"words": [word], "start": start, "end": start + 0.2, "transcript": who}
        vad = [{"start": start - 0.1, "end": start + 0.3}]
        labels = {"id": name, "metadata:transcript": [segment], "metadata:vad": vad}
        (folder / f"{name}.json").write_text(json.dumps(labels))
    report = prepare(tmp_path / "src", tmp_path / "out", PrepareOptions(both_ways=True))
    assert (only(report)["split"], report["ignored_files"]) == ("valid", {".npz": 2})
    one, other = read_episodes(tmp_path / "out" / "valid")
    assert one.labels["words"]["agent"] == other.labels["words"]["user"] != []
    for episode, user, agent in ((one, 1.6, 1.0), (other, 1.0, 1.6)):
        assert np.allclose(onsets(episode.user_audio, episode.user_video), user, atol=0.04)
        assert np.allclose(onsets(episode.agent_audio, episode.agent_video), agent, atol=0.04)
        (speech,) = [event for event in episode.labels["events"] if event["side"] == "agent"]
        assert np.allclose([speech["start"], speech["end"]], [agent - 0.1, agent + 0.3])


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def not_media(path: Path) -> None:
    path.write_text("this is not a film\n" * 99)


def without_sound(path: Path) -> None:
    make_film(path, seconds=2.4, rate=None)


def three_frames(path: Path) -> None:
    make_film(path, seconds=0.12)


def little_sound(path: Path) -> None:
    make_film(path, seconds=2.4)
    write_wave(path.with_suffix(".wav"), beep(0.2, seconds=1.0)[:, None], SAMPLE_RATE)


def without_picture(path: Path) -> None:
    make_film(path, seconds=2.4, size=None)


def a_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nothing")


BROKEN = {
    zero_bytes: "empty",
    cut_off: "not a media file",
    not_media: "media file",
    without_sound: "the agent has no sound",
    three_frames: "too short: all tracks together last 0.00 s",
    little_sound: "too short: all tracks together last 0.96 s",
    without_picture: "--audio-only",
    a_broken_link: "No such file",
}


def test_broken_sides_are_rejected_with_the_reason_and_the_run_goes_on(tmp_path):
    source = pair(tmp_path / "src", "good")
    for breaks in BROKEN:
        for side in ("user", "agent"):
            shutil.copy(source / f"good.{side}.mp4", source / f"{breaks.__name__}.{side}.mp4")
        breaks(source / f"{breaks.__name__}.agent.mp4")
    report = prepare(source, tmp_path / "out", TRAIN)
    reasons = {item["name"]: item["reason"] for item in report["items"] if not item["accepted"]}
    assert sorted(reasons) == sorted(breaks.__name__ for breaks in BROKEN)
    for breaks, reason in BROKEN.items():
        assert reason in reasons[breaks.__name__]
    assert [episode.labels["recording"] for episode in read_episodes(tmp_path / "out" / "train")] == ["good"]
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_file_needs_two_channels(tmp_path, channels):
    source = tmp_path / "src"
    source.mkdir()
    write_wave(source / "talk.wav", np.tile(beep(1.0)[:, None], channels), SAMPLE_RATE)
    reason = only(prepare(source, tmp_path / "out", TRAIN))["reason"]
    assert "no partner" in reason
    assert f"got {channels}" in reason


def test_a_file_that_ends_early_is_used_up_to_there(tmp_path):
    source = pair(tmp_path / "src", seconds=3.4)
    whole = make_film(tmp_path / "whole.mkv", seconds=4.0, codecs=("mpeg4", "pcm_s16le"))
    (source / "a.agent.mp4").unlink()
    (source / "a.agent.mkv").write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
    item = only(prepare(source, tmp_path / "out", TRAIN))
    assert item["accepted"]
    assert 2.08 <= item["seconds"] < 3.3
    assert [warning for warning in item["warnings"] if "sides differ in length" in warning]
    assert sum(episode.units for episode in read_episodes(tmp_path / "out" / "train")) * 0.16 == item["seconds"]


def test_pictures_that_cannot_be_decoded_end_the_recording(tmp_path):
    source = pair(tmp_path / "src", seconds=3.4)
    film = make_film(source / "a.agent.mp4", seconds=4.0, rate=None, fps=50)
    write_wave(source / "a.agent.wav", beep(1.0, seconds=4.0)[:, None], SAMPLE_RATE)
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        for packet in container.demux(video=0):
            if packet.pts is not None and packet.pts * packet.time_base > 2.5:
                data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    film.write_bytes(data)
    item = only(prepare(source, tmp_path / "out", PrepareOptions(split="train", both_ways=True)))
    assert 2 * 2.08 <= item["seconds"] <= 2 * 2.56
    assert any("s could be decoded" in warning for warning in item["warnings"])
    assert [episode.units for episode in read_episodes(tmp_path / "out" / "train")] == [item["seconds"] / 0.32] * 2


def test_a_late_picture_is_waited_for_and_bad_transcripts_are_told(tmp_path):
    source = pair(tmp_path / "src", seconds=2.6, video_start=0.3)
    outside = {"text": "never", "start": 30.0, "end": 31.0}
    (source / "a.user.json").write_text(json.dumps([*WORDS["user"], outside, {"text": "no times"}]))
    (source / "a.agent.json").write_text("{")
    item = only(prepare(source, tmp_path / "out", TRAIN))
    told = " | ".join(item["warnings"])
    for part in (
        "the first 0.32 s were left out",
        "1 words with times outside",
        "1 rows",
        "agent: a transcript was left",
    ):
        assert part in told
    (episode,) = read_episodes(tmp_path / "out" / "train")
    assert episode.labels["start"] == 0.32
    assert episode.labels["words"]["user"] == [{"text": "hi", "start": 0.58, "end": 0.98}]
    assert episode.labels["transcribed"] == {"user": True, "agent": False}
    assert np.allclose(onsets(episode.user_audio, episode.user_video), 0.68, atol=0.04)
    assert episode.agent_video[0].mean() > 20, "no black pictures at the begin"


def test_long_recordings_are_cut_between_words_and_the_tail_is_counted(tmp_path):
    source = pair(tmp_path / "src", seconds=6.4, size=(48, 84), rate=16_000)
    words = [{"text": "a", "start": 2.0, "end": 2.5}, {"text": "b", "start": 2.57, "end": 4.0}]
    (source / "a.user.json").write_text(json.dumps(words))
    item = only(prepare(source, tmp_path / "out", PrepareOptions(units=15, split="train")))
    first, second = read_episodes(tmp_path / "out" / "train")
    assert (first.units, second.units, second.labels["start"]) == (15, 15, 2.4)  # no room: one word is lost
    assert any("1 words that leave no room" in warning for warning in item["warnings"])
    item = only(prepare(source, tmp_path / "out", PrepareOptions(units=17, split="train")))
    first, second = read_episodes(tmp_path / "out" / "train")
    assert [episode.units for episode in (first, second)] == [16, 17]
    assert [word["text"] for word in first.labels["words"]["user"]] == ["a"]
    assert second.labels["words"]["user"] == [{"text": "b", "start": 0.01, "end": 1.44}]
    assert np.isclose(item["tail_seconds"], (40 - 33) * 0.16)
    assert first.key != second.key

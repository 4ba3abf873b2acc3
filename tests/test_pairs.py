"""Pairs of recordings from other systems become trials with labels, and what is wrong with them is named."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from films import make_film

from wan_streamer.data.shards import check_labels
from wan_streamer.errors import DataError, MediaError
from wan_streamer.evaluation.suite.pairs import letterbox, read_pairs
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT


def make_sound(path: Path, *spans: tuple[float, float], seconds: float = 3.2, rate: int = 16_000) -> Path:
    """A recording with tones in `spans`, which count as speech."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame"}[path.suffix]
    if len(spans) < 2:
        tone = spans[0] if spans else (0.0, 0.0)
        return make_film(path, seconds, None, rate=rate, layout="mono", tone=tone, codecs=("", codec))
    time = np.arange(round(seconds * rate)) / rate
    heard = np.any([(a <= time) & (time < b) for a, b in spans], axis=0)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((heard * 16_000 * np.sin(2 * np.pi * 1000 * time)).astype(np.int16).tobytes())
    return path


def labels(units: int, **more: object) -> dict:
    spans = [{"type": "speech", "side": "user", "start": 0.5, "end": 1.0, "label": "question.colour"}]
    return {
        "schema": 1, "generator": "test", "seed": 1, "split": "test", "index": 0, "units": units, "fps": FPS,
        "scenarios": ["greeting"], "user": {}, "agent": {}, "words": {"user": [], "agent": []},
        "phonemes": {"user": [], "agent": []}, "events": spans,
        "mouth_open": {side: [0.0] * units * FRAMES_PER_UNIT for side in ("user", "agent")}, **more,
    }  # fmt: skip


def speech(found: dict, side: str) -> list[tuple[float, float]]:
    return [(e["start"], e["end"]) for e in found["events"] if e["type"] == "speech" and e["side"] == side]


def tone_begins(audio_T: np.ndarray) -> float:
    return float(np.flatnonzero(np.abs(audio_T) > 0.1)[0] / SAMPLE_RATE)


def test_two_films_without_labels(tmp_path):
    make_film(tmp_path / "a.user.mp4", 3.2, (240, 320), rate=44_100, tone=(0.5, 1.0), flash=(1.0, 1.2))
    make_film(tmp_path / "a.agent.webm", 3.2, (96, 168), fps=30, tone=(1.5, 2.5), codecs=("libvpx", "libopus"))
    ((trial, recording),) = read_pairs(tmp_path)
    episode = trial.episode
    assert (trial.name, trial.axis, episode.units) == ("a", "pairs", 20)
    assert episode.user_audio.shape == recording.audio.shape == (20 * SAMPLES_PER_UNIT,)
    assert episode.user_video.shape == recording.video.shape == (80, 192, 336, 3)
    assert tone_begins(episode.user_audio) == pytest.approx(0.5, abs=0.03)
    assert tone_begins(recording.audio) == pytest.approx(1.5, abs=0.03)
    bright = np.flatnonzero(episode.user_video[:, 96, 168].min(-1) > 200)
    assert (bright[0], bright[-1]) == (25, 29)
    assert episode.user_video[26, 96, [20, 315]].max() < 40, "black beside a picture that is not as wide"
    assert np.abs(episode.agent_audio).max() == 0, "there is no reference"
    assert episode.agent_video is None

    found = check_labels(episode.labels, "test")
    assert (found["source"], found["transcribed"]) == ("recorded", {"user": False, "agent": False})
    assert found["words"] == {"user": [], "agent": []}
    assert found["user"]["camera"]
    assert found["agent"]["camera"]
    assert np.allclose(speech(found, "user"), [(0.5, 1.0)], atol=0.06)
    assert speech(found, "agent") == []  # what it said is no reference
    assert found["notes"] == []
    units = list(trial.units())
    assert len(units) == 20
    assert units[0].video.shape == (4, 192, 336, 3)


def test_sound_beside_a_film_is_the_sound(tmp_path):
    make_film(tmp_path / "a.user.mp4", 2.08, tone=(0.2, 0.4))
    make_sound(tmp_path / "a.user.wav", (1.0, 1.4), seconds=2.08, rate=48_000)
    make_sound(tmp_path / "a.agent.flac", (0.5, 0.8), seconds=2.08)
    ((trial, recording),) = read_pairs(tmp_path)
    assert tone_begins(trial.episode.user_audio) == pytest.approx(1.0, abs=0.01)
    assert trial.episode.user_video is not None
    assert recording.video is None
    assert trial.episode.labels["agent"] == {"camera": False}


def test_the_shorter_side_is_filled_up(tmp_path):
    make_sound(tmp_path / "a.user.mp3", (0.2, 0.6), seconds=1.6, rate=24_000)
    make_film(tmp_path / "a.agent.mp4", 2.56, flash=(2.5, 2.6), tone=(1.0, 1.2))
    make_film(tmp_path / "b.agent.mp4", 1.6, flash=(1.5, 1.7), tone=(1.0, 1.2))
    make_sound(tmp_path / "b.user.wav", (0.2, 0.6), seconds=2.56)
    (a, recorded_a), (b, recorded_b) = read_pairs(tmp_path)
    assert a.episode.units == b.episode.units == 16
    assert len(a.episode.user_audio) == len(recorded_a.audio) == 16 * SAMPLES_PER_UNIT
    assert np.abs(a.episode.user_audio[-SAMPLES_PER_UNIT * 4 :]).max() == 0
    assert np.abs(recorded_b.audio[-SAMPLES_PER_UNIT * 5 :]).max() == 0
    assert len(recorded_b.video) == 64
    assert (recorded_b.video[40:] == recorded_b.video[39]).all(), "the last picture stays"
    assert recorded_b.video[39].mean() > 100
    (note,) = a.episode.labels["notes"]
    assert "s of sound filled up at the end to 2.56 s" in note
    assert b.episode.labels["notes"] == [
        f"agent: 1.60 s of {track} filled up at the end to 2.56 s" for track in ("sound", "picture")
    ]


def test_a_film_without_sound_is_silent(tmp_path):
    make_film(tmp_path / "a.user.mp4", 1.6, rate=None)
    make_sound(tmp_path / "a.agent.wav", (0.5, 0.8), seconds=1.6)
    ((trial, _),) = read_pairs(tmp_path)
    assert np.abs(trial.episode.user_audio).max() == 0
    assert trial.episode.user_video is not None
    assert "user: a.user.mp4 has no sound, which counts as silence" in trial.episode.labels["notes"]


def test_given_labels_are_the_truth(tmp_path):
    make_sound(tmp_path / "turn-001.user.wav", (0.5, 1.0))
    make_sound(tmp_path / "turn-001.agent.wav", (1.2, 2.0), seconds=4.0)
    (tmp_path / "turn-001.json").write_text(json.dumps(labels(20, axis="turn_taking")))
    ((trial, recording),) = read_pairs(tmp_path)
    assert (trial.name, trial.axis) == ("turn-001", "turn_taking")
    assert trial.episode.labels["scenarios"] == ["greeting"]
    assert len(trial.episode.labels["events"]) == 1
    assert len(recording.audio) == 20 * SAMPLES_PER_UNIT
    assert trial.episode.labels["notes"] == ["agent: 4.00 s of sound cut to 3.20 s"]


def test_transcripts_become_words_and_text(tmp_path):
    make_sound(tmp_path / "a.user.wav", (0.5, 1.0))
    make_sound(tmp_path / "a.agent.wav", (1.5, 2.0))
    (tmp_path / "a.user.json").write_text(json.dumps([{"text": "hello", "start": 0.5, "end": 0.9}]))
    (tmp_path / "a.agent.json").write_text(
        json.dumps([{"text": "hi", "start": 1.5, "end": 1.7}, {"text": "you", "start": 1.7, "end": 1.9}])
    )
    ((trial, recording),) = read_pairs(tmp_path)
    assert [w["text"] for w in trial.episode.labels["words"]["user"]] == ["hello"]
    assert trial.episode.labels["transcribed"] == {"user": True, "agent": False}
    assert "".join(text for _, text in recording.text).strip() == "hi you"


def test_clips_of_full_duplex_bench(tmp_path):
    words = {"text": "a b", "chunks": [{"text": "a", "timestamp": [0.3, 0.6]}, {"text": "b", "timestamp": [2.0, None]}]}
    for task, mark, content in (
        ("candor_pause_handling", "pause.json", [{"text": "[PAUSE]", "timestamp": [1.0, 1.6]}]),
        ("candor_turn_taking", "turn_taking.json", [{"text": "[TURN-TAKING]", "timestamp": [2.4, 2.6]}]),
        ("synthetic_user_interruption", "interrupt.json", [{"interrupt": "What?", "timestamp": [1.5, 2.5]}]),
        ("user_backchannel", "metadata.json", {"backchannel_text": "uh huh", "timestamps": [1.5, 2.5]}),
    ):
        clip = tmp_path / task / "7"
        make_sound(clip / "input.wav", (0.3, 1.0), (1.6, 2.4))
        make_sound(clip / "output.wav", (2.6, 3.0), rate=24_000)
        make_sound(clip / "clean_input.wav")
        (clip / mark).write_text(json.dumps(content))
        (clip / "transcription.json").write_text(json.dumps(words))
        (clip / "output.json").write_text(json.dumps({"chunks": [{"text": "yes", "timestamp": [2.6, 2.9]}]}))
    read = {trial.name: (trial, recording) for trial, recording in read_pairs(tmp_path)}
    assert list(read) == [
        "candor_pause_handling/7", "candor_turn_taking/7", "synthetic_user_interruption/7", "user_backchannel/7",
    ]  # fmt: skip
    for trial, recording in read.values():
        found = check_labels(trial.episode.labels, "test")
        assert found["words"]["user"] == [{"text": "a", "start": 0.3, "end": 0.6}]
        assert recording.text == [(2.6, " yes")]
        assert tone_begins(recording.audio) == pytest.approx(2.6, abs=0.01)

    def events(task: str) -> dict[str, list[float]]:
        found = read[f"{task}/7"][0].episode.labels["events"]
        return {e["type"]: [e["start"], e["end"]] for e in found if e["side"] == "user" and e["type"] != "speech"}

    def user(task: str) -> list[tuple[float, float]]:
        return speech(read[f"{task}/7"][0].episode.labels, "user")

    assert events("candor_pause_handling") == {"pause": [1.0, 1.6]}
    assert events("candor_turn_taking") == {"turn_end": [2.4, 2.6]}
    turns = user("synthetic_user_interruption")
    assert np.allclose(turns, [(0.3, 1.0), (1.6, 2.4)], atol=0.06)
    assert events("synthetic_user_interruption") == {"barge_in": [turns[1][0], 2.5]}, "begins with the turn"
    assert events("user_backchannel") == {"backchannel": [1.5, 2.5]}
    assert np.allclose(user("user_backchannel"), [(0.3, 1.0)], atol=0.06), "a backchannel is no turn"


def test_a_clip_with_a_film(tmp_path):
    make_sound(tmp_path / "1" / "input.wav", (0.3, 1.0), seconds=1.6)
    make_film(tmp_path / "1" / "output.mp4", 1.6, size=(192, 336))
    ((trial, recording),) = read_pairs(tmp_path)
    assert trial.name == "1"
    assert recording.video.shape == (40, 192, 336, 3)


def test_the_picture_is_fitted_whole():
    assert letterbox(np.full((2, 300, 300, 3), 200, np.uint8))[0, 100].any(-1).sum() == 192
    assert letterbox(np.full((1, 100, 400, 3), 200, np.uint8))[0, :, 100].any(-1).sum() == 84
    small = letterbox(np.full((4, 96, 168, 3), 200, np.uint8))
    assert small.shape == (4, 192, 336, 3)
    assert small.min() > 190


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", r"expected NAME\.user.*found neither"),
        ("notes.txt talk.wav", r"expected NAME\.user.*found neither"),
        ("a.user.wav", "a: no partner: there is nothing of the agent"),
        ("a.agent.wav b.user.wav b.agent.wav", "a: no partner: there is nothing of the user"),
        ("a.user.wav a.agent.mp4 a.agent.mkv", "agent: expected one film or sound file"),
        ("1/input.wav", r"1: expected output\.wav.*got none"),
        ("1/input.wav 1/output.mp4 1/output.webm", r"got output\.mp4, output\.webm"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, names, message):
    for name in names.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path)
    with pytest.raises(DataError, match="expected a folder"):
        read_pairs(tmp_path / "missing")


def test_a_file_that_cannot_be_read(tmp_path):
    make_sound(tmp_path / "a.user.wav", (0.5, 1.0))
    (tmp_path / "a.agent.mp4").write_bytes(b"not a film" * 100)
    with pytest.raises(MediaError, match=r"a\.agent\.mp4"):
        list(read_pairs(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", json.dumps(labels(25)), r"a\.json: expected labels of 20 units, as a\.user\.wav has, got 25"),
        ("a.json", "{", r"a\.json: expected JSON"),
        ("a.json", json.dumps(labels(20) | {"schema": 9}), r"a\.json: schema 9"),
        ("1/pause.json", json.dumps([{"timestamp": [20.0, 21.0]}]), r"pause\.json: expected times within 3\.20 s.*20"),
        ("1/pause.json", json.dumps("x"), r"pause\.json: expected rows"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, name, content, message):
    stems = ("1/input", "1/output") if name.startswith("1/") else ("a.user", "a.agent")
    for stem in stems:
        make_sound(tmp_path / f"{stem}.wav", (0.5, 1.0))
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_pairs(tmp_path))


def test_one_pair_at_a_time(tmp_path):
    """A bad pair is told when its turn comes; those before it are there already."""
    make_sound(tmp_path / "a.user.wav", (0.5, 1.0))
    make_sound(tmp_path / "a.agent.wav", (0.5, 1.0))
    (tmp_path / "b.user.wav").write_bytes(b"bad")
    (tmp_path / "b.agent.wav").write_bytes(b"bad")
    pairs = read_pairs(tmp_path)
    assert next(pairs)[0].name == "a"
    with pytest.raises(MediaError, match=r"b\.user\.wav"):
        next(pairs)

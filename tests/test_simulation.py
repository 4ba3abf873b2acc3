"""The simulated world: exact, repeatable, and the splits share nothing."""

import functools
import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from test_scenarios import ToneVoice, tone

from wan_streamer.config import StreamerConfig
from wan_streamer.data.shards import Episode, episode_key
from wan_streamer.errors import ConfigError
from wan_streamer.simulation import generate, simulate
from wan_streamer.simulation.codec_sentences import codec_sentences
from wan_streamer.simulation.conversation.dialogue import episode_rng, split_of
from wan_streamer.simulation.conversation.partners import make_episode
from wan_streamer.simulation.conversation.repertoire import AGENT, FILLERS, USER, is_german, wording
from wan_streamer.simulation.conversation.scenarios import SCENARIO_NAMES
from wan_streamer.simulation.face.motion import pose_track
from wan_streamer.simulation.face.person import AGENT_IDENTITY, FaceIdentity, FacePose
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.face.visemes import SHAPE, mouth_track
from wan_streamer.simulation.generate import shard_count
from wan_streamer.simulation.voice.speech import Speech, TimedPhoneme, level_speech, resample
from wan_streamer.simulation.voice.users import AgentVoice, UserVoice, speakers_of
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT


class QuickVoice:
    """The agent speaks with espeak-ng, which needs milliseconds where Piper needs a second."""

    def speak(self, text: str, rng: np.random.Generator, language: str = "en") -> Speech:
        return UserVoice("en-us", "m3").speak(text, None, language)


@functools.cache
def talk(index: int) -> Episode:
    return make_episode(11, "train", index, QuickVoice(), pictures=False)


def test_same_seed_gives_the_same_labels_and_sound():
    first, again, other = talk(0), make_episode(11, "train", 0, QuickVoice(), pictures=False), talk(1)
    assert json.dumps(first.labels) == json.dumps(again.labels)
    assert first.user_audio.tobytes() == again.user_audio.tobytes()
    assert first.agent_audio.tobytes() == again.agent_audio.tobytes()
    assert first.labels["events"] != other.labels["events"]


def test_splits_share_no_sequence_of_scenarios(monkeypatch):
    monkeypatch.setattr(UserVoice, "speak", lambda self, text, rng, language="en": tone(text, rng, language))
    for split in ("train", "valid", "test"):
        for index in range(2):
            labels = make_episode(5, split, index, ToneVoice(), pictures=False).labels
            assert split_of(labels["scenarios"]) == split
    assert {split_of([name]) for name in SCENARIO_NAMES} == {"train", "valid", "test"}


def test_agent_sentences_do_not_depend_on_what_was_said_before(tmp_path):
    first, second = (AgentVoice(tmp_path / name, variants=1) for name in "ab")
    second.renderings(AGENT["okay"])
    np.testing.assert_allclose(
        first.renderings(AGENT["three"])[0].audio, second.renderings(AGENT["three"])[0].audio, atol=1e-4
    )


@pytest.mark.parametrize("index", [0, 1])
def test_words_and_phonemes_lie_inside_the_sound_in_order(index):
    episode = talk(index)
    assert len(episode.agent_audio) == len(episode.user_audio) == episode.units * SAMPLES_PER_UNIT
    seconds = len(episode.agent_audio) / SAMPLE_RATE
    for table in ("words", "phonemes"):
        for side in ("user", "agent"):
            rows = episode.labels[table][side]
            assert rows
            assert all(0 <= row["start"] <= row["end"] <= seconds for row in rows)
            assert all(a["start"] <= b["start"] for a, b in pairwise(rows))
    for event in episode.labels["events"]:  # the sound is where the labels say
        if event["type"] == "speech" and event["side"] == "agent":
            first, last = (round(event[key] * SAMPLE_RATE) for key in ("start", "end"))
            assert np.sqrt(np.mean(episode.agent_audio[first:last] ** 2)) > 0.03
            assert np.abs(episode.agent_audio[last + 2400 : last + 3600]).max() < 0.03


def test_mouth_opens_with_the_voice():
    episode = talk(0)
    power = np.mean(episode.agent_audio.reshape(-1, 960) ** 2, axis=1) ** 0.25
    assert np.corrcoef(power, episode.labels["mouth_open"]["agent"])[0, 1] > 0.7


def test_mouth_closes_on_p_b_m_and_opens_on_a():
    sounds = [TimedPhoneme(s, 0.2 + 0.07 * i, 0.27 + 0.07 * i) for i, s in enumerate("apabamawaɪa")]
    track_TD = mouth_track(tuple(sounds), 40)
    open_T, round_T = track_TD[:, SHAPE.index("mouth_open")], track_TD[:, SHAPE.index("lip_round")]
    at = {s.symbol: int((s.start + s.end) / 2 * 25) for s in sounds}
    assert all(open_T[at[s]] <= 0.02 for s in "pbm")
    assert open_T[at["a"]] > 0.5
    assert round_T[at["w"]] > 0.5 > round_T[at["a"]]
    assert open_T[0] == 0.0


def test_renderer_moves_only_what_the_pose_says():
    renderer = FaceRenderer(AGENT_IDENTITY)
    rest = renderer.render(FacePose())
    assert rest.shape == (192, 336, 3)
    assert rest.dtype == np.uint8
    np.testing.assert_array_equal(rest, renderer.render(FacePose()))
    for pose, rows in ((FacePose(blink=1.0), slice(65, 110)), (FacePose(mouth_open=0.9), slice(110, 175))):
        changed = np.abs(renderer.render(pose).astype(int) - rest).max(axis=2) > 8
        assert changed[rows].sum() > 100
        assert changed[rows].sum() == changed.sum()
    mouth = np.abs(renderer.render(FacePose(mouth_open=0.9, mouth_wide=0.4)).astype(int) - rest).max(axis=(0, 2)) > 8
    assert mouth.sum() >= 40  # columns of pixels


def test_every_hair_style_is_drawn():
    rng = np.random.default_rng(0)
    frames = {FaceRenderer(FaceIdentity.sample(rng)).render(FacePose()).tobytes() for _ in range(30)}
    assert len(frames) == 30
    with pytest.raises(ConfigError, match="hair_style"):
        FaceIdentity(hair_style="mohawk")


def test_splits_share_no_voice_no_face_and_no_stream():
    splits = ("train", "valid", "test")
    voices = [set(speakers_of(s)) for s in splits]
    faces = []
    for split in splits:
        rng = np.random.default_rng(1)
        people = [FaceIdentity.sample(rng, split) for _ in range(300)]
        faces.append({(p.skin, p.hair_style, p.hair) for p in people})
    for a in range(3):
        for b in range(a):
            assert not voices[a] & voices[b]
            assert not faces[a] & faces[b]
    assert len({float(episode_rng(1, split, 0, 1).random()) for split in splits}) == 3


def test_listener_nods_and_nobody_freezes():
    motion = pose_track(400, (), [], [(2.0, 6.0)], np.random.default_rng(0))
    assert any(2.0 < at < 6.2 for at in motion.nods)
    assert max(p.blink for p in motion.poses) == 1.0
    moved = np.abs(np.diff([p.head_x for p in motion.poses]))
    assert np.mean(moved > 1e-4) > 0.8


def test_user_voices_differ_and_say_every_wording():
    rng = np.random.default_rng(0)
    slots = {name: options[0] for name, options in FILLERS.items()}
    slots |= {"a": "two", "b": "three", "phrase": "The sky is blue today."}
    lengths = set()
    for intent in USER:
        text = wording(intent, rng, **slots)
        speech = UserVoice.sample(rng).speak(text, rng, "de" if is_german(intent) else "en")
        assert text.split() == [w.text for w in speech.words]
        assert speech.audio.dtype == np.float32
        lengths.add(len(speech.audio))
    assert len(lengths) > 0.9 * len(USER)


def test_resampling_keeps_a_tone_and_loudness_is_set():
    tone_T = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050).astype(np.float32)
    out_T = resample(tone_T, 22050)
    expected_T = np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)
    assert len(out_T) == 24000
    assert np.abs(out_T[500:-500] - expected_T[500:-500]).max() < 0.01
    assert abs(20 * np.log10(np.sqrt(np.mean(level_speech(out_T, -20.0) ** 2))) + 20) < 0.1


def test_codec_sentences_are_different_and_held_out():
    train = codec_sentences(50, np.random.default_rng(0))
    held_out = codec_sentences(20, np.random.default_rng(0), frozenset(train))
    assert len(set(train)) == 50
    assert not set(train) & set(held_out)


def test_encoded_conversations_go_on_after_the_last_whole_one(tmp_path, monkeypatch):
    made = []

    class Encoder:
        def write(self, episode, path):
            if len(made) == 3:
                raise KeyboardInterrupt
            made.append(episode)
            path.touch()

    monkeypatch.setattr(generate, "_encoder", lambda *_: Encoder())
    monkeypatch.setattr(generate, "agent_texts", dict)
    monkeypatch.setattr(
        generate, "make_episode", lambda seed, split, index, *_, **__: SimpleNamespace(key=episode_key(index))
    )
    latents = generate.Latents(tmp_path, StreamerConfig())
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, 0.05, 1, latents=latents)
    assert not list(tmp_path.glob("*.done"))
    monkeypatch.setattr(Encoder, "write", lambda self, episode, path: made.append(episode))
    simulate(tmp_path, 0.05, 1, latents=latents)
    assert [episode.key for episode in made] == [f"ep{index:06d}" for index in range(generate.EPISODES_PER_SHARD)]
    assert list(tmp_path.glob("*.done"))
    simulate(tmp_path, 0.05, 1, latents=latents)
    assert len(made) == generate.EPISODES_PER_SHARD


def test_simulate_refuses_bad_arguments(tmp_path):
    with pytest.raises(ConfigError, match="hours"):
        simulate(tmp_path, 0, 1)
    with pytest.raises(ConfigError, match="split"):
        simulate(tmp_path, 1, 1, split="training")
    assert shard_count(0.05, 1, "train") == 1
    assert shard_count(0.10, 1, "train") > shard_count(0.05, 1, "train")

"""Encoded conversations in which one side or both are not heard: what is made, what clips hold, what steps learn."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_written import same
from tiny import TALKER, tiny_text, tiny_weights
from tiny_world import make_latents, save_codecs

from wan_streamer.codecs.folder import codec_hash, load_codecs
from wan_streamer.codecs.text import SILENCE
from wan_streamer.data.encode import make_encoder
from wan_streamer.data.latents import LatentStore
from wan_streamer.data.shards import Episode
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import LANES
from wan_streamer.model.memory import PADDING
from wan_streamer.model.memory import spoken as spoken_tokens
from wan_streamer.model.streamer import Streamer
from wan_streamer.simulation import generate, simulate
from wan_streamer.simulation.conversation import partners
from wan_streamer.simulation.conversation.dialogue import Speak, split_of
from wan_streamer.simulation.conversation.free import free_texts
from wan_streamer.simulation.conversation.partners import make_asked, make_shown, make_spoken
from wan_streamer.simulation.conversation.repertoire import AGENT
from wan_streamer.simulation.conversation.scenarios import SHOWN
from wan_streamer.simulation.generate import Latents
from wan_streamer.simulation.voice.silent import SilentVoice
from wan_streamer.simulation.voice.speech import Speech
from wan_streamer.speaking.sounds import QUIET, sounds_of
from wan_streamer.training.examples import written
from wan_streamer.training.examples.clips import ClipReader, told
from wan_streamer.training.examples.written import (
    CLIPS,
    LATER,
    SHOWN_CLIPS,
    SPOKEN_CLIPS,
    WRITTEN_CLIPS,
    AskedClips,
    SpokenClips,
)
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.duplex import (
    ASKED_STEPS,
    SHOWN_STEPS,
    SPOKEN_STEPS,
    WRITTEN_STEPS,
    DuplexStage,
)
from wan_streamer.units import SAMPLE_RATE

UNITS = 16
RESPONSE, TRANSCRIPT = (LANES.index(name) for name in ("response", "transcript"))


class HummingVoice(SilentVoice):
    """Words that are noise, and silence between them."""

    def speak(self, text: str, rng: np.random.Generator, language: str = "en") -> Speech:
        speech = super().speak(text, rng, language)
        for word in speech.words:
            where = slice(round(word.start * SAMPLE_RATE), round(word.end * SAMPLE_RATE))
            speech.audio[where] = rng.normal(0, 0.1, len(speech.audio[where]))
        return speech

    def reader(self, rng: np.random.Generator) -> Speak:
        """As the agent's own voice says what it says a single time."""
        return self.speak


HUM = HummingVoice()


BEFORE = [{"side": "user", "text": "I am Tom."}, {"side": "agent", "text": "Nice to meet you, Tom."}]


def test_what_is_shown_is_what_is_said() -> None:
    for index in range(2):
        episode = make_shown(2, "valid", index)
        labels = episode.labels
        assert split_of(labels["scenarios"]) == "valid"
        assert set(labels["scenarios"]) <= set(SHOWN)
        assert not episode.user_audio.any()
        assert not episode.agent_audio.any()
        assert episode.agent_video is None
        assert len(episode.user_video) == 4 * labels["units"]
        said = " ".join(word["text"] for word in labels["words"]["agent"]).lower()
        shown = [e["label"] for e in labels["events"] if e["type"] == "show" and e["side"] == "user"]
        numbers = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        for colour, name in (label.split() for label in shown):
            wanted = {colour, name, numbers[int(name)] if name.isdigit() else name}
            assert any(word in said for word in wanted), (colour, name, said)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=UNITS + 2)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, latents: Path) -> DuplexStage:
    encoder = make_encoder(*load_codecs(TALKER, latents), TALKER.perception)
    shown = tmp_path_factory.mktemp("shown")
    for split in ("train", "valid"):
        episode, units = make_shown(1, split, 0), 40
        words = {side: [w for w in said if w["end"] < units * 0.16] for side, said in episode.labels["words"].items()}
        short = Episode(
            episode.key, episode.user_audio[: units * 3840], episode.agent_audio[: units * 3840],
            episode.user_video[: units * 4], None, episode.labels | {"units": units, "words": words},
        )  # fmt: skip
        (shown / split).mkdir()
        encoder.write(short, shown / split / "shard-00000-ep000000.safetensors")
    torch.manual_seed(0)
    config = TrainConfig(steps=20, lr=1e-3, batch=2, clip_units=UNITS)
    streamer = Streamer(TALKER)
    torch.nn.init.normal_(streamer.audio_out.weight, std=0.1)
    return DuplexStage(streamer, tiny_text(), latents, config, written=True, shown=shown)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, latents: Path) -> Path:
    """Conversations in which only the agent is heard, encoded in train/ and valid/."""
    folder, encoder = tmp_path_factory.mktemp("spoken"), make_encoder(*load_codecs(TALKER, latents), TALKER.perception)
    for split in ("train", "valid"):
        (folder / split).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(partners, "READ", 0.0)
            episode = make_spoken(1, split, 0, HUM)
        encoder.write(episode, folder / split / "shard-00000-ep000000.safetensors")
    return folder


def test_only_the_agent_is_heard(spoken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partners, "READ", 0.0)
    episode = make_spoken(1, "valid", 0, HUM)
    labels = episode.labels
    assert split_of(labels["scenarios"]) == "valid"
    assert not episode.user_audio.any()
    assert episode.user_video is episode.agent_video is None
    heard_U = np.abs(episode.agent_audio).reshape(labels["units"], -1).max(1) > 0
    said = [unit for word in labels["words"]["agent"] for unit in (int(word["start"] / 0.16), int(word["end"] / 0.16))]
    assert heard_U[[unit for unit in said if unit < len(heard_U)]].mean() > 0.9
    assert 0 < heard_U.mean() < 0.9
    assert labels["words"]["user"]
    spoken_KT, said_U = sounds_of(labels) > QUIET, np.zeros(labels["units"], bool)
    said_U[[unit for unit in said if unit < len(said_U)]] = True
    assert spoken_KT.any(1)[said_U].mean() > 0.9
    assert not spoken_KT.any(1)[~heard_U].any()


def test_what_is_read_is_the_agents_voice_alone(latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own sentences, with any filling, and free ones of the split, one after the other; no text is a target."""
    monkeypatch.setattr(partners, "READ", 1.0)
    episode = make_spoken(1, "valid", 3, HUM)
    labels, heard = episode.labels, partners.make_spoken(1, "valid", 3, HUM).agent_audio
    np.testing.assert_array_equal(episode.agent_audio, heard)
    assert labels["targets"] == ["audio"]
    assert not labels["words"]["user"]
    said = " ".join(word["text"] for word in labels["words"]["agent"])
    assert sum(text in said for text in free_texts("valid")) >= 2
    assert sum(template.split("{")[0] in said for template in AGENT.values() if "{" in template) >= 2
    assert sum(template in said for template in AGENT.values() if "{" not in template) >= 2
    silent_U = np.abs(episode.agent_audio).reshape(labels["units"], -1).max(1) == 0
    assert silent_U.mean() < 0.4
    (tmp_path / "train").mkdir()
    encoder = make_encoder(*load_codecs(TALKER, latents), TALKER.perception)
    encoder.write(episode, tmp_path / "train" / "shard-00000-ep000000.safetensors")
    store = LatentStore(tmp_path / "train", codec_hash(*load_codecs(TALKER, latents)), TALKER.perception)
    example = SpokenClips(ClipReader(store, TALKER, tiny_text(), UNITS)).batch(0, 5, range(2))
    assert not example.lane_BKL.any()
    assert example.audio_BK.any()


def test_german_is_read_with_german_sounds(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, str] = {}

    class Listener(HummingVoice):
        def speak(self, text: str, rng: np.random.Generator, language: str = "en") -> Speech:
            heard[text] = language
            return super().speak(text, rng, language)

    monkeypatch.setattr(partners, "READ", 1.0)
    for index in range(5):
        make_spoken(1, "valid", index, Listener())
    german = {template for label, template in AGENT.items() if label.startswith("de_")}
    assert german & heard.keys()
    assert {text for text, language in heard.items() if language == "de"} == german & heard.keys()


def test_spoken_clips_are_the_agent_some_units_later(spoken: Path, latents: Path) -> None:
    """Words and sound of the agent are moved together; what the user has said until then is remembered."""
    fingerprint = codec_hash(*load_codecs(TALKER, latents))
    config = dataclasses.replace(TALKER, cache=dataclasses.replace(TALKER.cache, memory_tokens=400))
    reader = ClipReader(LatentStore(spoken / "train", fingerprint, config.perception), config, tiny_text(), UNITS)
    example = SpokenClips(reader).batch(0, 5, range(3))
    batch, (typed, lanes) = example.clips, map(torch.from_numpy, reader.lanes(0))
    audio = reader.read(0, 0, units=len(lanes)).clips.audio_BKTC[0]
    assert len(batch.slot_BKSL) == 3 * SPOKEN_CLIPS
    assert batch.user_audio.shape[1] == batch.user_video.shape[1] == batch.video_BKNP.shape[2] == 0
    assert not (batch.microphone_BK | batch.camera_BK).any()
    everything = torch.cat([lanes, typed[..., None]], dim=2)
    for row, clip in enumerate(batch.slot_BKSL):
        first = next(
            first for first in range(len(lanes) - UNITS + 1)
            if torch.equal(audio[first : first + UNITS + 1], batch.audio_BKTC[row])
        )  # fmt: skip
        assert torch.equal(clip[..., RESPONSE], lanes[first : first + UNITS, :, RESPONSE])
        inside = example.audio_BK[row].bool()
        later = [
            later for later in range(LATER[0], LATER[1] + 1)
            if torch.equal(clip[inside][..., TRANSCRIPT], lanes[first + later :, :, TRANSCRIPT][: int(inside.sum())])
        ]  # fmt: skip
        assert later, "expected the user's words a little earlier"
        missed = everything[first : first + LATER[1]].clone()
        missed[..., RESPONSE] = SILENCE
        known = torch.cat([spoken_tokens(everything[:first]), spoken_tokens(missed[: later[0]])])
        assert batch.memory_BM2[row][batch.memory_BM2[row, :, 0] != PADDING].tolist() == known.tolist()
        assert (example.lane_BKL[row] == torch.stack([inside, ~inside & inside], dim=-1)).all()
    assert example.clips.written_BK.all()
    hidden = SpokenClips(reader, hidden=1.0).batch(0, 5, range(1)).clips
    assert not hidden.written_BK.any()


def test_steps_of_the_voice(stage: DuplexStage, spoken: Path, latents: Path) -> None:
    """In two steps of ten it is the agent's voice and words alone that are learned, without pictures."""
    voiced = DuplexStage(stage.streamer, tiny_text(), latents, stage.config, written=True, spoken=spoken)
    for step in range(10):
        batch = voiced.batch(step, range(2))
        _, numbers = voiced.loss(batch, step, RowNoise(0, step, range(2)))
        assert (not numbers.keys() & {"video", "audio"}) == (step in WRITTEN_STEPS and step not in SPOKEN_STEPS)
        if step in SPOKEN_STEPS:
            assert not voiced.listens(step)
            assert voiced.drawn(step)
            assert "video" not in numbers
            assert numbers["audio"] > 0
            assert batch.clips.user_audio.shape[1] == 0
    with torch.no_grad():
        numbers = voiced.validate()
    assert numbers["spoken/audio"] > 0
    assert numbers["spoken/text"] > 0


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, latents: Path) -> Path:
    """Conversations in which only the user is heard, encoded in train/ and valid/."""
    folder, encoder = tmp_path_factory.mktemp("asked"), make_encoder(*load_codecs(TALKER, latents), TALKER.perception)
    for split in ("train", "valid"):
        (folder / split).mkdir()
        encoder.write(make_asked(1, split, 0), folder / split / "shard-00000-ep000000.safetensors")
    return folder


def test_only_the_user_is_heard() -> None:
    episode = make_asked(1, "valid", 0)
    labels = episode.labels
    assert split_of(labels["scenarios"]) == "valid"
    assert not episode.agent_audio.any()
    assert episode.user_video is episode.agent_video is None
    loud_U = np.abs(episode.user_audio).reshape(labels["units"], -1).max(1)
    said_U = np.zeros(labels["units"], bool)
    for word in labels["words"]["user"]:
        said_U[int(word["start"] / 0.16) : int(word["end"] / 0.16) + 1] = True
    assert np.median(loud_U[said_U]) > 3 * np.median(loud_U[~said_U])
    assert labels["words"]["agent"]
    assert json.dumps(labels) == json.dumps(make_asked(1, "valid", 0).labels)


def test_asked_clips_are_what_is_heard_and_the_words_of_both(asked: Path, latents: Path) -> None:
    fingerprint = codec_hash(*load_codecs(TALKER, latents))
    reader = ClipReader(LatentStore(asked / "train", fingerprint, TALKER.perception), TALKER, tiny_text(), UNITS)
    example = AskedClips(reader).batch(0, 5, range(3))
    same(example, AskedClips(reader).batch(0, 5, range(3)))
    batch, lanes = example.clips, torch.from_numpy(reader.lanes(0)[1])
    assert len(batch.slot_BKSL) == 2 * 3 * CLIPS
    assert batch.user_video.shape[1] == batch.video_BKNP.shape[2] == 0
    assert batch.microphone_BK.all()
    assert not batch.camera_BK.any()
    assert (example.lane_BKL == 1).all()
    for row, clip in enumerate(batch.slot_BKSL):
        places = [first for first in range(len(lanes) - UNITS + 1) if torch.equal(lanes[first : first + UNITS], clip)]
        assert any(torch.equal(reader.read(0, first).clips.user_audio[0], batch.user_audio[row]) for first in places)


def test_in_some_steps_much_was_said_in_between(asked: Path, latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After what was before the conversation and before what was said in it; there are fewer clips, the same ones."""
    config = dataclasses.replace(
        TALKER, cache=dataclasses.replace(TALKER.cache, memory_tokens=4000, memory_span=64, text_units=UNITS)
    )
    fingerprint = codec_hash(*load_codecs(TALKER, latents))
    reader = ClipReader(LatentStore(asked / "train", fingerprint, TALKER.perception), config, tiny_text(), UNITS)
    monkeypatch.setattr(reader.store, "labels", [one | {"before": BEFORE} for one in reader.store.labels])
    lengths, parts = [], []
    for share, clips in ((0.0, 2 * CLIPS), (1.0, 1)):
        monkeypatch.setattr(written, "LONG", share)
        memory = AskedClips(reader).batch(0, 5, range(2)).clips.memory_BM2
        assert len(memory) == 2 * clips
        said = [row[row[:, 0] != PADDING] for row in memory[::clips]]
        lengths.append([len(row) for row in said])
        before = told(BEFORE, tiny_text())
        assert all(torch.equal(row[: len(before)], before) for row in said)
        parts.append([row[len(before) :] for row in said])
    for short, long, more in zip(*parts, np.subtract(*lengths[::-1]), strict=True):
        assert more > 100
        assert torch.equal(long[more:], short)
        assert {0, 1} == set(long[:more, 0].tolist())


def test_steps_in_which_the_user_is_heard(stage: DuplexStage, asked: Path, latents: Path) -> None:
    """In two steps of ten it is the words of both that are learned, from what is heard, and nothing is drawn."""
    listener = DuplexStage(stage.streamer, tiny_text(), latents, stage.config, written=True, asked=asked)
    for step in range(10):
        batch = listener.batch(step, range(2))
        _, numbers = listener.loss(batch, step, RowNoise(0, step, range(2)))
        assert listener.drawn(step) == ("audio" in numbers) == (step not in ASKED_STEPS + WRITTEN_STEPS)
        if step in ASKED_STEPS:
            assert not listener.listens(step)
            assert batch.clips.user_audio.shape[1] > 0
            assert numbers["transcript_right"] >= 0
    with torch.no_grad():
        assert listener.validate()["asked/text"] > 0


def test_steps_of_each_kind(stage: DuplexStage) -> None:
    """Nothing is drawn where nothing is heard, and pictures are seen where there are any."""
    for step in range(10):
        batch = stage.batch(step, range(2))
        stage.streamer.zero_grad()
        loss, numbers = stage.loss(batch, step, RowNoise(0, step, range(2)))
        loss.backward()
        silent = step in WRITTEN_STEPS + SHOWN_STEPS
        assert stage.drawn(step) == (not silent) == ("audio" in numbers)
        clips = WRITTEN_CLIPS if step in WRITTEN_STEPS else SHOWN_CLIPS
        assert len(batch.clips.slot_BKSL) == (2 * clips if silent else 2)
        assert (stage.streamer.text_in.weight.grad.abs().sum() > 0).item()
        eyes = stage.streamer.user_video_in.weight.grad
        assert (eyes is not None and bool(eyes.any())) == (step not in WRITTEN_STEPS)
        if silent:
            assert stage.streamer.user_audio_in.weight.grad is None
            assert batch.clips.user_audio.shape[1] == 0
            assert not (batch.lane_BKL[..., TRANSCRIPT] > 0).any()


def test_held_out_words_are_scored(stage: DuplexStage) -> None:
    with torch.no_grad():
        numbers = stage.validate()
    assert numbers["written/text"] > 0
    assert numbers["shown/text"] > 0
    assert stage.valid_shown.batch(1, 0, range(1)).clips.slot_BKSL[..., TRANSCRIPT].ne(SILENCE).any()


def test_shown_conversations_are_encoded_as_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "EPISODES_PER_SHARD", 1)
    weights = tiny_weights()
    save_codecs(weights.audio_vae, weights.video_vae, tmp_path)
    made = simulate(
        tmp_path / "train", 0.001, 3, cache=tmp_path / "cache", kind="shown", latents=Latents(tmp_path, TALKER)
    )
    assert made == 1
    encoder = make_encoder(weights.audio_vae, weights.video_vae, TALKER.perception)
    store = LatentStore(tmp_path / "train", encoder.fingerprint, TALKER.perception)
    assert store.labels[0]["targets"] == ["response", "transcript"]
    clip = store.read(0, 0, 4)
    assert clip["user_video"].float().std() > 1
    assert not clip["user_audio"].any()
    assert "video" not in clip


def test_spoken_conversations_are_encoded_with_the_agents_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "EPISODES_PER_SHARD", 1)
    monkeypatch.setattr(generate, "agent_texts", dict)  # nothing to synthesise beforehand
    monkeypatch.setattr(generate, "AgentVoice", lambda cache: HUM)
    weights = tiny_weights()
    save_codecs(weights.audio_vae, weights.video_vae, tmp_path)
    latents = Latents(tmp_path, TALKER)
    assert simulate(tmp_path / "train", 0.001, 3, cache=tmp_path / "cache", kind="spoken", latents=latents) == 1
    encoder = make_encoder(weights.audio_vae, weights.video_vae, TALKER.perception)
    store = LatentStore(tmp_path / "train", encoder.fingerprint, TALKER.perception)
    assert store.labels[0]["targets"] == ["response", "transcript", "audio"]
    clip = store.read(0, 0, store.labels[0]["units"])
    assert not clip["user_audio"].any()
    assert not {"video", "user_video"} & clip.keys()
    expected = make_spoken(3, "train", 0, HUM)
    latents_BTC, _ = weights.audio_vae.encode(torch.from_numpy(expected.agent_audio)[None])
    torch.testing.assert_close(clip["audio"][1:].flatten(0, 1), latents_BTC[0].detach(), atol=2e-3, rtol=2e-3)
    assert clip["audio"].std() > 0.1


def test_asked_conversations_are_encoded_with_the_users_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "EPISODES_PER_SHARD", 1)
    weights = tiny_weights()
    save_codecs(weights.audio_vae, weights.video_vae, tmp_path)
    latents = Latents(tmp_path, TALKER)
    assert simulate(tmp_path / "valid", 0.001, 3, "valid", cache=tmp_path / "cache", kind="asked", latents=latents) == 1
    encoder = make_encoder(weights.audio_vae, weights.video_vae, TALKER.perception)
    store = LatentStore(tmp_path / "valid", encoder.fingerprint, TALKER.perception)
    assert store.labels[0]["targets"] == ["response", "transcript"]
    clip = store.read(0, 0, store.labels[0]["units"])
    assert not {"video", "user_video"} & clip.keys()
    expected = (make_asked(3, "valid", 0).user_audio.clip(-1, 1) * 32767).astype(np.int16)
    np.testing.assert_allclose(clip["user_audio"][-len(expected) :], expected / 32767, atol=1e-4)

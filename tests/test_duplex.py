"""Stage 2: the conversation is learned, from clips drawn as the docs say."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TALKER, tiny_text, tiny_weights
from tiny_world import make_latents, save_codecs

from wan_streamer import UserUnit, WanStreamer, presets
from wan_streamer.codecs.folder import codec_hash, load_codecs
from wan_streamer.codecs.text import SILENCE
from wan_streamer.data.latents import LatentStore
from wan_streamer.errors import CheckpointError, DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import ClipBatch
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples import conversations
from wan_streamer.training.examples.clips import stack
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.loop.trainer import Trainer
from wan_streamer.training.stages import duplex
from wan_streamer.training.stages.duplex import DuplexStage, train_duplex
from wan_streamer.training.stages.run import RunOptions


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=8)


def duplex_stage(latents: Path, **options: float) -> DuplexStage:
    config = TrainConfig(steps=200, lr=5e-3, batch=2, warmup=20, ema=0.95, clip_units=8)
    torch.manual_seed(0)
    return DuplexStage(Streamer(TALKER), tiny_text(), latents, dataclasses.replace(config, **options))


@torch.no_grad()
def scores(stage: DuplexStage) -> dict[str, float]:
    numbers = [stage.errors(stage.batch(10_000 + i, range(2)), 0, RowNoise(0, i, range(2)))[1] for i in range(4)]
    return means(numbers)


@pytest.mark.slow
def test_duplex_learns_one_conversation_by_heart(latents: Path, tmp_path: Path) -> None:
    stage = duplex_stage(latents)
    before = scores(stage)
    Trainer(stage, tmp_path).run()
    after = scores(stage)
    assert after["video"] < 0.1 * before["video"]
    assert after["audio"] < 0.25 * before["audio"]
    assert before["response_right"] < 0.5
    assert after["response_right"] > 0.95
    assert after["transcript_right"] > 0.95


def test_trained_duplex_is_a_checkpoint(latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    train_duplex(latents, RunOptions(out, "tiny", steps=2, clip_units=8))
    metrics = train_duplex(latents, RunOptions(out, resume=True, steps=3, clip_units=8))
    assert metrics["loss"] > 0
    agent = WanStreamer.from_pretrained(out)
    assert agent.name == str(out)
    assert codec_hash(agent.audio_vae, agent.video_vae) == codec_hash(*load_codecs(TALKER, latents))
    unit = agent.session(seed=0).step(UserUnit(text="hello"))
    assert unit.video.shape == (4, 96, 96, 3)


def test_batches_depend_on_the_step_alone(latents: Path) -> None:
    """What a resume relies on."""
    one, two = duplex_stage(latents), duplex_stage(latents)
    one.batch(3, range(2))
    again, apart = two.batch(4, range(2)), stack(two.batch(4, range(i, i + 1)) for i in range(2))
    for other in (again, apart):
        first = one.batch(4, range(2))
        for name in (field.name for field in dataclasses.fields(ClipBatch)):
            assert torch.equal(getattr(first.clips, name), getattr(other.clips, name)), name
    sounds = [one.batch(step, range(2)).clips.user_audio for step in range(5, 40)]
    assert any(not torch.equal(sounds[0], sound) for sound in sounds)


def test_what_conversations_are_trained_with(latents: Path) -> None:
    """A tenth without the agent's text, a tenth typed (half of those in silence), a tenth more without a camera."""
    rows = 600
    clips = duplex_stage(latents).batch(0, range(rows)).clips
    hidden, dark = ~clips.written_BK.all(1), ~clips.camera_BK.all(1)
    typed = (clips.user_text_BKS != SILENCE).flatten(1).any(1)
    silent = ~clips.microphone_BK.all(1)
    for share, expected in ((hidden, 0.1), (dark, 0.1), (silent, 0.05)):
        assert share.float().mean() == pytest.approx(expected, abs=0.035)
    assert 0 < typed.float().mean() < 0.14  # not every clip has words to type
    assert not clips.written_BK[hidden].any()
    valid = duplex_stage(latents).valid_talks.valid(0, range(100)).clips
    assert valid.written_BK.all()  # what is held out is scored as it is served


def test_where_clips_begin(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 % begin where the session begins, the others anywhere, so that greetings are not the only beginnings."""
    talks = duplex_stage(latents, clip_units=4).train_talks
    example, begins = talks.reader.read(0, 0), []
    monkeypatch.setattr(talks.reader, "read", lambda number, first, *rest, **named: begins.append(first) or example)
    monkeypatch.setattr(conversations, "vary", lambda example, rng: example)  # every row draws from its own generator
    monkeypatch.setattr(conversations, "stack", list)
    talks.batch(0, 0, range(3000))
    shares = np.bincount(begins) / len(begins)
    assert shares == pytest.approx([0.15 + 0.85 / 5, *[0.85 / 5] * 4], abs=0.03)


def test_clips_around_what_the_user_does_while_the_agent_talks(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In four of ten clips; who breaks in as often as who only says "mm-hm", though there are more of those."""
    stage = duplex_stage(latents, clip_units=4)
    length = int(stage.train_clips.length[0])
    found = [("barge_in", "user", 0), *[("backchannel", "user", length - 1)] * 9]
    others = [("backchannel", "agent", 1), ("speech", "user", 1)]
    stage.train_clips.store.labels[0]["events"] = [
        {"type": kind, "side": side, "start": 0.16 * unit + 0.1, "end": 0.16 * unit + 0.12}
        for kind, side, unit in found + others
    ]
    talks = conversations.ConversationClips(stage.train_clips, latents)
    example, begins = talks.reader.read(0, 0), []
    monkeypatch.setattr(talks.reader, "read", lambda number, first, *rest, **named: begins.append(first) or example)
    monkeypatch.setattr(conversations, "vary", lambda example, rng: example)
    monkeypatch.setattr(conversations, "stack", list)
    talks.batch(0, 0, range(3000))
    shares = np.bincount(begins) / len(begins)
    anywhere = 0.6 * 0.85 / (length - 3)
    assert shares[0] == pytest.approx(0.6 * 0.15 + anywhere + 0.2, abs=0.03)
    assert shares[-1] == pytest.approx(anywhere + 0.2, abs=0.03)
    begins.clear()
    talks.valid(0, range(300))
    assert (np.bincount(begins) / 300)[-1] < 0.3  # what is held out is from anywhere


def test_late_steps_go_on_from_the_models_mistakes(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = duplex_stage(latents, steps=100)
    recycled = []
    loss = duplex.streamer_loss
    spy = lambda *given, **named: recycled.append(given[5]) or loss(*given, **named)  # noqa: E731
    monkeypatch.setattr(duplex, "streamer_loss", spy)
    batch = stage.batch(0, range(1))
    for step in (0, 36, 39, 40, 41, 44, 99):
        stage.loss(batch, step, RowNoise(0, step, range(1)))
    assert recycled == [0, 0, 0, 1, 0, 1, 0]


def test_most_steps_with_pictures_go_on_from_the_data(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However rare pictures are: errors are those of every fourth step that learns them. Most of the others recycle."""
    stage = duplex_stage(latents, steps=10, draw_every=4)
    recycled = []
    loss = duplex.streamer_loss
    spy = lambda *given, **named: recycled.append(given[5]) or loss(*given, **named)  # noqa: E731
    monkeypatch.setattr(duplex, "streamer_loss", spy)
    batch = stage.batch(0, range(1))
    for step in range(40, 56):
        stage.loss(batch, step, RowNoise(0, step, range(1)))
    assert recycled[::4] == [0, 0, 1, 0]
    without = [step for step in range(40, 56) if step % 4]
    assert [recycled[step - 40] for step in without] == [duplex.SOUND_RECYCLED[step % 6] for step in without]
    assert sorted(set(duplex.SOUND_RECYCLED)) == [0, 1, 2]


def test_store_gives_the_latent_before_the_clip(latents: Path) -> None:
    store = LatentStore(latents / "train", codec_hash(*load_codecs(TALKER, latents)))
    start, later = store.read(0, 0, 4), store.read(0, 3, 4)
    assert not start["video"][0].any()
    assert not start["audio"][0].any()
    assert torch.equal(start["video"][3:], later["video"][:2])
    assert torch.equal(start["audio"][3:], later["audio"][:2])
    assert start["user_audio"].shape == (4 * 3840,)
    assert start["user_video"].shape == (16, 48, 48, 3)


def test_latents_of_other_codecs_are_refused(latents: Path, tmp_path: Path) -> None:
    shutil.copytree(latents, tmp_path / "data")
    other = tiny_weights(seed=1)
    save_codecs(other.audio_vae, other.video_vae, tmp_path / "data")
    with pytest.raises(DataError, match="made by codecs"):
        duplex_stage(tmp_path / "data")


def test_duplex_stage_refuses(latents: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shorter than the clips of 9"):
        DuplexStage(Streamer(TALKER), tiny_text(), latents, TrainConfig(steps=1, lr=1e-3, batch=1, clip_units=9))
    shutil.copytree(latents, tmp_path / "data")
    damaged = next((tmp_path / "data" / "train").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        duplex_stage(tmp_path / "data")
    damaged.unlink()
    with pytest.raises(DataError, match="found an empty folder"):
        duplex_stage(tmp_path / "data")
    shutil.copytree(latents, tmp_path / "again")
    stage = duplex_stage(tmp_path / "again")
    next((tmp_path / "again" / "train").glob("*.safetensors")).unlink()  # while it trains
    with pytest.raises(DataError, match="cannot be read"):
        stage.batch(0, range(2))
    (tmp_path / "data" / "audio_vae.safetensors").unlink()
    with pytest.raises(CheckpointError, match="audio_vae"):
        duplex_stage(tmp_path / "data")

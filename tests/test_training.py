"""The trainer keeps its promises, and every stage learns: on toy data, in seconds."""

import dataclasses
import json
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TALKER, tiny_text, tiny_weights
from tiny_world import make_codec_arrays, make_latents, save_codecs
from torch import Tensor, nn

from wan_streamer import UserUnit, WanStreamer, presets
from wan_streamer.data.latents import LatentStore
from wan_streamer.errors import CheckpointError, ConfigError, DataError, TrainingError
from wan_streamer.model.pretrained import codec_hash
from wan_streamer.tensors import save_atomically
from wan_streamer.training import duplex
from wan_streamer.training.codec import AudioCodecStage, VideoCodecStage, load_array, train_codec
from wan_streamer.training.duplex import DuplexStage, load_codecs, train_duplex
from wan_streamer.training.trainer import Stage, TrainConfig, Trainer

STEPS = 12


class Toy(Stage):
    """A regression with noise in the loss and a buffer that training changes."""

    name = "toy"

    def __init__(self, lr: float = 0.05) -> None:
        torch.manual_seed(0)
        self.config = TrainConfig(steps=STEPS, lr=lr, batch=8, warmup=3, log_every=1, validate_every=4, save_every=5)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        self.models: dict[str, nn.Module] = {"net": self.net}
        self.fail_at: dict[int, BaseException] = {}
        self.not_finite_at = -1

    def batch(self, step: int) -> Tensor:
        if step in self.fail_at:
            raise self.fail_at[step]
        return torch.from_numpy(np.random.default_rng((1, step)).standard_normal((8, 3))).float()

    def loss(self, batch: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        noise = torch.randn(batch.shape, generator=generator) * 0.1
        error = (self.net(batch + noise) - batch.sum(1, keepdim=True)).square().mean()
        return error * (math.nan if step == self.not_finite_at else 1), {"error": error.item()}

    def validate(self) -> dict[str, float]:
        return {"weight": float(self.net[0].weight.sum())}

    def export(self, out_dir: Path) -> None:
        save_atomically(self.net.state_dict(), out_dir / "net.safetensors")


class MuonToy(Toy):
    """The same with a matrix and a channels-last kernel that Muon trains, and another kernel that AdamW trains."""

    def __init__(self) -> None:
        super().__init__(lr=0.02)
        self.config = dataclasses.replace(self.config, muon_lr=0.02)
        self.net = nn.Sequential(
            nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 6, 3, padding=1),
            nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(), nn.Linear(24, 1),
        )  # fmt: skip
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.models = {"net": self.net}

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        return name in ("net.2.weight", "net.4.weight")


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("trainer.safetensors", "net.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name


@pytest.mark.parametrize("end", ["ctrl-c", "killed", "time is up"])
def test_resumed_equals_uninterrupted(end: str, tmp_path: Path) -> None:
    """Bit for bit: weights, EMA, buffers and the optimiser's state."""
    Trainer(Toy(), tmp_path / "whole").run()
    first = Trainer(Toy(), tmp_path / "parts")
    if end == "time is up":
        first.run(minutes=0)
        assert first.step == 1
    else:
        first.stage.fail_at[7] = KeyboardInterrupt()  # type: ignore[attr-defined]
        if end == "killed":  # nothing can be saved any more: the last regular save counts
            regular = first.save
            first.save = lambda: regular() if first.step == 5 else None  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            first.run()
    second = Trainer(Toy(), tmp_path / "parts")
    second.resume()
    assert second.step == {"ctrl-c": 7, "killed": 5, "time is up": 1}[end]
    metrics = second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["weight"] == pytest.approx(metrics["weight"], abs=1e-6)
    errors = [line["error"] for line in log if line["kind"] == "train"]
    assert len(errors) == STEPS
    assert np.mean(errors[-4:]) < np.mean(errors[:4])


def test_muon_trains_the_hidden_matrices_and_resumes(tmp_path: Path) -> None:
    one = Trainer(MuonToy(), tmp_path / "one")
    before = {name: p.detach().clone() for name, p in one.named.items()}
    one.run(minutes=0)
    hidden = ("net.2.weight", "net.4.weight")
    assert set(one.matrices) == set(hidden)
    for name in hidden:  # the first directions of an orthogonal update are of one size, unlike a gradient's
        change = (one.named[name] - before[name]).detach()
        sizes = torch.linalg.svdvals(change.permute(0, 2, 3, 1).flatten(1) if change.ndim == 4 else change)
        assert sizes[2] > 0.5 * sizes[0] > 0
    Trainer(MuonToy(), tmp_path / "whole").run()
    first = Trainer(MuonToy(), tmp_path / "parts")
    first.stage.fail_at[7] = KeyboardInterrupt()  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Trainer(MuonToy(), tmp_path / "parts")
    second.resume()
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_the_end_of_the_step(number: int, tmp_path: Path) -> None:
    trainer = Trainer(Toy(), tmp_path)
    loss = trainer.stage.loss

    def interrupted(batch: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if step == 4:
            os.kill(os.getpid(), number)
        return loss(batch, step, generator)

    trainer.stage.loss = interrupted  # type: ignore[method-assign]
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(number) is handler
    again = Trainer(Toy(), tmp_path)
    again.resume()
    assert again.step == trainer.step == 5
    again.run()
    Trainer(Toy(), tmp_path / "whole").run()
    assert_same_run(tmp_path / "whole", tmp_path)


def test_loss_that_is_not_finite_keeps_the_last_state(tmp_path: Path) -> None:
    clean = Trainer(Toy(), tmp_path / "clean")
    clean.stage.fail_at[6] = KeyboardInterrupt()  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        clean.run()
    broken = Trainer(Toy(), tmp_path / "broken")
    broken.stage.not_finite_at = 6  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="loss is nan at step 6") as error:
        broken.run()
    assert str(tmp_path / "broken") in str(error.value)
    kept, expected = (load_file(tmp_path / name / "trainer.safetensors") for name in ("broken", "clean"))
    trained = [key for key in expected if not key.startswith("buffer.")]  # the failed step still saw its batch
    assert len(trained) > 12
    assert all(torch.equal(kept[key], expected[key]) for key in trained)
    again = Trainer(Toy(), tmp_path / "broken")
    again.resume()
    assert again.step == 6


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not found"):
        Trainer(Toy(), tmp_path / "new").resume()
    out = tmp_path / "run"
    Trainer(Toy(), out).run()

    other = Toy()
    other.name = "other"
    with pytest.raises(TrainingError, match=r"expected a run of stage 'other'.*got stage 'toy'"):
        Trainer(other, out).resume()

    with pytest.raises(TrainingError, match=r"lr 0\.05, expected 0\.01"):
        Trainer(Toy(lr=0.01), out).resume()

    wider = Toy()
    wider.models["more"] = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"without more\.weight"):
        Trainer(wider, out).resume()

    state = (out / "trainer.safetensors").read_bytes()
    (out / "trainer.safetensors").write_bytes(state[: len(state) // 2])
    with pytest.raises(TrainingError, match="cannot be read"):
        Trainer(Toy(), out).resume()


# ---- the codecs


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_codec_arrays(tmp_path_factory.mktemp("arrays"))


@pytest.mark.parametrize(
    ("stage_class", "steps", "score", "better"),
    [(AudioCodecStage, 20, "agent_mel", -1.0), (VideoCodecStage, 40, "agent_psnr", 2.0)],
)
def test_codec_learns(stage_class: type, steps: int, score: str, better: float, arrays: Path, tmp_path: Path) -> None:
    """A few steps (the last third of the audio codec's with its critic) improve the held-out score."""
    config = TrainConfig(steps=steps, lr=1e-2, batch=2, warmup=2, ema=0.8)
    trainer = Trainer(stage_class("tiny", arrays, config), tmp_path)
    before = trainer.validate()
    after = trainer.run()
    assert (after[score] - before[score]) / better > 1, (before, after)
    assert all(math.isfinite(value) for value in after.values())


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_exported_codec_is_what_was_trained(
    kind: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wan_streamer.training import codec

    stage_class, config = codec.STAGES[kind]
    monkeypatch.setitem(codec.STAGES, kind, (stage_class, dataclasses.replace(config, batch=1)))
    weights = tiny_weights()
    save_codecs(weights.audio_vae, weights.video_vae, tmp_path)  # the other one comes from an earlier run
    train_codec(kind, "tiny", arrays, tmp_path, steps=2)
    scores = train_codec(kind, "tiny", arrays, tmp_path, steps=3, resume=True)
    assert scores
    vae = load_codecs("tiny", tmp_path)[kind == "video"]
    assert (vae.stats.std_C != 1).all()
    stored = load_file(tmp_path / f"{kind}_vae.safetensors")
    ema = load_file(tmp_path / "trainer.safetensors")
    name = next(name for name in stored if name.endswith("conv.weight"))
    assert torch.equal(stored[name], ema[f"ema.vae.{name}"])


def test_codec_stage_refuses(arrays: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown codec 'smell'"):
        train_codec("smell", "tiny", arrays, tmp_path)
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("pickled", "missing"):
        with pytest.raises(DataError, match=f"{name}.npy"):
            load_array(tmp_path, name)


# ---- the conversation


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=8)


def duplex_stage(latents: Path, **options: float) -> DuplexStage:
    config = TrainConfig(steps=150, lr=5e-3, batch=2, warmup=20, ema=0.95)
    return DuplexStage("tiny", latents, tiny_text(), dataclasses.replace(config, **options), units=8)


@torch.no_grad()
def scores(stage: DuplexStage) -> dict[str, float]:
    numbers = [stage.loss(stage.batch(10_000 + i), 0, torch.Generator().manual_seed(i))[1] for i in range(4)]
    keys = set.union(*(set(row) for row in numbers))
    return {key: float(np.mean([row[key] for row in numbers if key in row])) for key in keys}


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
    monkeypatch.setattr(duplex, "CLIP_UNITS", 8)
    out = tmp_path / "run"
    train_duplex("tiny", latents, out, steps=2)
    metrics = train_duplex("tiny", latents, out, steps=3, resume=True)
    assert metrics["loss"] > 0
    agent = WanStreamer.from_pretrained(out)
    assert agent.name == str(out)
    assert codec_hash(agent.audio_vae, agent.video_vae) == codec_hash(*load_codecs("tiny", latents))
    unit = agent.session(seed=0).step(UserUnit(text="hello"))
    assert unit.video.shape == (4, 96, 96, 3)


def test_batches_depend_on_the_step_alone(latents: Path) -> None:
    """What a resume relies on."""
    one, two = duplex_stage(latents), duplex_stage(latents)
    one.batch(3)
    for field in dataclasses.fields(one.batch(4)):
        assert torch.equal(getattr(one.batch(4), field.name), getattr(two.batch(4), field.name)), field.name
    assert not torch.equal(one.batch(4).camera_BK, one.batch(5).camera_BK) or any(
        not torch.equal(one.batch(4).user_audio_BT, one.batch(step).user_audio_BT) for step in range(5, 40)
    )


def test_store_gives_the_latent_before_the_clip(latents: Path) -> None:
    store = LatentStore(latents / "train", codec_hash(*load_codecs("tiny", latents)))
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
        DuplexStage("tiny", latents, tiny_text(), TrainConfig(steps=1, lr=1e-3, batch=1), units=9)
    shutil.copytree(latents, tmp_path / "data")
    damaged = next((tmp_path / "data" / "train").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        duplex_stage(tmp_path / "data")
    damaged.unlink()
    with pytest.raises(DataError, match="found none"):
        duplex_stage(tmp_path / "data")
    (tmp_path / "data" / "audio_vae.safetensors").unlink()
    with pytest.raises(CheckpointError, match="audio_vae"):
        duplex_stage(tmp_path / "data")

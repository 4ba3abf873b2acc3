"""Training from an existing agent: all weights, or corrections of low rank that are merged into a plain checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TALKER, tiny_weights
from tiny_world import make_latents

from wan_streamer import UserUnit, WanStreamer, presets
from wan_streamer.codecs.folder import codec_hash, load_codecs
from wan_streamer.errors import CheckpointError, ConfigError, TrainingError
from wan_streamer.model.pretrained import load_weights, save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.stages import duplex
from wan_streamer.training.stages.duplex import train_duplex
from wan_streamer.training.stages.lora import TRAINED_WHOLE, add_lora, merged
from wan_streamer.training.stages.run import RunOptions

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # "Mean of empty slice" and its like


@pytest.fixture(autouse=True)
def tiny_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)
    monkeypatch.setattr(duplex, "VALIDATION", (1, 2))


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=8)


@pytest.fixture(scope="module")
def agent(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    weights = tiny_weights()
    weights.audio_vae, weights.video_vae = load_codecs(TALKER, latents)
    save_weights(weights, folder)
    return folder


def changed(before: Path, after: Path) -> set[str]:
    left, right = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(left[name], right[name])}


def test_all_weights_begin_where_the_agent_is(latents: Path, agent: Path, tmp_path: Path) -> None:
    options = RunOptions(tmp_path, start=str(agent), steps=2, batch=2, lr=1e-9, clip_units=6)
    metrics = train_duplex(latents, options, "cpu")
    assert metrics["loss"] > 0
    names = ("config.json", "tokenizer.json")
    assert [json.loads((tmp_path / n).read_text()) for n in names] == [
        json.loads((agent / n).read_text()) for n in names
    ]
    left, right = (load_file(folder / "model.safetensors") for folder in (agent, tmp_path))
    for name, value in left.items():
        torch.testing.assert_close(right[name].float(), value.float(), atol=1e-4, rtol=1e-2)
    unit = WanStreamer.from_pretrained(tmp_path).session(seed=0).step(UserUnit(text="hello"))
    assert unit.video.shape == (4, 96, 96, 3)


def test_low_rank_leaves_the_rest_alone(latents: Path, agent: Path, tmp_path: Path) -> None:
    options = RunOptions(tmp_path, start=str(agent), steps=3, batch=2, lr=1e-2, lora=2, clip_units=6)
    train_duplex(latents, options, "cpu")
    different = changed(agent, tmp_path)
    layers = {name for name in different if name.startswith("backbone.layers.")}
    assert layers == {name for name in load_file(agent / "model.safetensors") if "_proj" in name or "mlp." in name}
    assert {name.split(".")[0] for name in different - layers} <= set(TRAINED_WHOLE)
    state, base = load_file(tmp_path / "trainer.safetensors"), load_file(agent / "model.safetensors")
    for name in layers:  # what the corrections are added to has not moved
        module = name.removesuffix(".weight")
        kept = state[f"buffer.streamer.{module}.parametrizations.weight.original"]
        assert torch.equal(kept, base[name].float())


def test_low_rank_resumes(latents: Path, agent: Path, tmp_path: Path) -> None:
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        for number, until in enumerate(steps):
            out = tmp_path / name
            minutes = 0 if until < 4 else None  # one step, then the rest
            options = RunOptions(
                out, start=str(agent), resume=number > 0, steps=4, minutes=minutes, batch=2, lora=2, clip_units=6
            )
            train_duplex(latents, options, "cpu")
    left, right = (load_file(tmp_path / name / "trainer.safetensors") for name in ("whole", "parts"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    with pytest.raises(TrainingError, match="same preset"):
        train_duplex(latents, RunOptions(tmp_path / "whole", resume=True, steps=5, batch=2, clip_units=6), "cpu")


def test_merged_model_is_the_same() -> None:
    torch.manual_seed(0)
    streamer = Streamer(TALKER)
    assert merged(streamer) is streamer
    add_lora(streamer, 3)
    for name, p in streamer.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(1, 4, len(streamer.layout.kind_N), TALKER.backbone.dim)
    whole = merged(streamer)
    torch.testing.assert_close(whole.backbone(x), streamer.backbone(x))
    assert whole.state_dict().keys() == Streamer(TALKER).state_dict().keys()
    assert any("parametrizations" in name for name in streamer.state_dict())  # training may go on


def test_refusals(latents: Path, agent: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name one with --from"):
        train_duplex(latents, RunOptions(tmp_path / "a", "tiny", steps=1, lora=2, clip_units=6), "cpu")
    with pytest.raises(ConfigError, match="rank from 1 to the model's width 32, got 99"):
        train_duplex(latents, RunOptions(tmp_path / "b", start=str(agent), steps=1, lora=99, clip_units=6), "cpu")
    with pytest.raises(CheckpointError, match="expected an agent"):
        train_duplex(latents, RunOptions(tmp_path / "c", start=str(tmp_path / "nowhere"), steps=1, clip_units=6), "cpu")
    with pytest.raises(ConfigError, match="start without --resume"):
        train_duplex(latents, RunOptions(tmp_path / "d", "tiny", resume=True, clip_units=6), "cpu")
    other = tiny_weights(seed=1)
    save_weights(other, tmp_path / "other")
    with pytest.raises(CheckpointError, match="trained on codecs"):
        train_duplex(latents, RunOptions(tmp_path / "e", start=str(tmp_path / "other"), steps=1, clip_units=6), "cpu")


def test_an_agent_moves_to_new_codecs(latents: Path, tmp_path: Path) -> None:
    save_weights(tiny_weights(seed=1), tmp_path / "old")
    options = RunOptions(tmp_path / "new", start=str(tmp_path / "old"), steps=1, batch=1, new_codecs=True, clip_units=6)
    train_duplex(latents, options, "cpu")
    agent = load_weights(tmp_path / "new")  # refuses an agent and codecs that do not belong together
    assert codec_hash(agent.audio_vae, agent.video_vae) == codec_hash(*load_codecs(TALKER, latents))


def test_an_agent_in_8_bits_is_whole(agent: Path, tmp_path: Path) -> None:
    """Its codecs are the rounded ones, but for what makes latents of pictures, and the model is bound to them."""
    save_weights(load_weights(agent), tmp_path, small=True)
    large, small = load_weights(agent), load_weights(tmp_path)
    assert small.codec_hash != large.codec_hash
    for part in ("audio_vae", "video_vae", "streamer"):
        stored = [(folder / f"{'model' if part == 'streamer' else part}.safetensors").stat().st_size
                  for folder in (agent, tmp_path)]  # fmt: skip
        assert stored[1] < (1.0 if part == "video_vae" else 0.8) * stored[0]  # half of it stays
        for name, value in getattr(large, part).state_dict().items():
            rounded = getattr(small, part).state_dict()[name]
            assert (rounded - value).abs().max() <= value.abs().max() / 100, name
    pictures = small.video_vae.state_dict()
    same = {name for name, value in large.video_vae.state_dict().items() if torch.equal(pictures[name], value)}
    assert {name for name in pictures if not name.startswith("dec_")} <= same != pictures.keys()
    assert WanStreamer.from_pretrained(tmp_path).session(seed=0).step(UserUnit(text="hello")).audio.shape == (3840,)

"""What `inspect` says about an agent is what a real, running one does."""

import dataclasses
from pathlib import Path

import pytest
import torch
from test_floor import CONFIG
from tiny import TALKER, tiny_text, tiny_weights
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wan_streamer import WanStreamer, presets
from wan_streamer.codecs.patches import unpatchify
from wan_streamer.errors import CheckpointError, ConfigError
from wan_streamer.flow.live import UserInput, live_unit
from wan_streamer.model.cache import LiveState
from wan_streamer.model.inspect import describe_checkpoint, describe_preset
from wan_streamer.model.pretrained import Weights, save_weights
from wan_streamer.units import SAMPLES_PER_UNIT


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.inference_mode()
def unit(weights: Weights, live: LiveState) -> None:
    streamer = weights.streamer
    seen = weights.config.perception
    frames = torch.zeros(4, seen.video_height, seen.video_width, 3, dtype=torch.uint8)
    user = UserInput(torch.zeros(SAMPLES_PER_UNIT), frames, streamer.quiet_slots())
    say_nothing = torch.zeros(2, dtype=torch.long)
    live_unit(streamer, live, streamer.silence(), user, lambda logits_LV: say_nothing, lambda velocity, last: last)


@pytest.mark.usefixtures("tiny_preset")
def test_sizes_are_those_of_a_running_agent() -> None:
    weights = tiny_weights()
    described = describe_preset("tiny")
    parts = described["parameters"]
    assert parts["total"] == sum(count(m) for m in (weights.streamer, weights.audio_vae, weights.video_vae))
    assert parts["total"] == sum(parts.values()) - parts["total"]
    assert parts["backbone"] == count(weights.streamer.backbone)

    tokens, history = described["tokens"], described["history"]
    roles = [tokens[name] for name in tokens if name not in ("history", "solved")]
    assert sum(roles) == tokens["history"]
    assert tokens["solved"] == tokens["agent_video"] + tokens["agent_audio"]

    weights.streamer.backbone.bfloat16()  # as it is served
    live = weights.streamer.open()
    for _ in range(history["measured_at_unit"] + 3):
        unit(weights, live)
    cache = live.cache
    cache.open_block()
    assert history["visible_tokens"] == cache.length
    assert history["cache_bytes_allocated"] == cache.bytes
    per_token = cache.raw[:, :, 0].numel() * cache.raw.element_size()
    assert history["kv_slice_bytes"] == per_token * tokens["history"]
    assert history["cache_bytes_visible"] == per_token * 3 // 2 * cache.length
    assert history["kv_bytes_per_minute"] == per_token * tokens["history"] * 375


def test_bytes_of_a_unit() -> None:
    """By hand for nano: every pass reads the backbone once and its history; the solver reads it once per step."""
    described = describe_preset("nano")
    parts, history, read = described["parameters"], described["history"], described["megabytes"]
    kv = history["kv_slice_bytes"] / described["tokens"]["history"] * history["visible_tokens"]
    text = 2 * (2 * (parts["backbone"] + parts["text_embedding"]) + kv) / 1e6
    assert read["text"] == pytest.approx(text, abs=1e-3)
    assert read["unit"] == pytest.approx(sum(read[name] for name in ("observe", "text", "solve", "decode")), abs=0.01)
    assert 2 * (2 * parts["backbone"] + kv) / 1e6 < read["solve"] < 1.1 * 2 * (2 * parts["backbone"] + kv) / 1e6


@pytest.mark.usefixtures("tiny_preset")
def test_operations_are_those_of_a_running_agent() -> None:
    weights = tiny_weights()
    described = describe_preset("tiny")
    live = weights.streamer.open()
    for _ in range(described["history"]["measured_at_unit"] + 3):
        unit(weights, live)
    last = weights.streamer.silence()
    counters = [FlopCounterMode(display=False) for _ in range(3)]
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):  # operations of the fused kernel are not counted
        with counters[0]:
            unit(weights, live)
        with counters[1]:
            weights.streamer.velocity(live, last, 1.0)
        with counters[2]:
            weights.audio_vae.decode(last.audio[None])
            weights.video_vae.decode(unpatchify(last.video, weights.config)[None, None])
    first, velocity, decode = (counter.get_total_flops() / 1e9 for counter in counters)
    said = described["gflop"]
    rounding = 2e-4
    assert said["observe"] + said["text"] == pytest.approx(first, abs=rounding)
    assert said["solve"] == pytest.approx(velocity * TALKER.flow.steps, abs=rounding)
    assert said["decode"] == pytest.approx(decode, abs=rounding)
    stages = (said[name] for name in ("observe", "text", "solve", "decode"))
    assert said["unit"] == pytest.approx(sum(stages), abs=rounding)


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_preset_can_be_described(name: str) -> None:
    described = describe_preset(name)
    assert described["preset"] == described["config"]["name"] == name
    assert described["gflop"]["unit"] > 1
    assert described["megabytes"]["unit"] > 0
    assert described["parameters"]["total"] > 10_000_000
    assert described["history"]["grows_without_limit"] == (described["config"]["cache"]["policy"] == "full")


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'huge'"):
        describe_preset("huge")
    with pytest.raises(CheckpointError, match="expected an agent"):
        describe_checkpoint("huge")


@pytest.mark.usefixtures("tiny_preset")
def test_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    WanStreamer(tiny_weights(), "tiny").save_pretrained(folder)
    described = describe_checkpoint(str(folder))
    assert described["codecs"]["belong_together"] == "yes"
    assert described["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    preset = describe_preset("tiny")
    for table in ("parameters", "tokens", "history", "gflop", "config"):
        assert described[table] == preset[table]
    for name in ("model.safetensors", "audio_vae.safetensors"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match=name):
            describe_checkpoint(str(folder))
        (folder / name).write_bytes(data)


def test_weights_in_8_bits_are_described_like_others(tmp_path: Path) -> None:
    """And what stands beside the Transformer has a row of its own."""
    torch.manual_seed(0)
    weights = dataclasses.replace(tiny_weights(config=CONFIG), text=tiny_text())
    for name, small in (("whole", False), ("small", True)):
        save_weights(weights, tmp_path / name, small)
    whole, small = (describe_checkpoint(str(tmp_path / name))["parameters"] for name in ("whole", "small"))
    assert whole == small
    assert whole["floor"] == count(weights.streamer.floor)
    assert whole["reading"] == count(weights.streamer.reading)
    assert "sight" not in whole

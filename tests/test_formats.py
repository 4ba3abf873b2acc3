"""Number formats: chosen by time, exact where they say so, and lost by no round trip."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from test_floor import CONFIG as FLOORED
from test_session import user_units
from test_wording import SMALL as WORDING
from tiny import tiny_weights
from torch import nn
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.codecs.causal import MemoryBlock
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import VideoDecoderConfig
from wan_streamer.errors import ConfigError
from wan_streamer.model.layers import Layer, fuse
from wan_streamer.model.packing import PackedConv, PackedLinear, can_pack, pack
from wan_streamer.model.pretrained import Weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.runtime import formats as module
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.runtime.formats import Formats, apply_formats, choose_formats
from wan_streamer.runtime.state import load_session, save_session

CPU = torch.device("cpu")
packs = pytest.mark.skipif(not can_pack(nn.Linear(4, 4)), reason="no FBGEMM in this build of PyTorch")


@packs
@pytest.mark.parametrize("tokens", [1, 2, 44])
def test_packed_weights_of_a_checkpoint_are_exact(tokens: int) -> None:
    linear = nn.Linear(96, 64)
    linear.load_state_dict({name: value.bfloat16().float() for name, value in linear.state_dict().items()})
    x = torch.randn(3, tokens, 96)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x), atol=1e-5, rtol=1e-5)


@packs
@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(3, 8, 7, 3), (2, 3, 31)),
        (nn.Conv1d(1, 8, 5, 4, bias=False), (1, 1, 13)),
        (nn.Conv2d(6, 8, 4, stride=4), (2, 6, 16, 8)),
        (nn.Conv2d(5, 8, (3, 2), stride=(2, 3)), (1, 5, 9, 11)),
    ],
)
def test_packed_convolutions_are_exact(conv: nn.Conv1d | nn.Conv2d, shape: tuple[int, ...]) -> None:
    conv.load_state_dict({name: value.bfloat16().float() for name, value in conv.state_dict().items()})
    packed, x = nn.Sequential(conv), torch.randn(shape)
    pack(packed)
    assert isinstance(packed[0], PackedConv)
    with torch.inference_mode():
        for laid in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
            torch.testing.assert_close(packed(laid), conv(laid), atol=1e-5, rtol=1e-5)
    assert packed.state_dict().keys() == nn.Sequential(conv).state_dict().keys()


def test_other_convolutions_stay() -> None:
    others = nn.Sequential(
        nn.Conv1d(4, 4, 3),
        nn.Conv1d(4, 4, 3, stride=2, groups=4),
        nn.Conv1d(4, 4, 3, stride=2, padding=1),
        nn.Conv1d(4, 4, 3, stride=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
    )
    before = [*others]
    pack(others)
    assert [*others] == before


@packs
def test_packing_keeps_what_is_saved(tmp_path: Path) -> None:
    plain, packed = tiny_weights(), tiny_weights()
    agent = WanStreamer(packed, "tiny", formats=Formats("half", "float32"))
    assert any(isinstance(part, PackedLinear) for part in packed.streamer.backbone.modules())
    agent.save_pretrained(tmp_path)
    again = WanStreamer.from_pretrained(tmp_path).weights
    for name, value in plain.streamer.state_dict().items():
        assert torch.equal(again.streamer.state_dict()[name].float(), value.float()), name


@packs
def test_half_says_the_same_as_float32() -> None:
    units = []
    for formats in (Formats("float32", "float32"), Formats("half", "float32")):
        session = WanStreamer(tiny_weights(), "tiny", formats=formats).session(seed=1)
        units.append([session.step(user) for user in user_units()])
    for one, other in zip(*units, strict=True):
        assert one.text == other.text
        torch.testing.assert_close(torch.from_numpy(one.audio), torch.from_numpy(other.audio), atol=1e-4, rtol=0)


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=packs)])
@pytest.mark.parametrize("change", [{}, {"qk_norm": False}, {"qkv_bias": True}])
def test_what_is_fused_gives_the_same(packed: bool, change: dict[str, bool]) -> None:
    """Queries, keys and values in one product, and norms in one operation; no parameter more or less."""
    torch.manual_seed(0)
    layer = Layer(dataclasses.replace(tiny_weights().config.backbone, **change)).requires_grad_(False)
    for name, value in layer.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(value, mean=1.0)
    if packed:
        pack(layer)
    names, x = set(layer.state_dict()), torch.randn(2, 5, layer.attention.q_proj.in_features)
    plain = (*layer.attention.heads(x), layer.attention_norm(x))
    fuse(layer)
    assert layer.attention.fused is not None
    for one, other in zip(plain, (*layer.attention.heads(x), layer.attention_norm(x)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 if packed else 1e-5, rtol=1e-4)
    assert set(layer.state_dict()) == names


def test_weights_out_of_range_are_not_packed() -> None:
    linear = nn.Linear(4, 4)
    nn.init.constant_(linear.weight, 1e5)
    assert not can_pack(linear)
    weights = tiny_weights()
    nn.init.constant_(weights.streamer.backbone.layers[0].mlp.down.weight, 1e5)
    with pytest.raises(ConfigError, match="half needs"):
        WanStreamer(weights, "tiny", formats=Formats("half", "float32"))


def test_only_clearly_faster_formats_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fastest(**seconds: float) -> str:
        clock, spent = itertools.count(0.0, 0.0), [0.0]
        monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock) + spent[0])

        def run(duration: float) -> None:
            spent[0] += duration

        return module._fastest({name: lambda s=s: run(s) for name, s in seconds.items()})

    assert fastest(float32=1.0, half=0.95) == "float32"
    assert fastest(float32=1.0, half=0.5, bfloat16=0.48) == "half"
    assert fastest(float32=1.0, half=0.5, bfloat16=0.2) == "bfloat16"


def test_the_choice_is_made_once_and_can_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tiny_weights()
    monkeypatch.delenv(module.ENVIRONMENT, raising=False)
    assert choose_formats(weights, CPU) is choose_formats(weights, CPU)
    monkeypatch.setenv(module.ENVIRONMENT, "float32,bfloat16")
    assert choose_formats(weights, CPU) == Formats("float32", "bfloat16")
    assert WanStreamer(weights, "tiny").video_vae.dtype == torch.bfloat16
    monkeypatch.setenv(module.ENVIRONMENT, "int3")
    with pytest.raises(ConfigError, match="expected auto"):
        choose_formats(weights, CPU)


def with_light_decoder() -> Weights:
    weights = tiny_weights()
    shape = VideoDecoderConfig(channels=(4, 8, 8, 8), blocks=(1, 2, 1))
    torch.manual_seed(1)
    light = VideoVAE(dataclasses.replace(weights.config.video_vae, decoder=shape))
    own = {name: value for name, value in weights.video_vae.state_dict().items() if not name.startswith("dec_")}
    light.load_state_dict(light.state_dict() | own)
    weights.light_vae = light
    return weights


def test_a_slow_machine_draws_with_the_light_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(module.ENVIRONMENT, raising=False)
    assert 0 < module._decoding_ms(tiny_weights().config.video_vae, "float32") < 10_000
    for ms, weights, expected in (
        (200.0, with_light_decoder(), "light"),
        (60.0, with_light_decoder(), "light"),
        (50.0, with_light_decoder(), "full"),
        (200.0, tiny_weights(), "full"),
    ):  # fmt: skip
        monkeypatch.setattr(module, "_decoding_ms", lambda *_, ms=ms: ms)
        assert choose_formats(weights, CPU).decoder == expected
    with pytest.raises(ConfigError, match="no light decoder"):
        WanStreamer(tiny_weights(), "tiny", formats=Formats.parse("float32,float32,light"))


def test_the_light_decoder_draws_the_same_conversation(tmp_path: Path) -> None:
    """Sound and words are the same; a session of one decoder goes on with the other."""
    agent = WanStreamer(with_light_decoder(), "tiny", formats=Formats("float32", "float32"))
    agent.save_pretrained(tmp_path / "agent")
    light = WanStreamer.from_pretrained(tmp_path / "agent", formats=Formats("float32", "float32", "light"))
    one, other, users = agent.session(seed=1), light.session(seed=1), list(user_units())
    for user in users:
        a, b = one.step(user), other.step(user)
        assert (a.text, a.transcript) == (b.text, b.transcript)
        assert np.array_equal(a.audio, b.audio)
    assert not np.array_equal(a.video, b.video)
    save_session(one, agent.weights, tmp_path / "session.safetensors")
    again = load_session(light.weights, tmp_path / "session.safetensors")
    a, b = one.step(users[0]), again.step(users[0])
    assert np.array_equal(a.audio, b.audio)
    assert b.video.shape == a.video.shape


def test_wrong_formats_are_told_before_anything_is_loaded() -> None:
    result = CliRunner().invoke(app, ["talk", "nothing.mp4", "--out", "r.mp4", "--formats", "int3"])
    assert result.exit_code != 0
    assert isinstance(result.exception, ConfigError)
    assert "half,float32" in str(result.exception)


@packs
def test_packing_reaches_every_linear_layer() -> None:
    backbone = tiny_weights().streamer.backbone
    pack(backbone)
    kinds = {type(part) for part in backbone.modules() if isinstance(part, nn.Linear)}
    assert kinds == {PackedLinear}


@packs
def test_half_packs_what_stands_beside_the_transformer_too() -> None:
    streamer = Streamer(dataclasses.replace(FLOORED, wording=WORDING)).eval()
    weights = dataclasses.replace(tiny_weights(), streamer=streamer)
    apply_formats(weights, Formats("half", "float32"))
    for part in (streamer.hearing, streamer.seeing, streamer.wording, weights.audio_vae):
        linears = [layer for layer in part.modules() if isinstance(layer, nn.Linear | PackedConv)]
        assert {type(layer) for layer in linears} <= {PackedLinear, PackedConv}
        assert linears
    assert all(block.fixed for block in weights.video_vae.modules() if isinstance(block, MemoryBlock))

"""An agent small enough to build, train and run in a test, with random weights."""

import dataclasses
import functools

import torch
from torch import nn

from wan_streamer import WanStreamer
from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.text import TextCodec
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import (
    AudioVAEConfig,
    BackboneConfig,
    CacheConfig,
    PerceptionConfig,
    StreamerConfig,
    TextConfig,
    VideoVAEConfig,
    VoiceConfig,
)
from wan_streamer.model.layout import Latents
from wan_streamer.model.pretrained import EMBEDDED, Weights, load_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.runtime.formats import Formats

TINY = StreamerConfig(
    name="tiny",
    audio_vae=AudioVAEConfig(latent_dim=6, dim=16, latent_blocks=1, frame_blocks=1),
    video_vae=VideoVAEConfig(height=96, width=96, latent_channels=4, channels=(4, 8, 8, 8), blocks=1),
    perception=PerceptionConfig(
        mel_bins=16, audio_dim=16, audio_blocks=1, video_height=48, video_width=48, video_channels=(4, 4, 8)
    ),
    backbone=BackboneConfig(dim=32, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_dim=48),
    text=TextConfig(vocab_size=40),
    cache=CacheConfig(policy="window", sink_units=2, video_units=2, audio_units=3, text_units=5),
)
TALKER = dataclasses.replace(TINY, text=TextConfig(vocab_size=272))  # bytes, control tokens and a few words
SAYING = dataclasses.replace(
    TALKER, voice=VoiceConfig(word_units=3, sound_units=2, near_units=2, dim=16, layers=1, token_dim=8)
)

EXACT = Formats("float32", "float32")  # where processes are compared, of which each would choose for itself

WORDS = ("hello", "how are you?", "one two three", "stop")
EMBEDDED_AGENTS = sorted(path.parent.name for path in EMBEDDED.glob("*/config.json"))


def tiny_text() -> TextCodec:
    return TextCodec.train(WORDS, TALKER.text.vocab_size)


def round_as_stored(module: nn.Module) -> nn.Module:
    """What a checkpoint holds is bfloat16; constants that it does not hold stay as they are."""
    module.load_state_dict({name: value.bfloat16().float() for name, value in module.state_dict().items()})
    return module


@torch.no_grad()
def tiny_weights(seed: int = 0, config: StreamerConfig = TALKER) -> Weights:
    """Random weights, the same for the same seed, as they are after a round trip through a checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codecs = AudioVAE(config.audio_vae), VideoVAE(config.video_vae)
        weights = Weights(config, Streamer(config), *codecs, tiny_text())
        voice = weights.streamer.voice
        heads = [weights.streamer.video_out, weights.streamer.audio_out, *([] if voice is None else [voice.drawn])]
        for head in heads:
            torch.nn.init.normal_(head.weight, std=0.2)  # they start at zero, which would hide everything
        for codec, channels in (
            (weights.audio_vae, config.audio_vae.latent_dim),
            (weights.video_vae, config.video_vae.latent_channels),
        ):
            codec.stats.measure(torch.randn(50, channels) * 0.5 + 0.1)
    for module in (weights.streamer, weights.audio_vae, weights.video_vae):
        round_as_stored(module).eval().requires_grad_(False)
    return weights


@functools.cache
def shared_weights(name: str) -> Weights:
    """Weights that no test changes: "tiny", or an embedded checkpoint."""
    weights = tiny_weights() if name == "tiny" else load_weights(EMBEDDED / name)
    for module in (weights.streamer, weights.audio_vae, weights.video_vae):
        module.eval().requires_grad_(False)
    return weights


# What other processes make. It is here, since a process imports the module of it: a test's takes seconds longer.


def tiny_agent() -> WanStreamer:
    return WanStreamer(tiny_weights(), "tiny", formats=EXACT)


def tiny_streamer() -> Streamer:
    torch.set_num_threads(1)
    return tiny_agent().weights.streamer


def assert_close(got: Latents, expected: Latents, atol: float = 1e-12) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)

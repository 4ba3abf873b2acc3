"""Named whole configurations. A variant is a function here, never a copied file."""

import dataclasses
from collections.abc import Callable

from wan_streamer.config import (
    BackboneConfig,
    CacheConfig,
    FlowConfig,
    MediaConfig,
    PerceptionConfig,
    StreamerConfig,
    TextConfig,
    VideoVAEConfig,
    VoiceConfig,
)
from wan_streamer.errors import ConfigError

# Vocabularies of language models, with the control tokens of `codecs/text.py` in front.
SMOLLM2_VOCAB = 3 + 49_152
QWEN3_VOCAB = 3 + 151_936


def nano() -> StreamerConfig:
    """The smallest shape, which hears and sees with encoders of its own: for first runs."""
    return StreamerConfig(name="nano")


def nano_ears() -> StreamerConfig:
    """`nano` with ears trained before it, a reader, finer eyes and a text memory: the shape of the embedded agent."""
    perception = PerceptionConfig(
        hearing="ears",
        video_channels=(48, 96, 192),
        video_grid=(2, 3),
        video_ticks=1,
        video_blocks=2,
        reading=3,
    )
    return StreamerConfig(
        name="nano-ears",
        perception=perception,
        text=TextConfig(vocab_size=6144, heard_units=2),
        cache=CacheConfig(text_units=24, memory_tokens=1024, memory_span=192),
        flow=FlowConfig(audio_steps=1),  # until it is distilled
        voice=VoiceConfig(),
    )


def smol() -> StreamerConfig:
    """SmolLM2-135M's shape and vocabulary for text, weights of nano's width for sound and pictures."""
    return StreamerConfig(
        name="smol",
        perception=PerceptionConfig(video_grid=(1, 3)),
        backbone=BackboneConfig(
            dim=576,
            layers=30,
            heads=9,
            kv_heads=3,
            mlp_dim=1536,
            rope_theta=100_000.0,
            qk_norm=False,
            media=MediaConfig(dim=256, mlp_dim=768),
        ),
        text=TextConfig(vocab_size=SMOLLM2_VOCAB),
        cache=CacheConfig(video_units=25, audio_units=125, text_units=750),
        flow=FlowConfig(steps=16),
    )


def paper_192p() -> StreamerConfig:
    """The paper's frame size with a backbone of the Qwen3-1.7B class; two GPUs."""
    return StreamerConfig(
        name="paper-192p",
        video_vae=VideoVAEConfig(channels=(32, 96, 192, 256), blocks=3),
        perception=PerceptionConfig(
            audio_dim=384, audio_blocks=8, video_height=192, video_width=336, video_grid=(1, 7)
        ),
        backbone=BackboneConfig(
            dim=2048,
            layers=28,
            heads=16,
            kv_heads=8,
            head_dim=128,
            mlp_dim=6144,
            rope_theta=1_000_000.0,
            norm_eps=1e-6,
        ),
        text=TextConfig(vocab_size=QWEN3_VOCAB, slots=3),
        cache=CacheConfig(policy="full"),
        flow=FlowConfig(steps=32, shift=5.0),
    )


def paper_368p() -> StreamerConfig:
    """The same at 640x368: 23 rows of latents have no divisor, so every latent is a token of its own."""
    config = paper_192p()
    vae = dataclasses.replace(config.video_vae, height=368, width=640)
    return dataclasses.replace(config, name="paper-368p", video_vae=vae, patch=1)


PRESETS: dict[str, Callable[[], StreamerConfig]] = {
    "nano": nano,
    "nano-ears": nano_ears,
    "smol": smol,
    "paper-192p": paper_192p,
    "paper-368p": paper_368p,
}


def get_preset(name: str) -> StreamerConfig:
    """The configuration called `name`. Raises `ConfigError` that lists the known names."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known presets are {', '.join(PRESETS)}")
    return PRESETS[name]()

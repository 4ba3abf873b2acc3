"""Number formats of the two large stages of an agent, and its picture decoder, chosen for the machine
(docs/decisions.md, 53 and 56).

`Formats`         what the Transformer and the picture codec compute with, and which decoder draws
`choose_formats`  by a short measurement, or what `--formats` says
`apply_formats`   brings a loaded agent into them

The same formats give the same output, bit for bit. So a thinker tells its performer which, and a choice is made once
in a process. Ears, eyes and the audio codec, whose spectra span many magnitudes, compute in float32, on a CPU with
packed weights.
"""

import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import VideoVAEConfig
from wan_streamer.errors import ConfigError
from wan_streamer.model.layers import fuse
from wan_streamer.model.packing import can_pack, pack, pack_if_possible
from wan_streamer.model.pretrained import Weights

ENVIRONMENT = "WAN_STREAMER_FORMATS"  # what `--formats` sets, for processes of ours too
BACKBONE = ("float32", "half", "bfloat16")  # "half": weights in half precision, all else in float32
PICTURES = ("float32", "bfloat16")
DECODERS = ("full", "light")
SLOW_MS = 55.0  # of decoding a unit with the full decoder: what else a unit needs takes about as long
FASTER = 0.9  # of the time of a more exact format is what another must reach
TOKENS = (2, 32)  # of the passes that are timed: text slots, then a step of the solver
REPEATS = 5


@dataclass(frozen=True)
class Formats:
    """What an agent computes with.

    backbone  of the Transformer's layers: one of `BACKBONE`
    pictures  of the video codec: one of `PICTURES`
    decoder   of pictures: one of `DECODERS`
    """

    backbone: str
    pictures: str
    decoder: str = "full"

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONE or self.pictures not in PICTURES or self.decoder not in DECODERS:
            raise ConfigError(
                f"formats: expected auto, or one of {', '.join(BACKBONE)} for the Transformer, one of"
                f" {', '.join(PICTURES)} for pictures and perhaps one of {', '.join(DECODERS)} for their decoder, such"
                f" as half,float32 or half,float32,light, got {','.join(self.as_dict().values())}"
            )

    @classmethod
    def parse(cls, text: str) -> "Formats":
        """Of "half,float32" or "half,float32,light". Raises `ConfigError`."""
        backbone, _, rest = text.partition(",")
        pictures, _, decoder = rest.partition(",")
        return cls(backbone.strip(), pictures.strip(), decoder.strip() or "full")

    def as_dict(self) -> dict[str, str]:
        """For reports."""
        return asdict(self)


def choose_formats(weights: Weights, device: torch.device) -> Formats:
    """What is fast here: bfloat16 on a GPU; on a CPU what is measured, or what the environment asks for.

    Raises `ConfigError` if the environment asks for what there is not.
    """
    if (asked := os.environ.get(ENVIRONMENT, "auto")) != "auto":
        return Formats.parse(asked)
    if device.type != "cpu":
        return Formats("bfloat16", "bfloat16")
    backbone, channels = weights.config.backbone, weights.config.video_vae.decoding.channels
    formats = _measured(backbone.dim, backbone.mlp_dim, backbone.layers, channels[1])
    if weights.light_vae is not None and _decoding_ms(weights.config.video_vae, formats.pictures) > SLOW_MS:
        formats = replace(formats, decoder="light")
    return formats


def apply_formats(weights: Weights, formats: Formats) -> None:
    """Change the modules of an agent, for inference. Raises `ConfigError` if they cannot be in these formats here."""
    streamer, backbone = weights.streamer, weights.streamer.backbone
    if formats.backbone == "half":
        if backbone.weight.device.type != "cpu" or not pack_if_possible(backbone):
            raise ConfigError("formats: half needs an x86 CPU and weights below 65 504; take float32 or bfloat16")
    else:
        backbone.to(getattr(torch, formats.backbone))
    if formats.backbone != "float32" and backbone.weight.device.type == "cpu":
        senses = streamer.hearing, streamer.seeing, streamer.hindsight
        words = streamer.reading, streamer.wording, streamer.voice
        for part in filter(None, (*senses, *words, weights.audio_vae)):
            pack_if_possible(part)  # they take as long as their weights need for being read
    if backbone.weight.device.type == "cpu":
        fuse(backbone)
    weights.light = formats.decoder == "light"
    if weights.light and weights.light_vae is None:
        raise ConfigError("formats: this agent has no light decoder; take full, or train one: train codec --light")
    for vae in filter(None, (weights.video_vae, weights.light_vae)):
        vae.to(getattr(torch, formats.pictures), memory_format=torch.channels_last)  # type: ignore[call-overload]
        vae.fix()


@functools.cache
@torch.inference_mode()
def _measured(dim: int, mlp_dim: int, depth: int, channels: int) -> Formats:
    """The fastest for `depth` layers of these widths; the more exact one if another is hardly faster."""

    def layers() -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(*sizes) for _ in range(depth) for sizes in ((dim, mlp_dim), (mlp_dim, dim))))

    passes = {"float32": _passes(layers(), dim, torch.float32)}
    if can_pack(nn.Linear(dim, dim)):
        packed = layers()
        pack(packed)
        passes["half"] = _passes(packed, dim, torch.float32)
    passes["bfloat16"] = _passes(layers().bfloat16(), dim, torch.bfloat16)
    frames = {name: _convolution(channels, getattr(torch, name)) for name in PICTURES}
    return Formats(_fastest(passes), _fastest(frames))


def _passes(layers: nn.Sequential, dim: int, dtype: torch.dtype) -> Callable[[], object]:
    inputs = [torch.ones(tokens, dim, dtype=dtype) for tokens in TOKENS]
    return lambda: [layers(x) for x in inputs]


def _convolution(channels: int, dtype: torch.dtype) -> Callable[[], object]:
    frame = torch.ones(1, channels, 24, 42, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.ones(channels, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    return lambda: F.conv2d(frame, kernel, padding=1)


@functools.cache
@torch.random.fork_rng(devices=[])
@torch.inference_mode()
def _decoding_ms(config: VideoVAEConfig, pictures: str) -> float:
    """Milliseconds of a unit, of a codec of this shape with random weights.

    Of this thread's time on the processor: a standby process loads behind a running call, and must not choose by that.
    """
    vae = VideoVAE(config).to(getattr(torch, pictures), memory_format=torch.channels_last)  # type: ignore[call-overload]
    shape = (1, 1, config.latent_channels, config.latent_height, config.latent_width)
    latent = torch.zeros(shape, dtype=vae.dtype)
    _, state = vae.decode(latent)
    best = math.inf
    for _ in range(REPEATS):
        began = time.thread_time()
        _, state = vae.decode(latent, state)
        best = min(best, time.thread_time() - began)
    return 1000 * best


def _fastest(candidates: dict[str, Callable[[], object]]) -> str:
    """The name of the fastest; of two that are about equal, the first. They take turns."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(REPEATS):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    chosen = next(iter(candidates))
    for name, seconds in best.items():
        if seconds < FASTER * best[chosen]:
            chosen = name
    return chosen

"""Codecs in folders: the one way to load them, to round them and to recognise them.

`load_codec`   one codec, of the folder that `train codec` left or of an agent's
`load_codecs`  both, in the shape of a configuration
`codec_hash`   fingerprint of both
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import AudioVAEConfig, StreamerConfig, VideoVAEConfig, from_dict, load_config
from wan_streamer.errors import CheckpointError
from wan_streamer.files import parse_json
from wan_streamer.tensors import load_module

KINDS: dict[str, tuple[type, type]] = {"audio": (AudioVAE, AudioVAEConfig), "video": (VideoVAE, VideoVAEConfig)}


def load_codec(folder: str | Path, kind: str, config: AudioVAEConfig | VideoVAEConfig | None = None) -> Any:
    """The codec in `folder`, frozen and rounded as an agent stores it; `kind` is "audio" or "video".

    config  its shape (default: the one that lies beside it)

    Raises `CheckpointError` or `ConfigError` if it is missing, damaged or does not fit.
    """
    path = Path(folder) / f"{kind}_vae.safetensors"
    codec = KINDS[kind][0](config or _shape(path, kind))
    load_module(codec, path)
    return round_weights(codec).eval().requires_grad_(False)


def load_codecs(config: StreamerConfig, folder: str | Path) -> tuple[AudioVAE, VideoVAE]:
    """Both codecs of `config` from the folder that `train codec`, `encode` or a checkpoint wrote."""
    return load_codec(folder, "audio", config.audio_vae), load_codec(folder, "video", config.video_vae)


def codec_hash(audio_vae: AudioVAE, video_vae: VideoVAE) -> str:
    """Fingerprint of both codecs."""
    return weights_hash(audio_vae, video_vae)


def weights_hash(*modules: nn.Module) -> str:
    """Fingerprint of weights as an agent stores them (bfloat16): equal weights, equal hash."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            stored = value.detach().cpu().bfloat16().contiguous()
            digest.update(name.encode() + stored.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def round_weights(codec: nn.Module) -> nn.Module:
    """Round what a checkpoint stores to bfloat16, in place. The analysis window is not stored, so it stays exact."""
    for value in codec.state_dict().values():
        value.copy_(value.bfloat16())
    return codec


def _shape(weights: Path, kind: str) -> Any:
    whole, own = weights.with_name("config.json"), weights.with_suffix(".json")
    if whole.is_file():
        return getattr(load_config(whole), f"{kind}_vae")
    try:
        data = parse_json(own.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{own}: expected the shape of a codec as JSON ({error})") from error
    return from_dict(KINDS[kind][1], data, str(own))

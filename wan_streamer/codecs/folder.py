"""Codecs in folders: the one way to load them, to round them and to recognise them.

`load_codec`   one codec, of the folder that `train codec` left or of an agent's
`load_codecs`  both, in the shape of a configuration
`load_light`   the video codec with its second decoder, for slow machines;   `save_light` writes that
`codec_hash`   fingerprint of both codecs;   `encoder_hash`  of what makes the latents of pictures
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import (
    AudioVAEConfig,
    StreamerConfig,
    VideoDecoderConfig,
    VideoVAEConfig,
    from_dict,
    load_config,
    to_dict,
)
from wan_streamer.errors import CheckpointError
from wan_streamer.files import parse_json
from wan_streamer.tensors import load_module, packed, save_atomically

LIGHT = "light_decoder.safetensors"  # beside the codec whose encoder it belongs to
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


def save_light(vae: VideoVAE, folder: str | Path) -> None:
    """Write the decoder of `vae` as the second one of all codecs with the same encoder."""
    tensors = {name: value.detach().cpu().bfloat16() for name, value in vae.state_dict().items() if _decodes(name)}
    meta = {"decoder": json.dumps(to_dict(vae.config.decoding)), "encoder": encoder_hash(vae)}
    save_atomically(packed(tensors), Path(folder) / LIGHT, meta)


def load_light(folder: str | Path, video_vae: VideoVAE) -> VideoVAE | None:
    """`video_vae` with the second decoder in `folder`, frozen; None where there is none.

    Raises `CheckpointError` if it is damaged or belongs to another encoder.
    """
    path = Path(folder) / LIGHT
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
        shape, encoder = parse_json(meta["decoder"]), meta["encoder"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); fetch or train it again") from error
    if encoder != encoder_hash(video_vae):
        raise CheckpointError(f"{path}: belongs to encoder {encoder}, but the one here is {encoder_hash(video_vae)}")
    decoder = from_dict(VideoDecoderConfig, shape, str(path))
    light = VideoVAE(dataclasses.replace(video_vae.config, decoder=decoder))
    own = {name: value for name, value in video_vae.state_dict().items() if not _decodes(name)}
    load_module(light, path, own)
    return light.eval().requires_grad_(False)


def _decodes(name: str) -> bool:
    return name.startswith("dec_")


def encoder_hash(video_vae: VideoVAE) -> str:
    """Fingerprint of the encoder and the statistics of its latents."""
    return _hash((name, value) for name, value in sorted(video_vae.state_dict().items()) if not _decodes(name))


def codec_hash(audio_vae: AudioVAE, video_vae: VideoVAE) -> str:
    """Fingerprint of both codecs."""
    return weights_hash(audio_vae, video_vae)


def weights_hash(*modules: nn.Module) -> str:
    """Fingerprint of weights as an agent stores them (bfloat16): equal weights, equal hash."""
    return _hash(item for module in modules for item in sorted(module.state_dict().items()))


def _hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors:
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

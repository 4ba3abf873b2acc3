"""Other codecs to be timed beside ours, with their published shapes and random weights.

A peer is optional: `PEERS` says what to install. None of them is imported before it is built.

    mimi     Kyutai's audio codec of Moshi, two 80 ms frames to a unit, 8 codebooks
    wan2.1   the video VAE of Wan2.1, fed unit by unit through its feature caches after its lone first frame
    taesd    a distilled image VAE (the class of TAEHV without memory): the four frames of a unit as a batch
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wan_streamer.benchmarks.timing import Contender

MIMI_FRAME = 1920  # samples
DIFFUSERS = "pip install diffusers==0.42.1"


@dataclass(frozen=True)
class Peer:
    """modality  "audio" or "video";  install  what brings it;  build  unit of input -> contender;  note  for the report

    `build` takes sound [1, 3840] or pictures [1, 4, 3, H, W] in [-1, 1], whose type is the type of the weights.
    """

    modality: str
    install: str
    build: Callable[[Tensor], Contender]
    note: str


def count_parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


class Mimi:
    def __init__(self, unit_BT: Tensor) -> None:
        from moshi.models import loaders
        from moshi.utils.compile import no_compile

        self.eager = no_compile  # all contenders run eagerly
        self.model: Any = loaders.get_mimi(None, device="cpu")
        self.model.to(unit_BT.dtype)
        self.model.streaming_forever(1)
        self.frames = unit_BT[:, None].split(MIMI_FRAME, dim=2)
        self.parameters = count_parameters(self.model)

    def encode(self) -> list[Tensor]:
        with self.eager():
            return [self.model.encode(frame) for frame in self.frames]

    def decode(self, codes: list[Tensor]) -> list[Tensor]:
        with self.eager():
            return [self.model.decode(code) for code in codes]


class Wan:
    def __init__(self, unit_BTCHW: Tensor) -> None:
        from diffusers import AutoencoderKLWan
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it warns of a change of type that concerns no layer of this model
        self.model: Any = AutoencoderKLWan().to(unit_BTCHW.dtype).eval()
        self.unit_BCTHW = unit_BTCHW.transpose(1, 2)
        self.parameters = count_parameters(self.model)
        self.model.clear_cache()
        with torch.inference_mode():
            first = self._encode(self.unit_BCTHW[:, :, :1])
            self.decode(first, first_chunk=True)

    def _encode(self, video_BCTHW: Tensor) -> Tensor:
        cache = self.model._enc_feat_map
        moments = self.model.quant_conv(self.model.encoder(video_BCTHW, feat_cache=cache, feat_idx=[0]))
        return moments.chunk(2, dim=1)[0]

    def encode(self) -> Tensor:
        return self._encode(self.unit_BCTHW)

    def decode(self, latent_BCTHW: Tensor, first_chunk: bool = False) -> Tensor:
        hidden = self.model.post_quant_conv(latent_BCTHW)
        return self.model.decoder(hidden, feat_cache=self.model._feat_map, feat_idx=[0], first_chunk=first_chunk)


class Taesd:
    def __init__(self, unit_BTCHW: Tensor) -> None:
        from diffusers import AutoencoderTiny
        from diffusers.utils import logging

        logging.set_verbosity_error()
        self.model: Any = AutoencoderTiny().to(unit_BTCHW.dtype).eval().to(memory_format=torch.channels_last)
        self.frames = unit_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        self.parameters = count_parameters(self.model)

    def encode(self) -> Tensor:
        return self.model.encode(self.frames, return_dict=False)[0]

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        return self.model.decode(latent_BCHW, return_dict=False)[0]


PEERS: dict[str, Peer] = {
    "mimi": Peer(
        "audio",
        # moshi asks for an older torch and numpy, which would replace ours
        "pip install --no-deps moshi==0.2.13 && pip install einops==0.8.2 sentencepiece==0.2.3",
        Mimi,
        "streaming, 2 frames of 80 ms, 8 codebooks, eager",
    ),
    "wan2.1": Peer("video", DIFFUSERS, Wan, "4 frames at a time through its feature caches"),
    "taesd": Peer("video", DIFFUSERS, Taesd, "an image codec: 4 frames as a batch, no memory between frames"),
}

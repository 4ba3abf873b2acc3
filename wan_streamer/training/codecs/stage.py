"""What the trainings of the two codecs have in common.

A codec that begins from another keeps the latents of the agent where they were, or all latents if only its decoder
learns: what models have learned about them stays true.
"""

import copy
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import to_dict
from wan_streamer.errors import CheckpointError, ConfigError, DataError
from wan_streamer.files import write_json
from wan_streamer.folders import KINDS, describe
from wan_streamer.model.pretrained import find_checkpoint
from wan_streamer.tensors import load_module, load_tensors, save_atomically
from wan_streamer.training.loop.stage import Stage, TrainConfig

ANCHOR = 5.0  # how strongly the agent's latents are held where they were


def load_array(data_dir: Path, name: str) -> np.ndarray:
    """Memory-map `name`.npy. Raises `DataError` if it is missing or not a plain array."""
    path = Path(data_dir) / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected an array of sounds or faces ({error}); make it with 'wan-streamer simulate DIR --codecs'"
        ) from error


class CodecStage(Stage):
    """What the two codecs have in common.

    start         begin from this codec: what `train codec` wrote, or an agent
    decoder_only  leave its encoder and the statistics of its latents as they are
    """

    kind: str
    agent_share: float  # of the batch, its first rows; the rest is other voices or other faces
    vae: AudioVAE | VideoVAE

    def __init__(self, config: TrainConfig, start: str | None, decoder_only: bool) -> None:
        if decoder_only and start is None:
            raise ConfigError("decoder only: expected a codec to begin from, got none; name one with --from")
        self.config, self.decoder_only = config, decoder_only
        self.before: nn.Module | None = None
        if start is not None:
            self._begin_from(_find_codec(start, self.kind))
            self.before = None if decoder_only else copy.deepcopy(self.vae).requires_grad_(False)
        for name, p in self.vae.named_parameters():
            p.requires_grad_(not (decoder_only and name.startswith("enc_")))

    def _begin_from(self, path: Path) -> None:
        """All of it; or its encoder, and of a decoder in another shape what fits."""
        if not self.decoder_only:
            return load_module(self.vae, path)
        tensors, own = load_tensors(path), self.vae.state_dict()
        fitting = {name: value for name, value in tensors.items() if name in own and value.shape == own[name].shape}
        lacking = [name for name in own if not name.startswith("dec_") and name not in fitting]
        if lacking:
            raise CheckpointError(f"{path}: expected an encoder of the same shape, but {lacking[0]} differs")
        self.vae.load_state_dict(own | {name: value.to(own[name].dtype) for name, value in fitting.items()})
        return None

    @property
    def agents(self) -> int:
        """How many rows of a batch, the first ones, are the agent's."""
        return math.ceil(self.agent_share * self.config.batch)

    def moved(self, media: Tensor, latent: Tensor) -> Tensor:
        """How far the agent's latents have moved since the start: mean square, in variances of each channel."""
        if self.before is None:
            return latent.new_zeros(())
        with torch.no_grad(), self.autocast():
            before, _ = self.before.to(self.device).encode_raw(media[: self.agents])  # type: ignore[operator]
        shape = [-1] + [1] * (latent.ndim - 3)
        step = (latent[: self.agents] - before).float() / self.before.stats.std_C.view(shape)  # type: ignore
        return step.square().mean()

    def write(self, out_dir: Path, latent_NC: Tensor) -> None:
        """Weights and shape, with the statistics of these latents of the agent; a fixed encoder keeps its own."""
        if not self.decoder_only:
            self.vae.stats.measure(latent_NC)
        tensors = {key: value.detach().cpu() for key, value in self.vae.state_dict().items()}
        save_atomically(tensors, out_dir / f"{self.kind}_vae.safetensors")
        write_json(out_dir / f"{self.kind}_vae.json", to_dict(self.vae.config))


def _find_codec(start: str, kind: str) -> Path:
    """Weights of a codec: of the folder that `train codec` wrote, or of an agent."""
    path = Path(start) / f"{kind}_vae.safetensors"
    try:
        return path if path.is_file() else find_checkpoint(start) / path.name
    except CheckpointError as error:
        raise CheckpointError(
            f"{start}: expected a codec for {kind} ({path.name}), found {describe(Path(start))}; {KINDS['codec'].made}"
        ) from error

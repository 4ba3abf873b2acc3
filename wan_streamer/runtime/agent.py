"""`WanStreamer`: a loaded agent, the library's front door."""

from pathlib import Path

import numpy as np
import torch

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import StreamerConfig
from wan_streamer.device import find_device, working_dtype
from wan_streamer.model.pretrained import Weights, find_checkpoint, load_weights, save_weights
from wan_streamer.runtime.session import Session
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT, UserUnit


class WanStreamer:
    """An agent that can hold several sessions. The weights are shared and never change."""

    def __init__(self, weights: Weights, name: str, device: str = "cpu") -> None:
        self.weights, self.name = weights, name
        self.device = find_device(device)
        for module in (weights.streamer, weights.audio_vae, weights.video_vae):
            module.to(self.device).eval().requires_grad_(False)
        # In bfloat16 convolutions run more than twice as fast on CPUs that have it, and the Transformer reads half the
        # bytes per pass. Perception and the audio decoder, whose spectra span many magnitudes, stay in float32.
        dtype = working_dtype(self.device)
        weights.video_vae.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights.streamer.backbone.to(dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu") -> "WanStreamer":
        """Load an embedded checkpoint ("nano"), a folder, or a hub id.

        Raises `CheckpointError` (missing, damaged, does not fit) or `ConfigError` (config, device).
        """
        folder = find_checkpoint(str(name))
        weights = load_weights(folder)
        return cls(weights, agent_name(name, folder, weights), device)

    def close(self) -> None:
        """End what works for it in other processes; nothing, for an agent on one device."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a checkpoint folder that `from_pretrained` reads."""
        save_weights(self.weights, Path(folder))

    def session(
        self,
        seed: int | None = None,
        *,
        steps: int | None = None,
        temperature: float | None = None,
        start_bias: float | None = None,
    ) -> Session:
        """A fresh conversation. What is not given is as in the checkpoint; the README says what each changes.

        seed         of noise and sampled tokens, 0 or more
        steps        of the flow solver in each unit, 1 to 1 000
        temperature  of the text, 0 to 100; 0 takes the likeliest token
        start_bias   how readily a silent agent begins to speak, -1 000 to 1 000

        Raises `ConfigError` on wrong types and ranges.
        """
        return Session(self.weights, seed, steps, temperature, start_bias)

    def warmup(self, units: int = 3) -> None:
        """Run a few units in a scratch session, so that the first real unit is not slow."""
        session = self.session()
        height, width = self.frame_size
        frames = np.zeros((FRAMES_PER_UNIT, height, width, 3), np.uint8)
        for _ in range(units):
            session.step(UserUnit(audio=np.zeros(SAMPLES_PER_UNIT, np.float32), video=frames))

    @property
    def config(self) -> StreamerConfig:
        return self.weights.config

    @property
    def default_steps(self) -> int:
        return self.config.flow.steps

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the agent's picture."""
        return self.config.video_vae.height, self.config.video_vae.width

    @property
    def audio_vae(self) -> AudioVAE:
        return self.weights.audio_vae

    @property
    def video_vae(self) -> VideoVAE:
        return self.weights.video_vae


def agent_name(name: str | Path, folder: Path, weights: Weights) -> str:
    """What an agent is called: the name in its configuration, if its folder has it too, else how it was asked for."""
    return weights.config.name if folder.name == weights.config.name else str(name)

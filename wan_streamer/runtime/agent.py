"""`WanStreamer`: a loaded agent, the library's front door."""

import os
from pathlib import Path

import numpy as np

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import StreamerConfig
from wan_streamer.device import find_device
from wan_streamer.errors import ConfigError
from wan_streamer.model.language import chat_model
from wan_streamer.model.pretrained import Weights, find_checkpoint, load_weights, save_weights
from wan_streamer.runtime.formats import Formats, apply_formats, choose_formats
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.together import Together
from wan_streamer.speaking.chat import Chat
from wan_streamer.speaking.pace import Pace
from wan_streamer.threads import Load
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT, UserUnit

CHAT, PERSONA = "WAN_STREAMER_CHAT", "WAN_STREAMER_PERSONA"  # what `--chat` and `--persona` set, for processes of ours
MEETING = 64  # sessions on a GPU whose passes are put together


class WanStreamer:
    """An agent that can hold several sessions. The weights are shared and never change.

    formats  number formats; by default those that are fast on this machine
    chat     language model that writes its answers (`load_language_model` says which there can be); "" for none, by
             default what the environment says

    Raises `ConfigError` (device, formats, a chat model that is none) or `CheckpointError` (it is missing or damaged).
    """

    def __init__(
        self, weights: Weights, name: str, device: str = "cpu", formats: Formats | None = None, chat: str | None = None
    ) -> None:
        self.weights, self.name = weights, name
        self.device = find_device(device)
        for module in filter(None, (weights.streamer, weights.audio_vae, weights.video_vae, weights.light_vae)):
            module.to(self.device).eval().requires_grad_(False)
        self.formats = formats or choose_formats(weights, self.device)
        apply_formats(weights, self.formats)
        self.chat = os.environ.get(CHAT, "") if chat is None else chat
        if self.chat:
            weights.streamer.chat = self._chat(self.chat)
        if self.device.type == "cuda":
            weights.streamer.together = Together(weights.streamer.backbone.step)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: str = "cpu", formats: Formats | None = None, chat: str | None = None
    ) -> "WanStreamer":
        """Load an embedded checkpoint ("nano"), a folder, or a hub id.

        Raises `CheckpointError` (missing, damaged, does not fit) or `ConfigError` (config, device, formats).
        """
        folder = find_checkpoint(str(name))
        weights = load_weights(folder)
        return cls(weights, agent_name(name, folder, weights), device, formats, chat)

    def _chat(self, source: str) -> Chat:
        if self.weights.streamer.wording is None:
            raise ConfigError("chat: expected an agent with a wording, whose record of what was said is read")
        persona = Path(os.environ[PERSONA]) if os.environ.get(PERSONA) else None
        chat = chat_model(source, self.weights.text, persona, self.device, self.formats.backbone)
        if self.weights.streamer.voice is not None:
            chat.pace = Pace(self.weights.text, self.weights.streamer.voice.longer_V)
        return chat

    @property
    def concurrency(self) -> int:
        """Sessions that can compute at the same time, each on a thread of its own: one a core; on a GPU they meet."""
        return max(1, Load().cores) if self.device.type == "cpu" else MEETING

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
        pictures: bool = True,
    ) -> Session:
        """A fresh conversation. What is not given is as in the checkpoint; the README says what each changes.

        seed         of noise and sampled tokens, 0 or more
        steps        of the flow solver in each unit, 1 to 1 000
        temperature  of the text, 0 to 100; 0 takes the likeliest token
        start_bias   how readily a silent agent begins to speak, -1 000 to 1 000
        pictures     False draws none, which saves the time of the decoder: they are black, all else is the same

        Raises `ConfigError` on wrong types and ranges.
        """
        return Session(self.weights, seed, steps, temperature, start_bias, pictures)

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

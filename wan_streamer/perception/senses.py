"""Frozen ears and eyes, run once over a recording instead of in every training step.

`Senses`       what they make of a recording;   `load_senses`  from folders
`senses_of`    fingerprints of the frozen ones of a model, to hold against those of a recording
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wan_streamer.codecs.folder import weights_hash
from wan_streamer.config import PerceptionConfig
from wan_streamer.errors import ConfigError
from wan_streamer.perception.ears import Ears, load_ears
from wan_streamer.perception.video import VideoPerception, load_eyes, same_eyes
from wan_streamer.units import FRAMES_PER_UNIT

CHUNK_UNITS = 4  # seen at once: what the layers make of so many frames stays in the cache of a core


@dataclass(frozen=True)
class Senses:
    """Ears and eyes whose features are kept instead of sound and pictures; None keeps those."""

    ears: Ears | None = None
    eyes: VideoPerception | None = None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hash of the weights of each, under "ears" and "eyes"; "none" where the recording itself is kept."""
        parts: Mapping[str, nn.Module | None] = {"ears": self.ears, "eyes": self.eyes}
        return {name: "none" if part is None else weights_hash(part) for name, part in parts.items()}

    def to(self, device: torch.device) -> "Senses":
        return Senses(self.ears and self.ears.to(device), self.eyes and self.eyes.to(device))

    def hear(self, audio_T: Tensor) -> Tensor:
        """U units of sound, float [U x 3840] at 24 kHz -> float16 [U, tokens, features], as heard in a call."""
        assert self.ears is not None
        heard, _ = self.ears(audio_T[None])
        return heard[0].unflatten(0, (-1, self.ears.config.frames)).half().cpu()

    def see(self, frames_THWC: Tensor) -> Tensor:
        """U units of frames, uint8 [4 U, h, w, 3] of the size of the eyes -> float16 [U, tokens, features]."""
        assert self.eyes is not None
        seen, state = [], None
        for chunk_THWC in frames_THWC.split(CHUNK_UNITS * FRAMES_PER_UNIT):
            feature, state = self.eyes(chunk_THWC[None], state)
            seen.append(feature[0].unflatten(0, (len(chunk_THWC) // FRAMES_PER_UNIT, -1)).flatten(1, 2))
        return torch.cat(seen).half().cpu()


def load_senses(ears: Path | None, eyes: Path | None, config: PerceptionConfig) -> Senses:
    """Ears and eyes from folders, for a model of `config`. Raises `CheckpointError`, or `ConfigError` for misfits."""
    senses = Senses(None if ears is None else load_ears(ears), None if eyes is None else load_eyes(eyes))
    if senses.ears is not None and (config.hearing != "ears" or senses.ears.config != config.ears):
        raise ConfigError(f"{ears}: expected a preset that hears with ears of this shape; nano-ears does")
    if senses.eyes is not None and not same_eyes(senses.eyes.config, config):
        raise ConfigError(f"{eyes}: expected a preset with eyes of this shape; what 'train eyes' makes fits nano-ears")
    return senses


def senses_of(config: PerceptionConfig, hearing: nn.Module, seeing: nn.Module) -> dict[str, str]:
    """As `Senses.fingerprints`, of a model that hears and sees with these; "none" for what learns with the model."""
    frozen = {"ears": (config.hearing == "ears", hearing), "eyes": (config.seeing == "eyes", seeing)}
    return {name: weights_hash(part) if is_frozen else "none" for name, (is_frozen, part) in frozen.items()}

"""Classifier-free guidance: away from what would be drawn without the agent's text, towards what the text asks for."""

from dataclasses import dataclass

import torch

from wan_streamer.model.layout import Latents


@dataclass(frozen=True)
class Guidance:
    """How far to go, for each modality: 0 ignores the text, 1 is the model as it is, more exaggerates."""

    video: float = 1.5
    audio: float = 2.5


def guide(conditional: Latents, unconditional: Latents, weight: Guidance) -> Latents:
    """unconditional + weight (conditional - unconditional); exactly the conditional at weight 1."""
    return Latents(
        torch.lerp(unconditional.video, conditional.video, weight.video),
        torch.lerp(unconditional.audio, conditional.audio, weight.audio),
    )

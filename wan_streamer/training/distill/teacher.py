"""The teacher of stage 3: a trained agent that is only read.

`Teacher`            its guided velocity
`check_same_kind`    whether a student can learn from it
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_streamer.config import FlowConfig, StreamerConfig
from wan_streamer.errors import CheckpointError
from wan_streamer.flow.joint import Guidance, guide
from wan_streamer.model.layout import Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.clips import Example, hide


@dataclass(frozen=True)
class Teacher:
    """`streamer` in evaluation mode, without gradients."""

    streamer: Streamer
    guidance: Guidance

    @torch.no_grad()
    def velocity(
        self, example: Example, history: Latents, history_tau_BK2: Tensor, noisy: Latents, tau_BK2: Tensor
    ) -> tuple[Latents, Tensor]:
        """Guided velocity and logits, as `Streamer.forward` returns them: two passes, one without the agent's text."""
        rest = (history, history_tau_BK2, noisy, tau_BK2)
        told, logits = self.streamer(example.clips, *rest)
        untold, _ = self.streamer(hide(example, text=True).clips, *rest)
        return guide(told, untold, self.guidance), logits


def check_same_kind(config: StreamerConfig, teacher: StreamerConfig, codecs: str, teacher_codecs: str) -> None:
    """Raises `CheckpointError` unless student and teacher differ in nothing but weights, name and sampling.

    codecs, teacher_codecs  hashes of the codecs whose latents they speak
    """
    for field in dataclasses.fields(StreamerConfig):
        ours, theirs = (getattr(_trained(kind), field.name) for kind in (config, teacher))
        if ours != theirs:
            raise CheckpointError(f"teacher: expected {field.name} {ours} as the student has, got {theirs}")
    if codecs != teacher_codecs:
        raise CheckpointError(
            f"teacher: expected a model of the codecs {codecs}, got one of {teacher_codecs}; encode the data with the"
            " teacher's codecs, and begin with a student of them"
        )


def _trained(config: StreamerConfig) -> StreamerConfig:
    """`config` without what may change after training: name, solver, sampling."""
    text = dataclasses.replace(config.text, temperature=0.0, start_bias=0.0)
    flow = FlowConfig(shift=config.flow.shift, history_noise=config.flow.history_noise)
    return dataclasses.replace(config, name="", text=text, flow=flow)

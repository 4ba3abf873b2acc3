"""A student goes on from real clips by itself, with the live cache and the live sampler (self-forcing).

`Rollout`         what it drew, and what its solver asked the model on the way
`continue_clips`  clips -> rollout
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_streamer.config import FlowConfig
from wan_streamer.flow.joint import denoise, each, stack
from wan_streamer.flow.sampler import draw_unit
from wan_streamer.flow.solver import Velocity
from wan_streamer.model.layout import ClipBatch, Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.stages.rollout import roll_out


@dataclass(frozen=True)
class Rollout:
    """K units of B clips: real ones first, then the student's own.

    inputs     what the solver asked about, step by step: [B, steps, K, N, P] and [B, steps, K, 4, C]
    cleans     where a jump from there to data ends; where that of the last step ends is what was emitted. Real units
               hold themselves in both
    before     latents before the clip: [B, N, P] and [B, 4, C]
    rolled_BK  float: 1 where the unit is the student's own
    """

    inputs: Latents
    cleans: Latents
    before: Latents
    rolled_BK: Tensor

    @property
    def emitted(self) -> Latents:
        """Latents of units 0 ... K-1: [B, K, ...]."""
        return each(lambda z: z[:, -1], self.cleans)

    @property
    def history(self) -> Latents:
        """Latents of units -1 ... K-2, as the student had them: [B, K, ...]."""
        return each(lambda before, z: torch.cat([before[:, None], z[:, :-1]], dim=1), self.before, self.emitted)


def recorded(velocity: Velocity, inputs: list[Latents], cleans: list[Latents]) -> Velocity:
    """`velocity`, which also notes what it was asked about and where a jump from there to data ends."""

    def ask(noisy: Latents, tau: float) -> Latents:
        slope = velocity(noisy, tau)
        inputs.append(noisy)
        cleans.append(denoise(noisy, slope, tau))
        return slope

    return ask


def continue_clips(
    streamer: Streamer, flow: FlowConfig, clips: ClipBatch, real_B: Tensor, generators: Sequence[torch.Generator]
) -> Rollout:
    """Row by row: `real_B` units of the clip, then units that the student draws with the row's generator.

    The user's streams and the text of both lanes are those of the clip throughout.
    """
    K = clips.microphone_BK.shape[1]
    rows = [
        _continue_row(streamer, flow, clips, row, int(real), generator)
        for row, (real, generator) in enumerate(zip(real_B.tolist(), generators, strict=True))
    ]
    inputs, cleans = (stack(row[part] for row in rows) for part in (0, 1))
    before = Latents(clips.video_BKNP[:, 0], clips.audio_BKTC[:, 0])
    rolled_BK = (torch.arange(K) >= real_B[:, None]).float()
    return Rollout(inputs, cleans, before, rolled_BK.to(before.video.device))


def _continue_row(
    streamer: Streamer, flow: FlowConfig, clips: ClipBatch, row: int, real: int, generator: torch.Generator
) -> tuple[Latents, Latents]:
    """(inputs, cleans) of one row: [steps, K, ...]."""
    inputs: list[Latents] = []
    cleans: list[Latents] = []
    said = iter(clips.slot_BKSL[row].flatten(0, 1))

    def draw(k: int, velocity: Velocity, last: Latents) -> Latents:
        if k < real:
            given = Latents(clips.video_BKNP[row, k + 1], clips.audio_BKTC[row, k + 1])
            inputs.extend([given] * flow.steps)
            cleans.extend([given] * flow.steps)
            return given

        return draw_unit(recorded(velocity, inputs, cleans), last, flow, generator)

    roll_out(streamer, clips, row, lambda logits_LV: next(said), draw, clips.written_BK[row].tolist(), told=True)
    by_step = (each(lambda z: z.unflatten(0, (-1, flow.steps)).transpose(0, 1), stack(z)) for z in (inputs, cleans))
    return tuple(by_step)  # type: ignore[return-value]

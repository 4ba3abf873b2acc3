"""A student goes on from real clips by itself, with the live cache and the live sampler (self-forcing).

`Rollout`         what it drew, and what its solver asked the model on the way
`continue_clips`  clips -> rollout
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_streamer.flow.joint import each
from wan_streamer.flow.sampler import draw_unit
from wan_streamer.model.layout import Latents
from wan_streamer.model.streamer import ClipBatch, LiveState, Streamer


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


@torch.no_grad()
def continue_clips(
    streamer: Streamer, clips: ClipBatch, real_B: Tensor, generators: Sequence[torch.Generator]
) -> Rollout:
    """Row by row: `real_B` units of the clip, then units that the student draws with the row's generator.

    The user's streams and the text of both lanes are those of the clip throughout.
    """
    K = clips.microphone_BK.shape[1]
    rows = [
        _continue_row(streamer, clips, row, int(real), generator)
        for row, (real, generator) in enumerate(zip(real_B.tolist(), generators, strict=True))
    ]
    inputs, cleans = (_stack([row[part] for row in rows], 0) for part in (0, 1))
    before = Latents(clips.video_BKNP[:, 0], clips.audio_BKTC[:, 0])
    rolled_BK = (torch.arange(K) >= real_B[:, None]).float()
    return Rollout(inputs, cleans, before, rolled_BK.to(before.video.device))


def _continue_row(
    streamer: Streamer, clips: ClipBatch, row: int, real: int, generator: torch.Generator
) -> tuple[Latents, Latents]:
    """(inputs, cleans) of one row: [steps, K, ...]."""
    microphone, camera, written = (
        flags[row].tolist() for flags in (clips.microphone_BK, clips.camera_BK, clips.written_BK)
    )
    K, live = len(microphone), streamer.open()
    audio_KT = clips.user_audio_BT[row].unflatten(0, (K, -1))
    frames_KTHWC = clips.user_video[row].unflatten(0, (K, -1))
    given = Latents(clips.video_BKNP[row], clips.audio_BKTC[row])
    last = Latents(given.video[0], given.audio[0])
    inputs, cleans = [], []
    for k in range(K):
        audio, frames = audio_KT[k] if microphone[k] else None, frames_KTHWC[k] if camera[k] else None
        streamer.observe(live, last, audio, frames, clips.user_text_BKS[row, k])
        for slot, token_L in enumerate(clips.slot_BKSL[row, k]):
            streamer.speak(live, slot, token_L, written[k])
        if k < real:
            last = Latents(given.video[k + 1], given.audio[k + 1])
            asked = jumps = [last] * streamer.config.flow.steps
        else:
            last, asked, jumps = _draw(streamer, live, last, generator)
        inputs.append(_stack(asked, 0))
        cleans.append(_stack(jumps, 0))
    return _stack(inputs, 1), _stack(cleans, 1)


def _draw(
    streamer: Streamer, live: LiveState, like: Latents, generator: torch.Generator
) -> tuple[Latents, list[Latents], list[Latents]]:
    """One unit from the live sampler, what it asked the model about, and the jumps to data from there."""
    asked, jumps = [], []

    def velocity(noisy: Latents, tau: float) -> Latents:
        slope = streamer.velocity(live, noisy, tau)
        asked.append(noisy)
        jumps.append(each(lambda z, v: z - tau * v, noisy, slope))
        return slope

    return draw_unit(velocity, like, streamer.config.flow, generator), asked, jumps


def _stack(latents: Sequence[Latents], dim: int) -> Latents:
    return each(lambda *z: torch.stack(z, dim), *latents)

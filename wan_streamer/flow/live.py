"""One live unit of the agent. Sessions, the pictures of training and the rollouts of stage 3 are loops of it.

`live_unit`    listen, fill the text slots, draw: what happens in 160 ms (paper section 3)
`UnitDecoder`  latents -> sound and picture, unit after unit
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wan_streamer.codecs.audio_vae import AudioDecoderState, AudioVAE
from wan_streamer.codecs.patches import unpatchify
from wan_streamer.codecs.video_vae import VideoDecoderState, VideoVAE, video_to_frames
from wan_streamer.config import StreamerConfig
from wan_streamer.flow.solver import Velocity
from wan_streamer.model.cache import LiveState
from wan_streamer.model.layout import Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.units import FRAMES_PER_UNIT


class UserInput(NamedTuple):
    """The user's unit as `Streamer.observe` takes it: None where microphone or camera is off."""

    audio_T: Tensor | None
    frames_THWC: Tensor | None
    text_S: Tensor


def live_unit(
    streamer: Streamer,
    live: LiveState,
    last: Latents,
    user: UserInput,
    pick: Callable[[Tensor], Tensor],
    draw: Callable[[Velocity, Latents], Latents],
    written: bool = True,
    stage: Callable[[str], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, Latents]:
    """Open the next block of `live` and fill it. Returns tokens [S, lanes] and the unit's latents.

    last     latents of the unit before, which become history
    pick     tokens [lanes] of a slot from their logits [lanes, V]; called slot after slot
    draw     (velocity, last) -> latents of this unit: `draw_unit`, or given ones. They become history in the next call
    written  False hides the tokens, as `ClipBatch.written_BK` does
    stage    around "observe", "text" and "solve", for those who measure them
    """
    tokens = []
    with stage("observe"):
        logits_LV = streamer.observe(live, last, *user)
    with stage("text"):
        for slot in range(streamer.config.text.slots):
            tokens.append(pick(logits_LV))
            logits_LV = streamer.speak(live, slot, tokens[-1], written)
    with stage("solve"):
        latents = draw(lambda noisy, tau: streamer.velocity(live, noisy, tau), last)
    return torch.stack(tokens), latents


class UnitDecoder:
    """Sound and picture of one agent, with the state of both codecs from unit to unit.

    video_vae  None draws nothing: the picture is black
    """

    def __init__(self, config: StreamerConfig, audio_vae: AudioVAE, video_vae: VideoVAE | None) -> None:
        self.config, self.audio_vae, self.video_vae = config, audio_vae, video_vae
        self.audio_state: AudioDecoderState | None = None
        self.video_state: VideoDecoderState | None = None

    @torch.no_grad()
    def decode(self, latents: Latents) -> tuple[np.ndarray, np.ndarray]:
        """Latents [K, tokens, ...] of the next K units -> float32 [K x 3840] and uint8 [4 K, H, W, 3]."""
        audio_BT, self.audio_state = self.audio_vae.decode(latents.audio.flatten(0, 1)[None], self.audio_state)
        audio_T = audio_BT[0].float().clamp(-1, 1).cpu().numpy()
        if self.video_vae is None:
            vae = self.config.video_vae
            return audio_T, np.zeros((len(latents.video) * FRAMES_PER_UNIT, vae.height, vae.width, 3), np.uint8)
        latent_BTCHW = unpatchify(latents.video, self.config)[None].to(self.video_vae.dtype)
        video_BTCHW, self.video_state = self.video_vae.decode(latent_BTCHW, self.video_state)
        return audio_T, video_to_frames(video_BTCHW)[0].cpu().numpy()

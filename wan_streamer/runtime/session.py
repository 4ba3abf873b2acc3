"""A single-process live session: `UserUnit -> AgentUnit`, thinker and performer in one.

observe   encode the user's unit, commit it and the agent's last latents
text      fill the slots of both lanes, each committed before the next
solve     few-step flow solver: peeks at the history, commits nothing
decode    latents to sound and picture, emitted at once (eager emission)
"""

import time
from collections import deque
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from wan_streamer.codecs.audio_vae import AudioDecoderState
from wan_streamer.codecs.text import END, SILENCE, LaneDecoder
from wan_streamer.codecs.video_vae import VideoDecoderState, video_to_frames
from wan_streamer.errors import ConfigError
from wan_streamer.flow.sampler import draw_unit
from wan_streamer.model.layout import LANES, Latents
from wan_streamer.model.pretrained import Weights
from wan_streamer.perception.video import scale_frames
from wan_streamer.units import AgentUnit, UserUnit

RESPONSE = LANES.index("response")


class Session:
    """One conversation. Same seed (default: the checkpoint's) and same input give the same output, bit for bit."""

    def __init__(self, weights: Weights, seed: int | None = None) -> None:
        self.weights, self.config = weights, weights.config
        self.seed = self.config.flow.seed if seed is None else seed
        self.live = weights.streamer.open()
        self.last = weights.streamer.silence()
        self.noise = torch.Generator().manual_seed(self.seed)
        self.audio_state: AudioDecoderState | None = None
        self.video_state: VideoDecoderState | None = None
        self.lanes = [LaneDecoder(weights.text) for _ in LANES]
        self.typed: deque[int] = deque()
        self.silent = True  # whether the agent is between two utterances
        self.index = 0

    @torch.inference_mode()
    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        """The agent's unit for the user's unit. `steps` overrides the number of solver steps.

        Raises `ConfigError` if `steps` is less than 1.
        """
        steps = self.config.flow.steps if steps is None else steps
        if steps < 1:
            raise ConfigError(f"steps: expected at least 1 solver step, got {steps}")
        stage_ms: dict[str, float] = {}
        with _timed(stage_ms, "observe"):
            logits = self._observe(user)
        with _timed(stage_ms, "text"):
            text, transcript = self._speak(logits)
        with _timed(stage_ms, "solve"):
            self.last = self._solve(steps)
        with _timed(stage_ms, "decode"):
            audio, video = self._decode(self.last)
        self.index += 1
        return AgentUnit(self.index - 1, audio, video, text, transcript, stage_ms)

    def _observe(self, user: UserUnit) -> Tensor:
        device = self.weights.streamer.place.device
        audio = None if user.audio is None else torch.from_numpy(user.audio).to(device)
        frames = None
        if user.video is not None:
            frames = scale_frames(user.video, self.config.perception).to(device)
        if user.text:
            self.typed.extend([*self.weights.text.encode(user.text), END])
        slots = self.config.text.slots
        typed = [self.typed.popleft() if self.typed else SILENCE for _ in range(slots)]
        return self.weights.streamer.observe(self.live, self.last, audio, frames, torch.tensor(typed, device=device))

    def _speak(self, logits_LV: Tensor) -> tuple[str, str]:
        added = ["", ""]
        for slot in range(self.config.text.slots):
            token_L = self._choose(logits_LV)
            self.silent = int(token_L[RESPONSE]) in (SILENCE, END)
            for lane, token in enumerate(token_L.tolist()):
                added[lane] += self.lanes[lane].push([token])
            logits_LV = self.weights.streamer.speak(self.live, slot, token_L)
        return added[0], added[1]

    def _choose(self, logits_LV: Tensor) -> Tensor:
        if self.silent:
            logits_LV = logits_LV.clone()
            logits_LV[RESPONSE, SILENCE] -= self.config.text.start_bias
        temperature = self.config.text.temperature
        if temperature == 0:
            return logits_LV.argmax(-1)
        probability = (logits_LV.float().cpu() / temperature).softmax(-1)
        return torch.multinomial(probability, 1, generator=self.noise).squeeze(1).to(logits_LV.device)

    def _solve(self, steps: int) -> Latents:
        streamer, flow = self.weights.streamer, self.config.flow
        return draw_unit(lambda z, tau: streamer.velocity(self.live, z, tau), self.last, flow, self.noise, steps)

    def _decode(self, latents: Latents) -> tuple[np.ndarray, np.ndarray]:
        weights = self.weights
        audio_BT, self.audio_state = weights.audio_vae.decode(latents.audio[None], self.audio_state)
        dtype = weights.video_vae.stats.mean_C.dtype
        latent_BTCHW = weights.streamer.unpatchify(latents.video)[None, None].to(dtype)
        video_BTCHW, self.video_state = weights.video_vae.decode(latent_BTCHW, self.video_state)
        audio = audio_BT[0].float().clamp(-1, 1).cpu().numpy()
        return audio, video_to_frames(video_BTCHW)[0].cpu().numpy()


@contextmanager
def _timed(stage_ms: dict[str, float], name: str):
    start = time.perf_counter()
    yield
    stage_ms[name] = (time.perf_counter() - start) * 1000

"""A live session in one process: `UserUnit -> AgentUnit`, thinker and performer in one (docs/architecture.md).

observe   encode the user's unit, commit it and the agent's last latents
text      fill the slots of both lanes, each committed before the next
solve     few-step flow solver: peeks at the history, commits nothing
decode    latents to sound and picture, emitted at once (eager emission)
"""

import dataclasses
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wan_streamer.codecs.text import END, SILENCE, LaneDecoder
from wan_streamer.errors import ShapeError
from wan_streamer.fields import changed
from wan_streamer.flow.joint import stack
from wan_streamer.flow.live import UnitDecoder, UserInput, live_unit
from wan_streamer.flow.sampler import TokenSampler, draw_unit
from wan_streamer.model.layout import LANES
from wan_streamer.model.pretrained import Weights
from wan_streamer.perception.video import scale_frames
from wan_streamer.units import AgentUnit, UserUnit


class Session:
    """One conversation. Same seed and same input give the same output, bit for bit.

    seed, steps, temperature, start_bias   as `WanStreamer.session` has them; None leaves the checkpoint's
    """

    def __init__(
        self,
        weights: Weights,
        seed: int | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        start_bias: float | None = None,
    ) -> None:
        self.streamer, self.text = weights.streamer, weights.text
        self.config = dataclasses.replace(
            weights.config,
            flow=changed(weights.config.flow, seed=seed, steps=steps),
            text=changed(weights.config.text, temperature=temperature, start_bias=start_bias),
        )
        self.seed = self.config.flow.seed
        self.live = self.streamer.open()
        self.last = self.streamer.silence()
        self.noise = torch.Generator().manual_seed(self.seed)
        self.sampler = TokenSampler(self.config.text, self.noise)
        self.decoder = UnitDecoder(self.config, weights.audio_vae, weights.video_vae)
        self.lanes = [LaneDecoder(self.text) for _ in LANES]
        self.typed: deque[int] = deque()
        self.index = 0

    @torch.inference_mode()
    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        """The agent's unit for the user's unit. `steps` overrides the number of solver steps for this unit.

        Raises `ConfigError` if `steps` is out of range, `ShapeError` if `user` is no `UserUnit`.
        """
        if not isinstance(user, UserUnit):
            raise ShapeError(f"Session.step: expected a UserUnit, got {type(user).__name__}")
        flow = changed(self.config.flow, steps=steps)
        stage_ms: dict[str, float] = {}

        @contextmanager
        def timed(name: str) -> Iterator[None]:
            start = time.perf_counter()
            yield
            stage_ms[name] = stage_ms.get(name, 0.0) + (time.perf_counter() - start) * 1000

        with timed("observe"):
            heard = self._input(user)
        token_SL, self.last = live_unit(
            self.streamer,
            self.live,
            self.last,
            heard,
            self.sampler,
            lambda velocity, last: draw_unit(velocity, last, flow, self.noise),
            stage=timed,
        )
        with timed("text"):
            lanes = zip(self.lanes, token_SL.T.tolist(), strict=True)
            text, transcript = (lane.push(tokens) for lane, tokens in lanes)
        with timed("decode"):
            audio, video = self.decoder.decode(stack([self.last]))
        self.index += 1
        return AgentUnit(self.index - 1, audio, video, text, transcript, stage_ms)

    def _input(self, user: UserUnit) -> UserInput:
        device = self.streamer.device
        audio = None if user.audio is None else torch.from_numpy(user.audio).to(device)
        frames = None if user.video is None else scale_frames(user.video, self.config.perception).to(device)
        if user.text:
            self.typed.extend([*self.text.encode(user.text), END])
        typed = [self.typed.popleft() if self.typed else SILENCE for _ in range(self.config.text.slots)]
        return UserInput(audio, frames, torch.tensor(typed, device=device))

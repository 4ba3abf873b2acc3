"""A live session in one process: `UserUnit -> AgentUnit`, thinker and performer in one (docs/architecture.md).

settle    commit the agent's last latents: between two units, or at the begin of the next
observe   encode the user's unit, commit it
text      fill the slots of both lanes, each committed before the next
solve     few-step flow solver: peeks at the history, commits nothing
decode    latents to sound and picture, emitted at once (eager emission)
"""

import dataclasses
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch

from wan_streamer.codecs.text import END, SILENCE, LaneDecoder
from wan_streamer.config import FlowConfig
from wan_streamer.errors import ShapeError
from wan_streamer.fields import changed
from wan_streamer.flow.joint import stack
from wan_streamer.flow.live import UnitDecoder, UserInput, live_unit
from wan_streamer.flow.sampler import TokenSampler, draw_unit
from wan_streamer.flow.solver import Velocity
from wan_streamer.model.layout import LANES, Latents
from wan_streamer.model.memory import TRANSCRIPT
from wan_streamer.model.pretrained import Weights
from wan_streamer.perception.video import scale_frames
from wan_streamer.runtime.still import Still
from wan_streamer.runtime.together import Together
from wan_streamer.runtime.trace import Span
from wan_streamer.units import AgentUnit, UserUnit


class Said(NamedTuple):
    """What one lane says in a unit.

    ended  its turn is over; a unit has too few slots to end one and begin the next
    whole  what was said in that turn, if it was read again as a whole
    """

    text: str
    ended: bool
    whole: str = ""


class Session:
    """One conversation. Same seed and same input give the same output, bit for bit.

    seed, steps, temperature, start_bias   as `WanStreamer.session` has them; None leaves the checkpoint's
    pictures   False draws none
    """

    def __init__(
        self,
        weights: Weights,
        seed: int | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        start_bias: float | None = None,
        pictures: bool = True,
    ) -> None:
        self.streamer, self.text, self.config = weights.streamer, weights.text, weights.config
        self.noise = torch.Generator()
        self.configure(seed, steps, temperature, start_bias)
        self.live = self.streamer.open()
        self.last = self.streamer.silence()
        self.decoder = UnitDecoder(self.config, weights.audio_vae, weights.decoding_vae if pictures else None)
        self.lanes = [LaneDecoder(self.text) for _ in LANES]
        self.typed: deque[int] = deque()
        self.index = 0
        self._still = Still((self.config.video_vae.height, self.config.video_vae.width))
        self._broken = False
        self.watch = Stopwatch()  # of the last step

    def configure(
        self,
        seed: int | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        start_bias: float | None = None,
    ) -> None:
        """Begin with these options; None leaves what is."""
        self.config = dataclasses.replace(
            self.config,
            flow=changed(self.config.flow, seed=seed, steps=steps),
            text=changed(self.config.text, temperature=temperature, start_bias=start_bias),
        )
        self.seed = self.config.flow.seed
        self.noise.manual_seed(self.seed)
        self.sampler = TokenSampler(self.config.text, self.noise)

    @torch.inference_mode()
    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        """The agent's unit for the user's unit. `steps` overrides the number of solver steps for this unit.

        Raises `ConfigError` if `steps` is out of range, `ShapeError` if `user` is no `UserUnit`.
        """
        if not isinstance(user, UserUnit):
            raise ShapeError(f"Session.step: expected a UserUnit, got {type(user).__name__}")
        flow, self.watch = changed(self.config.flow, steps=steps), Stopwatch()
        said, latents = self._think(user, flow)
        self._take(latents)
        return self._show(self.index - 1, said)

    @torch.inference_mode()
    def settle(self) -> None:
        """Do of the next unit what needs no user: its latents become history. `step` does it, if nobody has; in the
        pause between two units it costs the answer no time.
        """
        with self._joined():
            self._settle()

    def _settle(self) -> None:
        self.streamer.settle(self.live, self.last)

    def _joined(self) -> AbstractContextManager:
        together = self.streamer.together
        return together.joined() if isinstance(together, Together) else nullcontext()

    def _think(self, user: UserUnit, flow: FlowConfig) -> tuple[list[Said], Latents]:
        """All of a unit but decoding: what both lanes say, and its latents."""
        with self._joined():
            with self.watch("observe"):
                heard = self._input(user)
                self._settle()
            token_SL, latents = live_unit(
                self.streamer,
                self.live,
                self.last,
                heard,
                self.sampler,
                lambda velocity, last: self._draw(velocity, last, flow),
                stage=self.watch,
            )
        self.index += 1
        with self.watch("text"):
            said = [
                Said(lane.push(tokens), END in tokens)
                for lane, tokens in zip(self.lanes, token_SL.T.tolist(), strict=True)
            ]
            if self.live.whole_N is not None:
                whole = self.text.decode(self.live.whole_N.tolist()).strip()
                said[TRANSCRIPT] = said[TRANSCRIPT]._replace(whole=whole)
        return said, latents

    def _take(self, latents: Latents) -> None:
        """These are the unit's latents. If they are no numbers, those of the unit before count in the history."""
        self._broken = not all(bool(z.isfinite().all()) for z in latents)
        if not self._broken:
            self.last = latents

    def _show(self, index: int, said: list[Said]) -> AgentUnit:
        """The unit of the latents that were taken last."""
        (text, transcript), whole = (lane.text for lane in said), said[TRANSCRIPT].whole
        ended = tuple(name for name, lane in zip(LANES, said, strict=True) if lane.ended)
        if self._broken:
            unit = self._still.unit(
                index, text=text, transcript=transcript, stage_ms=self.watch.ms, broken=True, ended=ended, whole=whole
            )
        else:
            with self.watch("decode"):
                audio, video = self.decoder.decode(stack([self.last]))
            audio = self._still.fade_in(audio)
            unit = AgentUnit(index, audio, video, text, transcript, self.watch.ms, ended=ended, whole=whole)
        self._still.follow(unit)
        return unit

    def _draw(self, velocity: Velocity, last: Latents, flow: FlowConfig) -> Latents:
        return draw_unit(velocity, last, flow, self.noise)

    def _input(self, user: UserUnit) -> UserInput:
        device = self.streamer.device
        audio = None if user.audio is None else torch.from_numpy(user.audio).to(device)
        frames = None if user.video is None else scale_frames(user.video, self.config.perception).to(device)
        if user.text:
            self.typed.extend([*self.text.encode(user.text), END])
        typed = [self.typed.popleft() if self.typed else SILENCE for _ in range(self.config.text.slots)]
        return UserInput(audio, frames, torch.tensor(typed, device=device))


class Stopwatch:
    """`with watch("stage")` adds to the milliseconds of a stage, and notes when it was.

    ms  of each stage;   spans  of the stages, and of their parts that were noted with `part`
    """

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self.spans: list[Span] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with self.part(stage):
            yield
        span = self.spans[-1]
        self.ms[stage] = self.ms.get(stage, 0.0) + (span.end_s - span.start_s) * 1000

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.spans.append(Span(name, start, time.monotonic()))

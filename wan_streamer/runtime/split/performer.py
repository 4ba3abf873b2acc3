"""The performer: the flow solver of a session whose history is made elsewhere (paper section 4).

`History`     what one unit adds to the history, collected by the thinker's cache
`Performer`   appends it to its own cache and solves
`perform`     the loop that answers a link;   messages  `Ready` `Attach` `Solve` `Solved` `Detach` `Stop`

`PerformerProcess`  a process that does so

Thinker and performer are two deployments of the same weights. The performer reads keys and values only; it never sees
what the user did. Its results are those of the session alone, bit for bit, on the same kind of device.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor

from wan_streamer.errors import LinkError
from wan_streamer.flow.sampler import solve_unit
from wan_streamer.model.cache import CacheState, KVCache, KVSlice, LiveState
from wan_streamer.model.layout import Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.process import log_as_parent, tune_process
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.runtime.formats import Formats
from wan_streamer.runtime.split.links import Link, shared_pair
from wan_streamer.runtime.trace import Span
from wan_streamer.threads import Threads


@dataclass(frozen=True)
class History:
    """What a unit adds: memory tokens [2, Z, N, G, d] before the block opens, if any, and the block's own."""

    memory_2ZNGd: Tensor | None
    block: KVSlice


class RecordingCache(KVCache):
    """A cache that also hands out what a unit has added."""

    _added: list[KVSlice]
    _memory_added: Tensor | None = None

    def open_block(self) -> None:
        super().open_block()
        self._added = []

    def append(self, part: KVSlice) -> None:
        super().append(part)
        self._added.append(part)

    def remember(self, new_2ZNGd: Tensor) -> None:
        super().remember(new_2ZNGd)
        self._memory_added = new_2ZNGd

    def take(self) -> History:
        """Of the open block, with the memory that was added before it."""
        memory, self._memory_added = self._memory_added, None
        block = KVSlice(
            torch.cat([part.key_ZNGd for part in self._added], dim=1),
            torch.cat([part.value_ZNGd for part in self._added], dim=1),
            torch.cat([part.index_N for part in self._added]),
        )
        return History(memory, block)


@dataclass(frozen=True)
class Attach:
    """To the performer: a session, as it is after its last unit. An older one of this number is forgotten."""

    session: int
    epoch: int
    cache: CacheState


@dataclass(frozen=True)
class Solve:
    """To the performer: the next unit of a session.

    noise  its `unit_noise`;   steps  of the solver;   guessed  what its voice guesses of it, if it has one
    """

    session: int
    epoch: int
    unit: int
    history: History
    noise: list[Latents]
    steps: int
    guessed: Tensor | None


@dataclass(frozen=True)
class Solved:
    """From the performer. span: when it worked on the unit"""

    session: int
    epoch: int
    unit: int
    latents: Latents
    span: Span


@dataclass(frozen=True)
class Ready:
    """From the performer: it has loaded its weights."""


@dataclass(frozen=True)
class Detach:
    session: int


@dataclass(frozen=True)
class Stop:
    """To the performer: end."""


MESSAGES = (Ready, Attach, Solve, Solved, Detach, Stop, History, KVSlice, CacheState, Latents, Span)


class Performer:
    """The histories of its sessions, and the solver."""

    def __init__(self, streamer: Streamer) -> None:
        self.streamer = streamer
        self.sessions: dict[int, tuple[int, LiveState]] = {}

    def attach(self, message: Attach) -> None:
        live = self.streamer.open()
        live.cache.restore(message.cache)
        self.sessions[message.session] = message.epoch, live

    @torch.inference_mode()
    def solve(self, message: Solve) -> Solved | None:
        """Latents of a unit; None if the session is not attached in this epoch."""
        epoch, live = self.sessions.get(message.session, (-1, None))
        if live is None or epoch != message.epoch:
            return None
        began = time.monotonic()
        if message.history.memory_2ZNGd is not None:
            live.cache.remember(message.history.memory_2ZNGd)
        live.cache.open_block()
        live.cache.append(message.history.block)
        flow = dataclasses.replace(self.streamer.config.flow, steps=message.steps)
        device = self.streamer.device
        live.guessed = None if message.guessed is None else message.guessed.to(device)
        noise = [Latents(*(z.to(device) for z in latents)) for latents in message.noise]
        latents = solve_unit(lambda noisy, tau: self.streamer.velocity(live, noisy, tau), noise, flow)
        span = Span("performer solves", began, time.monotonic(), os.getpid())
        return Solved(message.session, epoch, message.unit, latents, span)


def perform(link: Link, performer: Performer, after: Callable[[], None] = lambda: None) -> None:
    """Answer messages until `Stop`; `after` is called after each unit. Raises `LinkError` when the thinker is gone."""
    link.send(Ready())
    while True:
        match message := link.receive():
            case Stop():
                return
            case Attach():
                performer.attach(message)
            case Detach():
                performer.sessions.pop(message.session, None)
            case Solve():
                if (solved := performer.solve(message)) is not None:
                    link.send(solved)
                after()


def load_streamer(checkpoint: str, device: str, formats: Formats | None = None) -> Streamer:
    """The model of a checkpoint, as `WanStreamer` holds it; its codecs are not kept."""
    return WanStreamer.from_pretrained(checkpoint, device, formats, chat="").weights.streamer


class PerformerProcess:
    """`connect` starts a performer in a process of its own, instead of the one before.

    factory     picklable, makes the model there
    slot_bytes  of the largest message, which is the history of a session
    """

    def __init__(self, factory: Callable[[], Streamer], slot_bytes: int = 32 << 20) -> None:
        self._factory, self._slot_bytes = factory, slot_bytes
        self.process: BaseProcess | None = None

    def connect(self) -> Link:
        self.kill()
        here, there = shared_pair(MESSAGES, self._slot_bytes)
        here.patience_s = 1.0  # sessions wait for who sends, so a dead performer must not hold it for long
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(
            target=_serve, args=(there, self._factory), name="wan-streamer-performer", daemon=True
        )
        self.process.start()
        there.hand_over()
        return here

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join(timeout=5)


def _serve(link: Link, factory: Callable[[], Streamer]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the thinker decides when to stop
    tune_process()
    log_as_parent()
    with contextlib.suppress(LinkError):  # the thinker is gone: nobody is left to answer
        performer, threads = Performer(factory()), Threads()
        perform(link, performer, threads.check)

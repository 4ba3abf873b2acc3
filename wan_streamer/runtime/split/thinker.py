"""The thinker: a session whose solver works elsewhere (paper section 4).

`SplitSession`  a `Session` that lets a performer solve;   `PacedSession`  the same on the paper's schedule
`Partner`       the performer behind a link: attaches sessions, asks, and goes on without it when it is lost

Thinker and performer have the same weights. When the performer dies or is too slow, the thinker solves the unit itself,
from the same noise: the result is the same, later units too, and a new performer gets the history as it is then.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wan_streamer.config import FlowConfig
from wan_streamer.errors import LinkError
from wan_streamer.fields import changed
from wan_streamer.flow.joint import each
from wan_streamer.flow.sampler import solve_unit, unit_noise
from wan_streamer.flow.solver import Velocity
from wan_streamer.model.layout import LANES, Latents
from wan_streamer.model.pretrained import Weights
from wan_streamer.runtime.session import Said, Session, Stopwatch
from wan_streamer.runtime.split.links import Link
from wan_streamer.runtime.split.performer import Attach, Detach, Ready, RecordingCache, Solve, Solved, Stop
from wan_streamer.runtime.still import Still
from wan_streamer.units import AgentUnit, UserUnit

log = logging.getLogger(__name__)


class Partner:
    """A performer that may be lost. Sessions on several threads share it.

    connect     starts a performer and returns the link to it; called on a thread of its own, again after every loss
    patience_s  a performer that has not answered a unit for so long counts as lost

    losses      so often it was lost;   alone  so many units were solved here
    """

    def __init__(self, connect: Callable[[], Link], patience_s: float = 1.0) -> None:
        self._connect, self.patience_s = connect, patience_s
        self.losses = self.alone = 0
        self._epoch = 0
        self._link: Link | None = None
        self._attached: dict[int, int] = {}  # session -> epoch
        self._closed = False
        self._changed = threading.Condition(threading.RLock())
        self._reading = False  # a thread waits for a message
        self._solved: dict[tuple[int, int], Solved] = {}  # (session, unit), until that session takes it
        self._connecting: threading.Thread | None = None
        self._reconnect()

    def counters(self) -> dict[str, int]:
        """For reports: how often a performer was lost, and how many units were solved without one."""
        return {"performer_losses": self.losses, "alone": self.alone}

    @property
    def ready(self) -> bool:
        return self._link is not None

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Block until a performer is there. Raises `LinkError` if none is in time."""
        until = time.monotonic() + timeout_s
        while not self.ready:
            if time.monotonic() > until:
                raise LinkError(f"the performer was not ready after {timeout_s:.0f} s")
            time.sleep(0.01)

    def attach(self, session: int, cache: RecordingCache) -> None:
        """Between two units: hand over the history, if the performer of today does not have it."""
        with self._changed:
            link, epoch = self._link, self._epoch
            if link is None or self._attached.get(session) == epoch:
                return
            if self._send(link, Attach(session, epoch, cache.state())):
                self._attached[session] = epoch

    def ask(
        self, session: int, unit: int, cache: RecordingCache, noise: list[Latents], steps: int, guessed: Tensor | None
    ) -> bool:
        """Send a unit to be solved; False if it has to be solved here."""
        history = cache.take()
        with self._changed:
            link, epoch = self._link, self._epoch
            sent = False
            if link is not None and self._attached.get(session) == epoch:
                sent = self._send(link, Solve(session, epoch, unit, history, noise, steps, guessed))
            self.alone += not sent
            return sent

    def answer(self, session: int, unit: int) -> Solved | None:
        """A unit that was sent; None if the performer was lost, so that it has to be solved here."""
        until = time.monotonic() + self.patience_s
        with self._changed:
            link = self._link
            while link is not None and link is self._link:
                if (solved := self._solved.pop((session, unit), None)) is not None:
                    return solved
                if (left_s := until - time.monotonic()) < 0:
                    self._lose(link, LinkError(f"the performer owes unit {unit} for {self.patience_s:.1f} s"))
                elif self._reading:
                    self._changed.wait(left_s)
                else:
                    self._read(link, left_s)
            self.alone += 1
            return None

    def _read(self, link: Link, timeout_s: float) -> None:
        """Take the next message for whichever session it is. One thread reads, the others wait for it."""
        self._reading, epoch = True, self._epoch
        self._changed.release()
        message, problem = None, None
        try:
            message = link.receive(timeout_s)
            if isinstance(message, Solved):  # its tensors lie in the link's memory
                message = replace(message, latents=each(lambda z: z.clone(), message.latents))
        except LinkError as error:
            problem = error
        finally:
            self._changed.acquire()
            self._reading = False
            self._changed.notify_all()
            if self._link is not link:
                link.close()
        if problem is not None:
            self._lose(link, problem)
        elif isinstance(message, Solved) and message.epoch == epoch == self._epoch:
            self._solved[message.session, message.unit] = message

    def detach(self, session: int) -> None:
        with self._changed:
            attached = self._attached.pop(session, None) == self._epoch
            self._solved = {key: solved for key, solved in self._solved.items() if key[0] != session}
            if attached and self._link is not None:
                self._send(self._link, Detach(session))

    def close(self) -> None:
        self._closed = True
        with self._changed:
            link, self._link = self._link, None
            self._changed.notify_all()
        if link is not None:
            with contextlib.suppress(LinkError):
                link.send(Stop())
            link.close()
        if self._connecting is not None:
            self._connecting.join()

    def _send(self, link: Link, message: Any) -> bool:
        try:
            link.send(message)
            return True
        except LinkError as error:
            self._lose(link, error)
            return False

    def _lose(self, link: Link, error: LinkError) -> None:
        if self._link is not link:  # another session has seen it too
            return
        log.warning("performer lost: %s; its units are solved here until there is another", error)
        self._link = None
        self._solved.clear()
        self._changed.notify_all()
        if not self._reading:  # who reads closes it
            link.close()
        self.losses += 1
        self._reconnect()

    def _reconnect(self) -> None:
        self._connecting = threading.Thread(target=self._wait_for_performer, name="performer", daemon=True)
        self._connecting.start()

    def _wait_for_performer(self) -> None:
        try:
            link = self._connect()
            while not isinstance(message := link.receive(), Ready):
                if message is not None:
                    raise LinkError(f"expected a performer that says it is ready, got {type(message).__name__}")
        except LinkError as error:
            if not self._closed:
                log.error("no performer: %s; units are solved here", error)
            return
        if self._closed:
            link.close()
            return
        with self._changed:
            self._epoch += 1  # what was attached to the one before is not attached to this one
            self._link = link


class SplitSession(Session):
    """A session that asks `partner` to solve. Call `close` at its end.

    options  those of `Session`
    """

    _numbers = itertools.count()

    def __init__(self, weights: Weights, partner: Partner, **options: Any) -> None:
        super().__init__(weights, **options)
        old = self.live.cache
        self.cache = self.live.cache = RecordingCache(old.config, old.layout, old.raw.device, old.raw.dtype)
        self.partner, self.number = partner, next(self._numbers)
        self._asked: int | None = None  # the unit that the performer has

    def _settle(self) -> None:
        if not self.live.settled:  # a performer that comes later gets the history with the next block
            self.partner.attach(self.number, self.cache)
        super()._settle()

    def _draw(self, velocity: Velocity, last: Latents, flow: FlowConfig) -> Latents:
        noise = self._ask(last, flow)
        return self._answer(velocity, noise, flow)

    def _ask(self, last: Latents, flow: FlowConfig) -> list[Latents]:
        """Returns the noise."""
        noise = unit_noise(last, flow, self.noise)
        with self.watch.part("to the performer"):
            sent = self.partner.ask(self.number, self.index, self.cache, noise, flow.steps, self.live.guessed)
        self._asked = self.index if sent else None
        return noise

    def _answer(self, velocity: Velocity, noise: list[Latents], flow: FlowConfig) -> Latents:
        solved = None
        if self._asked is not None:
            with self.watch.part("wait for the performer"):
                solved = self.partner.answer(self.number, self._asked)
        if solved is None:
            return solve_unit(velocity, noise, flow)
        self.watch.spans.append(solved.span)
        return each(lambda z, like: z.to(like.device), solved.latents, noise[0])

    def close(self) -> None:
        self.partner.detach(self.number)


class PacedSession(SplitSession):
    """The schedule of the paper: unit k is decoded in step k + 1, while the performer solves unit k + 1.

    The first step has nothing to show: black and silent. The units are those of a `SplitSession`, one step later.
    """

    def __init__(self, weights: Weights, partner: Partner, **options: Any) -> None:
        super().__init__(weights, partner, **options)
        self._waiting: Callable[[], Latents] | None = None
        self._said = [Said("", False) for _ in LANES]

    @torch.inference_mode()
    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        flow, self.watch, said = changed(self.config.flow, steps=steps), Stopwatch(), self._said
        first = self._waiting is None
        if self._waiting is not None:
            with self.watch("solve"):
                self._take(self._waiting())
        self._said, _ = self._think(user, flow)
        if first:
            return Still((self.config.video_vae.height, self.config.video_vae.width)).unit(-1, stage_ms=self.watch.ms)
        return self._show(self.index - 2, said)

    def settle(self) -> None:
        """Nothing: the last latents come with the next step."""

    def _draw(self, velocity: Velocity, last: Latents, flow: FlowConfig) -> Latents:
        noise = self._ask(last, flow)
        self._waiting = lambda: self._answer(velocity, noise, flow)
        return last

"""One visitor's conversation, whatever carries its media.

`Call`  cuts the uplink into units on the server's clock, sends them to the model process, plays out the answers, and
        reports. It survives a silent device, a late model and a dead model process; it ends when the visitor is gone.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable

from wan_streamer.errors import ServingError, WanStreamerError
from wan_streamer.runtime.clock import why_late
from wan_streamer.runtime.processes import ModelProcess, ModelSession
from wan_streamer.runtime.worker import Stats, UnitOut
from wan_streamer.serving.messages import (
    CaptionEvent,
    Devices,
    NoticeEvent,
    PageMessage,
    Ping,
    PongEvent,
    SessionEvent,
    StatsEvent,
    TextInput,
)
from wan_streamer.serving.meter import Meter
from wan_streamer.serving.playout import Playout
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.uplink import Uplink
from wan_streamer.units import UNIT_S

REPORT_S = 1.0
RESYNC_S = 1.0  # a clock this far behind (machine asleep) skips units instead of sending a burst
HELD_UNITS, HELD_SHARE = 4, 0.05  # more of them and the visitor is told why

log = logging.getLogger(__name__)

Emit = Callable[[SessionEvent | CaptionEvent | NoticeEvent | StatsEvent | PongEvent], None]


class Call:
    """Feed `uplink`, `handle` page messages, send `playout`'s tracks, and await `run`.

    emit    receives every event for the page; must not block
    heard   when anything last came from the visitor, `time.monotonic()`
    """

    def __init__(self, model: ModelProcess, config: ServingConfig, emit: Emit) -> None:
        self.uplink = Uplink()
        self.playout = Playout(prebuffer_ms=config.prebuffer_ms, max_ms=config.max_playout_ms)
        self.heard = time.monotonic()
        self._model, self._config, self._emit = model, config, emit
        self._session: ModelSession | None = None
        self._meter = Meter()
        self._deadline_misses = 0
        self._units = 0
        self._held = 0
        self._recoveries = 0
        self._told_late = self._resumed = False
        self._answered = time.monotonic()

    def handle(self, message: PageMessage) -> None:
        """One message of the page."""
        self.heard = time.monotonic()
        match message:
            case Ping():
                self._emit(PongEvent(message.t))
            case TextInput():
                self.uplink.push_text(message.text)
            case Devices():
                if not message.camera:
                    self.uplink.video.close()

    async def run(self) -> str:
        """Converse until the visitor is silent on every channel or the model cannot be kept alive.

        Returns the reason. Cancelling ends the call as well.
        """
        tasks: list[asyncio.Task[str]] = []
        try:
            await self._open("live")
            loops = (self._send_units(), self._receive_units(), self._report(), self._watch(), self._play())
            tasks = [asyncio.create_task(loop) for loop in loops]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            reason = done.pop().result()
        except WanStreamerError as error:
            reason = str(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._session is not None:
                self._model.close_session(self._session)
            self.playout.close()
        with contextlib.suppress(Exception):
            self._emit(SessionEvent("ended", reason))
        return reason

    async def _open(self, state: str, message: str = "", resume: bool = False) -> None:
        ready = await self._model.ensure_ready()
        self._session = await self._model.open_session(seed=secrets.randbelow(2**31), resume=resume)
        self._answered = time.monotonic()
        self._emit(SessionEvent(state, message, agent=ready.name))

    async def _send_units(self) -> str:
        index = 0
        due = time.monotonic() + UNIT_S
        while True:
            now = time.monotonic()
            stalled = now - due > RESYNC_S
            if stalled:
                due = now + UNIT_S  # in this time what has waited in the network arrives
            t_in, due = due, due + UNIT_S  # complete at t_in; if this loop wakes later, that counts as latency
            await asyncio.sleep(max(0.0, t_in - now))
            if stalled:
                self.uplink.catch_up()
            session = self._session
            if session is None:  # the model is being restarted: time goes on, typed text waits
                self.uplink.discard(t_in)
                continue
            session.step(index, self.uplink.take(t_in), t_in)
            index += 1
            if session.pending > 1 and time.monotonic() - self._answered > self._config.model_timeout_s:
                log.warning("the model owes %d units and is restarted", session.pending)
                self._answered = time.monotonic()
                self._model.kill()

    async def _receive_units(self) -> str:
        while True:
            assert self._session is not None
            try:
                self._take(await self._session.receive())
            except ServingError as error:
                await self._recover(error)

    def _take(self, message: UnitOut | Stats) -> None:
        if isinstance(message, Stats):
            self._deadline_misses = int(message.summary["deadline_misses"])
            if not self._told_late and message.summary["held_units"] > max(HELD_UNITS, HELD_SHARE * self._units):
                self._told_late = True
                self._emit(NoticeEvent(f"The agent does not keep up. {why_late(message.summary)}."))
            return
        now = self._answered = time.monotonic()
        unit, meter = message.unit, self._meter
        meter.add_latency((now - message.t_in) * 1000)
        meter.add("server: to model", (message.t_start - message.t_in) * 1000)
        meter.add("server: from model", (now - message.t_out) * 1000)
        meter.add("server: playout", self.playout.queued_ms)
        for stage, ms in unit.stage_ms.items():
            meter.add(stage, ms)
        if self._resumed and self._session is not None:
            self._resumed = False
            remembers = "goes on" if self._session.units else "does not remember what was said before"
            self._emit(NoticeEvent(f"The model was restarted. It {remembers}."))
        self._units += 1
        self._held += unit.held
        self.playout.push(unit)
        for lane, text in (("response", unit.text), ("transcript", unit.transcript)):
            if text:
                self._emit(CaptionEvent(lane, message.index, text))

    async def _recover(self, error: ServingError) -> None:
        log.warning("model session lost: %s", error)
        self._session = None
        self._recoveries += 1
        if self._recoveries > self._config.max_recoveries:
            raise ServingError(f"the model failed {self._recoveries} times in this call; the last time: {error}")
        self._emit(SessionEvent("recovering", "The model stopped and is being restarted. Please wait."))
        await self._open("live", resume=True)
        self._resumed = True

    async def _report(self) -> str:
        while True:
            await asyncio.sleep(REPORT_S)
            session = self._session
            self._emit(StatsEvent(
                units=self._units,
                deadline_misses=self._deadline_misses,
                held=self._held,
                late=self.playout.late,
                backlog=session.pending if session else 0,
                playout_ms=self.playout.queued_ms,
                model_latency_ms=self._meter.model_latency(),
                event_latency_ms=self._meter.event_latency(),
                stage_ms=self._meter.stages(),
            ))  # fmt: skip

    async def _watch(self) -> str:
        while True:
            await asyncio.sleep(REPORT_S)
            silent = time.monotonic() - self.heard
            if silent > self._config.idle_timeout_s:
                return f"nothing came from the page for {silent:.0f} s"

    async def _play(self) -> str:
        await self.playout.run()
        return "the playout ended"

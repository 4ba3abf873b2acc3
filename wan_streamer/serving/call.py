"""One visitor's conversation, whatever carries its media.

`Call`  cuts the uplink into units on the server's clock, sends them to the model process, plays out the answers, and
        reports. It survives a silent device, a late model and a dead model process; it ends when the visitor is gone,
        and leaves the conversation for another one to go on with.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from wan_streamer.errors import ServingError, WanStreamerError
from wan_streamer.process import masked
from wan_streamer.runtime.clock import why_late
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.runtime.worker import Ready, Stats, UnitOut
from wan_streamer.serving.conversation import Conversation
from wan_streamer.serving.messages import (
    GOODBYE,
    TIME_OVER,
    CaptionEvent,
    Clear,
    Devices,
    Goodbye,
    Lane,
    Message,
    Mute,
    NoticeEvent,
    Ping,
    PlaybackEvent,
    PongEvent,
    ServerEvent,
    SessionEvent,
    StatsEvent,
    TextInput,
    TurnEvent,
)
from wan_streamer.serving.meter import Meter
from wan_streamer.serving.playout import Playout
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.uplink import Uplink
from wan_streamer.serving.watch.metrics import Metrics
from wan_streamer.units import FPS, UNIT_MS, UNIT_S

REPORT_S = 1.0
RESYNC_S = 1.0  # a clock this far behind (machine asleep) skips units instead of sending a burst
NOTICE_S = 60.0  # so long before the longest call ends, its visitor is told
SILENT = "nothing came from the page"
HELD_UNITS, HELD_SHARE = 4, 0.05  # more of them and the visitor is told why

log = logging.getLogger(__name__)

Emit = Callable[[ServerEvent], None]


class Call:
    """Feed `uplink`, `handle` page messages, send `playout`'s tracks, and await `run`.

    talk    whose session is not closed here
    emit    receives every event for the page; must not block
    metrics where its units are counted
    heard   when anything last came from the visitor, `time.monotonic()`
    """

    def __init__(self, model: ModelProcess, config: ServingConfig, talk: Conversation, emit: Emit,
                 metrics: Metrics | None = None) -> None:  # fmt: skip
        self.uplink = Uplink()
        self.playout = Playout(prebuffer_ms=config.prebuffer_ms, max_ms=config.max_playout_ms)
        self.heard = time.monotonic()
        self._model, self._config, self._emit = model, config, emit
        self._talk = talk
        self._meter = Meter(metrics)
        self._misses = 0  # of the driver that works now
        self._recoveries = 0
        self._told_late = self._resumed = False
        self._began = self._answered = time.monotonic()
        self._goodbye = asyncio.Event()

    def handle(self, message: Message) -> None:
        """One message of the visitor. Raises `ServingError` if it cannot be taken now."""
        self.heard = time.monotonic()
        match message:
            case Ping():
                self._emit(PongEvent(message.t))
            case TextInput():
                self.uplink.push_text(message.text)
            case Devices():
                if not message.camera:
                    self.uplink.video.close()
            case Mute(device=device, muted=muted):
                (self.uplink.muted.add if muted else self.uplink.muted.discard)(device)
            case Clear():
                self._tell_playback(self.playout.clear())
            case Goodbye():
                self._goodbye.set()

    async def run(self) -> str:
        """Converse until the visitor is silent on every channel, the time is over or the model cannot be kept alive.

        Returns the reason. Cancelling ends the call as well.
        """
        tasks: list[asyncio.Task[str]] = []
        try:
            await self._begin()
            loops = [self._send_units(), self._receive_units(), self._report(), self._watch(), self._play(),
                     self._hear_goodbye()]  # fmt: skip
            if self._config.max_call_s is not None:
                loops.append(self._end_in_time(self._config.max_call_s))
            tasks = [asyncio.create_task(loop) for loop in loops]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            reason = done.pop().result()
        except WanStreamerError as error:
            reason, self._talk.over = str(error), True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.playout.close()
        return reason

    async def _begin(self) -> None:
        """Go on with the conversation, or begin it."""
        self._began = time.monotonic()
        if not self._talk.is_new:
            self._emit(NoticeEvent("You are connected again. The conversation goes on."))
        if self._talk.session is None:
            self._resumed = self._talk.lost is not None
            return await self._open()
        ready = await self._model.ensure_ready()
        self._go_live(ready)

    def _go_live(self, ready: Ready) -> None:
        self._answered = time.monotonic()
        height, width = ready.frame_size
        self._emit(SessionEvent("live", agent=ready.name, width=width, height=height, fps=FPS))

    async def _open(self) -> None:
        talk, ready = self._talk, await self._model.ensure_ready()
        talk.session = await self._model.open_session(seed=secrets.randbelow(2**31), resume=talk.lost)
        talk.lost = None
        self._go_live(ready)

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
            session = self._talk.session
            if session is None:  # the model is being restarted: time goes on, typed text waits
                self.uplink.discard(t_in)
                continue
            session.step(index, self.uplink.take(t_in), t_in)
            index += 1
            if session.pending > 1 and time.monotonic() - self._answered > self._config.model_timeout_s:
                log.warning("the model owes %d units and is restarted", session.pending, extra=self._tag())
                self._answered = time.monotonic()
                self._model.kill()

    async def _receive_units(self) -> str:
        while True:
            assert self._talk.session is not None
            try:
                self._take(await self._talk.session.receive())
            except ServingError as error:
                await self._recover(error)

    def _take(self, message: UnitOut | Stats) -> None:
        if isinstance(message, Stats):
            self._misses = int(message.summary["deadline_misses"])
            if not self._told_late and message.summary["held_units"] > max(HELD_UNITS, HELD_SHARE * self._talk.units):
                self._told_late = True
                self._emit(NoticeEvent(f"The agent does not keep up. {why_late(message.summary)}."))
            return
        now = self._answered = time.monotonic()
        if message.t_in < self._began:
            return  # what the connection before was to hear
        unit, meter = message.unit, self._meter
        meter.add_unit(unit, (now - message.t_in) * 1000)
        meter.add("server: to model", (message.t_start - message.t_in) * 1000)
        meter.add("server: from model", (now - message.t_out) * 1000)
        meter.add("server: playout", self.playout.queued_ms)
        if self._resumed and self._talk.session is not None:
            self._resumed = False
            remembers = "goes on" if self._talk.session.units else "does not remember what was said before"
            self._emit(NoticeEvent(f"The model was restarted. It {remembers}."))
        self._talk.units += 1
        self._talk.held += unit.held
        self.playout.push(unit, message.index * UNIT_MS)
        lanes: tuple[tuple[Lane, str], ...] = (("response", unit.text), ("transcript", unit.transcript))
        for lane, text in lanes:
            if text:
                self._emit(CaptionEvent(lane, message.index, text))
            if lane in unit.ended:
                self._emit(TurnEvent(lane, message.index, unit.whole if lane == "transcript" else ""))

    async def _recover(self, error: ServingError) -> None:
        kind = ": ".join(str(error).split(": ")[:2])  # without the message of what was raised, which may quote a caller
        log.warning("model session lost: %s", kind, extra=self._tag())
        self._talk.lost, self._talk.session = self._talk.session, None
        self._talk.missed, self._misses = self._talk.missed + self._misses, 0
        self._recoveries += 1
        if self._recoveries > self._config.max_recoveries:
            raise ServingError(f"the model failed {self._recoveries} times in this call; the last time: {error}")
        self._emit(SessionEvent("recovering", "The model stopped and is being restarted. Please wait."))
        await self._open()
        self._resumed = True

    def _tag(self) -> dict[str, str]:
        return {"session": masked(self._talk.visitor)}

    async def _report(self) -> str:
        while True:
            await asyncio.sleep(REPORT_S)
            session = self._talk.session
            self._emit(StatsEvent(
                units=self._talk.units,
                deadline_misses=self._talk.missed + self._misses,
                held=self._talk.held,
                late=self.playout.late,
                backlog=session.pending if session else 0,
                playout_ms=self.playout.queued_ms,
                model_latency_ms=self._meter.model_latency(),
                event_latency_ms=self._meter.event_latency(),
                stage_ms=self._meter.stages(),
            ))  # fmt: skip
            self._tell_playback()

    def _tell_playback(self, dropped_ms: int | None = None) -> None:
        self._emit(PlaybackEvent(self.playout.position_ms, round(self.playout.queued_ms), dropped_ms))

    async def _hear_goodbye(self) -> str:
        await self._goodbye.wait()
        self._talk.over = True
        return GOODBYE

    async def _watch(self) -> str:
        while True:
            await asyncio.sleep(REPORT_S)
            silent = time.monotonic() - self.heard
            if silent > self._config.idle_timeout_s:
                return f"{SILENT} for {silent:.0f} s"

    async def _end_in_time(self, most_s: float) -> str:
        end = self._talk.began + most_s
        await asyncio.sleep(end - min(NOTICE_S, most_s / 2) - time.monotonic())
        left_s = end - time.monotonic()
        self._emit(NoticeEvent(f"This call ends in {max(1, round(left_s))} seconds. It may be no longer."))
        await asyncio.sleep(left_s)
        self._talk.over = True
        return TIME_OVER

    async def _play(self) -> str:
        await self.playout.run()
        return "the playout ended"

"""Who is in a call.

`Desk`  as many visitors as the model keeps pace with; anyone may knock, a place is taken when a connection stands; who
        finds none free waits in line
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from wan_streamer.errors import ServingError
from wan_streamer.process import masked
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.call import SILENT
from wan_streamer.serving.conversation import Conversation
from wan_streamer.serving.dialects.base import Dialect
from wan_streamer.serving.doors.limits import Rates, who
from wan_streamer.serving.doors.line import Line, Place, Ticket
from wan_streamer.serving.messages import GOODBYE, TIME_OVER
from wan_streamer.serving.peers.base import LEFT, Peer
from wan_streamer.serving.peers.webrtc import WebRtcPeer
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.watch.metrics import Metrics

BUSY = "Others are in calls with this agent, and so many wait already that no more can. Try again later."
NOT_RESUMED = "The conversation before could not be gone on with. This is a new one."
TAKEN = "Another visitor was faster."
STOPPING = "The server is being stopped."
FAILED = "unexpected error"
# why a visit ended, by the first words of its reason -> the word for logs and metrics; all others come from the model
ENDS = {
    LEFT: "left",
    GOODBYE: "left",
    SILENT: "silent",
    TIME_OVER: "time",
    STOPPING: "stopped",
    TAKEN: "taken",
    FAILED: "error",
}
SHUTDOWN_S = 3.0
HOLD_S = 1.5  # of a question about a place; less than what a server that stops waits for its answers
LOOK_S = 0.25

log = logging.getLogger(__name__)


class BusyError(ServingError):
    """All places are taken, and the line is full."""


class LimitError(ServingError):
    """Too many offers, from one address or from all."""


@dataclass(frozen=True)
class Entry:
    """An offer's answer. What follows is known to this visitor only.

    answer   SDP, if the offer was
    session  good for nothing after the call
    resume   the token for another offer that goes on with the conversation
    """

    answer: str
    session: str
    resume: str


class _Visit:
    """One offer and what became of it.

    waited  its ticket: a place is kept for it until its connection stands
    """

    def __init__(self, session: str, peer: Peer, talk: Conversation, address: str, waited: Ticket | None) -> None:
        self.session, self.peer, self.talk, self.address, self.waited = session, peer, talk, address, waited
        self.since = time.monotonic()
        self.task: asyncio.Task[None] | None = None


class Desk:
    """The places for calls. An offer is answered without one; a connection claims one for its conversation, which keeps
    it until it is over: after a goodbye at once, after a lost connection when nobody has gone on with it.

    metrics   where visits are counted
    last_end  why the last visit ended
    """

    def __init__(self, model: ModelProcess, config: ServingConfig, metrics: Metrics | None = None) -> None:
        self._model, self._config, self._metrics = model, config, metrics or Metrics()
        self._visits: dict[str, _Visit] = {}
        self._callers: list[_Visit] = []
        self._talks: dict[str, Conversation] = {}  # that have a place, by token
        limits = config.limits
        self._rates = Rates(limits.offers_per_s, limits.offer_burst)
        self._line = Line(config.ticket_s, config.turn_s, limits.queue, limits.queue_per_address, config.mark)
        self.stopping = False
        self.last_end = ""

    @property
    def sessions(self) -> list[str]:
        """The visits that are in calls."""
        return [visit.session for visit in self._callers]

    @property
    def full(self) -> bool:
        return self._free() <= 0

    def _free(self) -> int:
        """Places for who has not waited. Calls who has, if there are places."""
        kept = sum(visit.waited is not None for visit in self._visits.values())
        capacity = self._model.capacity
        return self._line.call(capacity - len(self._talks) - kept, capacity)

    @property
    def pending(self) -> int:
        """Offers whose connection does not stand yet."""
        return len(self._visits) - len(self._callers)

    @property
    def waiting(self) -> int:
        """Visitors in line."""
        self._free()  # drops who has gone
        return len(self._line)

    def new_session(self) -> str:
        """An id that nobody guesses: who has it may ask about the call and end it."""
        return self._config.mark + secrets.token_hex(16)

    async def open(
        self,
        offer: str,
        address: str = "",
        ticket: str = "",
        resume: str = "",
        *,
        dialect: Callable[[str], Dialect] = lambda session: Dialect(),
        peer_of: Callable[[ModelProcess, ServingConfig, Conversation, Dialect, Metrics], Peer] = WebRtcPeer,
        session: str = "",
        may_wait: bool = True,
    ) -> Entry | Place:
        """Answer an offer, or give its visitor a place in the line.

        address  where the offer came from
        ticket   that its visitor waited with
        resume   the token of the conversation to go on with
        dialect  makes that of the messages, for a session
        peer_of  makes the connection, which takes the offer
        session  the id for the visit; "": a new one
        may_wait False: refused where others would wait in the line
        Raises `BusyError`, `LimitError`, or what the model or the offer raised.
        """
        key = who(address)
        if self.stopping:
            raise ServingError(STOPPING)
        if not self._rates.take(key):
            raise LimitError("Too many calls were started from this address. Wait a little.")
        full, place = self.full, self._line.place(ticket)
        admitted = place is not None and place.ready
        if full and not admitted and resume not in self._talks:
            place = place or (self._line.join(key) if may_wait else None)
            if place is None:
                raise BusyError(BUSY)
            return place
        self._check_pending(key)
        used = self._line.leave(ticket)
        before = self._take_over(resume)
        talk = before or Conversation(self._config.mark)
        session = session or self.new_session()
        peer = peer_of(self._model, self._config, talk, dialect(session), self._metrics)
        visit = _Visit(session, peer, talk, key, used if admitted and before is None else None)
        self._visits[visit.session], talk.visitor = visit, visit.session
        try:
            await self._model.ensure_ready()
            answer = await visit.peer.answer(offer, address)
        except BaseException:
            self._end(visit)
            await visit.peer.close()
            raise
        if resume and before is None:
            visit.peer.notify(NOT_RESUMED)
        visit.task = asyncio.create_task(self._serve(visit))
        return Entry(answer, visit.session, talk.token)

    def _take_over(self, token: str) -> Conversation | None:
        """The conversation of this token, which is of no use from now on; whoever has it until now is hung up."""
        talk = self._talks.pop(token, None)
        if talk is None:
            return None
        talk.left = talk.left or time.monotonic()
        for visit in self._of(talk):
            visit.peer.hang_up()
        talk.renew()
        self._talks[talk.token] = talk
        self._metrics.resumed.inc()
        return talk

    def _of(self, talk: Conversation) -> list[_Visit]:
        return [visit for visit in self._visits.values() if visit.talk is talk]

    def _check_pending(self, address: str) -> None:
        limits = self._config.limits
        pending = [visit.address for visit in self._visits.values() if visit not in self._callers]
        if len(pending) >= limits.pending_offers or pending.count(address) >= limits.pending_offers_per_address:
            raise LimitError("Too many calls are being connected. Try again soon.")

    def waits(self, ticket: str) -> bool:
        """Whether there is such a ticket."""
        self._free()
        return ticket in self._line

    async def wait(self, ticket: str) -> Place | None:
        """The place of a ticket: at once if it is called, otherwise after a while. None if there is no such ticket."""
        end = time.monotonic() + HOLD_S
        while True:
            self._free()
            place = self._line.place(ticket)
            if place is None or place.ready or time.monotonic() >= end or self.stopping:
                return place
            await asyncio.sleep(LOOK_S)

    async def _serve(self, visit: _Visit) -> None:
        reason, talk, tag = FAILED, visit.talk, {"session": masked(visit.session)}
        connected = False
        try:
            problem = await visit.peer.connect()
            connected = problem is None
            if problem is None and not self._seat(visit):
                problem = TAKEN
                await visit.peer.say("busy", problem)
            if problem is None:
                log.info("call began", extra=tag)
                async with talk.turn:
                    talk.left = None
                    problem = await visit.peer.converse()
            reason = problem
        except Exception:
            log.exception("a call failed", extra=tag)
        finally:
            kind = _kind(reason, connected)
            log.info("call ended: %s", kind, extra=tag)
            self._metrics.ended.labels(kind).inc()
            self.last_end = reason
            self._end(visit)
            with contextlib.suppress(Exception):
                await visit.peer.close()

    def _seat(self, visit: _Visit) -> bool:
        """Give a visit a place whose connection stands. False if there is none."""
        talk = visit.talk
        if talk.token not in self._talks:
            if self.full and visit.waited is None:
                return False
            self._talks[talk.token] = talk
            talk.began = time.monotonic()
        visit.waited, visit.since = None, time.monotonic()
        self._callers.append(visit)
        return True

    def _end(self, visit: _Visit) -> None:
        """The visit is over; its conversation waits for another, if there is none already."""
        talk = visit.talk
        del self._visits[visit.session]
        self._call_again(visit)
        if visit in self._callers:
            self._callers.remove(visit)
        if talk.token not in self._talks or self._of(talk):
            return
        if talk.over or self.stopping:
            return self._give_up(talk)
        talk.left = talk.left or time.monotonic()
        wait_s = talk.left + self._config.resume_s - time.monotonic()
        asyncio.get_running_loop().call_later(wait_s, self._expire, talk, talk.token)

    def _call_again(self, visit: _Visit) -> None:
        """It has waited, and never connected."""
        if visit.waited is not None:
            self._line.give_back(visit.waited)
            visit.waited = None

    def _expire(self, talk: Conversation, token: str) -> None:
        if talk.token == token and not self._of(talk):
            self._give_up(talk)

    def _give_up(self, talk: Conversation) -> None:
        if self._talks.pop(talk.token, None) is None:
            return
        talk.over = True
        self._line.learn((talk.left or time.monotonic()) - talk.began)
        for session in (talk.session, talk.lost):
            if session is not None:
                self._model.close_session(session)

    def status(self, session: str) -> dict[str, object] | None:
        """What the visitor of this session may know of it; None if there is no such visit."""
        visit = self._visits.get(session)
        if visit is None:
            return None
        return {
            "state": "live" if visit in self._callers else "connecting",
            "call_s": round(time.monotonic() - visit.since, 1),
        }

    def close(self, session: str) -> bool:
        """The page says goodbye. session: or the ticket of one that waits."""
        visit = self._visits.get(session)
        talk = next((talk for talk in self._talks.values() if talk.visitor == session), None)
        if talk is not None:
            talk.over = True
        if visit is not None:
            self._call_again(visit)  # now: its page makes another offer at once
            visit.peer.hang_up()
        elif talk is not None:
            self._give_up(talk)
        else:
            return self._line.leave(session) is not None
        return True

    async def shutdown(self) -> None:
        """Take no more calls, tell those in one, end them."""
        self.stopping = True
        tasks = [visit.task for visit in self._visits.values() if visit.task is not None]
        for visit in list(self._visits.values()):
            visit.peer.hang_up(STOPPING)
        if tasks:
            await asyncio.wait(tasks, timeout=SHUTDOWN_S)
        for talk in list(self._talks.values()):
            self._give_up(talk)


def _kind(reason: str, connected: bool) -> str:
    """One of `metrics.ENDS`."""
    known = next((kind for words, kind in ENDS.items() if reason.startswith(words)), None)
    return known or ("model" if connected else "not_connected")

"""Who is in a call.

`Desk`  as many visitors as the model keeps pace with; anyone may knock, a place is taken when a connection stands
"""

import asyncio
import contextlib
import logging
import secrets
import time

from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.doors.limits import Rates, who
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.webrtc import Peer

BUSY = "Someone else is in a call with this agent. It serves one visitor at a time; try again soon."
ALL_BUSY = "This agent is in calls with {} visitors, and serves no more at a time; try again soon."
STOPPING = "The server is being stopped."
SHUTDOWN_S = 3.0

log = logging.getLogger(__name__)


class BusyError(ServingError):
    """Others are in calls, and the model keeps pace with no more."""


class LimitError(ServingError):
    """Too many offers, from one address or from all."""


class _Visit:
    """One offer and what became of it. `session` is known to this visitor only, and good for nothing afterwards."""

    def __init__(self, peer: Peer, address: str) -> None:
        self.peer, self.address = peer, address
        self.session = secrets.token_hex(16)
        self.since = time.monotonic()
        self.task: asyncio.Task[None] | None = None


class Desk:
    """The places for calls. An offer is answered without one; a connection claims one; the end of the call frees it.

    last_end  why the last visit ended, for the log
    """

    def __init__(self, model: ModelProcess, config: ServingConfig) -> None:
        self._model, self._config = model, config
        self._visits: dict[str, _Visit] = {}
        self._arriving: list[str] = []  # addresses of offers that are being answered
        self._callers: list[_Visit] = []
        self._rates = Rates(config.limits.offers_per_s, config.limits.offer_burst)
        self.stopping = False
        self.last_end = ""

    @property
    def sessions(self) -> list[str]:
        """The visits that are in calls."""
        return [visit.session for visit in self._callers]

    @property
    def full(self) -> bool:
        return len(self._callers) >= self._model.capacity

    @property
    def pending(self) -> int:
        """Offers whose connection does not stand yet."""
        return len(self._visits) - len(self._callers)

    def _busy(self) -> str:
        return BUSY if self._model.capacity == 1 else ALL_BUSY.format(self._model.capacity)

    async def open(self, sdp: str, address: str = "") -> tuple[str, str]:
        """Answer an offer: (session, SDP).

        address  where the offer came from
        Raises `BusyError`, `LimitError`, or what the model or the offer raised.
        """
        key = who(address)
        self._check(key)
        self._arriving.append(key)
        peer: Peer | None = None
        try:
            await self._model.ensure_ready()
            peer = Peer(self._model, self._config)
            answer = await peer.answer(sdp, address)
        except BaseException:
            if peer is not None:
                await peer.close()
            raise
        finally:
            self._arriving.remove(key)
        visit = _Visit(peer, key)
        self._visits[visit.session] = visit
        visit.task = asyncio.create_task(self._serve(visit))
        return visit.session, answer

    def _check(self, address: str) -> None:
        limits = self._config.limits
        if self.stopping:
            raise ServingError(STOPPING)
        if not self._rates.take(address):
            raise LimitError("Too many calls were started from this address. Wait a little.")
        if self.full:
            raise BusyError(self._busy())
        pending = [visit.address for visit in self._visits.values() if visit not in self._callers]
        waiting = [*self._arriving, *pending]
        if len(waiting) >= limits.pending_offers or waiting.count(address) >= limits.pending_offers_per_address:
            raise LimitError("Too many calls are being connected. Try again soon.")

    async def _serve(self, visit: _Visit) -> None:
        reason = "unexpected error"
        try:
            problem = await visit.peer.connect()
            if problem is None and self.full:
                problem = self._busy()
                await visit.peer.say_ended(problem)
            if problem is None:
                self._callers.append(visit)
                visit.since = time.monotonic()
                problem = await visit.peer.converse()
            reason = problem
            log.info("call ended: %s", reason)
        except Exception:
            log.exception("call ended by an unexpected error")
        finally:
            with contextlib.suppress(Exception):
                await visit.peer.close()
            self._visits.pop(visit.session, None)
            if visit in self._callers:
                self._callers.remove(visit)
            self.last_end = reason

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
        """The page says goodbye."""
        visit = self._visits.get(session)
        if visit is not None:
            visit.peer.hang_up()
        return visit is not None

    async def shutdown(self) -> None:
        """Take no more calls, tell those in one, end them."""
        self.stopping = True
        tasks = [visit.task for visit in self._visits.values() if visit.task is not None]
        for visit in list(self._visits.values()):
            visit.peer.hang_up(STOPPING)
        if tasks:
            await asyncio.wait(tasks, timeout=SHUTDOWN_S)

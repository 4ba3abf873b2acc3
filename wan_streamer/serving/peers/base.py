"""What all ways to a visitor have in common.

`Peer`   one visitor's connection: its call, events out, messages in, and how it ends
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from typing import Literal

from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.call import Call
from wan_streamer.serving.conversation import Conversation
from wan_streamer.serving.dialects.base import Dialect
from wan_streamer.serving.doors.limits import Bucket
from wan_streamer.serving.messages import ErrorEvent, EventError, NoticeEvent, ServerEvent, SessionEvent
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.watch.metrics import Metrics

FAREWELL_S = 1.0  # the page has so long to take the last event
EVENTS_KEPT = 256  # events that wait for the page to take them

LEFT = "the page left"

log = logging.getLogger(__name__)


class Peer(ABC):
    """One visitor's connection: `answer` an offer, `connect`, `converse` until the call is over, `close`.

    dialect  of its messages
    """

    def __init__(
        self,
        model: ModelProcess,
        config: ServingConfig,
        talk: Conversation,
        dialect: Dialect,
        metrics: Metrics | None = None,
    ) -> None:
        self._config, self._dialect = config, dialect
        self._connected = asyncio.Event()
        self._gone = asyncio.Event()
        self._reason, self._tell = LEFT, False
        self._rate = Bucket(config.limits.messages_per_s, config.limits.message_burst)
        self._refusals = Bucket(config.limits.messages_per_s, config.limits.message_burst)
        self.call = Call(model, config, talk, self._emit, metrics)

    @abstractmethod
    async def answer(self, offer: str, address: str = "") -> str:
        """The answer to an offer. Raises `ServingError` if it is not a usable one.

        address  where the offer came from
        """

    async def connect(self) -> str | None:
        """Wait until media can flow. Returns None, or why that will not be."""
        try:
            await asyncio.wait_for(self._connected.wait(), self._config.connect_timeout_s)
        except TimeoutError:
            return f"the page did not connect within {self._config.connect_timeout_s:.0f} s"
        return self._reason if self._gone.is_set() else None

    async def converse(self) -> str:
        """Converse once connected, and return why it ended."""
        call, gone = asyncio.create_task(self.call.run()), asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                await self.say("ended", call.result())
                return call.result()
            if self._tell:
                await self.say("ended", self._reason)
            return self._reason
        finally:
            for task in (call, gone):
                task.cancel()
            await asyncio.gather(call, gone, return_exceptions=True)

    def hang_up(self, reason: str = "") -> None:
        """End `connect` or `converse` from outside. reason: told to the page; nothing is told if the page has left."""
        if not self._gone.is_set():
            self._reason, self._tell = reason or LEFT, bool(reason)
        self._gone.set()
        self._connected.set()

    def notify(self, message: str) -> None:
        self._emit(NoticeEvent(message))

    async def say(self, state: Literal["ended", "busy"], reason: str) -> None:
        """Tell the page why there is no call (any more), and give it time to hear that."""
        self._emit(SessionEvent(state, reason))
        until = time.monotonic() + FAREWELL_S
        while time.monotonic() < until and self._unsent():
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # sent is not yet received

    @abstractmethod
    async def close(self) -> None:
        """Close the connection and free everything. Safe to call twice."""

    @abstractmethod
    def _send(self, text: str) -> None:
        """Send one event, now or as soon as the page can take it. Must not block."""

    @abstractmethod
    def _unsent(self) -> bool:
        """Whether the page has not taken all events yet."""

    def _emit(self, event: ServerEvent) -> None:
        for text in self._dialect.write(event):
            self._send(text)

    def _on_message(self, data: str | bytes) -> None:
        """Whatever is wrong with one message is told to the page, in one event, and the call goes on."""
        if not self._rate.take():
            return self._refuse(EventError("page messages: too many came; this one was dropped", "rate"))
        try:
            message = self._dialect.read(data)
            self.call.handle(message)
            for text in self._dialect.acknowledge(message):
                self._send(text)
        except Exception as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        if not self._refusals.take():
            return  # who sends without end gets no answers without end
        expected = isinstance(error, ServingError)
        log.log(logging.INFO if expected else logging.ERROR, "a page message failed: %s", type(error).__name__)
        if isinstance(error, EventError):
            self._emit(ErrorEvent(str(error), error.code))
        elif expected:
            self._emit(ErrorEvent(str(error), "not_taken"))
        else:
            self._emit(ErrorEvent("this message could not be handled", "internal"))

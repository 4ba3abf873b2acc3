"""The TCP connections below the requests.

`limited_protocol`  uvicorn's HTTP protocol with limits on connections and on the time that a request may take
"""

import asyncio
from collections import Counter

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import get_remote_addr

from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.guard import SECURITY_HEADERS
from wan_streamer.serving.doors.limits import Limits, who


def limited_protocol(limits: Limits, access: Access) -> type[H11Protocol]:
    """A protocol class for one server. What is over a limit is cut off without an answer."""
    open_by: Counter[str] = Counter()

    class LimitedProtocol(H11Protocol):
        _who: str | None = None  # while this connection counts
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            host = (get_remote_addr(transport) or ("",))[0]
            crowded = open_by[who(host)] >= limits.connections_per_address and not access.is_proxy(host)
            if crowded or open_by.total() >= limits.connections:
                transport.abort()
                return
            self._who = who(host)
            open_by[self._who] += 1
            self._start_clock()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._who is not None:
                open_by[self._who] -= 1
                if not open_by[self._who]:
                    del open_by[self._who]
            self._stop_clock()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._start_clock()
            super().data_received(data)
            if self.conn.their_state is not h11.SEND_BODY and self.conn.their_state is not h11.IDLE:
                self._stop_clock()  # the request is here; how long its answer takes is our affair

        def send_400_response(self, msg: str) -> None:
            head = ["HTTP/1.1 400 Bad Request", "Connection: close", f"Content-Length: {len(msg)}"]
            head += [f"{name}: {value}" for name, value in SECURITY_HEADERS.items()]
            self.transport.write("\r\n".join([*head, "", msg]).encode())
            self.transport.close()

        def _start_clock(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(limits.request_s, self.transport.abort)

        def _stop_clock(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return LimitedProtocol

"""The TCP connections below the requests.

`limited_protocol`  uvicorn's HTTP protocol with limits on connections and on the time that a request may take
`socket_settings`   uvicorn's settings for WebSockets with limits on messages and on what waits to be sent
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import h11
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.guard import SECURITY_HEADERS
from wan_streamer.serving.doors.limits import Limits, who

WRITE_BUFFER, UNSENT = 32_768, 16_384  # bytes that wait in this process and in the kernel: a third of a second of media
DEAD_MS = 20_000  # a connection whose bytes nobody takes for so long is cut off
PING_S, BEHIND_S = 0.5, 0.5  # media wait when an answer to a ping does, wherever on the way they would pile up


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
            self._leave()
            super().connection_lost(exc)

        def handle_websocket_upgrade(self, event: h11.Request) -> None:
            super().handle_websocket_upgrade(event)
            self._stop_clock()  # the request is here, and no other comes over this connection
            upgraded = self.transport.get_protocol()
            if isinstance(upgraded, _LimitedSocket):  # it counts until it is lost, of which this object hears nothing
                upgraded.leave = self._leave

        def _leave(self) -> None:
            if self._who is not None:
                open_by[self._who] -= 1
                if not open_by[self._who]:
                    del open_by[self._who]
                self._who = None
            self._stop_clock()

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


class _LimitedSocket(WebSocketsSansIOProtocol):
    """Little waits to be sent: `send` of what is to be sent now returns late instead, and its caller drops the rest."""

    leave: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._answered = asyncio.Event()
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        sock = transport.get_extra_info("socket")
        for option, value in (("TCP_NOTSENT_LOWAT", UNSENT), ("TCP_USER_TIMEOUT", DEAD_MS)):
            if hasattr(socket, option):  # not on every system
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._answered.set()
        if self.leave is not None:
            self.leave()

    def handle_pong(self, event: Any) -> None:
        super().handle_pong(event)
        self._answered.set()

    async def send(self, message: ASGISendEvent) -> None:
        while message["type"] == "websocket.send" and message.get("bytes") is not None and self._is_behind():
            self._answered.clear()
            await self._answered.wait()
        await super().send(message)

    def _is_behind(self) -> bool:
        asked = self.pending_ping_payload is not None and not self.disconnected
        return asked and self.loop.time() - self.ping_sent_at > BEHIND_S

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.loop.call_later(self.close_timeout, self.transport.abort)  # who takes nothing takes no goodbye either


def socket_settings(limits: Limits) -> dict[str, Any]:
    """For `uvicorn.Config`."""
    return {
        "ws": _LimitedSocket,
        "ws_max_size": limits.socket_bytes,
        "ws_per_message_deflate": False,  # media are compressed
        "ws_ping_interval": PING_S,
    }

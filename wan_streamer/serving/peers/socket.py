"""One WebSocket for one call, where UDP does not pass: the same session core as WebRTC's.

`SocketPeer`   messages as text, media as binary messages (`frames`)

What does not fit through the connection waits before it is encoded, in the playout's tracks, which keep three frames
and drop older ones. So nothing grows when a page reads slowly, and no picture is missing for the one after it.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from wan_streamer.data.pictures import Scaler
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.conversation import Conversation
from wan_streamer.serving.dialects.base import Dialect
from wan_streamer.serving.doors.limits import Bucket
from wan_streamer.serving.messages import EventError
from wan_streamer.serving.peers.base import EVENTS_KEPT, Peer
from wan_streamer.serving.peers.frames import Packet, PictureReader, PictureWriter, SoundReader, SoundWriter
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.uplink import fit
from wan_streamer.serving.watch.metrics import Metrics

CLOSE_TIMEOUT_S = 1.0
T = TypeVar("T")


class SocketPeer(Peer):
    """A WebSocket that was accepted. Whoever accepted it awaits `carry`, which is over when the call is."""

    def __init__(
        self,
        socket: WebSocket,
        model: ModelProcess,
        config: ServingConfig,
        talk: Conversation,
        dialect: Dialect,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(model, config, talk, dialect, metrics)
        self._socket = socket
        self._events: deque[str] = deque()
        self._news = asyncio.Event()
        self._sending = False
        self._media = Bucket(config.limits.media_per_s, config.limits.media_burst)
        self._closed = asyncio.Event()

    async def answer(self, offer: str, address: str = "") -> str:
        """The connection stands already; there is nothing to answer."""
        self._connected.set()
        return ""

    async def carry(self) -> None:
        """Move messages and media both ways until the page or the call is gone."""
        jobs = [self._read(), self._write(), self._pump(self.call.playout.audio, SoundWriter()),
                self._pump(self.call.playout.video, PictureWriter())]  # fmt: skip
        tasks = [asyncio.create_task(job) for job in jobs]
        closed = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait({tasks[0], tasks[1], closed}, return_when=asyncio.FIRST_COMPLETED)
            self.hang_up()
            await self._closed.wait()  # the desk closes what has gone
        finally:
            for task in (*tasks, closed):
                task.cancel()
            await asyncio.gather(*tasks, closed, return_exceptions=True)

    async def close(self) -> None:
        self._gone.set()
        if self._socket.application_state is WebSocketState.CONNECTED and not self._closed.is_set():
            with contextlib.suppress(Exception):  # a timeout too: a page that takes nothing takes no goodbye
                await asyncio.wait_for(self._socket.close(), CLOSE_TIMEOUT_S)
        self._closed.set()

    def _send(self, text: str) -> None:
        if len(self._events) >= EVENTS_KEPT:
            return self.hang_up()  # a minute of events: nobody reads them
        self._events.append(text)
        self._news.set()

    def _unsent(self) -> bool:
        return bool(self._events) or self._sending

    async def _write(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._news.wait()
                self._news.clear()
                while self._events:
                    self._sending = True
                    await self._socket.send_text(self._events.popleft())
                    self._sending = False

    async def _pump(self, track: MediaStreamTrack, encode: Callable[[Any], list[Packet]]) -> None:
        with contextlib.suppress(MediaStreamError, WebSocketDisconnect, RuntimeError):
            while True:
                frame = await track.recv()
                for packet in await asyncio.to_thread(encode, frame):
                    await self._socket.send_bytes(packet.pack())

    async def _read(self) -> None:
        hear, see, convert = SoundReader(), PictureReader(), Scaler(fit)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                message = await self._socket.receive()
                if message["type"] != "websocket.receive":
                    return
                if (text := message.get("text")) is not None:
                    self._on_message(text)
                    continue
                try:
                    await self._take(message["bytes"], hear, see, convert)
                except Exception as error:
                    self._refuse(error)

    async def _take(self, message: bytes, hear: SoundReader, see: PictureReader,
                    convert: Callable[[av.VideoFrame], Any]) -> None:  # fmt: skip
        if not self._media.take():
            raise EventError("media: too many messages came; this one was dropped", "rate")
        packet, now = Packet.unpack(message), time.monotonic()
        self.call.heard = now
        if packet.kind != "vp8":
            for sound in hear(packet):
                self.call.uplink.audio.push(sound, now)
            return
        for picture in await asyncio.to_thread(_look, packet, see, convert):
            self.call.uplink.video.push(picture, now)


def _look(packet: Packet, see: PictureReader, convert: Callable[[av.VideoFrame], T]) -> list[T]:
    return [convert(frame) for frame in see(packet)]

"""A call with a served agent from Python, over WebRTC, as a page has it.

`LiveClient`   sends units as microphone and camera; gives back events, sound and pictures

    async with LiveClient("http://localhost:8080", read_units("me.mp4")) as call:
        async for event in call.events():
            print(event["type"], event.get("delta", ""))
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)  # fmt: skip
from aiortc.mediastreams import MediaStreamError

from wan_streamer.client.ask import ask
from wan_streamer.data.sound import Mono
from wan_streamer.errors import ServingError
from wan_streamer.files import parse_json
from wan_streamer.serving.playout import Playout
from wan_streamer.units import UNIT_MS, UNIT_S, UserUnit

T = TypeVar("T")
KEPT_EVENTS, KEPT_SOUNDS, KEPT_PICTURES = 4096, 512, 64  # that nobody has read yet; the oldest are dropped
CONNECT_S = 20.0
FAREWELL_S = 1.0  # the server has so long to say that the call is over


class _Kept(asyncio.Queue):
    """Keeps the newest; `over` ends its readers, an error is raised in them."""

    def keep(self, item: Any) -> None:
        while self.full():
            self.get_nowait()
        self.put_nowait(item)

    def over(self) -> None:
        self.keep(None)

    async def read(self) -> AsyncIterator[Any]:
        while (item := await self.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
        self.over()  # for other readers, and for who asks again


class LiveClient:
    """One call in the Live dialect (docs/serving.md). Use as `async with`; it is over when `events` ends.

    url        of the server
    units      what to send, in real time, from the beginning of the call: `read_units`, `Microphone`, or any list of
               `UserUnit`; afterwards and without it, silence and no camera
    token      the server's; not needed on localhost
    secret     a client secret, in place of the token
    tls        how the server's certificate is checked; None: as usual

    session    after the call has begun: id, model, picture size and rate, as the server describes them
    """

    def __init__(
        self,
        url: str,
        units: Iterable[UserUnit] = (),
        *,
        token: str = "",
        secret: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url, self._units, self._bearer, self._tls = url.rstrip("/"), units, secret or token, tls
        self.session: dict[str, Any] = {}
        self._pc: RTCPeerConnection | None = None
        self._channel: RTCDataChannel | None = None
        self._playout = Playout(prebuffer_ms=0, max_ms=10 * UNIT_MS)
        self._events, self._sounds, self._pictures = _Kept(KEPT_EVENTS), _Kept(KEPT_SOUNDS), _Kept(KEPT_PICTURES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open, self._over = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> "LiveClient":
        try:
            await self._call()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self) -> None:
        """Raises `ServingError` with the server's words, or if the connection does not stand in time."""
        self._pc = pc = RTCPeerConnection(RTCConfiguration(iceServers=await self._relays()))
        self._channel = pc.createDataChannel("events")
        self._channel.on("message", self._on_message)
        self._channel.on("open", self._open.set)
        self._channel.on("close", self._end)
        pc.on("track", self._on_track)
        pc.on("connectionstatechange", self._on_state)
        for track in (self._playout.audio, self._playout.video):
            pc.addTransceiver(track, direction="sendrecv")
        await pc.setLocalDescription(await pc.createOffer())
        transport = {"type": "webrtc", "sdp": pc.localDescription.sdp}
        answer = await self._ask("POST", "/v1/live/sessions", {"transport": transport})
        while (ticket := answer.get("queue")) is not None:  # all places are taken
            if (await self._ask("GET", "/api/queue", bearer=ticket))["ready"]:
                again = {"transport": transport, "queue": ticket}
                answer = await self._ask("POST", "/v1/live/sessions", again)
        self.session = answer["session"]
        await pc.setRemoteDescription(RTCSessionDescription(answer["transport"]["sdp"], "answer"))
        try:
            await asyncio.wait_for(self._open.wait(), CONNECT_S)
        except TimeoutError:
            raise ServingError(f"{self._url}: no connection within {CONNECT_S:.0f} s") from None
        self._spawn(self._feed())
        self._spawn(self._playout.run())

    async def _relays(self) -> list[RTCIceServer]:
        """The server's STUN and TURN servers; none for who has a client secret, or calls a server of another make."""
        try:
            answer = await self._ask("GET", "/api/ice")
            return [RTCIceServer(**server) for server in answer["ice_servers"]]
        except (ServingError, KeyError, TypeError):
            return []  # the call itself says what is wrong with the server

    async def _feed(self) -> None:
        """A unit every 160 ms; reading it may take time, but not the event loop's."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            units = iter(self._units)
            while (unit := await asyncio.to_thread(next, units, None)) is not None:
                await asyncio.sleep(due - loop.time())
                self._playout.push(unit)
                due = max(due + UNIT_S, loop.time())
        except Exception as error:  # whatever the units are made of
            self._events.keep(error)

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """What the server tells, until the call is over. Raises what making the units raised."""
        return self._events.read()

    def sounds(self) -> AsyncIterator[np.ndarray]:
        """The agent's voice: float32 [T], mono, 24 kHz, 20 ms at a time."""
        return self._sounds.read()

    def pictures(self) -> AsyncIterator[np.ndarray]:
        """The agent's picture: uint8 [H, W, 3], 25 a second."""
        return self._pictures.read()

    def send(self, kind: str, **fields: Any) -> None:
        """One event. Raises `ServingError` if the call is over."""
        if self._channel is None or self._channel.readyState != "open":
            raise ServingError("the call is over")
        self._channel.send(json.dumps({"type": kind, **fields}))

    def say(self, text: str) -> None:
        """Type something to the agent."""
        self.send("session.input_text.append", text=text)

    def mute(self, muted: bool = True) -> None:
        """The microphone does not reach the agent, or does again."""
        self.send(f"session.input_audio.{'' if muted else 'un'}mute")

    def clear(self) -> None:
        """Drop what the server holds back to play it."""
        self.send("session.output.clear")

    async def close(self) -> None:
        """End the call. Safe to call twice."""
        if self._channel is not None and self._channel.readyState == "open":
            self.send("session.close")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), FAREWELL_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._pc is not None:
            await self._pc.close()
        self._playout.close()
        self._end()

    def _on_message(self, text: str) -> None:
        event = parse_json(text)
        self._events.keep(event)
        if event["type"] == "session.closed":
            self._end()

    def _end(self) -> None:
        self._over.set()
        for kept in (self._events, self._sounds, self._pictures):
            kept.over()

    def _on_state(self) -> None:
        if self._pc is not None and self._pc.connectionState in ("failed", "closed"):
            self._end()

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._spawn(self._collect(track))

    async def _collect(self, track: MediaStreamTrack) -> None:
        mono = Mono()
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if isinstance(frame, av.AudioFrame):
                    self._sounds.keep(mono(frame))
                elif isinstance(frame, av.VideoFrame):
                    self._pictures.keep(frame.to_ndarray(format="rgb24"))

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, method: str, path: str, body: dict | None = None, bearer: str = "") -> dict[str, Any]:
        """The JSON answer. Raises `ServingError` with the server's words."""
        return await ask(self._url, method, path, body, bearer=bearer or self._bearer, tls=self._tls)

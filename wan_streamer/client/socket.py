"""A call with a served agent from Python, over one WebSocket: frames in, frames and words out, for other frameworks.

`LiveSocket`   takes sound and pictures whenever there are any; gives back typed events on one clock

    async with LiveSocket("http://localhost:8080") as call:
        call.push_audio(samples, rate=48_000)
        async for event in call.events():
            match event:
                case Sound(samples_T): ...
                case Picture(image_HWC): ...
                case CaptionEvent(lane="response", text=text): ...
"""

import asyncio
import contextlib
import json
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import av
import numpy as np
import websockets
from websockets.protocol import State

from wan_streamer.client.ask import SESSION, ask
from wan_streamer.client.heard import AgentEvent, Inbox, Picture, Sound, read_event
from wan_streamer.data.pictures import Scaler
from wan_streamer.data.sound import Mono, MonoArrays
from wan_streamer.errors import ServingError, ShapeError
from wan_streamer.files import parse_json
from wan_streamer.serving.messages import Clear, EventError, Ping, SessionEvent, TextInput
from wan_streamer.serving.peers.frames import Packet, PictureReader, PictureWriter, SoundReader
from wan_streamer.serving.uplink import fit
from wan_streamer.units import FPS, SAMPLE_RATE

CONNECT_S = 20.0
PING_S = 4.0  # a caller without devices is no stranger
FAREWELL_S = 1.0
PIECE = SAMPLE_RATE // 50  # 20 ms: fewer messages than the server takes
PIECE_US, PAUSE_US = 20_000, 600_000
RETRY_S = (0.2, 2.0)  # after a lost connection: the first pause between two tries, and the longest
UNSENT = 25  # pieces, half a second: what a slow connection does not take is dropped, the oldest first
PICTURE_S = 0.75 / FPS  # pictures that come sooner after another are left out


class LiveSocket:
    """One call. Use as `async with`; it is over when `events` ends.

    A lost connection is made again for as long as the server keeps the conversation (half a minute): `events` gives a
    `SessionEvent` "recovering", and "live" when it goes on. Words wait; sound and pictures of this time are lost.

    url      of the server, http or https
    token    the server's; not needed on localhost
    tls      how the server's certificate is checked; None: as usual

    session  what the agent is called, size and rate of its picture
    id       of the call, known to its caller only
    """

    def __init__(self, url: str, *, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._url, self._token, self._tls = url.rstrip("/"), token, tls
        self.session = SessionEvent("ended")
        self._connection: websockets.ClientConnection | None = None
        self._inbox = Inbox()
        self._live = asyncio.Event()
        self.id = ""
        self._resume, self._resume_s = "", 0.0
        self._open = asyncio.Event()  # whether there is a connection that takes something
        self._problem = ""
        self._closing = False
        self._arrays: MonoArrays | None = None
        self._rest = np.zeros(0, np.float32)
        self._sound_us = 0  # when the next piece begins
        self._words: deque[str] = deque()
        self._pieces: deque[bytes] = deque(maxlen=UNSENT)
        self._unsent = asyncio.Event()
        self._picture: tuple[np.ndarray, float] | None = None  # the newest that is not encoded yet
        self._seen = asyncio.Event()
        self._picture_at = -1.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "LiveSocket":
        try:
            await self._call()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self) -> None:
        """Raises `ServingError` with the server's words, or if there is no call in time."""
        ticket = ""
        while (ticket := await self._start(ticket)) != "":
            while not (await ask(self._url, "GET", "/api/queue", bearer=ticket, tls=self._tls))["ready"]:
                pass  # the server holds its answer
        assert self._connection is not None
        self._reader = asyncio.create_task(self._read())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._live.wait(), CONNECT_S)
        if self.session.state != "live":
            raise ServingError(f"{self._url}: {self._problem or f'no call within {CONNECT_S:.0f} s'}")
        for job in (self._write(), self._show(), self._ping()):
            self._spawn(job)

    async def _start(self, ticket: str) -> str:
        """Knock. The ticket of a place in the line, or "" when the call begins."""
        if not self._url.startswith(("http://", "https://")):
            raise ServingError(f"{self._url}: expected an address such as http://localhost:8080")
        address = f"ws{self._url.removeprefix('http')}/api/socket"
        more: dict[str, Any] = {"ssl": self._tls} if self._tls else {}
        if ticket or self._resume:
            more["additional_headers"] = {SESSION: ticket or self._resume}
        try:
            self._connection = await websockets.connect(
                address, max_size=2**20, open_timeout=CONNECT_S, compression=None, **more
            )
            start = {"type": "start", "token": self._token, "queue": ticket, "resume": self._resume}
            await self._connection.send(json.dumps(start))
            answer = parse_json(await asyncio.wait_for(self._connection.recv(), CONNECT_S))
        except (OSError, ValueError, websockets.WebSocketException) as error:  # a timeout too
            raise ServingError(f"{self._url}: {error or 'no answer'}") from None
        if answer["type"] == "started":
            self.id, self._resume, self._resume_s = answer["session"], answer["resume"], answer["resume_s"]
            self._open.set()
            return ""
        await self._connection.close()
        if answer["type"] == "refused":
            raise ServingError(f"{self._url}: {answer['message']} ({answer['status']})")
        return answer["queue"]

    def events(self) -> AsyncIterator[AgentEvent]:
        """Sound, pictures and what the server tells, until the call is over. Raises `ServingError` if the connection is
        lost for good. Who reads late misses old media and no words."""
        return self._inbox.read()

    def push_audio(self, samples: object, rate: int = SAMPLE_RATE) -> None:
        """What the microphone heard, now. Dropped if the call is over.

        samples  float or int16, [T] or [T, channels]; of any length, in real time
        Raises `ShapeError`.
        """
        if self._arrays is None or self._arrays.rate != rate:
            self._arrays = MonoArrays("LiveSocket", rate)
        self._rest = np.concatenate([self._rest, self._arrays(samples)])
        whole = len(self._rest) // PIECE * PIECE
        pieces, self._rest = self._rest[:whole], self._rest[whole:]
        if abs(_now_us() - self._sound_us) > PAUSE_US:  # jitter is no pause: the server would fill it with silence
            self._sound_us = _now_us()
        for piece in pieces.reshape(-1, PIECE):
            pcm = (piece.clip(-1, 1) * 32767).astype("<i2")
            self._pieces.append(Packet("pcm", True, self._sound_us, pcm.tobytes()).pack())
            self._sound_us += PIECE_US
        self._unsent.set()

    def push_video(self, image_HWC: np.ndarray) -> None:
        """What the camera sees, now: uint8 [H, W, 3], RGB; at most 25 a second are sent, scaled down. Raises
        `ShapeError`."""
        image = np.asarray(image_HWC)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ShapeError(
                f"LiveSocket.push_video: expected uint8 [height, width, 3], got {image.dtype.name} {list(image.shape)}"
            )
        now = time.monotonic()
        if now - self._picture_at >= PICTURE_S:
            self._picture, self._picture_at = (image, now), now
            self._seen.set()

    def say(self, text: str) -> None:
        """Type something to the agent. What it does not take comes back as an `ErrorEvent`."""
        self._send(TextInput(text))

    def clear(self) -> None:
        """Drop what waits to be played, here and in the server. The agent goes on: what it says next comes."""
        self._inbox.drop_media()
        self._send(Clear())

    async def close(self) -> None:
        """End the call. Safe to call twice."""
        self._closing = True
        if self._connection is not None:
            with contextlib.suppress(Exception):  # a timeout too
                if self._connection.state is State.OPEN and self.id:  # otherwise its place is kept for a while
                    body = {"session": self.id}
                    await asyncio.wait_for(ask(self._url, "POST", "/api/close", body, tls=self._tls), FAREWELL_S)
                await asyncio.wait_for(self._connection.close(), FAREWELL_S)
        tasks = [*self._tasks, *([self._reader] if self._reader else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._inbox.end()

    def _send(self, message: TextInput | Clear | Ping) -> None:
        self._words.append(json.dumps(asdict(message)))
        self._unsent.set()

    async def _write(self) -> None:
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            while self._words or self._pieces:
                if not self._words:
                    await self._give(self._pieces.popleft())
                elif await self._give(self._words[0]):
                    self._words.popleft()

    async def _give(self, message: str | bytes) -> bool:
        """Whether it was sent, over the next connection if there is none."""
        await self._open.wait()
        assert self._connection is not None
        try:
            await self._connection.send(message)
        except websockets.ConnectionClosed:
            self._open.clear()
            return False
        return True

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            self._send(Ping(time.monotonic() * 1000))

    async def _show(self) -> None:
        """Encode the newest picture; what came meanwhile is left out before it costs anything."""
        scale, write, call = Scaler(fit), PictureWriter(), self.id
        while True:
            await self._seen.wait()
            self._seen.clear()
            await self._open.wait()
            if self._picture is None:
                continue
            (image, at), self._picture = self._picture, None
            if call != self.id:  # another connection begins with a key frame
                write, call = PictureWriter(), self.id
            for packet in await asyncio.to_thread(_encode, image, at, scale, write):
                await self._give(packet.pack())  # nothing is dropped after its encoding

    async def _read(self) -> None:
        problem, lost = "", False
        try:
            while await self._listen():
                lost = not await self._again()
                if lost:
                    problem = "the connection was lost, and the call with it"
                    break
        except (ValueError, TypeError, LookupError) as error:
            problem, lost = f"expected an event of its protocol, got something else ({error})", True
        self._problem = self._problem or problem
        self._inbox.end(ServingError(f"{self._url}: {problem}") if lost and not self._closing else None)
        self._live.set()

    async def _listen(self) -> bool:
        """Read until the connection ends. Whether it was lost, and the call is not over."""
        assert self._connection is not None
        hear, see, mono = SoundReader(), PictureReader(), Mono()
        over = False
        try:
            async for message in self._connection:  # ends when the server closes it as it should be
                if isinstance(message, str):
                    over = self._take(read_event(message)) or over
                    continue
                with contextlib.suppress(EventError):  # the next key frame shows the picture again
                    self._perceive(Packet.unpack(message), hear, see, mono)
        except websockets.ConnectionClosed:
            return not (over or self._closing)
        return False

    async def _again(self) -> bool:
        """Whether the call goes on over another connection. Raises what `_start` does not know how to read."""
        self._open.clear()
        if self.session.state != "live":
            return False  # there never was a call
        self._inbox.put(SessionEvent("recovering", "The connection was lost. Trying again."))
        end, pause = time.monotonic() + self._resume_s, RETRY_S[0]
        while time.monotonic() < end and not self._closing:
            with contextlib.suppress(ServingError):
                return await self._start("") == ""  # a place in the line: the conversation is gone
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_S[1])
        return False

    def _take(self, event: AgentEvent | None) -> bool:
        """Whether the call is over."""
        if event is None:
            return False
        self._inbox.put(event)
        if not isinstance(event, SessionEvent):
            return False
        over = event.state in ("ended", "busy")
        if event.state == "live":
            self.session = event
        if over:
            self._problem = event.message
        if over or event.state == "live":
            self._live.set()
        return over

    def _perceive(self, packet: Packet, hear: SoundReader, see: PictureReader, mono: Mono) -> None:
        start_ms = packet.time_us / 1000
        if packet.kind == "vp8":
            for picture in see(packet):
                self._inbox.put(Picture(picture.to_ndarray(format="rgb24"), start_ms))
            return
        for sound in hear(packet):
            self._inbox.put(Sound(mono(sound), start_ms))

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _now_us() -> int:
    return time.monotonic_ns() // 1000


def _encode(image: np.ndarray, at_s: float, scale: Scaler, write: PictureWriter) -> list[Packet]:
    small = scale(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
    frame = av.VideoFrame.from_ndarray(small, format="rgb24")
    frame.pts, frame.time_base = int(at_s * 1_000_000), Fraction(1, 1_000_000)
    return write(frame)

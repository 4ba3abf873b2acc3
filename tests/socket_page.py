"""A client of the WebSocket that encodes and decodes as a page does."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import av
import jsonschema
import numpy as np
import websockets
from protocol import Served, part

from wan_streamer.serving.peers.frames import Packet, PictureReader, SoundReader

PATIENCE_S = 30
SIZE = (240, 320)
GREEN = (20, 200, 30)


def opus_packets(seconds: float) -> list[bytes]:
    """A tone of 300 Hz, 20 ms a packet."""
    codec = av.CodecContext.create("libopus", "w")
    codec.sample_rate, codec.layout, codec.format, codec.bit_rate = 48_000, "mono", "s16", 40_000
    out = []
    for i in range(round(seconds * 50)):
        t = (np.arange(960) + i * 960) / 48_000
        pcm = (8000 * np.sin(2 * np.pi * 300 * t)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, i * 960, Fraction(1, 48_000)
        out += [bytes(packet) for packet in codec.encode(frame)]
    return out


def vp8_packets(count: int, size: tuple[int, int] = SIZE) -> list[tuple[bool, bytes]]:
    """A plain colour."""
    codec = av.CodecContext.create("libvpx", "w")
    codec.height, codec.width = size
    codec.pix_fmt, codec.time_base, codec.thread_count = "yuv420p", Fraction(1, 25), 1
    codec.options = {"deadline": "realtime", "lag-in-frames": "0"}
    out = []
    for i in range(count):
        frame = av.VideoFrame.from_ndarray(np.full((*size, 3), GREEN, np.uint8), format="rgb24").reformat(
            format="yuv420p"
        )
        frame.pts, frame.time_base = i, Fraction(1, 25)
        out += [(packet.is_keyframe, bytes(packet)) for packet in codec.encode(frame)]
    return out


class Page:
    """What it was told, what it decoded with the times of each."""

    def __init__(self, connection: websockets.ClientConnection) -> None:
        self.connection = connection
        self.answer: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.packets: list[tuple[float, Packet]] = []
        self.samples: list[tuple[int, np.ndarray]] = []
        self.pictures: list[tuple[int, np.ndarray]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._hear, self._see = SoundReader(), PictureReader()

    def told(self, kind: str, **fields: object) -> list[dict]:
        return [e for e in self.events if e["type"] == kind and all(e[name] == v for name, v in fields.items())]

    async def start(self, **more: Any) -> dict[str, Any]:
        await self.connection.send(json.dumps({"type": "start", **more}))
        self.answer = json.loads(await self.connection.recv())
        jsonschema.validate(self.answer, part("socket.server"))
        return self.answer

    def listen(self) -> None:
        self.tasks.append(asyncio.create_task(self._listen()))

    def speak(self, seconds: float = 6.0, pcm: bool = False) -> None:
        self.tasks.append(asyncio.create_task(self._speak(seconds, pcm)))

    async def send(self, **fields: Any) -> None:
        await self.connection.send(json.dumps(fields))

    async def _listen(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for message in self.connection:
                if isinstance(message, str):
                    self.events.append(json.loads(message))
                    continue
                packet = Packet.unpack(message)
                self.packets.append((time.monotonic(), packet))
                if packet.kind == "vp8":
                    self.pictures += [(packet.time_us, f.to_ndarray(format="rgb24")) for f in self._see(packet)]
                else:
                    self.samples += [(packet.time_us, f.to_ndarray()[0]) for f in self._hear(packet)]

    async def _speak(self, seconds: float, pcm: bool) -> None:
        pictures, sounds = vp8_packets(round(seconds * 25)), opus_packets(seconds)
        tone = (8000 * np.sin(2 * np.pi * 300 * np.arange(480) / 24_000)).astype("<i2").tobytes()
        began = time.monotonic()
        for i, sound in enumerate(sounds):
            await asyncio.sleep(began + i * 0.02 - time.monotonic())
            packet = Packet("pcm", True, i * 20_000, tone) if pcm else Packet("opus", True, i * 20_000, sound)
            await self.connection.send(packet.pack())
            if i % 2 == 0:
                key, data = pictures[i // 2]
                await self.connection.send(Packet("vp8", key, i * 20_000, data).pack())


@asynccontextmanager
async def dial(server: Served, path: str = "/api/socket", **options: Any) -> AsyncIterator[Page]:
    async with websockets.connect(server.url.replace("http", "ws") + path, **options) as connection:
        page = Page(connection)
        yield page
        for task in page.tasks:
            task.cancel()
        await asyncio.gather(*page.tasks, return_exceptions=True)


def block(picture: np.ndarray) -> int:
    """Where the stand-in's white block begins."""
    return int(np.flatnonzero(picture[56, :, 1] > 150)[0])

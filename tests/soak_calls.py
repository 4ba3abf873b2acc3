"""What a server has to bear: many calls one after the other, and a long one.

    python tests/soak_calls.py cycles [--count 100]      calls that come and go, and offers that never connect
    python tests/soak_calls.py call [--minutes 30]       one call over WebRTC: drift, memory

`soak_fuzz.py` sends what nobody should. A server process with a stand-in agent (20 ms of work a unit), and no limits
of rate, which would refuse most of it.
Prints one JSON object; ends with 1 if something was left behind, lost or broken.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import standin
from aiortc import RTCConfiguration, RTCPeerConnection

from wan_streamer.client import LiveClient
from wan_streamer.client.heard import Sound
from wan_streamer.client.socket import LiveSocket
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, UserUnit

MANY = 1e6


@dataclass
class Served:
    url: str
    process: psutil.Process
    log: Path

    def memory_mb(self) -> float:
        """Of the server and its model process."""
        tree = [self.process, *self.process.children(recursive=True)]
        return sum(process.memory_info().rss for process in tree) / 1e6

    def files(self) -> int:
        return self.process.num_fds()

    def numbers(self) -> dict[str, float]:
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and line[0] != "#" and "{" not in line)
        return {name.removeprefix("wan_streamer_"): float(value) for name, value in pairs}

    async def until_empty(self, within_s: float = 40) -> dict[str, float]:
        end = time.monotonic() + within_s
        while True:
            numbers = await asyncio.to_thread(self.numbers)
            left = {name: numbers[name] for name in ("callers", "queue", "pending_offers")}
            if not any(left.values()) or time.monotonic() > end:
                return left
            await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def server(agent: str) -> AsyncIterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = Path(tempfile.mkdtemp()) / "server.txt"
    command = [sys.executable, __file__, "serve", "--port", str(port), "--agent", agent]
    process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT)
    served = Served(f"http://localhost:{port}", psutil.Process(process.pid), log)
    try:
        async with httpx.AsyncClient() as client:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{served.url}/readyz")).status_code == 200:
                        break
                await asyncio.sleep(0.2)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def run_server(port: int, agent: str) -> None:
    from wan_streamer.serving import ServingConfig, serve
    from wan_streamer.serving.doors.limits import Limits

    limits = Limits(requests_per_s=MANY, request_burst=10**6, offers_per_s=MANY, offer_burst=10**6, messages_per_s=MANY,
                    message_burst=10**6, media_per_s=MANY, media_burst=10**6, connections_per_address=200,
                    pending_offers=10**6, pending_offers_per_address=10**6)  # fmt: skip
    serve(
        agent,
        port=port,
        sessions=4,
        agent_factory=getattr(standin, agent),
        config=ServingConfig(limits=limits, resume_s=5.0),
    )


# ------------------------------------------------------------------------------------------------------------- cycles


def units() -> list[UserUnit]:
    """A tone and a grey picture."""
    tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(SAMPLES_PER_UNIT) / SAMPLE_RATE)).astype(np.float32)
    return [UserUnit(tone, np.full((FRAMES_PER_UNIT, 96, 168, 3), 90, np.uint8))] * 3


async def over_socket(url: str) -> None:
    async with LiveSocket(url) as call:
        call.push_audio(np.zeros(4800, np.float32))
        async for event in call.events():
            if isinstance(event, Sound):
                return


async def over_webrtc(url: str) -> None:
    async with LiveClient(url, units()) as call:
        async for _ in call.sounds():
            return


async def never(url: str) -> None:
    """An offer whose connection never comes."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver("audio")
    peer.createDataChannel("events")
    await peer.setLocalDescription(await peer.createOffer())
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(f"{url}/api/offer", json={"sdp": peer.localDescription.sdp, "type": "offer"})
    assert answer.status_code in (200, 202, 429), answer.text
    await peer.close()


async def cycles(count: int) -> dict:
    result: dict = {}
    async with server("StandInAgent") as served:
        for ways in (over_socket, over_webrtc, never):
            await ways(served.url)
        await served.until_empty()
        for ways in (over_socket, over_webrtc, never):
            files, memory, began = served.files(), [served.memory_mb()], time.monotonic()
            for number in range(count):
                await ways(served.url)
                if number == count // 2:
                    memory.append(served.memory_mb())
            left = await served.until_empty()
            await over_socket(served.url)  # the places are free
            left |= await served.until_empty()
            memory.append(served.memory_mb())
            result[ways.__name__] = {
                "calls": count, "seconds": round(time.monotonic() - began, 1), "left": left,
                "files_more": served.files() - files, "memory_mb": [round(mb, 1) for mb in memory],
            }  # fmt: skip
        result["tracebacks"] = served.log.read_text().count("Traceback")
    rows = [result[ways.__name__] for ways in (over_socket, over_webrtc, never)]
    result["ok"] = not result["tracebacks"] and all(
        not any(row["left"].values()) and row["files_more"] <= 2 and row["memory_mb"][2] - row["memory_mb"][1] < 20
        for row in rows
    )
    return result


# --------------------------------------------------------------------------------------------------------- a long call


async def long_call(minutes: float) -> dict:
    """Claps of the agent: a white picture and a burst of noise that begin together, every 1.6 s."""
    bursts: list[float] = []
    flashes: list[float] = []
    memory: list[float] = []
    events: Counter = Counter()
    async with server("ClapAgent") as served:
        end = time.monotonic() + minutes * 60

        def speak() -> Iterator[UserUnit]:
            while time.monotonic() < end:
                yield from units()

        async def hear(call: LiveClient) -> None:
            loud = False
            async for sound in call.sounds():
                level = float(np.abs(sound).max())
                if level > 0.2 and not loud:
                    bursts.append(time.monotonic())
                loud = level > 0.02

        async def see(call: LiveClient) -> None:
            white = False
            async for picture in call.pictures():
                if (bright := bool(picture.mean() > 128)) and not white:
                    flashes.append(time.monotonic())
                white = bright

        async def listen(call: LiveClient) -> None:
            async for event in call.events():
                events[event["type"]] += 1
                if event["type"] == "session.stats":
                    events["held"] = event["stats"]["held"]

        async with LiveClient(served.url, speak()) as call:
            jobs = [asyncio.create_task(job(call)) for job in (hear, see, listen)]
            while time.monotonic() < end:
                await asyncio.sleep(min(20, max(0.1, end - time.monotonic())))
                memory.append(served.memory_mb())
            for job in jobs:
                job.cancel()
        left = await served.until_empty()
        tracebacks = served.log.read_text().count("Traceback")
    apart = [(nearest - flash) * 1000 for flash in flashes for nearest in [min(bursts, key=lambda b: abs(b - flash))]
             if abs(nearest - flash) < 0.8]  # fmt: skip
    piece = max(5, len(apart) // 6)
    early, late = float(np.median(apart[:piece])), float(np.median(apart[-piece:]))
    every = [b - a for a, b in itertools.pairwise(bursts)]
    settled = memory[len(memory) // 6]
    result = {
        "minutes": minutes, "bursts": len(bursts), "flashes": len(flashes), "held": events["held"],
        "events": dict(events),
        "sound_after_picture_ms": {"begin": round(early, 1), "end": round(late, 1), "drift": round(late - early, 1)},
        "between_bursts_s": {"median": round(float(np.median(every)), 4), "max": round(max(every), 3)},
        "memory_mb": {"after a sixth": round(settled, 1), "end": round(memory[-1], 1)},
        "left": left, "tracebacks": tracebacks,
    }  # fmt: skip
    result["ok"] = abs(late - early) <= 40 and memory[-1] - settled <= 50 and not any(left.values()) and not tracebacks
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cycles", "call", "serve"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--agent", default="StandInAgent", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "serve":
        return run_server(options.port, options.agent)
    result = asyncio.run(cycles(options.count) if options.what == "cycles" else long_call(options.minutes))
    print(json.dumps(result, indent=1))
    sys.exit(not result["ok"])


if __name__ == "__main__":
    main()

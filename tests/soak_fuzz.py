"""What strangers may send to a server: messages over every door, beside a call that must not lose a second.

    python tests/soak_fuzz.py [--count 100000] [--seed 0]

Requests with bent bodies and session descriptions, first messages of sockets, messages and media in a call, half
requests.
No answer may be an error of the server, nobody may see what the caller beside it says, nothing may be left behind.
Prints one JSON object; ends with 1 if something was.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable

import httpx
import numpy as np
import websockets
from aiortc import RTCConfiguration, RTCPeerConnection
from soak_calls import over_socket, server

from wan_streamer.client.heard import Sound
from wan_streamer.client.socket import LiveSocket
from wan_streamer.serving.messages import CaptionEvent

SECRET = "tangerine forty-two"
LOST_S = 1.0  # a call without sound for so long has lost something
FAILURES = (500, 502, 504)  # 503 says that all places are taken
KNOWN = {  # doors that answer, and what they take
    "/api/offer": {"sdp": "", "type": "offer", "queue": "", "resume": ""},
    "/api/close": {"session": "0" * 32},
    "/v1/live/sessions": {"transport": {"type": "webrtc", "sdp": ""}, "queue": "", "resume": ""},
    "/v1/realtime/calls": {},
    "/v1/realtime/calls/abc/hangup": {},
}
OTHERS = ("/api/status", "/api/queue", "/api/ice", "/metrics", "/static/../x", "/v1/%00")
EVENTS = (
    {"type": "text", "text": "hello"},
    {"type": "ping", "t": 1.5},
    {"type": "devices", "microphone": True, "camera": False},
    {"type": "clear"},
)
ODD = (
    "", "x" * 300, "\ud800", "\x00", -1, 0, 2**63, 10**400, 1e308, float("nan"), float("inf"), None, True, [], {},
    [[[]]] * 9,
)  # fmt: skip


class Fuzzer:
    def __init__(self, url: str, rng: random.Random, sdp: str) -> None:
        self.url, self.rng, self.sdp = url, rng, sdp
        self.answers: Counter = Counter()
        self.bad: list[str] = []

    def odd(self, value: object) -> object:
        """Something near `value`, or nothing like it."""
        choice = self.rng.random()
        if choice < 0.4:
            return self.rng.choice(ODD)
        if choice < 0.7 and isinstance(value, str):
            return self.bent(value)
        return value

    def bent(self, text: str) -> str:
        """Characters or lines of it changed, left out, doubled."""
        parts: list[str] = text.splitlines(keepends=True) if self.rng.random() < 0.7 else list(text)
        for _ in range(self.rng.randint(1, 4)):
            if not parts:
                break
            at = self.rng.randrange(len(parts))
            parts[at : at + 1] = self.rng.choice(
                [[], [parts[at]] * 2, [chr(self.rng.randrange(1, 0x2FFF))], [parts[at][::-1]]]
            )
        return "".join(parts)

    def document(self, like: dict) -> bytes:
        """JSON near `like`, or bytes."""
        choice = self.rng.random()
        if choice < 0.1:
            return self.rng.randbytes(self.rng.randint(0, 200))
        if choice < 0.13:
            return b"[" * self.rng.choice((50, 16_000)) + b"]" * 7
        fields = {name: self.odd(value) for name, value in like.items() if self.rng.random() > 0.1}
        if self.rng.random() < 0.1:
            fields[self.rng.choice(("type", "x", "__class__", ""))] = self.rng.choice(ODD)
        text = json.dumps(fields).encode("utf-8", "surrogatepass")
        if choice < 0.25:
            cut = self.rng.randrange(len(text) + 1)
            text = text[:cut] + self.rng.randbytes(self.rng.randint(0, 3)) + text[cut + self.rng.randint(0, 2) :]
        return text

    def note(self, door: str, status: object, ok: bool, body: str = "") -> None:
        self.answers[f"{door} {status}"] += 1
        if not ok or SECRET in body:
            self.bad.append(f"{door}: {status}: {body[:200]}")

    async def requests(self, count: int) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            for _ in range(count):
                path = self.rng.choice([*KNOWN, *OTHERS])
                try:
                    answer = await client.send(self.request(client, path))
                except httpx.TransportError:  # refused while it was read, and then closed
                    self.answers[f"{path} cut off"] += 1
                    continue
                self.note(path, answer.status_code, answer.status_code not in FAILURES, answer.text)
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a place that it got is given back
                    session = answer.json()["session"]
                    body = {"session": session["id"] if isinstance(session, dict) else session}
                    await client.post(f"{self.url}/api/close", json=body)

    def request(self, client: httpx.AsyncClient, path: str) -> httpx.Request:
        headers = {"authorization": f"Bearer {self.rng.choice(('x', '0' * 32))}"}
        if self.rng.random() < 0.1:
            headers |= self.rng.choice(
                [{"host": "evil.example"}, {"origin": "https://evil.example"}, {"x-forwarded-for": "1"}]
            )
        if path not in KNOWN:
            return client.build_request(self.rng.choice(("GET", "POST", "PUT")), self.url + path, headers=headers)
        like = {name: self.sdp if name == "sdp" else value for name, value in KNOWN[path].items()}
        if "transport" in like:
            like["transport"] = {"type": "webrtc", "sdp": self.odd(self.sdp)}
        sdp = path == "/v1/realtime/calls" and self.rng.random() < 0.8
        headers["content-type"] = "application/sdp" if sdp else "application/json"
        body = self.bent(self.sdp).encode() if sdp else self.document(like)
        return client.build_request("POST", self.url + path, content=body, headers=headers)

    async def starts(self, count: int) -> None:
        """First messages of a socket."""
        for _ in range(count):
            with contextlib.suppress(websockets.WebSocketException, OSError):
                async with websockets.connect(f"ws{self.url[4:]}/api/socket", open_timeout=60) as link:
                    start = self.document({"type": "start", "token": "", "queue": "", "resume": ""})
                    with contextlib.suppress(UnicodeDecodeError):
                        await link.send(start.decode() if self.rng.random() < 0.9 else start)
                        answer = json.loads(await asyncio.wait_for(link.recv(), 30))
                        self.note(
                            "start", answer["type"], answer.get("status", 400) not in FAILURES, json.dumps(answer)
                        )

    async def messages(self, count: int) -> None:
        """What a caller in a call sends; a call that the server ends is begun anew."""
        sent = 0
        while sent < count:
            async with websockets.connect(f"ws{self.url[4:]}/api/socket", open_timeout=60, max_size=2**20) as link:
                await link.send(json.dumps({"type": "start"}))
                answer = json.loads(await link.recv())
                if answer["type"] != "started":
                    await asyncio.sleep(0.5)
                    continue

                async def read() -> None:
                    async for message in link:
                        if isinstance(message, str):
                            self.note("in a call", json.loads(message)["type"], True, message)

                reader = asyncio.create_task(read())
                with contextlib.suppress(websockets.WebSocketException):
                    while sent < count:
                        sent += 1
                        if self.rng.random() < 0.4:
                            head = bytes([self.rng.choice((0, 1, 2, 3, 4, 255)), self.rng.choice((0, 1, 7))])
                            data = self.rng.randbytes(self.rng.choice((0, 3, 8, 9, 60, 700)))
                            await link.send(head + data)
                        else:
                            document = self.document(self.rng.choice(EVENTS))
                            await link.send(document.decode("utf-8", "replace"))
                        if sent % 50 == 0:
                            await asyncio.sleep(0.02)  # the other caller's machine is this one
                reader.cancel()

    async def wires(self, count: int) -> None:
        """Half a request, and away; a slow one."""
        port = int(self.url.rsplit(":", 1)[1])
        for number in range(count):
            with contextlib.suppress(OSError):
                _reader, writer = await asyncio.open_connection("localhost", port)
                head = f"POST /api/offer HTTP/1.1\r\nhost: localhost:{port}\r\ncontent-type: application/json\r\n"
                length = self.rng.choice((5, 10**9, -1, "x"))
                whole = (head + f"content-length: {length}\r\n\r\n{{").encode() + self.rng.randbytes(40)
                writer.write(whole[: self.rng.randrange(len(whole))])
                await writer.drain()
                if number % 20 == 0:
                    writer.write(b"a")
                    await asyncio.sleep(0.2)
                writer.close()
            self.answers["wire closed"] += 1


async def fuzz(count: int, seed: int = 0) -> dict:
    async with server("StandInAgent") as served:
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        peer.addTransceiver("audio")
        peer.addTransceiver("video")
        peer.createDataChannel("events")
        await peer.setLocalDescription(await peer.createOffer())
        fuzzer = Fuzzer(served.url, random.Random(seed), peer.localDescription.sdp)
        heard_s: list[float] = []
        told: list[str] = []

        async def beside() -> None:
            async with LiveSocket(served.url) as call:
                call.say(SECRET)
                async for event in call.events():
                    if isinstance(event, Sound):
                        heard_s.append(time.monotonic())
                    elif isinstance(event, CaptionEvent):
                        told.append(event.text)

        call = asyncio.create_task(beside())
        while not heard_s and not call.done():
            await asyncio.sleep(0.1)
        began, memory = time.monotonic(), served.memory_mb()
        parts: list[tuple[Callable, float]] = [
            (fuzzer.requests, 0.25), (fuzzer.starts, 0.03), (fuzzer.messages, 0.7), (fuzzer.wires, 0.02),
        ]  # fmt: skip
        await asyncio.gather(*(part(max(1, int(count * share))) for part, share in parts))
        seconds, over = time.monotonic() - began, call.done()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        left = await served.until_empty()
        await over_socket(served.url)
        numbers = served.numbers()
        log = served.log.read_text()
        gaps = np.diff(heard_s) if len(heard_s) > 1 else np.array([np.inf])
        result = {
            "messages": sum(max(1, int(count * share)) for _, share in parts), "seconds": round(seconds, 1),
            "answers": dict(sorted(fuzzer.answers.items())), "wrong": fuzzer.bad[:20],
            "call_beside": {
                "longest_gap_s": round(float(gaps.max()), 2), "ended": over, "answered": SECRET in " ".join(told),
            },
            "memory_mb": {"before": round(memory, 1), "after": round(served.memory_mb(), 1)},
            "model_restarts": numbers.get("model_restarts_total", 0.0), "left": left,
            "tracebacks": log.count("Traceback"),
        }  # fmt: skip
    result["ok"] = (
        not fuzzer.bad and not over and float(gaps.max()) < LOST_S and not result["model_restarts"]
        and not result["tracebacks"] and not any(left.values())
    )  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = asyncio.run(fuzz(options.count, options.seed))
    print(json.dumps(result, indent=1))
    sys.exit(not result["ok"])


if __name__ == "__main__":
    main()

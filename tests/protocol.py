"""A server and clients of both dialects, over real HTTP and real WebRTC; answers are held against the documents."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import uvicorn
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from test_serving import Tone, until

from wan_streamer.client import LiveClient
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.app import create_app
from wan_streamer.serving.desk import Desk
from wan_streamer.serving.dialects.schema import event_schema
from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.connections import limited_protocol, socket_settings
from wan_streamer.serving.doors.guard import SECURITY_HEADERS
from wan_streamer.serving.doors.limits import Limits
from wan_streamer.serving.peers.webrtc import use_loopback_candidates
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_MS, UserUnit

ROOT = Path(__file__).parent.parent
PATIENCE_S = 30
PATIENT = ServingConfig(limits=Limits(offers_per_s=100, offer_burst=100))
TOKEN = "correct-horse-battery"
GUARDED = replace(PATIENT, access=Access(token=TOKEN))
SCHEMA = event_schema()
SESSIONS, CALLS = "/v1/live/sessions", "/v1/realtime/calls"


@dataclass
class Served:
    """A server that listens. `http` checks every answer against the OpenAPI document."""

    url: str
    desk: Desk
    http: httpx.AsyncClient

    async def create(self, token: str = "") -> str:
        """A client secret."""
        answer = await self.http.post(SESSIONS, json={}, headers=as_bearer(token))
        assert answer.status_code == 201, answer.text
        return answer.json()["client_secret"]["value"]


def as_bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def fits(document: dict[str, Any]) -> Callable[[httpx.Response], Awaitable[None]]:
    """A hook that looks up an answer in the OpenAPI document."""

    async def check(response: httpx.Response) -> None:
        await response.aread()
        for name, value in SECURITY_HEADERS.items():
            assert response.headers[name] == value
        request, parts = response.request, response.request.url.path.split("/")
        for path, methods in document["paths"].items():
            names = path.split("/")
            same = len(names) == len(parts) and all(a == b or a[:1] == "{" for a, b in zip(names, parts, strict=True))
            if same and request.method.lower() in methods:
                declared = methods[request.method.lower()]["responses"][str(response.status_code)]
                content = declared.get("content", {})
                kind = response.headers.get("content-type", "").partition(";")[0]
                assert kind in content or not content, (path, response.status_code, kind)
                if kind == "application/json":
                    schema = content[kind]["schema"] | {"components": document["components"]}
                    jsonschema.validate(response.json(), schema)
                return
        raise AssertionError(f"{request.method} {request.url.path} is not in the document")

    return check


@asynccontextmanager
async def served(model: ModelProcess, config: ServingConfig = PATIENT) -> AsyncIterator[Served]:
    use_loopback_candidates()
    app = create_app(model, config)
    http = limited_protocol(config.limits, config.access)
    server = uvicorn.Server(uvicorn.Config(app, http=http, **socket_settings(config.limits), log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        running = asyncio.create_task(server.serve(sockets=[sock]))
        hooks = {"response": [fits(app.openapi())]}
        async with httpx.AsyncClient(base_url=url, event_hooks=hooks, timeout=PATIENCE_S) as client:
            try:
                yield Served(url, app.state.desk, client)
            finally:
                server.should_exit = True
                await running


class Caller:
    """What a `LiveClient` was told."""

    def __init__(self, client: LiveClient) -> None:
        self.client = client
        self.all: list[dict[str, Any]] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.client.events():
            self.all.append(event)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.all if event["type"] == kind]

    def text(self, side: str) -> str:
        return "".join(event["delta"] for event in self.told(f"session.{side}_transcript.delta"))

    async def hears(self, words: str, side: str = "output") -> None:
        await until(lambda: words in self.text(side), words)


def part(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]}


@asynccontextmanager
async def in_call(server: Served, units: list[UserUnit] | None = None, **more: str) -> AsyncIterator[Caller]:
    async with LiveClient(server.url, units or [], **more) as client:
        caller = Caller(client)
        await until(lambda: caller.told("session.started"), "the call")
        yield caller
    assert_fit(caller.all, "live.server")


def assert_fit(events: list[dict[str, Any]], kind: str) -> None:
    """Every event is one of the schema's."""
    validator = jsonschema.Draft202012Validator(part(kind))
    assert events
    assert [event for event in events if not validator.is_valid(event)] == []


def tone(seconds: float) -> list[UserUnit]:
    """A tone as microphone and green as camera."""
    n = np.arange(SAMPLES_PER_UNIT)
    audio = (0.25 * np.sin(2 * np.pi * 300 * n / SAMPLE_RATE)).astype(np.float32)
    video = np.full((4, 96, 168, 3), (20, 200, 30), np.uint8)
    return [UserUnit(audio, video)] * round(seconds * 1000 / UNIT_MS)


async def offer() -> str:
    """A good SDP offer of somebody who will not connect."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    pc.addTransceiver("audio")
    await pc.setLocalDescription(await pc.createOffer())
    sdp = pc.localDescription.sdp
    await pc.close()
    return sdp


def transport(sdp: str) -> dict[str, Any]:
    return {"transport": {"type": "webrtc", "sdp": sdp}}


class Peer:
    """A client of OpenAI's APIs, as small as it can be: sound, and one data channel."""

    def __init__(self, dialect: str) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.channel = self.pc.createDataChannel("oai-events")
        self.events: list[dict[str, Any]] = []
        self.channel.on("message", lambda text: self.events.append(json.loads(text)))
        self.dialect = dialect
        self.pc.addTransceiver(Tone(), direction="sendrecv")

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    async def leave(self) -> None:
        await self.pc.close()
        assert_fit(self.events, f"{self.dialect}.server")

    def send(self, kind: str, **fields: Any) -> None:
        self.channel.send(json.dumps({"type": kind, **fields}))


async def dial(server: Served, dialect: str, token: str = "", **more: str) -> tuple[Peer, httpx.Response]:
    peer = Peer(dialect)
    await peer.pc.setLocalDescription(await peer.pc.createOffer())
    sdp = peer.pc.localDescription.sdp
    if dialect == "live":
        answer = await server.http.post(SESSIONS, json=transport(sdp) | more, headers=as_bearer(token))
        found = answer.json().get("transport", {}).get("sdp", "")
    else:
        headers = as_bearer(token) | {"content-type": "application/sdp"}
        answer = await server.http.post(CALLS, content=sdp, headers=headers)
        found = answer.text
    if answer.status_code == 201:
        await peer.pc.setRemoteDescription(RTCSessionDescription(found, "answer"))
    return peer, answer


def typed(text: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"item": {"type": "message", "role": "user", "content": content, **more}}

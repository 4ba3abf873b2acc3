"""The protocol over real HTTP and real WebRTC: sessions and their secrets, the events of both dialects, and that the
OpenAPI document and the JSON Schema say what the server does."""

import asyncio
import json
import runpy
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import standin
import uvicorn
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from films import make_film
from test_serving import Tone, until

from wan_streamer.client import LiveClient
from wan_streamer.errors import MediaError, ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.app import create_app
from wan_streamer.serving.desk import Desk
from wan_streamer.serving.dialects.live import LiveDialect
from wan_streamer.serving.dialects.schema import DIALECTS, event_schema
from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.connections import limited_protocol, socket_settings
from wan_streamer.serving.doors.guard import SECURITY_HEADERS
from wan_streamer.serving.doors.limits import Limits
from wan_streamer.serving.messages import MAX_TEXT, CaptionEvent, EventError, TurnEvent, parse_event
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


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    model = ModelProcess(standin.StandInAgent)
    model.wait_ready(PATIENCE_S)
    yield model
    model.shutdown()


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


# ------------------------------------------------------------------------------------------------- sessions, secrets


def test_a_session_says_what_the_agent_is_and_its_secret_opens_one_call(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, GUARDED) as server:
            refused = await server.http.post(SESSIONS, json={})
            assert (refused.status_code, refused.json()["error"]) == (401, "token")
            created = await server.http.post(SESSIONS, json={}, headers=as_bearer(TOKEN))
            body = created.json()
            assert created.status_code == 201
            assert body["session"] == {
                "id": body["session"]["id"], "model": "stand-in", "unit_ms": 160,
                "output_video": {"width": standin.WIDTH, "height": standin.HEIGHT, "fps": 25},
            }  # fmt: skip
            assert 50 < body["client_secret"]["expires_at"] - time.time() <= 60
            assert (await server.http.get(body["events"])).json() == SCHEMA
            secret = body["client_secret"]["value"]
            assert (await server.http.get("/api/status", headers=as_bearer(secret))).status_code == 401
            bad = await server.http.post(SESSIONS, json=transport("nonsense"), headers=as_bearer(secret))
            assert (bad.status_code, bad.json()["error"]) == (400, "offer")  # it does not use the secret up
            async with in_call(server, secret=secret) as caller:
                assert caller.client.session == body["session"]
                assert caller.told("session.started")[0]["session"] == body["session"]
                assert server.desk.sessions == [body["session"]["id"]]
                for wrong in (secret, secret[:-1], "ek_", "ek_" + TOKEN):  # replayed, guessed
                    for answer in (
                        await server.http.post(SESSIONS, json=transport("v=0"), headers=as_bearer(wrong)),
                        await server.http.post(
                            CALLS, content="v=0", headers=as_bearer(wrong) | {"content-type": "application/sdp"}
                        ),
                    ):
                        assert (answer.status_code, answer.json()["error"]) == (401, "secret")

    asyncio.run(main())


def test_a_secret_is_of_no_use_when_it_is_old(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, replace(PATIENT, secret_s=0.2)) as server:
            secret = await server.create()
            await asyncio.sleep(0.3)
            late = await server.http.post(SESSIONS, json=transport(await offer()), headers=as_bearer(secret))
            assert (late.status_code, late.json()["error"]) == (401, "secret")
            assert server.desk.pending == 0

    asyncio.run(main())


def test_two_requests_cannot_use_one_secret(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model) as server:
            secret, sdp = await server.create(), await offer()
            answers = await asyncio.gather(
                *[server.http.post(SESSIONS, json=transport(sdp), headers=as_bearer(secret)) for _ in range(2)]
            )
            assert sorted(answer.status_code for answer in answers) == [201, 401]

    asyncio.run(main())


def test_requests_that_are_wrong_are_refused_with_a_code(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, replace(PATIENT, limits=replace(PATIENT.limits, secrets=1))) as server:
            for body, status, code in (
                ({"session": {"instructions": "Sing."}}, 422, "invalid"),
                ({"transport": {"type": "websocket", "sdp": "v=0"}}, 422, "invalid"),
                ({"transport": {"type": "webrtc", "sdp": ""}}, 422, "invalid"),
                ([], 422, "invalid"),
                (transport("v=0\r\nm=audio x"), 400, "offer"),
            ):
                answer = await server.http.post(SESSIONS, json=body)
                assert (answer.status_code, answer.json()["error"]) == (status, code), answer.text
            large = await server.http.post(SESSIONS, content=b"x" * 100_000)
            assert large.status_code == 413
            foreign = await server.http.post(SESSIONS, json={}, headers={"origin": "https://elsewhere.example"})
            assert (foreign.status_code, foreign.json()["error"]) == (403, "origin")
            rebound = await server.http.post(SESSIONS, json={}, headers={"host": "rebound.example"})
            assert rebound.status_code == 400
            await server.create()
            many = await server.http.post(SESSIONS, json={})
            assert (many.status_code, many.json()["error"]) == (429, "rate")
            with pytest.raises(ServingError, match=r"Too many sessions .*429"):
                await LiveClient(server.url)._ask("POST", SESSIONS, {})

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------- the Live dialect


def test_a_live_call(model: ModelProcess) -> None:
    """Media both ways, transcripts with times, typed text, mute, position, goodbye."""

    async def main() -> None:
        async with served(model) as server, in_call(server, tone(60)) as caller:
            client = caller.client
            client.send("session.input_text.append", text="good morning", event_id="mine")
            await caller.hears("You typed good morning.")
            acknowledged = caller.told("session.input_text.appended")
            assert [event["client_event_id"] for event in acknowledged] == ["mine"]
            await caller.hears("heard 0.", "input")
            await caller.hears("saw 168x96 ", "input")
            for side in ("input", "output"):
                await until(lambda side=side: caller.told(f"session.{side}_transcript.done"), "the end of a turn")
                deltas = caller.told(f"session.{side}_transcript.delta")
                assert [e["start_ms"] for e in deltas] == sorted({e["start_ms"] for e in deltas})
                assert {e["start_ms"] % UNIT_MS for e in deltas} == {0}
                assert {e["end_ms"] - e["start_ms"] for e in deltas} == {UNIT_MS}
                done = {event["end_ms"] for event in caller.told(f"session.{side}_transcript.done")}
                assert {event["end_ms"] for event in deltas[:-1]} <= done  # the stand-in ends each turn at once
                assert done
            await caller.hears("Unit 6.")
            spoken = [e for e in caller.told("session.output_transcript.delta") if e["delta"].startswith("Unit ")]
            shift = [e["start_ms"] // UNIT_MS - int(e["delta"].split()[1][:-1]) for e in spoken]
            assert shift == sorted(shift), "units that were held move what follows, and nothing else does"
            assert 0 <= shift[0] <= shift[-1] < 100

            client.mute()
            await caller.hears("heard nothing", "input")
            assert "heard 0." not in caller.text("input").rpartition("heard nothing")[2]
            assert caller.told("session.input_audio.muted")
            before = caller.text("input")
            client.mute(False)
            await until(lambda: "heard 0." in caller.text("input")[len(before) :], "the microphone again")
            client.send("session.input_video.mute")
            await caller.hears("saw nothing", "input")
            assert caller.told("session.input_video.muted")

            client.send("session.ping", t=12.5)
            await until(lambda: caller.told("session.pong"), "the answer")
            assert caller.told("session.pong")[0]["t"] == 12.5
            await until(lambda: len(caller.told("session.output.position")) > 3, "positions")
            positions = [event["position_ms"] for event in caller.told("session.output.position")]
            assert positions == sorted(positions)
            assert positions[-1] > positions[0] + 1000
            assert caller.told("session.stats")[-1]["stats"]["units"] > 5
            picture = await anext(client.pictures())
            assert picture.shape == (standin.HEIGHT, standin.WIDTH, 3)
            sounds = client.sounds()
            heard = np.concatenate([await anext(sounds) for _ in range(50)])
            assert (heard.dtype, len(heard)) == (np.float32, pytest.approx(SAMPLE_RATE, rel=0.02))
            spectrum = np.abs(np.fft.rfft(heard))
            assert abs(np.argmax(spectrum) * SAMPLE_RATE / len(heard) - standin.TONE_HZ) < 20

            client.send("session.close")
            await until(lambda: caller.told("session.closed"), "the end")
            assert caller.all[-1]["reason"] == "close_requested"
            assert not caller.told("error")
            await until(lambda: not server.desk._talks, "the place, which nobody keeps after a goodbye", 5)

    asyncio.run(main())


def test_transcripts_have_the_times_of_their_units() -> None:
    dialect = LiveDialect("session")
    for lane, side in (("response", "output"), ("transcript", "input")):
        delta = json.loads(dialect.write(CaptionEvent(lane, 5, "Hi"))[0])  # type: ignore[arg-type]
        assert (delta["type"], delta["delta"]) == (f"session.{side}_transcript.delta", "Hi")
        assert (delta["start_ms"], delta["end_ms"]) == (800, 960)
        done = json.loads(dialect.write(TurnEvent(lane, 6))[0])  # type: ignore[arg-type]
        assert (done["type"], done["end_ms"]) == (f"session.{side}_transcript.done", 1120)


def test_clear_drops_what_is_queued(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, replace(PATIENT, prebuffer_ms=400)) as server, in_call(server) as caller:
            client = caller.client
            await until(lambda: [e for e in caller.told("session.output.position") if e["position_ms"] > 500], "sound")
            client.clear()
            client.send("session.output.clear", event_id="mine")  # at once again
            await until(lambda: len(caller.told("session.output.cleared")) == 2, "the news")
            cleared, again = caller.told("session.output.cleared")
            assert cleared["dropped_ms"] >= 100
            assert again["dropped_ms"] < cleared["dropped_ms"], "nothing was left"
            assert again["position_ms"] == cleared["position_ms"]
            assert ("client_event_id" in cleared, again["client_event_id"]) == (False, "mine")
            later = len(caller.told("session.output.position"))
            await until(lambda: len(caller.told("session.output.position")) > later + 1, "positions")
            assert caller.told("session.output.position")[-1]["position_ms"] > cleared["position_ms"]

    asyncio.run(main())


BAD_EVENTS = {
    '{"type": "session.update", "event_id": "e", "session": {}}': "unknown_event",
    '{"type": "session.start", "event_id": "e"}': "unknown_event",
    '{"type": "text", "text": "hi", "event_id": "e"}': "unknown_event",  # of the page
    '{"type": "session.input_text.append", "event_id": "e"}': "invalid_event",
    '{"type": "session.input_text.append", "text": " ", "event_id": "e"}': "invalid_event",
    '{"type": "session.ping", "t": "now", "event_id": "e"}': "invalid_event",
    '{"type": 3, "event_id": "e"}': "invalid_event",
    '{"type": "session.output.clear", "event_id": 7}': "invalid_event",
    "[]": "invalid_event",
    "": "invalid_event",
    "not json": "invalid_event",
}


def test_bad_events_get_one_error_each_and_the_call_goes_on(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model) as server, in_call(server) as caller:
            for bad, code in BAD_EVENTS.items():
                before = len(caller.told("error"))
                caller.client._channel.send(bad)
                await until(lambda n=before: len(caller.told("error")) > n, bad)
                error = caller.told("error")[-1]["error"]
                assert (error["type"], error["code"]) == ("invalid_request_error", code)
                assert error.get("client_event_id") == ("e" if '"e"' in bad else None)
            caller.client._channel.send(b"\x00bytes")
            await until(lambda: len(caller.told("error")) > len(BAD_EVENTS), "bytes")
            caller.client.say("still here")
            await caller.hears("You typed still here.")
            assert len(caller.told("error")) == len(BAD_EVENTS) + 1
            assert "client_event_id" not in caller.told("session.input_text.appended")[0]

    asyncio.run(main())


def test_who_has_waited_gets_in_with_a_secret_that_is_old(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, replace(PATIENT, secret_s=2.0)) as server, in_call(server) as first:
            secret, other, sdp = await server.create(), await server.create(), await offer()
            full = await server.http.post(SESSIONS, json=transport(sdp), headers=as_bearer(secret))
            assert full.status_code == 202, full.text
            assert full.json()["place"] == 1
            ticket = as_bearer(full.json()["queue"])
            after = time.monotonic() + 2.2
            while time.monotonic() < after:
                assert (await server.http.get("/api/queue", headers=ticket)).json()["place"] == 1
            too_late = await server.http.post(SESSIONS, json=transport(sdp), headers=as_bearer(other))
            assert too_late.status_code == 401
            first.client.send("session.close")
            while not (await server.http.get("/api/queue", headers=ticket)).json()["ready"]:
                await asyncio.sleep(0.05)
            admitted = await server.http.post(SESSIONS, json=transport(sdp), headers=as_bearer(secret))
            assert admitted.status_code == 201

    asyncio.run(main())


def test_the_client_waits_in_line(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model) as server:
            async with in_call(server):
                second = LiveClient(server.url)
                entering = asyncio.create_task(second.__aenter__())
                await asyncio.sleep(1.0)
                assert not entering.done()
            await asyncio.wait_for(entering, PATIENCE_S)
            async for event in second.events():
                if event["type"] == "session.started":
                    break
            await second.close()
            await second.close()
            with pytest.raises(ServingError, match="over"):
                second.say("hello?")

    asyncio.run(main())


def test_an_error_of_the_units_is_not_lost(model: ModelProcess) -> None:
    def units() -> Iterator[UserUnit]:
        yield UserUnit()
        raise MediaError("the film is damaged")

    async def everything(client: LiveClient) -> list[dict[str, Any]]:
        return [event async for event in client.events()]

    async def main() -> None:
        async with served(model) as server, LiveClient(server.url, units()) as client:
            with pytest.raises(MediaError, match="damaged"):
                await asyncio.wait_for(everything(client), PATIENCE_S)

    asyncio.run(main())


def test_example_call(
    model: ModelProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    film = make_film(tmp_path / "me.mp4", seconds=3)

    async def main() -> None:
        async with served(model) as server:
            monkeypatch.setattr(sys, "argv", ["call.py", str(film), server.url])
            await asyncio.to_thread(runpy.run_path, str(ROOT / "examples/call.py"), run_name="__main__")

    asyncio.run(main())
    out = capsys.readouterr().out
    assert "stand-in" in out
    assert "agent  Unit" in out


def test_time_is_over(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, replace(PATIENT, max_call_s=1.0)) as server, in_call(server) as caller:
            await until(lambda: caller.told("session.closed"), "the end", 10)
            assert caller.all[-1]["reason"] == "expired"
            assert [event["code"] for event in caller.told("info")] == ["notice"]

    asyncio.run(main())


def test_a_conversation_goes_on_with_its_token(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model) as server:
            peer, answer = await dial(server, "live")
            await until(lambda: peer.told("session.started"), "the call")
            await peer.pc.close()
            await until(lambda: not server.desk.sessions, "the drop")
            again, _ = await dial(server, "live", resume=answer.json()["resume"]["token"])
            await until(lambda: again.told("info"), "the news")
            assert "goes on" in again.told("info")[0]["message"]
            await again.leave()

    asyncio.run(main())


# --------------------------------------------------------------------------------------------- the Realtime dialect


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


def test_a_realtime_call(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, GUARDED) as server:
            unauthorised = (await dial(server, "realtime"))[1]
            assert (unauthorised.status_code, unauthorised.json()["error"]) == (401, "token")
            peer, answer = await dial(server, "realtime", await server.create(TOKEN))
            assert answer.status_code == 201
            assert answer.headers["content-type"].startswith("application/sdp")
            await until(lambda: peer.told("session.created"), "the call")
            assert peer.events[0]["type"] == "session.created"
            call = answer.headers["location"]
            assert call == f"{CALLS}/{peer.events[0]['session']['id']}"

            peer.send("conversation.item.create", **typed("good morning", id="item_mine"))
            delta, done = "response.output_audio_transcript.delta", "response.output_audio_transcript.done"
            await until(
                lambda: [e for e in peer.told(done) if "You typed good morning" in e["transcript"]], "typed text"
            )
            items = [peer.told(f"conversation.item.{state}")[0]["item"] for state in ("added", "done")]
            assert [item["id"] for item in items] == ["item_mine"] * 2
            assert items[0]["content"] == [{"type": "input_text", "text": "good morning"}]
            for turn in peer.told(done):
                said = [e["delta"] for e in peer.told(delta) if e["response_id"] == turn["response_id"]]
                assert "".join(said) == turn["transcript"]
            assert len({e["response_id"] for e in peer.told(done)}) == len(peer.told(done))

            heard = "conversation.item.input_audio_transcription"
            await until(
                lambda: [e for e in peer.told(f"{heard}.completed") if "heard 0." in e["transcript"]], "hearing"
            )
            turn = peer.told(f"{heard}.completed")[-1]
            assert turn["usage"] == {"type": "duration", "seconds": 0.16}
            assert [e["delta"] for e in peer.told(f"{heard}.delta") if e["item_id"] == turn["item_id"]] == [
                turn["transcript"]
            ]

            peer.send("output_audio_buffer.clear")
            await until(lambda: peer.told("output_audio_buffer.cleared"), "the news")
            peer.send("response.create", event_id="mine")
            await until(lambda: peer.told("error"), "the error")
            for wrong in (typed("x", role="assistant"), typed("x") | {"previous_item_id": "a"}, typed("x" * 3000)):
                peer.send("conversation.item.create", **wrong)
            await until(lambda: len(peer.told("error")) == 4, "the errors")
            errors = [event["error"] for event in peer.told("error")]
            assert [error["code"] for error in errors] == ["unknown_event"] + ["invalid_event"] * 3
            assert errors[0]["event_id"] == "mine"
            peer.send("conversation.item.create", **typed("still here"))
            await until(lambda: [e for e in peer.told(delta) if "still here" in e["delta"]], "the call that goes on")
            assert not peer.told("input_audio_buffer.speech_started")

            full, answer = await dial(server, "realtime", TOKEN)
            assert (answer.status_code, answer.json()["error"]) == (503, "busy")
            assert int(answer.headers["retry-after"]) > 0
            assert server.desk._line._tickets == {}, "nobody waits who cannot ask"
            assert (await server.http.post(f"{call}/hangup")).status_code == 200
            await until(lambda: not server.desk.sessions, "the end", 5)
            assert (await server.http.post(f"{call}/hangup")).status_code == 404
            await full.pc.close()
            await peer.leave()

    asyncio.run(main())


def test_a_call_needs_sdp(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model) as server:
            for kind, body, status in (
                ("application/json", "{}", 415),
                ("application/sdp", "", 400),
                ("application/sdp; charset=utf-8", "nonsense", 400),
            ):
                answer = await server.http.post(CALLS, content=body, headers={"content-type": kind})
                assert answer.status_code == status, answer.text
            assert server.desk.pending == 0

    asyncio.run(main())


def test_realtime_tells_a_dead_model_and_the_end(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, replace(PATIENT, max_recoveries=1)) as server:
            peer, _ = await dial(server, "realtime")
            await until(lambda: peer.told("session.created"), "the call")
            peer.send("conversation.item.create", **typed("error"))
            await until(lambda: peer.told("error"), "the news")
            await asyncio.sleep(1)
            assert len(peer.told("session.created")) == 1
            peer.send("conversation.item.create", **typed("error"))
            await until(lambda: len(peer.told("error")) == 2, "the end")
            assert [e["error"]["code"] for e in peer.told("error")] == ["recovering", "ended"]
            await peer.leave()

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------- documents


def test_the_schema_in_the_documents_is_that_of_the_code() -> None:
    committed = json.loads((ROOT / "docs/events.schema.json").read_text())
    assert committed == SCHEMA, "python -m wan_streamer.serving.dialects.schema > docs/events.schema.json"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


CLIENT_EVENTS = {
    "page": [
        {"type": "text", "text": "hi"}, {"type": "text", "text": ""}, {"type": "text", "text": "x" * (MAX_TEXT + 1)},
        {"type": "text"}, {"text": "hi"}, {"type": "ping", "t": 1}, {"type": "ping", "t": None}, {"type": "clear"},
        {"type": "devices", "microphone": True, "camera": False}, {"type": "devices", "microphone": 1, "camera": 0},
        {"type": "session.close"}, {},
    ],
    "live": [
        {"type": "session.input_audio.mute"}, {"type": "session.input_video.unmute", "event_id": "e"},
        {"type": "session.input_audio.muted"}, {"type": "session.close", "event_id": 3}, {"type": "session.close"},
        {"type": "session.input_text.append", "text": "hi"}, {"type": "session.input_text.append", "text": "  "},
        {"type": "session.ping", "t": 0.5}, {"type": "session.ping", "t": True}, {"type": "session.output.clear"},
        {"type": "session.output.clear", "event_id": "e" * 200}, {"type": "clear"},
    ],
    "realtime": [
        {"type": "conversation.item.create"} | typed("hi"), {"type": "conversation.item.create"} | typed(""),
        {"type": "conversation.item.create"} | typed("hi", role="system"), {"type": "conversation.item.create"},
        {"type": "conversation.item.create"} | typed("hi", content=[]), {"type": "output_audio_buffer.clear"},
        {"type": "conversation.item.create", "previous_item_id": None} | typed("hi", id="mine"),
        {"type": "conversation.item.create", "previous_item_id": "root"} | typed("hi"), {"type": "session.update"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("dialect", CLIENT_EVENTS)
def test_the_schema_takes_what_the_server_takes(dialect: str) -> None:
    validator = jsonschema.Draft202012Validator(part(f"{dialect}.client"))
    answers = set()
    for event in CLIENT_EVENTS[dialect]:
        try:
            parse_event(json.dumps(event), DIALECTS[dialect][1])
            taken = True
        except EventError:
            taken = False
        assert validator.is_valid(event) == taken, event
        answers.add(taken)
    assert answers == {True, False}


def test_the_openapi_document_has_every_route(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model) as server:
            async with httpx.AsyncClient(base_url=server.url) as plain:
                document = (await plain.get("/openapi.json")).json()
                nowhere = await plain.get("/v1/nowhere")
                assert (nowhere.status_code, nowhere.json()["error"]) == (404, "route")
                assert nowhere.headers["content-security-policy"]
            assert set(document["paths"]) == {
                "/healthz", "/readyz", "/api/status", "/api/offer", "/api/queue", "/api/close", "/api/ice",
                "/metrics", SESSIONS, CALLS, f"{CALLS}/{{call_id}}/hangup", "/v1/events.schema.json",
            }  # fmt: skip
            assert "HTTPValidationError" not in document["components"]["schemas"], "no answer has that form"
            for path in ("/healthz", "/readyz", "/api/status", "/api/queue", "/api/ice"):
                await server.http.get(path)
            assert (await server.http.post("/api/close", json={"session": "none"})).json() == {"closed": False}
            assert (await server.http.post("/api/offer", json={})).status_code == 422
            page = await server.http.post("/api/offer", json={"sdp": await offer(), "type": "offer"})
            assert page.status_code == 200

    asyncio.run(main())

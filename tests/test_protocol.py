"""Sessions and their secrets, and that the OpenAPI document and the JSON Schema say what the server does."""

import asyncio
import json
import time
from dataclasses import replace

import httpx
import jsonschema
import pytest
import standin
from protocol import (
    CALLS,
    GUARDED,
    PATIENT,
    ROOT,
    SCHEMA,
    SESSIONS,
    TOKEN,
    as_bearer,
    in_call,
    offer,
    part,
    served,
    transport,
    typed,
)

from wan_streamer.client import LiveClient
from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.dialects.schema import DIALECTS
from wan_streamer.serving.messages import MAX_TEXT, EventError, parse_event


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

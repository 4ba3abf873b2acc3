"""What an operator sees: numbers and logs, which tell nothing of who called and what was said."""

import asyncio
import json
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import standin
from prometheus_client.parser import text_string_to_metric_families
from test_life import server
from test_serving import Visitor, application, until, with_application

from wan_streamer.errors import ServingError
from wan_streamer.process import _Line, masked
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.app import create_app
from wan_streamer.serving.desk import ENDS as REASONS
from wan_streamer.serving.desk import _kind
from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.limits import Limits
from wan_streamer.serving.meter import Meter
from wan_streamer.serving.peers.webrtc import use_loopback_candidates
from wan_streamer.serving.server import serve
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.watch.metrics import ENDS, READINGS, Metrics
from wan_streamer.units import UserUnit

PATIENCE_S = 30
TOKEN = "correct-horse-battery"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    model = ModelProcess(standin.StandInAgent, standby=True)
    model.wait_ready(PATIENCE_S)
    yield model
    model.shutdown()


def values(text: str) -> dict[str, float]:
    """{name: value} and {name{label}: value}; every family has its help."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            label = "".join(f"{{{value}}}" for name, value in sample.labels.items() if name != "le")
            if "le" not in sample.labels:
                found[sample.name.removeprefix("wan_streamer_") + label] = sample.value
    return found


async def numbers(client: httpx.AsyncClient) -> dict[str, float]:
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return values(answer.text)


# -------------------------------------------------------------------------------------------------------- metrics


def test_offers_calls_and_units_are_counted(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=Limits(offers_per_s=100, offer_burst=100)))
    async def _(client: httpx.AsyncClient) -> None:
        before = await numbers(client)
        assert before["capacity"] == before["model_ready"] == 1
        assert before["callers"] == before["units_total"] == before["offers_total{answered}"] == 0
        assert (await client.post("/v1/live/sessions", json={})).status_code == 201  # a session without an offer
        sdp = {"content-type": "application/sdp"}
        assert (await client.post("/v1/realtime/calls", content="v=0", headers=sdp)).status_code == 400
        visitor, waiting, restarts = Visitor(client), Visitor(client), before["model_restarts_total"]
        answer = await visitor.call()
        await until(lambda: visitor.told("session", state="live"), "the call")
        assert (await waiting.call()).status_code == 202
        for headers, body in (({"origin": "http://elsewhere.example"}, {}), ({}, {}), ({}, {"sdp": "v=0"})):
            await client.post("/api/offer", json={"type": "offer", **body}, headers=headers)
        visitor.say("secret words")
        await until(lambda: [e for e in visitor.told("caption") if "secret" in e["text"]], "typed text")
        now = await numbers(client)
        assert (now["callers"], now["queue"], now["pending_offers"]) == (1, 2, 0)
        outcomes = {name: value for name, value in now.items() if name.startswith("offers_total") and value}
        expected = {"answered": 1, "offer": 1, "queued": 2, "origin": 1, "invalid": 1}
        assert outcomes == {f"offers_total{{{name}}}": value for name, value in expected.items()}
        assert now["units_total"] == now["unit_latency_seconds_count"] > 0
        assert now["stage_seconds_count{solve}"] == now["stage_seconds_count{server: playout}"] == now["units_total"]
        assert now["stage_seconds_sum{solve}"] == pytest.approx(0.009 * now["units_total"])
        text = (await client.get("/metrics")).text
        for secret in ("secret", "127.0.0.1", visitor.session, masked(visitor.session), answer.json()["resume"]):
            assert secret not in text
        visitor.say("crash")
        await until(lambda: visitor.told("session", state="recovering"), "the restart")
        assert (await numbers(client))["model_restarts_total"] == restarts + 1
        await client.post("/api/close", json={"session": visitor.session})
        desk = client._transport.app.state.desk  # type: ignore[attr-defined]
        await until(lambda: desk.last_end, "the end")
        after = await numbers(client)
        assert (after["callers"], after["calls_ended_total{left}"]) == (0, 1)
        assert sum(value for name, value in after.items() if name.startswith("calls_ended_total")) == 1


def test_a_conversation_that_goes_on_is_counted(model: ModelProcess) -> None:
    @with_application(model)
    async def _(client: httpx.AsyncClient) -> None:
        first, second = Visitor(client), Visitor(client)
        token = (await first.call()).json()["resume"]
        await until(lambda: first.told("session", state="live"), "the call")
        assert (await second.call(resume=token)).status_code == 200
        await until(lambda: second.told("session", state="live"), "the call goes on")
        assert (await numbers(client))["conversations_resumed_total"] == 1


@pytest.mark.parametrize(
    ("config", "kind"),
    [(ServingConfig(connect_timeout_s=0.3), "not_connected"), (ServingConfig(idle_timeout_s=1.0), "silent"),
     (ServingConfig(max_call_s=1.0), "time"), (ServingConfig(max_recoveries=0), "model")],
)  # fmt: skip
def test_why_calls_end(model: ModelProcess, config: ServingConfig, kind: str) -> None:
    @with_application(model, config)
    async def _(client: httpx.AsyncClient) -> None:
        visitor = Visitor(client)
        if kind == "not_connected":
            await visitor.pc.setLocalDescription(await visitor.pc.createOffer())
            await client.post("/api/offer", json={"sdp": visitor.pc.localDescription.sdp, "type": "offer"})
        else:
            await visitor.call()
        if kind == "model":
            await until(lambda: visitor.told("session", state="live"), "the call")
            visitor.say("error")
        desk = client._transport.app.state.desk  # type: ignore[attr-defined]
        await until(lambda: desk.last_end, "the end")
        assert (await numbers(client))[f"calls_ended_total{{{kind}}}"] == 1


def test_reasons_are_few() -> None:
    for words, kind in REASONS.items():
        assert _kind(f"{words} and more", True) == kind
    assert {*REASONS.values(), _kind("x", True), _kind("x", False)} == set(ENDS)


def test_units_are_counted_by_what_was_wrong_with_them() -> None:
    metrics = Metrics()
    meter, unit = Meter(metrics), standin.StandInSession().step(UserUnit())
    for latency, held, broken in ((20, False, False), (161, False, False), (200, True, False), (159, False, True)):
        object.__setattr__(unit, "held", held)
        object.__setattr__(unit, "broken", broken)
        meter.add_unit(unit, latency)
    found = values(metrics.text().decode())
    assert [found[f"units{name}_total"] for name in ("", "_late", "_held", "_broken")] == [4, 2, 1, 1]
    assert found["unit_latency_seconds_sum"] == pytest.approx(0.54)


def test_the_loop_is_watched() -> None:
    metrics = Metrics()

    async def main() -> None:
        task = asyncio.create_task(metrics.watch_loop())
        await asyncio.sleep(0.9)
        time.sleep(0.4)  # in the way of the loop
        await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(main())
    found = values(metrics.text().decode())
    assert found["event_loop_lag_seconds_count"] == 1
    assert found["event_loop_lag_seconds_sum"] > 0.2


@pytest.mark.parametrize(
    ("access", "came_from", "headers", "status"),
    [
        (Access(), "127.0.0.1", {}, 200),
        (Access(), "10.0.0.9", {}, 401),
        (Access(), "127.0.0.1", {"x-forwarded-for": "9.9.9.9"}, 401),  # by a proxy that was not named
        (Access(), "127.0.0.1", {"authorization": f"Bearer {TOKEN}"}, 200),
        (Access(origins=("https://agent.example",)), "127.0.0.1", {}, 401),
        (Access(proxies=("127.0.0.1",)), "127.0.0.1", {}, 401),
        (Access(token=TOKEN), "127.0.0.1", {}, 401),
        (Access(token=TOKEN), "127.0.0.1", {"authorization": "Bearer wrong"}, 401),
        (Access(token=TOKEN), "10.0.0.9", {"authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
def test_who_may_read_the_numbers(model, access: Access, came_from: str, headers: dict[str, str], status: int) -> None:
    app = create_app(model, ServingConfig(access=access))

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(came_from, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/metrics", headers=headers)

    answer = asyncio.run(request())
    assert answer.status_code == status
    assert ("wan_streamer" in answer.text) == (status == 200)


def test_the_document_names_every_metric(model: ModelProcess) -> None:
    async def main() -> str:
        async with application(model) as client:
            return (await client.get("/metrics")).text

    families = list(text_string_to_metric_families(asyncio.run(main())))
    names = {f"{family.name}{'_total' if family.type == 'counter' else ''}" for family in families}
    names = {name for name in names if not name.endswith("_created")}
    section = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").partition("## Running it for others")[2]
    assert len(names) == 12 + len(READINGS) - 2
    assert [name for name in sorted(names) if f"`{name.removeprefix('wan_streamer_')}`" not in section] == []


# ----------------------------------------------------------------------------------------------------------- logs


def record(message: str, error: Exception | None = None, **extra: str) -> logging.LogRecord:
    found = None
    if error is not None:
        try:
            raise error
        except Exception as raised:
            found = (type(raised), raised, raised.__traceback__)
    return logging.getLogger("wan_streamer.test").makeRecord(
        "wan_streamer.test", logging.WARNING, __file__, 1, message, (), found, extra=extra
    )


def test_a_line_of_the_log() -> None:
    fields = json.loads(_Line("json").format(record("it broke\nsecret", ValueError("secret"), session="ab12")))
    assert list(fields) == ["time", "level", "logger", "event", "session", "error", "at"]
    assert fields["event"] == "it broke"
    assert (fields["level"], fields["session"], fields["error"]) == ("warning", "ab12", "ValueError")
    assert fields["at"].startswith("test_operations.py:")
    assert fields["time"].endswith("Z")
    line = _Line("text").format(record("it broke\nsecret", ValueError("secret"), session="ab12"))
    assert " warning wan_streamer.test it broke session=ab12 error=ValueError at=test_operations.py:" in line
    assert "secret" not in line
    assert "\n" not in line


def test_a_call_in_the_log(tmp_path: Path) -> None:
    """Of a server with its model process: JSON from the first line to the last, and nothing of the caller."""
    with server(tmp_path, "--log-format", "json", "--token", TOKEN) as (port, process):

        async def call() -> str:
            headers = {"authorization": f"Bearer {TOKEN}"}
            async with httpx.AsyncClient(base_url=f"http://localhost:{port}", headers=headers) as client:
                visitor = Visitor(client)
                assert (await visitor.call()).status_code == 200
                await until(lambda: visitor.told("session", state="live"), "the call")
                visitor.say("secret words")
                visitor.say("error")
                await until(lambda: visitor.told("session", state="recovering"), "the failure")
                await until(lambda: visitor.told("notice"), "the restart")
                process.send_signal(signal.SIGTERM)
                await until(lambda: visitor.told("session", state="ended"), "the end", 10)
                await visitor.leave()
                return visitor.session

        use_loopback_candidates()
        session = asyncio.run(call())
        assert process.wait(15) == 0
    text = (tmp_path / "log.txt").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "event"} <= set(line) for line in lines)
    events = {line["event"].partition(":")[0]: line for line in lines}
    assert {"ready", "call began", "model session lost", "call ended", "stopped"} <= set(events), text
    for event in ("call began", "model session lost", "call ended"):
        assert events[event]["session"] == masked(session)
    assert events["call ended"]["event"] == "call ended: stopped"
    assert events["a session failed"]["error"] == "RuntimeError"  # told by the model process
    for secret in ("secret", "asked to fail", TOKEN, session, "127.0.0.1", "Traceback"):
        assert secret not in text


def test_a_made_up_token_would_be_told_to_nobody() -> None:
    with pytest.raises(ServingError, match="--log-format json: expected --token"):
        serve("nano", host="0.0.0.0", self_signed=True, log_format="json")

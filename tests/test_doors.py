"""Who may reach the server, how much of it, and what becomes of it when it is told to stop."""

import asyncio
import socket
import time
from pathlib import Path

import httpx
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from test_serving import Visitor, application, until

from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.app import create_app
from wan_streamer.serving.doors.access import Access, plan_access
from wan_streamer.serving.doors.limits import Limits, Rates, who
from wan_streamer.serving.doors.tls import load_tls, self_signed_tls
from wan_streamer.serving.peers.offers import check_bundle, check_offer
from wan_streamer.serving.settings import ServingConfig

PATIENCE_S = 30
OFFER = {"sdp": "v=0", "type": "offer"}
TOKEN = "correct-horse-battery"


def ask(model: ModelProcess, access: Access, method: str, path: str, body: object = None, limits: Limits | None = None,
        came_from: str = "127.0.0.1", **headers: str) -> httpx.Response:  # fmt: skip
    """One request to a new application."""
    app = create_app(model, ServingConfig(access=access, limits=limits or Limits()))

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(came_from, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
            return await client.request(
                method, path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
            )

    return asyncio.run(request())


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:1", 200), ("agent.example", 200), ("rebound.example", 400)],
)
def test_only_known_names_are_served(model: ModelProcess, host: str, status: int) -> None:
    access = plan_access("127.0.0.1", ["https://agent.example/agent"])
    answer = ask(model, access, "GET", "/", host=host)
    assert answer.status_code == status
    for name in ("default-src", "frame-ancestors"):
        assert name in answer.headers["content-security-policy"]  # refusals too
    assert "camera=(self)" in answer.headers["permissions-policy"]


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8080", "http://localhost:8080", 400),  # 400: let in, and then no good offer
        ("localhost:8080", "https://agent.example", 400),  # a proxy changed the host
        ("localhost:8080", "http://localhost:3000", 403),
        ("localhost:8080", "https://elsewhere.example", 403),
        ("localhost:8080", "null", 403),
    ],
)
def test_only_own_pages_may_call(model: ModelProcess, host: str, origin: str, status: int) -> None:
    access = plan_access("127.0.0.1", ["https://agent.example/agent"])
    assert ask(model, access, "POST", "/api/offer", OFFER, host=host, origin=origin).status_code == status


def test_forwarding_headers_are_believed_from_named_proxies_only(model: ModelProcess) -> None:
    forwarded = {"origin": "https://localhost:8080", "x_forwarded_proto": "https"}
    assert ask(model, Access(), "POST", "/api/offer", OFFER, **forwarded).status_code == 403
    assert ask(model, Access(proxies=("127.0.0.0/8",)), "POST", "/api/offer", OFFER, **forwarded).status_code == 400


def test_a_token_is_asked_for(model: ModelProcess) -> None:
    access = plan_access("127.0.0.1", token=TOKEN)
    for header, status in (("", 401), ("Bearer wrong", 401), (f"Bearer {TOKEN}", 400)):
        answer = ask(model, access, "POST", "/api/offer", OFFER, authorization=header)
        assert answer.status_code == status
        assert TOKEN not in answer.text
    assert ask(model, access, "GET", "/api/status").status_code == 401
    assert ask(model, access, "GET", f"/api/status?token={TOKEN}").status_code == 401


def test_a_session_ends_with_its_call(model: ModelProcess) -> None:
    def as_bearer(token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    async def main() -> None:
        async with application(model, ServingConfig(access=Access(token=TOKEN))) as client:
            client.headers.update(as_bearer(TOKEN))
            first, second = Visitor(client), Visitor(client)
            await first.call()
            await until(lambda: first.told("session", state="live"), "the call")
            old = as_bearer(first.session)
            assert (await client.get("/api/status", headers=old)).json()["state"] == "live"
            assert (await client.post("/api/offer", json=OFFER, headers=old)).status_code == 401  # it opens no call
            assert (await client.post("/api/close", json={"session": first.session})).json() == {"closed": True}
            desk = client._transport.app.state.desk  # type: ignore[attr-defined]
            await until(lambda: not desk.sessions, "the place")
            await second.call()
            await until(lambda: second.told("session", state="live"), "the next call")
            assert (await client.get("/api/status", headers=old)).status_code == 401
            assert (await client.post("/api/close", json={"session": first.session})).json() == {"closed": False}
            assert desk.sessions == [second.session]

    asyncio.run(main())


def test_other_hosts_get_a_token() -> None:
    assert plan_access("127.0.0.1").token is None
    assert len(plan_access("0.0.0.0").token or "") >= 16
    assert socket.gethostname().lower() in plan_access("0.0.0.0").hosts
    for words, arguments in {
        "--token": {"token": "short"},
        "--proxy": {"proxies": ["nginx"]},
        "--public-url": {"public_urls": ["agent.example"]},
    }.items():
        with pytest.raises(ServingError, match=words):
            plan_access("127.0.0.1", **arguments)  # type: ignore[arg-type]


def test_certificates(tmp_path: Path) -> None:
    assert self_signed_tls(("localhost", "[::1]", "10.0.0.1")).cert_store_stats() is not None
    bad = tmp_path / "bad.pem"
    bad.write_text("this is no certificate")
    with pytest.raises(ServingError, match="PEM certificate"):
        load_tls(bad, bad)


def test_a_body_is_refused_while_it_is_read(model: ModelProcess) -> None:
    read = 0

    async def body():
        nonlocal read
        for _ in range(3000):  # 200 MB
            read += 1
            yield b"x" * 65_536

    app = create_app(model)

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post("/api/offer", content=body(), headers={"content-type": "application/json"})

    answer = asyncio.run(post())
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert read < 5


def test_rates_are_counted_by_address() -> None:
    rates = Rates(0.001, 2)
    assert [rates.take("a"), rates.take("a"), rates.take("a"), rates.take("b")] == [True, True, False, True]
    assert who("2001:db8::1") == who("2001:db8::ffff") != who("2001:db8:1::1")


def test_offers_that_never_connect_keep_nobody_out(model: ModelProcess) -> None:
    async def main() -> None:
        async with application(model) as client:
            flood = httpx.AsyncClient(transport=httpx.ASGITransport(client._transport.app, client=("10.9.9.9", 1)),  # type: ignore[attr-defined]
                                      base_url="http://localhost")  # fmt: skip
            idle = Visitor(flood)
            await idle.pc.setLocalDescription(await idle.pc.createOffer())
            offer = {"sdp": idle.pc.localDescription.sdp, "type": "offer"}
            answers = [(await flood.post("/api/offer", json=offer)).status_code for _ in range(5)]
            assert answers == [200, 200, 429, 429, 429]
            visitor = Visitor(client)
            assert (await visitor.call()).status_code == 200
            await until(lambda: visitor.told("session", state="live"), "the call")
            status = await client.get("/api/status", headers={"authorization": f"Bearer {visitor.session}"})
            assert status.json()["state"] == "live"
            assert (await client.get("/api/status")).json() == {"busy": True, "model": "ready", "agent": None}
            await flood.aclose()

    asyncio.run(main())


def test_candidates_are_checked() -> None:
    line = "a=candidate:1 1 udp 2130706431 {} {} typ host"
    lines = [line.format("8.8.8.8", port) for port in range(2000, 2200)]
    offer = "\r\n".join(["v=0", "m=audio 9 x", *lines, line.format("9.9.9.9", 3000), line.format("10.0.0.1", 3000)])
    assert check_offer(offer, "9.9.9.9").count("a=candidate") == 1  # where the offer came from, nowhere else
    assert check_offer(offer.replace("8.8.8.8", "127.0.0.1"), "127.0.0.1").count("a=candidate") == 8
    with pytest.raises(ServingError, match="sections"):
        check_offer("m=audio 9 x\r\n" * 5, "")


def test_an_offer_bundles_its_own_sections() -> None:
    async def offer() -> str:
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        peer.addTransceiver("audio")
        peer.addTransceiver("video")
        peer.createDataChannel("events")
        await peer.setLocalDescription(await peer.createOffer())
        await peer.close()
        return peer.localDescription.sdp

    sdp = asyncio.run(offer())
    check_bundle(sdp)
    assert "BUNDLE 0 1 2" in sdp
    check_bundle(sdp.replace("BUNDLE 0 1 2", "BUNDLE 1 0"))
    for old, new in (
        ("BUNDLE 0 1 2", "BUNDLE 7 0 1 2"),
        ("BUNDLE 0 1 2", "BUNDLE 0 1 2 1"),
        ("a=mid:0", "a=mid:1"),
        ("a=mid:0", "a=dim:0"),
        ("m=audio", "m=oidua"),
    ):
        with pytest.raises(ServingError, match="each once"):
            check_bundle(sdp.replace(old, new))


@pytest.mark.parametrize(("came_from", "checked"), [("127.0.0.1", True), ("9.9.9.9", False)])
def test_checks_are_sent_to_callers_only(model: ModelProcess, came_from: str, checked: bool) -> None:
    """An offer from elsewhere that names a port of this machine."""

    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
            victim.bind(("127.0.0.1", 0))
            victim.setblocking(False)
            async with application(model) as client:
                caller = httpx.AsyncClient(transport=httpx.ASGITransport(client._transport.app, client=(came_from, 1)),  # type: ignore[attr-defined]
                                           base_url="http://localhost")  # fmt: skip
                visitor = Visitor(caller)
                await visitor.pc.setLocalDescription(await visitor.pc.createOffer())
                line = f"a=candidate:1 1 udp 2130706431 127.0.0.1 {victim.getsockname()[1]} typ host"
                lines = visitor.pc.localDescription.sdp.splitlines()
                sdp = "\r\n".join(line if "a=candidate" in one else one for one in lines) + "\r\n"
                assert (await caller.post("/api/offer", json={"sdp": sdp, "type": "offer"})).status_code == 200
                received = asyncio.get_running_loop().sock_recv(victim, 2000)
                if checked:
                    assert await asyncio.wait_for(received, 5)
                else:
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(received, 2)
                await caller.aclose()

    asyncio.run(main())


def test_bad_messages_are_answered_and_the_call_goes_on(model: ModelProcess, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with application(model) as client:
            visitor, began = Visitor(client), time.monotonic()
            await visitor.call()
            await until(lambda: visitor.told("session", state="live"), "the call")
            bad = ["[" * 16_000, '{"type": "ping", "t": ' + "9" * 400 + "}", '{"type": "ping", "t": 1e999}',
                   '{"type": "text", "text": "\\ud800"}', '{"type": "secret words"}', b"\xff"]  # fmt: skip
            for number, message in enumerate(bad, start=1):
                visitor.channel.send(message)
                await until(lambda n=number: len(visitor.told("error")) == n, f"answer {number}")
            assert not [e for e in visitor.told("error") if "could not be handled" in e["message"]]  # all are expected
            sctp = visitor.pc.sctp
            await sctp._send(visitor.channel.id, 51, b"\xff\xfe")  # text that is not UTF-8
            await until(lambda: len(visitor.told("error")) == len(bad) + 1, "the last answer")
            more = [visitor.pc.createDataChannel(f"more {number}") for number in range(300)]
            for number in range(1000):
                visitor.say(f"word {number}")
            for limit in ("are waiting", "too many came"):
                await until(lambda words=limit: [e for e in visitor.told("error") if words in e["message"]], limit)
            units = visitor.told("stats")[-1]["units"] if visitor.told("stats") else 0
            await until(lambda: visitor.told("stats") and visitor.told("stats")[-1]["units"] > units + 5, "more units")
            assert not visitor.told("session", state="recovering")
            assert not [channel for channel in more if channel.readyState == "open"]
            assert len(visitor.told("error")) < 60 + 20 * (time.monotonic() - began)  # not an answer for each

    asyncio.run(main())
    assert "secret" not in caplog.text
    assert "word" not in caplog.text
    assert "Traceback" not in caplog.text

"""The call below the browser: the web application, and a call between two aiortc peers."""

import asyncio
import fractions
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import av
import httpx
import numpy as np
import pytest
import standin
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError, MediaStreamTrack, VideoStreamTrack

from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.app import create_app
from wan_streamer.serving.doors.limits import Limits
from wan_streamer.serving.peers.webrtc import use_loopback_candidates
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.units import SAMPLES_PER_UNIT, UserUnit

PATIENCE_S = 30


class Tone(AudioStreamTrack):
    """48 kHz, 20 ms frames of a 300 Hz tone."""

    def __init__(self) -> None:
        super().__init__()
        self._n = 0
        self._began = time.monotonic()

    async def recv(self) -> av.AudioFrame:
        await asyncio.sleep(max(0, self._began + self._n * 0.02 - time.monotonic()))
        t = (np.arange(960) + self._n * 960) / 48_000
        frame = av.AudioFrame.from_ndarray(
            (8000 * np.sin(2 * np.pi * 300 * t)).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._n * 960, fractions.Fraction(1, 48_000)
        self._n += 1
        return frame


class Green(VideoStreamTrack):
    async def recv(self) -> av.VideoFrame:
        pts, base = await self.next_timestamp()
        frame = av.VideoFrame.from_ndarray(np.full((240, 320, 3), (20, 200, 30), np.uint8), format="rgb24")
        frame.pts, frame.time_base = pts, base
        return frame


class Visitor:
    """A page made of aiortc: what it saw, heard and was told. `application` closes all of them."""

    all: ClassVar[list["Visitor"]] = []

    def __init__(self, client: httpx.AsyncClient, *tracks: MediaStreamTrack) -> None:
        Visitor.all.append(self)
        self.client = client
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.channel = self.pc.createDataChannel("events")
        self.events: list[dict] = []
        self.pictures: list[np.ndarray] = []
        self.samples: list[np.ndarray] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.session = ""
        self.channel.on("message", lambda text: self.events.append(json.loads(text)))
        self.pc.on("track", lambda track: self.tasks.append(asyncio.create_task(self._collect(track))))
        for kind in ("audio", "video"):
            own = next((track for track in tracks if track.kind == kind), kind)
            self.pc.addTransceiver(own, direction="sendrecv")

    async def call(self, **more: str) -> httpx.Response:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        offer = {"sdp": self.pc.localDescription.sdp, "type": "offer", **more}
        response = await self.client.post("/api/offer", json=offer)
        if response.status_code == 200:
            self.session = response.json()["session"]
            await self.pc.setRemoteDescription(RTCSessionDescription(response.json()["sdp"], "answer"))
        return response

    async def _collect(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                if isinstance(frame, av.VideoFrame):
                    self.pictures.append(frame.to_ndarray(format="rgb24"))
                else:
                    self.samples.append(frame.to_ndarray().reshape(-1, 2)[:, 0] / 32768)  # type: ignore[union-attr]
        except MediaStreamError:
            pass

    def told(self, kind: str, **fields: object) -> list[dict]:
        return [e for e in self.events if e["type"] == kind and all(e[name] == v for name, v in fields.items())]

    def say(self, text: str) -> None:
        self.channel.send(json.dumps({"type": "text", "text": text}))

    async def leave(self) -> None:
        await self.pc.close()
        for task in self.tasks:
            task.cancel()


async def until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def application(model: ModelProcess, config: ServingConfig | None = None) -> AsyncIterator[httpx.AsyncClient]:
    use_loopback_candidates()
    app = create_app(model, config)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        try:
            yield client
        finally:
            for visitor in Visitor.all:
                await visitor.leave()
            Visitor.all.clear()
            await app.state.desk.shutdown()


def with_application(model: ModelProcess, config: ServingConfig | None = None):
    """Run an async test body with a client of the application."""

    def run(body: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
        async def main() -> None:
            async with application(model, config) as client:
                await body(client)

        asyncio.run(main())

    return run


def test_the_page_and_its_files(model: ModelProcess) -> None:
    @with_application(model)
    async def _(client: httpx.AsyncClient) -> None:
        page = await client.get("/")
        assert page.status_code == 200
        for name in ("start", "stop", "agent-video", "self-video", "captions", "status", "latency"):
            assert f'data-testid="{name}"' in page.text
        for path in ("static/app.js", "static/style.css", "static/icon.svg"):
            assert (await client.get(path)).status_code == 200
            assert f'"{path}"' in page.text  # relative, so that a sub-path works
        assert (await client.get("/healthz")).json() == {"ok": True}
        assert (await client.get("/readyz")).json() == {"ok": True, "model": "ready"}
        assert (await client.get("/api/status")).json()["busy"] is False


def test_bad_offers_are_refused_with_a_message_and_leave_the_place_free(model: ModelProcess) -> None:
    @with_application(model)
    async def _(client: httpx.AsyncClient) -> None:
        for body, status in (
            ({"sdp": "nonsense", "type": "offer"}, 400),
            ({"sdp": "v=0\r\nm=audio x", "type": "offer"}, 400),
            ({"sdp": "v=0", "type": "answer"}, 422),
            ({"sdp": "x" * 70_000, "type": "offer"}, 422),
            ({}, 422),
        ):
            response = await client.post("/api/offer", json=body)
            assert response.status_code == status, response.text
            assert response.json()["message"]
        foreign = await client.post("/api/offer", json={"sdp": "v=0", "type": "offer"},
                                    headers={"origin": "http://elsewhere.example"})  # fmt: skip
        assert foreign.status_code == 403
        assert (await client.get("/api/status")).json()["busy"] is False


def test_a_call_carries_tone_picture_captions_text_and_stats(model: ModelProcess) -> None:
    @with_application(model)
    async def _(client: httpx.AsyncClient) -> None:
        visitor = Visitor(client, Tone(), Green())
        assert (await visitor.call()).status_code == 200
        await until(lambda: visitor.told("session", state="live", agent="stand-in"), "the call")
        visitor.say("good morning")
        visitor.channel.send(json.dumps({"type": "ping", "t": 12.5}))
        visitor.channel.send("not json")  # logged, not fatal
        await until(lambda: len(visitor.told("stats")) >= 3, "stats")
        await until(lambda: [e for e in visitor.told("caption") if "good morning" in e["text"]], "typed text")
        assert visitor.told("pong") == [{"type": "pong", "t": 12.5}]
        heard = [e["text"] for e in visitor.told("caption", lane="transcript")][-1]
        assert heard.startswith("heard 0.1")  # RMS 0.17 in a mono frame, which reaches Opus 3 dB quieter
        seen = [int(x) for x in heard.split()[4].rstrip(".").split(",")]
        assert np.abs(np.subtract(seen, (20, 200, 30))).max() < 12
        assert "256x192" in heard  # 4:3 fitted into 336x192
        stats = visitor.told("stats")[-1]
        assert stats["units"] > 5
        assert {"p50", "p95", "p99"} == set(stats["model_latency_ms"])
        assert {"solve", "server: playout"} <= set(stats["stage_ms"])
        sound = np.concatenate(visitor.samples)[-24_000:]
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
        assert abs(np.argmax(spectrum) * 2 - standin.TONE_HZ) <= 4  # 0.5 s: bins of 2 Hz
        picture = visitor.pictures[-1]
        assert picture.shape == (standin.HEIGHT, standin.WIDTH, 3)
        assert np.abs(picture[170, 168].astype(int) - (20, 200, 30)).max() < 25


def test_without_a_queue_a_second_visitor_is_told_and_the_place_is_free_after_goodbye(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=Limits(queue=0)))
    async def _(client: httpx.AsyncClient) -> None:
        first, second = Visitor(client), Visitor(client)
        assert (await first.call()).status_code == 200
        await until(lambda: first.told("session", state="live"), "the call")
        busy = await second.call()
        assert busy.status_code == 409
        assert busy.json()["error"] == "busy"
        assert "Try again later" in busy.json()["message"]
        await until(lambda: first.told("session", state="live"), "the call")
        assert (await client.post("/api/close", json={"session": "wrong"})).json() == {"closed": False}
        assert (await client.post("/api/close", json={"session": first.session})).json() == {"closed": True}
        desk = client._transport.app.state.desk  # type: ignore[attr-defined]
        await until(lambda: not desk.sessions, "the place")
        third = Visitor(client)
        assert (await third.call()).status_code == 200


def test_without_devices_the_call_still_answers(model: ModelProcess) -> None:
    @with_application(model)
    async def _(client: httpx.AsyncClient) -> None:
        visitor = Visitor(client)
        await visitor.call()
        await until(lambda: visitor.told("caption", lane="transcript"), "captions")
        assert "heard nothing saw nothing" in visitor.told("caption", lane="transcript")[0]["text"]
        await until(lambda: len(visitor.pictures) > 20, "pictures")


def test_a_page_that_never_connects_is_forgotten(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(connect_timeout_s=0.5))
    async def _(client: httpx.AsyncClient) -> None:
        visitor = Visitor(client)
        await visitor.pc.setLocalDescription(await visitor.pc.createOffer())
        await client.post("/api/offer", json={"sdp": visitor.pc.localDescription.sdp, "type": "offer"})
        desk = client._transport.app.state.desk  # type: ignore[attr-defined]
        assert (desk.sessions, desk.pending) == ([], 1)  # an offer takes no place
        await until(lambda: desk.pending == 0, "the offer to be forgotten", 10)
        assert "did not connect" in desk.last_end


def test_a_silent_page_is_freed(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(idle_timeout_s=1.0))
    async def _(client: httpx.AsyncClient) -> None:
        visitor = Visitor(client)
        await visitor.call()
        desk = client._transport.app.state.desk  # type: ignore[attr-defined]
        await until(lambda: desk.last_end, "the end", 10)
        assert not desk.sessions
        assert "nothing came" in desk.last_end


@pytest.mark.parametrize("text", ["crash", "error", "hang"])
def test_a_call_survives_a_dead_model(model: ModelProcess, text: str) -> None:
    @with_application(model, ServingConfig(model_timeout_s=1.0))
    async def _(client: httpx.AsyncClient) -> None:
        visitor = Visitor(client)
        await visitor.call()
        await until(lambda: len(visitor.pictures) > 5, "pictures")
        visitor.say(text)
        await until(lambda: visitor.told("session", state="recovering"), "the message")
        await until(lambda: visitor.told("notice"), "the restart")
        pictures, captions = len(visitor.pictures), len(visitor.told("caption"))
        await until(lambda: len(visitor.pictures) > pictures + 25, "pictures after the restart")
        await until(lambda: len(visitor.told("caption")) > captions, "captions after the restart")
        assert not visitor.told("session", state="ended")


def test_a_model_that_keeps_dying_ends_the_call_with_a_reason(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(max_recoveries=0))
    async def _(client: httpx.AsyncClient) -> None:
        visitor = Visitor(client)
        await visitor.call()
        await until(lambda: visitor.told("session", state="live"), "the call")
        visitor.say("error")
        await until(lambda: visitor.told("session", state="ended"), "the end")
        assert "model failed" in visitor.told("session", state="ended")[0]["message"]


def test_units_have_the_contract_shape() -> None:
    out = standin.StandInSession().step(UserUnit())
    assert out.audio.shape == (SAMPLES_PER_UNIT,)

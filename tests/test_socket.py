"""A call over a WebSocket, with a client that encodes and decodes as a page does."""

import asyncio
import contextlib
import json
import signal
import socket
import struct
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import psutil
import pytest
import standin
import websockets
from protocol import GUARDED, PATIENT, TOKEN, part, served
from socket_page import GREEN, PATIENCE_S, Page, block, dial, vp8_packets
from test_life import server
from test_serving import until

from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.limits import Limits
from wan_streamer.serving.messages import EventError
from wan_streamer.serving.peers.frames import MAX_SOUND, Packet, PictureReader
from wan_streamer.serving.settings import ServingConfig


@pytest.mark.parametrize("pcm", [False, True], ids=["opus", "pcm"])
def test_a_call_carries_tone_picture_captions_and_text(model: ModelProcess, pcm: bool) -> None:
    async def main() -> None:
        async with served(model) as server, dial(server) as page:
            assert (await page.start())["type"] == "started"
            page.listen()
            page.speak(pcm=pcm)
            await until(lambda: page.told("session", state="live", agent="stand-in"), "the call")
            await page.send(type="text", text="good morning")
            await page.send(type="ping", t=12.5)
            await until(lambda: [e for e in page.told("caption") if "good morning" in e["text"]], "typed text")
            assert page.told("pong") == [{"type": "pong", "t": 12.5}]
            await until(lambda: "heard 0.1" in str(page.told("caption", lane="transcript")), "its hearing", 8)
            heard = next(e["text"] for e in page.told("caption", lane="transcript") if "heard 0.1" in e["text"])
            level = float(heard.split()[1])
            assert abs(level - 8000 / 32768 / np.sqrt(2)) < 0.02
            await until(lambda: "saw 256x192" in str(page.told("caption", lane="transcript")), "its sight", 8)
            seen = next(e["text"] for e in page.told("caption", lane="transcript") if "saw 256x192" in e["text"])
            assert np.abs(np.subtract([int(x) for x in seen.split()[4].rstrip(".").split(",")], GREEN)).max() < 12
            await until(lambda: len(page.told("stats")) >= 3, "stats")
            sound = np.concatenate([s for _, s in page.samples][-25:])
            spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
            assert abs(np.argmax(spectrum) * 2 - standin.TONE_HZ) <= 4
            assert abs(np.sqrt(np.mean(sound**2)) - standin.TONE_LEVEL / np.sqrt(2)) < 0.03
            assert page.pictures[-1][1].shape == (standin.HEIGHT, standin.WIDTH, 3)
            assert page.packets[0][1].kind == "opus"
            assert next(p for _, p in page.packets if p.kind == "vp8").key
            assert not page.told("error")
            for event in page.events:
                jsonschema.validate(event, part("page.server"))
            assert (await server.http.post("/api/close", json={"session": page.answer["session"]})).json()["closed"]
            await until(lambda: not server.desk.sessions, "the place")
            await asyncio.wait_for(page.connection.wait_closed(), 5)

    asyncio.run(main())


def test_sound_and_picture_have_one_clock() -> None:
    """Bursts of noise and white pictures that begin together arrive with the same time."""
    model = ModelProcess(standin.ClapAgent)
    model.wait_ready(PATIENCE_S)

    async def main() -> None:
        async with served(model) as server, dial(server) as page:
            await page.start()
            page.listen()
            await until(lambda: len(page.told("stats")) >= 6, "five claps")
            loud = [t for t, s in page.samples if np.sqrt(np.mean(s**2)) > 0.1]
            white = [t for t, p in page.pictures if p.mean() > 128]
            claps = [t for i, t in enumerate(loud) if i == 0 or t - loud[i - 1] > 500_000]
            flashes = [t for i, t in enumerate(white) if i == 0 or t - white[i - 1] > 500_000]
            assert len(claps) >= 3
            for clap in claps[1:]:
                assert min(abs(flash - clap) for flash in flashes) <= 40_000
            # and they come at the rate of the clock, neither early nor in bursts
            times = [(at, p.time_us / 1e6) for at, p in page.packets if p.kind == "opus"]
            late = np.array([at - t for at, t in times[50:]])
            assert late.max() - late.min() < 0.5

    try:
        asyncio.run(main())
    finally:
        model.shutdown()


BROKEN = {
    "empty": b"",
    "short": b"\x01\x00",
    "kind": struct.pack(">BBq", 9, 0, 0) + b"x",
    "flags": struct.pack(">BBq", 1, 8, 0) + b"x",
    "odd": Packet("pcm", False, 0, b"x").pack(),
    "long": Packet("opus", False, 0, b"x" * (MAX_SOUND + 1)).pack(),
    "no opus": Packet("opus", False, 0, b"\xff" * 40).pack(),
    "no key": Packet("vp8", True, 0, b"\x01" * 40).pack(),
    "no picture": Packet("vp8", True, 0, b"\x00\x00\x00" + b"y" * 40).pack(),
    "huge": Packet("vp8", True, 0, b"\x10\x02\x00\x9d\x01\x2a\xff\x3f\xff\x3f" + b"z" * 40).pack(),
    "torn": Packet("vp8", True, 0, b"\x10\x02\x00\x9d\x01\x2a\x40\x01\xf0\x00" + b"\xff" * 6).pack(),
}


def test_broken_media_get_one_error_each_and_the_call_goes_on(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model) as server, dial(server) as page:
            await page.start()
            page.listen()
            await until(lambda: page.told("session", state="live"), "the call")
            for i, (name, message) in enumerate(BROKEN.items()):
                await page.connection.send(message)
                await until(lambda i=i: len(page.told("error")) > i, name, 5)
            await page.connection.send("not json")
            await until(lambda: len(page.told("error")) > len(BROKEN), "the last", 5)
            codes = [event["code"] for event in page.told("error")]
            assert codes == ["invalid_media"] * len(BROKEN) + ["invalid_event"]
            page.speak(4)
            await until(lambda: "saw 256x192" in str(page.told("caption", lane="transcript")), "sight after it")
            await until(lambda: "heard 0.1" in str(page.told("caption", lane="transcript")), "hearing after it")
            assert len(page.told("error")) == len(BROKEN) + 1
            for _ in range(600):
                await page.connection.send(Packet("pcm", True, 0, b"\0\0").pack())
            await until(lambda: page.told("error", code="rate"), "the limit")
            assert server.desk.sessions

    asyncio.run(main())


def test_a_picture_is_checked_before_it_is_decoded() -> None:
    for name in ("empty", "short", "kind", "flags", "odd", "long", "no key", "no picture", "huge"):
        with pytest.raises(EventError):
            Packet.unpack(BROKEN[name])
    reader = PictureReader()
    key, rest = vp8_packets(2)
    assert reader(Packet("vp8", False, 0, rest[1])) == []  # nothing before the first key frame
    assert len(reader(Packet("vp8", True, 0, key[1]))) == 1


def test_who_reads_slowly_misses_media_and_costs_no_memory(model: ModelProcess) -> None:
    async def main() -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        async with served(model) as server:
            sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
            async with dial(server, sock=sock, max_queue=1, ping_interval=None) as page:
                await page.start()
                process = psutil.Process()
                await asyncio.sleep(3)
                before = process.memory_info().rss
                stop = time.monotonic() + 8
                while time.monotonic() < stop:  # takes no media, but is no stranger
                    await page.send(type="ping", t=1)
                    await asyncio.sleep(0.5)
                assert process.memory_info().rss - before < 20e6
                assert server.desk.sessions, "still in the call"
                page.listen()
                await until(lambda: len(page.packets) > 200, "media again")
                times = np.array([p.time_us for _, p in page.packets if p.kind == "opus"]) / 1e6
                gap = np.diff(times).max()
                assert gap > 4, "what was missed came all the same"
                old = sum(len(p.data) for _, p in page.packets if p.time_us / 1e6 < times[np.argmax(np.diff(times))])
                assert old < 400_000
                before_gap, pictures = len(page.pictures), len(page.pictures)
                await until(lambda: len(page.pictures) > max(before_gap, pictures) + 25, "pictures")
                assert len({block(p) for _, p in page.pictures[-20:]}) > 10, "the pictures do not move"

    asyncio.run(main())


def test_the_conversation_goes_on_with_its_token(model: ModelProcess) -> None:
    """Over another socket, while the old one stands."""

    async def main() -> None:
        async with served(model) as server, dial(server) as first:
            await first.start()
            first.listen()
            await until(lambda: "Unit 6" in str(first.told("caption")), "the sixth unit")
            async with dial(server) as second:
                answer = await second.start(resume=first.answer["resume"])
                assert answer["resume"] != first.answer["resume"]
                second.listen()
                await until(lambda: second.told("notice"), "the notice")
                assert "The conversation goes on" in second.told("notice")[0]["message"]
                await until(lambda: second.told("caption", lane="response"), "captions")
                assert int(second.told("caption", lane="response")[0]["text"].split()[1].rstrip(".")) > 6
                await until(lambda: first.connection.state.name == "CLOSED", "the end of the first")
                await until(lambda: len(second.pictures) > 20, "pictures")

    asyncio.run(main())


def test_a_lost_socket_keeps_its_place_for_a_while(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, replace(PATIENT, resume_s=60)) as server:
            async with dial(server) as page:
                await page.start()
                page.listen()
                await until(lambda: "Unit 6" in str(page.told("caption")), "the call")
                token = page.answer["resume"]
                page.connection.transport.abort()
                await until(lambda: not server.desk.sessions, "the end", 5)
            async with dial(server) as again:
                await again.start(resume=token)
                again.listen()
                await until(lambda: again.told("notice"), "the notice")
                assert "The conversation goes on" in again.told("notice")[0]["message"]

    asyncio.run(main())


def test_a_silent_socket_is_freed(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, replace(PATIENT, idle_timeout_s=1.0)) as server, dial(server) as page:
            await page.start()
            page.listen()
            await until(lambda: page.told("session", state="ended"), "the end", 10)
            assert "nothing came" in page.told("session", state="ended")[0]["message"]
            await asyncio.wait_for(page.connection.wait_closed(), 5)
            assert not server.desk.sessions

    asyncio.run(main())


def test_who_finds_no_place_waits_in_the_same_line(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model) as server, contextlib.AsyncExitStack() as stack:
            pages = []
            for _ in range(model.capacity):
                pages.append(await stack.enter_async_context(dial(server)))
                assert (await pages[-1].start())["type"] == "started"
                pages[-1].listen()
                await until(lambda: pages[-1].told("session", state="live"), "the call")
            async with dial(server) as late:
                waits = await late.start()
                assert (waits["type"], waits["place"]) == ("waiting", 1)
                await asyncio.wait_for(late.connection.wait_closed(), 5)
            await server.http.post("/api/close", json={"session": pages[0].answer["session"]})
            ready = False
            while not ready:
                asked = await server.http.get("/api/queue", headers={"authorization": f"Bearer {waits['queue']}"})
                ready = asked.json()["ready"]
            async with dial(server) as late:
                assert (await late.start(queue=waits["queue"]))["type"] == "started"

    asyncio.run(main())


def test_strangers_are_refused(model: ModelProcess) -> None:
    config = replace(GUARDED, limits=replace(GUARDED.limits, request_s=0.5, socket_bytes=20_000))

    async def main() -> None:
        async with served(model, config) as server:
            async with dial(server) as page:
                refused = await page.start(token="wrong")
                assert (refused["status"], refused["error"]) == (401, "token")
                await asyncio.wait_for(page.connection.wait_closed(), 5)
            for message in (
                "{",
                json.dumps({"type": "text", "text": "hi"}),
                json.dumps({"type": "start", "token": 3}),
                b"x",
            ):
                async with dial(server) as page:
                    await page.connection.send(message)
                    answer = json.loads(await page.connection.recv())
                    assert (answer["status"], answer["error"]) == (422, "invalid")
            async with dial(server) as page:  # says nothing
                answer = json.loads(await asyncio.wait_for(page.connection.recv(), 3))
                assert answer["error"] == "invalid"
            async with dial(server) as page:  # says too much
                await page.connection.send("x" * 30_000)
                with pytest.raises(websockets.ConnectionClosed):
                    await page.connection.recv()
            for headers in ({"Origin": "http://elsewhere.example"}, {"Host": "elsewhere.example"}):
                with pytest.raises(websockets.InvalidHandshake):
                    async with dial(server, additional_headers=headers):
                        pass
            own = server.url
            async with dial(server, additional_headers={"Origin": own}) as page:
                assert (await page.start(token=TOKEN))["type"] == "started"
            assert server.desk.pending + len(server.desk.sessions) <= 1

    asyncio.run(main())


def test_sockets_count_as_connections(model: ModelProcess) -> None:
    """Until they are gone, and no longer."""
    config = ServingConfig(access=Access(), limits=Limits(connections_per_address=3, offers_per_s=100, offer_burst=100))

    async def main() -> None:
        async with served(model, config) as server:
            for _ in range(3):
                async with contextlib.AsyncExitStack() as stack:
                    for _ in range(3):
                        await stack.enter_async_context(dial(server, open_timeout=2))
                    with pytest.raises((OSError, websockets.InvalidHandshake, EOFError, TimeoutError)):
                        await stack.enter_async_context(dial(server, open_timeout=2))
                await asyncio.sleep(0.3)

    asyncio.run(main())


def test_sigterm_tells_the_caller(tmp_path: Path) -> None:
    with server(tmp_path) as (port, process):

        async def main() -> list[dict]:
            async with websockets.connect(f"ws://localhost:{port}/api/socket") as connection:
                page = Page(connection)
                await page.start()
                page.listen()
                await until(lambda: page.told("session", state="live"), "the call")
                process.send_signal(signal.SIGTERM)
                await until(lambda: page.told("session", state="ended"), "the end", 10)
                await asyncio.wait_for(page.tasks[0], 10)  # and the connection is closed
                return page.told("session", state="ended")

        assert "stopped" in asyncio.run(main())[0]["message"]
        assert process.wait(15) == 0

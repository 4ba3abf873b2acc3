"""Events of the Live dialect over real HTTP and real WebRTC."""

import asyncio
import json
import runpy
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from films import make_film
from protocol import (
    PATIENCE_S,
    PATIENT,
    ROOT,
    SESSIONS,
    as_bearer,
    dial,
    in_call,
    offer,
    served,
    tone,
    transport,
)
from test_serving import until

from wan_streamer.client import LiveClient
from wan_streamer.errors import MediaError, ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.dialects.live import LiveDialect
from wan_streamer.serving.messages import CaptionEvent, TurnEvent
from wan_streamer.units import SAMPLE_RATE, UNIT_MS, UserUnit


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
        assert "text" not in done
    assert json.loads(dialect.write(TurnEvent("transcript", 6, "Hi!"))[0])["text"] == "Hi!"


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

"""The Realtime dialect over real HTTP and real WebRTC."""

import asyncio
from dataclasses import replace

from protocol import (
    CALLS,
    GUARDED,
    PATIENT,
    TOKEN,
    dial,
    served,
    typed,
)
from test_serving import until

from wan_streamer.runtime.processes import ModelProcess


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

            peer.send("conversation.item.create", **typed("again"))
            await until(
                lambda: [e for e in peer.told(f"{heard}.completed") if e["transcript"] == "All that was said."],
                "the turn as a whole",
            )
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

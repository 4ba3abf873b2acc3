"""`LiveSocket`: a call from Python over a real socket from a real server, lost and made again."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import standin
from protocol import GUARDED, PATIENT, TOKEN, served
from test_serving import until
from test_socket import block

from wan_streamer.client.heard import MEDIA_KEPT, AgentEvent, Inbox, Picture, Sound, read_event
from wan_streamer.client.socket import LiveSocket
from wan_streamer.errors import ServingError, ShapeError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.messages import CaptionEvent, NoticeEvent, PlaybackEvent, SessionEvent

GREEN = (20, 200, 30)
RATE = 48_000


def tone(index: int) -> np.ndarray:
    """int16 [480, 2]: 10 ms of 300 Hz at 48 kHz."""
    mono = 8000 * np.sin(2 * np.pi * 300 * (np.arange(480) + 480 * index) / RATE)
    return np.stack([mono, mono], axis=1).astype(np.int16)


async def real_time() -> AsyncIterator[int]:
    """Counts pieces of 10 ms."""
    loop = asyncio.get_running_loop()
    began, index = loop.time(), 0
    while True:
        await asyncio.sleep(max(0.0, began + index / 100 - loop.time()))
        yield index
        index += 1


def camera() -> np.ndarray:
    return np.full((240, 320, 3), GREEN, np.uint8)


def loud(sounds: list[np.ndarray]) -> np.ndarray:
    """[N, 240]: what is no silence, 10 ms at a time, as a busy machine leaves gaps. sounds: int16 or float."""
    samples = np.concatenate([*sounds, np.zeros(240)]).astype(np.float64)
    samples /= 32768 if np.abs(samples).max() > 1 else 1
    pieces = samples[: len(samples) // 240 * 240].reshape(-1, 240)
    return pieces[np.abs(pieces).reshape(-1, 24, 10).max(axis=2).min(axis=1) > 0.02]


def check_voice(sounds: list[np.ndarray]) -> None:
    """What the stand-in hums, at 24 kHz."""
    pieces = loud(sounds)
    pitches = np.abs(np.fft.rfft(pieces * np.hanning(240), 4800)).argmax(axis=1) * 5
    assert abs(np.median(pitches) - standin.TONE_HZ) <= 20
    assert abs(np.median(np.sqrt(np.mean(pieces**2, axis=1))) - standin.TONE_LEVEL / np.sqrt(2)) < 0.03


def check_face(pictures: list[np.ndarray]) -> None:
    """The block moves, over a bar in the colour of what the stand-in sees."""
    assert pictures[-1].shape == (standin.HEIGHT, standin.WIDTH, 3)
    assert len({block(picture) for picture in pictures[-40:]}) > 10
    assert min(np.abs(np.subtract(p[160:].mean((0, 1)), GREEN)).max() for p in pictures[-40:]) < 15


def senses(words: str) -> bool:
    """Whether the stand-in says that it hears the tone and sees the camera."""
    levels = [float(level) for level in re.findall(r"heard (0\.\d+) saw 256x192 ", words)]
    return any(abs(level - 8000 / 32768 / np.sqrt(2)) < 0.02 for level in levels)


def test_a_socket_carries_sound_picture_and_words_on_one_clock(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model) as server, LiveSocket(server.url) as call:
            assert (call.session.agent, call.session.width, call.session.fps) == ("stand-in", standin.WIDTH, 25)
            events: list[AgentEvent] = []

            async def listen() -> None:
                async for event in call.events():
                    events.append(event)

            async def speak() -> None:
                async for index in real_time():
                    call.push_audio(tone(index), RATE)
                    call.push_video(camera())  # a hundred a second: most are left out

            def told(lane: str) -> str:
                return "".join(e.text for e in events if isinstance(e, CaptionEvent) and e.lane == lane)

            tasks = [asyncio.create_task(listen()), asyncio.create_task(speak())]
            call.say("good morning")
            await until(lambda: "You typed good morning" in told("response"), "typed text")
            await until(lambda: senses(told("transcript")), "its senses")
            sounds = lambda: [e for e in events if isinstance(e, Sound)]  # noqa: E731
            await until(lambda: len(loud([sound.samples_T for sound in sounds()])) > 25, "its voice")
            check_voice([sound.samples_T for sound in sounds()])
            await until(lambda: len([e for e in events if isinstance(e, Picture)]) > 60, "pictures")
            pictures = [e for e in events if isinstance(e, Picture)]
            check_face([picture.image_HWC for picture in pictures])
            assert abs(sounds()[-1].start_ms - pictures[-1].start_ms) < 200
            call.clear()
            await until(lambda: [e for e in events if isinstance(e, PlaybackEvent) and e.dropped_ms is not None], "it")
            for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 3))):
                with pytest.raises(ShapeError):
                    call.push_video(wrong)
            await call.close()
            await asyncio.wait_for(tasks[0], 5)
            await until(lambda: not server.desk.sessions, "the place")
            assert server.desk.full is False, "its place is kept although it said goodbye"
            tasks[1].cancel()

    asyncio.run(main())


def test_a_socket_says_why_there_is_no_call(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, GUARDED) as server:
            with pytest.raises(ServingError, match="401"):
                await LiveSocket(server.url).__aenter__()
            with pytest.raises(ServingError, match="http://localhost:8080"):
                await LiveSocket("localhost").__aenter__()
            async with LiveSocket(server.url, token=TOKEN) as call:
                assert call.session.state == "live"
                await server.desk.shutdown()
                ends = [e async for e in call.events() if isinstance(e, SessionEvent) and e.state == "ended"]
                assert "stopped" in ends[0].message
        with pytest.raises(ServingError):
            await LiveSocket(server.url, token=TOKEN).__aenter__()

    asyncio.run(main())


def test_a_lost_connection_is_made_again_and_the_conversation_goes_on(model: ModelProcess) -> None:
    def unit(caption: AgentEvent) -> int:
        found = isinstance(caption, CaptionEvent) and re.match(r"Unit (\d+)", caption.text)
        return int(found[1]) if found else -1

    async def main() -> None:
        async with served(model, replace(PATIENT, resume_s=20)) as server, LiveSocket(server.url) as call:
            events: list[AgentEvent] = []

            async def listen() -> None:
                async for event in call.events():
                    events.append(event)

            def states() -> list[str]:
                return [e.state for e in events if isinstance(e, SessionEvent)]

            listening = asyncio.create_task(listen())
            await until(lambda: max(map(unit, events), default=0) >= 6, "the sixth unit")
            first, reached = call.id, max(map(unit, events))
            call._connection.transport.abort()
            call.say("are you there")  # waits for the next connection
            await until(lambda: states()[-2:] == ["recovering", "live"], "the call again")
            since = len(events)
            assert call.id != first
            await until(lambda: "typed are you there" in said(events[since - 40 :]), "what was typed meanwhile")
            await until(lambda: max(map(unit, events[since:]), default=-1) >= 0, "its count")
            assert min(u for u in map(unit, events[since:]) if u >= 0) > reached
            async for index in real_time():
                call.push_audio(tone(index), RATE)
                call.push_video(camera())
                if senses(said(events[since:], "transcript")):
                    break
                assert index < 2000, "it hears and sees nothing"
            await until(lambda: [e for e in events[since:] if isinstance(e, Picture)], "pictures")
            assert len(server.desk.sessions) == 1
            await server.desk.shutdown()  # over is over
            await asyncio.wait_for(listening, 5)
            assert states()[-1] == "ended"

    def said(events: list[AgentEvent], lane: str = "response") -> str:
        return "".join(e.text for e in events if isinstance(e, CaptionEvent) and e.lane == lane)

    asyncio.run(main())


def test_a_call_that_cannot_go_on_ends_with_an_error(model: ModelProcess) -> None:
    async def main() -> None:
        async with served(model, replace(PATIENT, resume_s=1)) as server:
            async with LiveSocket(server.url) as call:
                server.desk.stopping = True  # it takes nobody any more
                call._connection.transport.abort()
                with pytest.raises(ServingError, match="the connection was lost, and the call with it"):
                    await asyncio.wait_for(_all(call), 10)
            server.desk.stopping = False

    async def _all(call: LiveSocket) -> None:
        async for _ in call.events():
            pass

    asyncio.run(main())


def test_who_reads_late_misses_old_media_and_no_words() -> None:
    async def main() -> None:
        inbox = Inbox()
        for i in range(1000):
            inbox.put(Sound(np.zeros(480, np.float32), i))
            if i % 100 == 0:
                inbox.put(CaptionEvent("response", i, "word"))
        inbox.end(ServingError("lost"))
        events: list[AgentEvent] = []

        async def read() -> None:
            async for event in inbox.read():
                events.append(event)

        with pytest.raises(ServingError, match="lost"):
            await read()
        assert [e.start_ms for e in events if isinstance(e, Sound)] == list(range(1000 - MEDIA_KEPT, 1000))
        assert len([e for e in events if isinstance(e, CaptionEvent)]) == 10

    asyncio.run(main())
    assert read_event('{"type": "notice", "message": "x", "more": 1}') == NoticeEvent("x")
    assert read_event('{"type": "of another version"}') is None

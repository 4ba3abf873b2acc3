"""The agent in other frameworks, with their real packages, over a real socket from a real server. What needs a package
that is not installed is left out: `pip install 'wan-streamer[serve,pipecat,livekit]'`."""

import asyncio
import importlib
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import standin
from protocol import GUARDED, TOKEN, served
from test_serving import until
from test_socket import block

from wan_streamer.client.heard import MEDIA_KEPT, AgentEvent, Inbox, Picture, Sound, read_event
from wan_streamer.client.socket import LiveSocket
from wan_streamer.errors import ExtraError, ServingError, ShapeError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.messages import CaptionEvent, NoticeEvent, PlaybackEvent, SessionEvent
from wan_streamer.serving.playout import Playout

PATIENCE_S = 30
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


@pytest.mark.parametrize("name", ["pipecat", "livekit"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"wan_streamer.client.{name}", raising=False)
    with pytest.raises(ExtraError, match=rf"pip install 'wan-streamer\[serve,{name}\]'"):
        importlib.import_module(f"wan_streamer.client.{name}")


class InPipecat:
    """A pipeline of a microphone, the service, and who collects what it pushes both ways."""

    def __init__(self, url: str, **more: Any) -> None:
        from pipecat.frames.frames import Frame
        from pipecat.pipeline.pipeline import Pipeline
        from pipecat.pipeline.worker import PipelineWorker
        from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
        from pipecat.workers.runner import WorkerRunner

        from wan_streamer.client.pipecat import WanStreamerService

        class Collector(FrameProcessor):
            def __init__(self, kept: list[Frame], direction: FrameDirection) -> None:
                super().__init__()
                self._kept, self._direction = kept, direction

            async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
                await super().process_frame(frame, direction)
                if direction == self._direction:
                    self._kept.append(frame)
                await self.push_frame(frame, direction)

        self.down: list[Any] = []
        self.up: list[Any] = []
        self.worker = PipelineWorker(
            Pipeline([
                Collector(self.up, FrameDirection.UPSTREAM),
                WanStreamerService(url, **more),
                Collector(self.down, FrameDirection.DOWNSTREAM),
            ]),
            cancel_on_idle_timeout=False,
            enable_rtvi=False,
        )  # fmt: skip
        self.runner = WorkerRunner(handle_sigint=False)

    def got(self, kind: type) -> list[Any]:
        return [frame for frame in (*self.down, *self.up) if type(frame) is kind]


@asynccontextmanager
async def in_pipecat(url: str, **more: Any) -> AsyncIterator[InPipecat]:
    pipeline = InPipecat(url, **more)
    await pipeline.runner.add_workers(pipeline.worker)
    running = asyncio.create_task(pipeline.runner.run())
    try:
        yield pipeline
    finally:
        await pipeline.worker.cancel()
        await asyncio.wait_for(running, 10)


def test_a_pipecat_pipeline_hears_sees_and_reads_the_agent(
    model: ModelProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pipecat")
    from pipecat.frames import frames

    cleared: list[Playout] = []
    clear = Playout.clear
    monkeypatch.setattr(Playout, "clear", lambda self: cleared.append(self) or clear(self))

    async def main() -> None:
        async with served(model) as server, in_pipecat(server.url) as pipeline:

            async def speak() -> None:
                async for index in real_time():
                    sound = frames.InputAudioRawFrame(tone(index).tobytes(), RATE, 2)
                    await pipeline.worker.queue_frame(sound)
                    if index % 4 == 0:
                        rgba = np.concatenate([camera(), np.full((240, 320, 1), 255, np.uint8)], axis=2)
                        await pipeline.worker.queue_frame(frames.InputImageRawFrame(rgba.tobytes(), (320, 240), "RGBA"))

            await until(lambda: server.desk.sessions, "the call")
            speaking = asyncio.create_task(speak())
            await pipeline.worker.queue_frame(frames.InputTextRawFrame("good morning"))
            said = lambda: "".join(f.text for f in pipeline.got(frames.TTSTextFrame))  # noqa: E731
            await until(lambda: "You typed good morning" in said(), "typed text")
            await until(lambda: [f for f in pipeline.got(frames.TranscriptionFrame) if senses(f.text)], "its senses")
            await until(lambda: len(pipeline.got(frames.OutputImageRawFrame)) > 60, "pictures")
            sounds = lambda: pipeline.got(frames.SpeechOutputAudioRawFrame)  # noqa: E731
            assert {(sound.sample_rate, sound.num_channels) for sound in sounds()} == {(24_000, 1)}
            pcm = lambda: [np.frombuffer(sound.audio, "<i2") for sound in sounds()]  # noqa: E731
            await until(lambda: len(loud(pcm())) > 25, "its voice")
            check_voice(pcm())
            images = pipeline.got(frames.OutputImageRawFrame)
            assert {(image.size, image.format, image.sync_with_audio) for image in images} == {
                ((standin.WIDTH, standin.HEIGHT), "RGB", True)
            }
            check_face([np.frombuffer(i.image, np.uint8).reshape(standin.HEIGHT, standin.WIDTH, 3) for i in images])
            turns = [
                f for f in pipeline.down if "FullResponse" in type(f).__name__ or isinstance(f, frames.TTSTextFrame)
            ]
            assert [type(f).__name__ for f in turns[:3]] == [
                "LLMFullResponseStartFrame", "TTSTextFrame", "LLMFullResponseEndFrame"
            ]  # fmt: skip
            assert not cleared
            await pipeline.worker.queue_frame(frames.InterruptionFrame())
            await until(lambda: cleared, "the interruption")
            count = len(loud(pcm()))
            await until(lambda: len(loud(pcm())) > count + 25, "its voice again")
            assert not pipeline.got(frames.ErrorFrame)
            speaking.cancel()
            await pipeline.worker.queue_frame(frames.InputImageRawFrame(b"", (320, 240), None))
            await until(lambda: pipeline.got(frames.ErrorFrame), "the error")
            assert "expected a format" in pipeline.got(frames.ErrorFrame)[0].error
            assert server.desk.sessions
            await pipeline.worker.queue_frame(frames.EndFrame())
            await until(lambda: not server.desk.sessions, "the end of the call")

    asyncio.run(main())


def test_pipecat_is_told_what_the_server_says(model: ModelProcess) -> None:
    pytest.importorskip("pipecat")
    from pipecat.frames import frames

    async def main() -> None:
        async with served(model, GUARDED) as server:
            async with in_pipecat(server.url) as pipeline:
                await until(lambda: pipeline.got(frames.ErrorFrame), "the refusal")
                assert "401" in pipeline.got(frames.ErrorFrame)[0].error
            async with in_pipecat(server.url, token=TOKEN) as pipeline:
                await until(lambda: pipeline.got(frames.SpeechOutputAudioRawFrame), "the voice")
                assert server.desk.close(server.desk.sessions[0])
                await until(lambda: pipeline.worker.has_finished(), "the end of the pipeline")
                assert not pipeline.got(frames.ErrorFrame)

    asyncio.run(main())


class Writer:
    """A text stream of a room: what was written, and with which attributes."""

    def __init__(self, sender: str | None, attributes: dict[str, str]) -> None:
        self.sender, self.attributes, self.text, self.closed = sender, attributes, "", False

    async def write(self, text: str) -> None:
        self.text += text

    async def aclose(self, attributes: dict[str, str]) -> None:
        self.attributes, self.closed = self.attributes | attributes, True


class Someone:
    """A participant. Its tracks are real, and reach their streams without a server."""

    def __init__(self, identity: str) -> None:
        self.identity, self.track_publications = identity, {}
        self.sid = f"TR_{identity}"
        self.published: list[Any] = []
        self.writers: list[Writer] = []

    async def publish_track(self, track: Any, options: Any) -> "Someone":
        self.published.append(track)
        return self

    async def stream_text(self, *, topic: str, attributes: dict[str, str], sender_identity: str | None) -> Writer:
        assert topic == "lk.transcription"
        self.writers.append(Writer(sender_identity, attributes))
        return self.writers[-1]


class Letter:
    def __init__(self, text: str) -> None:
        self._text = text

    async def read_all(self) -> str:
        return self._text


def test_a_livekit_room_hears_and_sees_the_agent(model: ModelProcess) -> None:
    """All of LiveKit is real but the server between the participants."""
    pytest.importorskip("livekit.rtc")
    from livekit import rtc

    from wan_streamer.client.livekit import RoomAgent

    class Room(rtc.EventEmitter):
        def __init__(self) -> None:
            super().__init__()
            self.local_participant = Someone("agent")
            self.remote_participants: dict[str, Someone] = {}
            self.handlers: dict[str, Any] = {}

        def register_text_stream_handler(self, topic: str, handler: Any) -> None:
            self.handlers[topic] = handler

        def unregister_text_stream_handler(self, topic: str) -> None:
            del self.handlers[topic]

    async def main() -> None:
        room, user, stranger = Room(), Someone("user"), Someone("stranger")
        me = room.local_participant
        microphone, webcam = rtc.AudioSource(RATE, 2), rtc.VideoSource(320, 240)
        noise = rtc.AudioSource(RATE, 1)
        tracks = [
            rtc.LocalAudioTrack.create_audio_track("a", microphone),
            rtc.LocalVideoTrack.create_video_track("v", webcam),
        ]

        async def speak() -> None:
            async for index in real_time():
                await microphone.capture_frame(rtc.AudioFrame(tone(index).tobytes(), RATE, 2, 480))
                await noise.capture_frame(rtc.AudioFrame(np.full(480, 30_000, np.int16).tobytes(), RATE, 1, 480))
                if index % 4 == 0:
                    webcam.capture_frame(rtc.VideoFrame(320, 240, rtc.VideoBufferType.RGB24, camera().tobytes()))

        async def listen(stream: rtc.AudioStream) -> None:
            async for event in stream:
                heard.append(np.frombuffer(event.frame.data, np.int16).copy())

        async def watch(stream: rtc.VideoStream) -> None:
            async for event in stream:
                frame = event.frame
                seen.append(np.frombuffer(frame.data, np.uint8).reshape(frame.height, frame.width, 3).copy())

        heard: list[np.ndarray] = []
        seen: list[np.ndarray] = []
        async with served(model) as server:
            running = asyncio.create_task(RoomAgent(room, server.url).run())
            await until(lambda: len(me.published) == 2, "its tracks")
            voice, face = me.published
            jobs = [
                asyncio.create_task(job)
                for job in (
                    speak(),
                    listen(rtc.AudioStream(voice, sample_rate=24_000)),
                    watch(rtc.VideoStream(face, format=rtc.VideoBufferType.RGB24)),
                )
            ]
            for track in tracks:
                room.emit("track_subscribed", track, None, user)
            room.emit("track_subscribed", rtc.LocalAudioTrack.create_audio_track("n", noise), None, stranger)
            room.handlers["lk.chat"](Letter("not for it"), "stranger")
            room.handlers["lk.chat"](Letter("good morning"), "user")
            said = lambda sender: "".join(w.text for w in me.writers if w.sender == sender)  # noqa: E731
            await until(lambda: "You typed good morning" in said(None), "typed text")
            await until(lambda: senses(said("user")), "its senses")
            await until(lambda: len(seen) > 60 and len(loud(heard)) > 25, "sound and pictures")
            check_voice(heard)
            check_face(seen)
            assert "not for it" not in said(None)
            turns = [writer for writer in me.writers if writer.closed]
            assert len({writer.attributes["lk.segment_id"] for writer in turns}) == len(turns) > 1
            assert {writer.attributes["lk.transcription_final"] for writer in turns} == {"true"}
            assert {writer.attributes.get("lk.transcribed_track_id") for writer in turns} == {"TR_agent", None}
            room.emit("participant_disconnected", stranger)
            await asyncio.sleep(0.1)
            assert not running.done()
            room.emit("participant_disconnected", user)
            await asyncio.wait_for(running, 10)
            await until(lambda: not server.desk.sessions, "the end of the call")
            assert not room.handlers
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    asyncio.run(main())


def test_a_livekit_agent_session_can_have_it_as_its_duplex_model(model: ModelProcess) -> None:
    """Inside LiveKit's own adapter, which makes turns of a stream."""
    pytest.importorskip("livekit.agents")
    from livekit import rtc
    from livekit.agents.llm import ChatContext
    from livekit.agents.llm.duplex_adapter import DuplexRealtimeAdapter

    from wan_streamer.client.livekit_model import WanStreamerModel

    async def main() -> None:
        async with served(model, GUARDED) as server:
            errors: list[Any] = []
            refused = WanStreamerModel(server.url)
            refused.session().on("error", errors.append)
            await until(lambda: errors, "the refusal")
            assert "401" in str(errors[0].error)
            agent = WanStreamerModel(server.url, token=TOKEN)
            session = DuplexRealtimeAdapter(agent).session()
            heard: list[str] = []
            words: list[str] = []
            sounds: list[np.ndarray] = []

            async def follow(generation: Any) -> None:
                async for message in generation.message_stream:
                    reads = [asyncio.create_task(read(message.text_stream, words.append))]
                    reads.append(asyncio.create_task(read(message.audio_stream, listen)))
                    await asyncio.gather(*reads)

            async def read(stream: Any, take: Any) -> None:
                async for item in stream:
                    take(item)

            def listen(frame: rtc.AudioFrame) -> None:
                sounds.append(np.frombuffer(frame.data, np.int16).copy())

            jobs: list[asyncio.Task[None]] = []
            session.on("generation_created", lambda g: jobs.append(asyncio.create_task(follow(g))))
            session.on("input_audio_transcription_completed", lambda e: e.is_final and heard.append(e.transcript))
            context = ChatContext.empty()
            context.add_message(role="user", content="good morning")
            await session._update_session(instructions="", chat_ctx=context)

            async def speak() -> None:
                async for index in real_time():
                    session.push_audio(rtc.AudioFrame(tone(index).tobytes(), RATE, 2, 480))
                    if index % 4 == 0:
                        session.push_video(rtc.VideoFrame(320, 240, rtc.VideoBufferType.RGB24, camera().tobytes()))

            jobs.append(asyncio.create_task(speak()))
            await until(lambda: "You typed good morning" in "".join(words), "typed text")
            await until(lambda: senses(" ".join(heard) + " "), "its senses")
            await until(lambda: len(loud(sounds)) > 25, "its voice")
            check_voice(sounds)
            await session.aclose()
            await agent.aclose()
            await until(lambda: not server.desk.sessions, "the end of the call")
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    asyncio.run(main())

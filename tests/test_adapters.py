"""The agent in other frameworks, with their real packages, over a real socket from a real server. What needs a package
that is not installed is left out: `pip install 'wan-streamer[serve,pipecat,livekit]'`."""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import standin
from protocol import GUARDED, TOKEN, served
from test_live_socket import RATE, camera, check_face, check_voice, loud, real_time, senses, tone
from test_serving import until

from wan_streamer.errors import ExtraError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.playout import Playout

PATIENCE_S = 30


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

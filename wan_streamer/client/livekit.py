"""The agent in a LiveKit room: it hears and sees a participant and publishes voice and face.

`RoomAgent`   one call with a server (`client.socket`) for one participant of a room

    async def entrypoint(ctx: JobContext) -> None:      # of livekit-agents; any connected `rtc.Room` will do
        await ctx.connect()
        await RoomAgent(ctx.room, "http://localhost:8080").run()

Needs `pip install 'wan-streamer[serve,livekit]'`.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Coroutine
from typing import Any

import numpy as np

from wan_streamer.errors import ExtraError
from wan_streamer.units import SAMPLE_RATE

try:
    from livekit import rtc
except ImportError as error:
    raise ExtraError("the LiveKit agent", "livekit", error) from error

from wan_streamer.client.heard import AgentEvent, Picture, Sound
from wan_streamer.client.socket import LiveSocket
from wan_streamer.serving.messages import CaptionEvent, Lane, TurnEvent

QUEUE_MS = 200  # of sound that waits to be sent; a fuller queue holds back what follows
CUSHION = SAMPLE_RATE * 60 // 1000  # samples of silence before sound that begins: jitter would be heard otherwise
FRAME_MS = 20
TRANSCRIPTION, CHAT = "lk.transcription", "lk.chat"  # topics of LiveKit's own clients
SEGMENT, TRACK, FINAL = "lk.segment_id", "lk.transcribed_track_id", "lk.transcription_final"


log = logging.getLogger(__name__)


class RoomAgent:
    """url, token, tls: as for `LiveSocket`.

    room      a connected room
    identity  of the participant to talk with; "": the first whose microphone or camera comes

    It publishes a voice (24 kHz, mono) and a face in step, and the words of both sides as LiveKit's transcriptions.
    What the participant types (`lk.chat`) reaches the agent. Others in the room are not heard.
    """

    def __init__(
        self, room: rtc.Room, url: str, *, identity: str = "", token: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self._room, self._url, self._token, self._tls = room, url, token, tls
        self._identity = identity
        self._call: LiveSocket | None = None
        self._voice: rtc.AudioSource | None = None
        self._face: rtc.VideoSource | None = None
        self._voice_sid = ""
        self._words: asyncio.Queue[CaptionEvent | TurnEvent] = asyncio.Queue()
        self._writers: dict[Lane, rtc.TextStreamWriter] = {}
        self._segments = 0
        self._senses: dict[rtc.Track, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()

    async def run(self) -> None:
        """Talk until the participant or the room is gone or the server ends the call. Raises `ServingError` if there is
        no call, or if its connection is lost."""
        handlers = {
            "track_subscribed": self._on_track,
            "track_unsubscribed": self._on_track_gone,
            "participant_disconnected": self._on_participant_gone,
            "disconnected": lambda *_: self._left.set(),
        }
        async with LiveSocket(self._url, token=self._token, tls=self._tls) as call:
            voice = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=QUEUE_MS)
            face = rtc.VideoSource(call.session.width, call.session.height)
            self._call, self._voice, self._face = call, voice, face
            try:
                await self._publish(voice, face)
                for name, handler in handlers.items():
                    self._room.on(name, handler)
                self._room.register_text_stream_handler(CHAT, self._on_chat)
                for participant in self._room.remote_participants.values():
                    for publication in participant.track_publications.values():
                        if publication.track is not None:
                            self._on_track(publication.track, publication, participant)
                await self._until_over(call)
            finally:
                self._call = self._voice = self._face = None
                for name, handler in handlers.items():
                    self._room.off(name, handler)
                self._room.unregister_text_stream_handler(CHAT)
                jobs = [*self._tasks, *self._senses.values()]
                for job in jobs:
                    job.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)
                await voice.aclose()
                await face.aclose()

    def clear(self) -> None:
        """Drop what waits to be played. The agent goes on, and hears an interruption by itself."""
        if self._call is not None and self._voice is not None:
            self._call.clear()
            self._voice.clear_queue()

    async def _publish(self, voice: rtc.AudioSource, face: rtc.VideoSource) -> None:
        me = self._room.local_participant
        microphone = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        camera = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_CAMERA)
        published = await me.publish_track(rtc.LocalAudioTrack.create_audio_track("voice", voice), microphone)
        self._voice_sid = published.sid
        await me.publish_track(rtc.LocalVideoTrack.create_video_track("face", face), camera)

    async def _until_over(self, call: LiveSocket) -> None:
        tasks = [asyncio.create_task(job) for job in (self._talk(call), self._publish_words(), self._wait_left())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_left(self) -> None:
        await self._left.wait()

    async def _talk(self, call: LiveSocket) -> None:
        async for event in call.events():
            await self._tell(event)

    async def _tell(self, event: AgentEvent) -> None:
        voice = self._voice
        if voice is None:
            return
        match event:
            case Sound(samples_T=samples) if len(samples):
                if voice.queued_duration == 0:
                    await voice.capture_frame(rtc.AudioFrame.create(SAMPLE_RATE, 1, CUSHION))
                await voice.capture_frame(rtc.AudioFrame(event.pcm().tobytes(), SAMPLE_RATE, 1, len(samples)))
            case Picture(image_HWC=image):  # shown when the sound that came before it is heard
                asyncio.get_running_loop().call_later(voice.queued_duration, self._show, image)
            case CaptionEvent() | TurnEvent():
                self._words.put_nowait(event)

    def _show(self, image_HWC: np.ndarray) -> None:
        if self._face is not None:
            height, width = image_HWC.shape[:2]
            self._face.capture_frame(rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, image_HWC.tobytes()))

    async def _publish_words(self) -> None:
        """On their own: sound does not wait until a room has taken them, and does not end when it does not."""
        while True:
            event = await self._words.get()
            try:
                match event:
                    case CaptionEvent(lane=lane, text=text):
                        await (await self._writer(lane)).write(text)
                    case TurnEvent(lane=lane) if lane in self._writers:
                        await self._writers.pop(lane).aclose(attributes={FINAL: "true"})
            except Exception as error:  # whatever LiveKit raises
                log.warning("a transcription was not published: %s", type(error).__name__)
                self._writers.pop(event.lane, None)

    async def _writer(self, lane: Lane) -> rtc.TextStreamWriter:
        """Of the segment that has not ended. What was heard is published in the name of who said it."""
        if lane not in self._writers:
            self._segments += 1
            attributes = {SEGMENT: f"{lane}-{self._segments}", FINAL: "false"}
            if lane == "response":
                attributes[TRACK] = self._voice_sid
            heard = lane == "transcript" and self._identity
            self._writers[lane] = await self._room.local_participant.stream_text(
                topic=TRANSCRIPTION, attributes=attributes, sender_identity=self._identity if heard else None
            )
        return self._writers[lane]

    def _on_track(self, track: rtc.Track, _: Any, participant: rtc.RemoteParticipant) -> None:
        self._identity = self._identity or participant.identity
        if participant.identity != self._identity:
            return
        if track.kind == rtc.TrackKind.KIND_AUDIO:
            self._sense(track, self._hear(rtc.AudioStream(track, sample_rate=SAMPLE_RATE, frame_size_ms=FRAME_MS)))
        else:
            self._sense(track, self._see(rtc.VideoStream(track, format=rtc.VideoBufferType.RGB24, capacity=1)))

    def _on_track_gone(self, track: rtc.Track, *_: Any) -> None:
        if (task := self._senses.pop(track, None)) is not None:
            task.cancel()

    def _on_participant_gone(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity == self._identity:
            self._left.set()

    def _on_chat(self, reader: rtc.TextStreamReader, identity: str) -> None:
        async def read() -> None:
            text = (await reader.read_all()).strip()
            if text and self._call is not None and identity == (self._identity or identity):
                self._call.say(text)

        task = asyncio.create_task(read())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _sense(self, track: rtc.Track, job: Coroutine[Any, Any, None]) -> None:
        self._on_track_gone(track)  # its stream from before
        self._senses[track] = asyncio.create_task(job)

    async def _hear(self, stream: rtc.AudioStream) -> None:
        async with contextlib.aclosing(stream):
            async for event in stream:
                if self._call is not None:
                    self._call.push_audio(np.frombuffer(event.frame.data, np.int16), event.frame.sample_rate)

    async def _see(self, stream: rtc.VideoStream) -> None:
        async with contextlib.aclosing(stream):
            async for event in stream:
                frame = event.frame
                image = np.frombuffer(frame.data, np.uint8).reshape(frame.height, frame.width, 3)
                if self._call is not None:
                    self._call.push_video(np.rot90(image, -int(event.rotation)))  # quarter turns, clockwise

"""The agent as a duplex model of livekit-agents, for an `AgentSession`: its voice and words, without its face.

`WanStreamerModel`     a call with a server (`client.socket`) for each session
`WanStreamerSession`   that call

    session = AgentSession(llm=DuplexRealtimeAdapter(WanStreamerModel("http://localhost:8080")))

`AgentSession` has no way for a picture that a model makes: `client.livekit` publishes the face as well.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator

import numpy as np

from wan_streamer.errors import ExtraError, ServingError
from wan_streamer.units import SAMPLE_RATE

try:
    from livekit import rtc
    from livekit.agents.llm import ChatItem, RealtimeModelError, Tool, ToolChoice, ToolContext
    from livekit.agents.llm.duplex import (
        DuplexAudioFrame,
        DuplexCapabilities,
        DuplexModel,
        DuplexOutputTranscriptDelta,
        DuplexSession,
    )
    from livekit.agents.llm.realtime import InputTranscriptionCompleted
    from livekit.agents.types import NOT_GIVEN, NotGivenOr
except ImportError as error:
    raise ExtraError("the LiveKit duplex model", "livekit", error) from error

from wan_streamer.client.heard import AgentEvent, Sound
from wan_streamer.client.socket import LiveSocket
from wan_streamer.serving.messages import CaptionEvent, Lane, TurnEvent

FRAMES_KEPT = 50  # a second of sound that nobody has read

log = logging.getLogger(__name__)


class WanStreamerModel(DuplexModel):
    """url, token, tls: as for `LiveSocket`. The checkpoint decides what the agent is like: it takes no instructions and
    no tools, and decides by itself when to speak."""

    def __init__(self, url: str, *, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(capabilities=DuplexCapabilities(user_transcription=True, auto_tool_reply_generation=False))
        self._url, self._token, self._tls = url, token, tls
        self._sessions: set[WanStreamerSession] = set()

    @property
    def model(self) -> str:
        return "wan-streamer"

    @property
    def provider(self) -> str:
        return self._url

    def session(self) -> "WanStreamerSession":
        session = WanStreamerSession(self, LiveSocket(self._url, token=self._token, tls=self._tls))
        self._sessions.add(session)
        return session

    async def aclose(self) -> None:
        for session in list(self._sessions):
            await session.aclose()
        self._sessions.clear()


class WanStreamerSession(DuplexSession[str]):
    """What the user types or the application adds as the user reaches the agent as typed text."""

    def __init__(self, model: WanStreamerModel, socket: LiveSocket) -> None:
        super().__init__(model)
        self._socket = socket
        self._is_live = False
        self._unsaid: list[str] = []
        self._frames: asyncio.Queue[DuplexAudioFrame | None] = asyncio.Queue()
        self._heard: dict[Lane, str] = {}
        self._items = 0
        self._conversation = asyncio.create_task(self._converse())

    @property
    def audio_stream(self) -> AsyncIterator[DuplexAudioFrame]:
        return self._read()

    async def _read(self) -> AsyncIterator[DuplexAudioFrame]:
        while (frame := await self._frames.get()) is not None:
            yield frame

    @property
    def tools(self) -> ToolContext:
        return ToolContext.empty()

    def push_audio(self, frame: rtc.AudioFrame) -> None:
        if self._is_live:
            samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
            self._socket.push_audio(samples, frame.sample_rate)

    def push_video(self, frame: rtc.VideoFrame) -> None:
        if self._is_live:
            rgb = rtc.VideoBufferType.RGB24
            picture = frame if frame.type == rgb else frame.convert(rgb)  # it refuses to convert a type to itself
            self._socket.push_video(np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3))

    async def aclose(self) -> None:
        await super().aclose()
        self._conversation.cancel()
        await asyncio.gather(self._conversation, return_exceptions=True)
        self._frames.put_nowait(None)

    async def _update_instructions(self, instructions: str) -> None:
        if instructions:
            log.warning("the agent takes no instructions: what it is like is in its checkpoint")

    async def _append_items(self, items: list[ChatItem]) -> None:
        for item in items:
            if item.type == "message" and item.role == "user" and item.text_content:
                self._say(item.text_content)

    async def _update_tools(self, tools: list[Tool]) -> None:
        if tools:
            log.warning("the agent uses no tools, and was given %d", len(tools))

    def _update_options(self, *, tool_choice: NotGivenOr[ToolChoice | None] = NOT_GIVEN) -> None:
        pass

    def _say(self, text: str) -> None:
        if self._is_live:
            self._socket.say(text)
        else:
            self._unsaid.append(text)

    async def _converse(self) -> None:
        try:
            async with self._socket as call:
                self._is_live = True
                for text in self._unsaid:
                    call.say(text)
                async for event in call.events():
                    self._tell(event)
        except ServingError as error:
            label = self.duplex_model.label
            self.emit("error", RealtimeModelError(timestamp=time.time(), label=label, error=error, recoverable=False))
        finally:
            self._is_live = False
            self._frames.put_nowait(None)

    def _tell(self, event: AgentEvent) -> None:
        match event:
            case Sound(samples_T=samples) if len(samples):
                if self._frames.qsize() >= FRAMES_KEPT:
                    self._frames.get_nowait()
                frame = rtc.AudioFrame(event.pcm().tobytes(), SAMPLE_RATE, 1, len(samples))
                self._frames.put_nowait(DuplexAudioFrame(frame))
            case CaptionEvent(lane="response", text=text):
                self.emit("transcript_delta", DuplexOutputTranscriptDelta(text))
            case CaptionEvent(lane=lane, text=text):
                self._heard[lane] = self._heard.get(lane, "") + text
                self._report(lane, is_final=False)
            case TurnEvent(lane=lane, text=text) if lane in self._heard:
                self._heard[lane] = text or self._heard[lane]
                self._report(lane, is_final=True)
                del self._heard[lane]
                self._items += 1

    def _report(self, lane: Lane, is_final: bool) -> None:
        heard = InputTranscriptionCompleted(f"heard-{self._items}", self._heard[lane].strip(), is_final)
        self.emit("input_audio_transcription_completed", heard)

"""The agent as a Pipecat service: the user's sound, picture and text in, the agent's sound, picture and words out.

`WanStreamerService`   one call with a server (`client.socket`) for each pipeline

    pipeline = Pipeline([transport.input(), WanStreamerService("http://localhost:8080"), transport.output()])

Needs `pip install 'wan-streamer[serve,pipecat]'`.
"""

import asyncio
import ssl
from typing import Any

import numpy as np

from wan_streamer.errors import ExtraError, ServingError, ShapeError, WanStreamerError
from wan_streamer.units import SAMPLE_RATE

try:
    from PIL import Image
    from pipecat.frames.frames import (
        CancelFrame,
        EndFrame,
        EndWorkerFrame,
        Frame,
        InputAudioRawFrame,
        InputImageRawFrame,
        InputTextRawFrame,
        InterimTranscriptionFrame,
        InterruptionFrame,
        LLMFullResponseEndFrame,
        LLMFullResponseStartFrame,
        OutputImageRawFrame,
        SpeechOutputAudioRawFrame,
        StartFrame,
        TextType,
        TranscriptionFrame,
        TTSTextFrame,
    )
    from pipecat.processors.frame_processor import FrameDirection
    from pipecat.services.ai_service import AIService
    from pipecat.services.settings import ServiceSettings
    from pipecat.utils.time import time_now_iso8601
except ImportError as error:
    raise ExtraError("the Pipecat service", "pipecat", error) from error

from wan_streamer.client.heard import AgentEvent, Picture, Sound
from wan_streamer.client.socket import LiveSocket
from wan_streamer.serving.messages import CaptionEvent, ErrorEvent, Lane, SessionEvent, TurnEvent

USER = "user"


class WanStreamerService(AIService):
    """url, token, tls: as for `LiveSocket`.

    in    InputAudioRawFrame (16 bit, any rate and channels), InputImageRawFrame, InputTextRawFrame, and
          InterruptionFrame: what waits to be played is dropped. All are passed on.
    out   downstream: SpeechOutputAudioRawFrame (24 kHz, mono) without a pause, OutputImageRawFrame (RGB, 25 a second)
          in step with it, TTSTextFrame for what the agent says, between LLMFullResponseStartFrame and
          LLMFullResponseEndFrame; EndWorkerFrame when the server has ended the call
          upstream: InterimTranscriptionFrame and TranscriptionFrame, what the agent has heard; ErrorFrame

    The model decides by itself when to speak and when to stop: the pipeline needs no voice detection and no turns.
    """

    def __init__(self, url: str, *, token: str = "", tls: ssl.SSLContext | None = None, **kwargs: Any) -> None:
        super().__init__(settings=ServiceSettings(model=None), **kwargs)
        self._url, self._token, self._tls = url, token, tls
        self._call: LiveSocket | None = None
        self._conversation: asyncio.Task[None] | None = None
        self._unsaid: list[str] = []  # typed before the call began
        self._reason = "the call is over"
        self._said: dict[Lane, str] = {"response": "", "transcript": ""}  # in the turns that have not ended

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        # not awaited: it may have to wait in the line
        self._conversation = self.create_task(self._converse())

    async def stop(self, frame: EndFrame) -> None:
        await super().stop(frame)
        await self._hang_up()

    async def cancel(self, frame: CancelFrame) -> None:
        await super().cancel(frame)
        await self._hang_up()

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._hang_up()

    async def _hang_up(self) -> None:
        task, self._conversation = self._conversation, None
        if task is not None:
            await self.cancel_task(task)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if self._call is not None:
            try:
                self._give(self._call, frame)
            except WanStreamerError as error:
                await self.push_error(str(error), exception=error)
        elif isinstance(frame, InputTextRawFrame):
            self._unsaid.append(frame.text)
        await self.push_frame(frame, direction)

    def _give(self, call: LiveSocket, frame: Frame) -> None:
        if isinstance(frame, InputAudioRawFrame):
            call.push_audio(np.frombuffer(frame.audio, "<i2").reshape(-1, frame.num_channels), frame.sample_rate)
        elif isinstance(frame, InputImageRawFrame):
            call.push_video(_rgb(frame))
        elif isinstance(frame, InputTextRawFrame):
            call.say(frame.text)
        elif isinstance(frame, InterruptionFrame):
            call.clear()

    async def _converse(self) -> None:
        try:
            async with LiveSocket(self._url, token=self._token, tls=self._tls) as call:
                self._call = call
                for text in self._unsaid:
                    call.say(text)
                async for event in call.events():
                    await self._tell(event)
            await self.push_frame(EndWorkerFrame(reason=self._reason))
        except ServingError as error:
            await self.push_error(str(error), exception=error, force_treat_as_permanent=True)
        finally:
            self._call = None

    async def _tell(self, event: AgentEvent) -> None:
        match event:
            case Sound():
                await self.push_frame(SpeechOutputAudioRawFrame(event.pcm().tobytes(), SAMPLE_RATE, 1))
            case Picture(image_HWC=image):
                picture = OutputImageRawFrame(image.tobytes(), (image.shape[1], image.shape[0]), "RGB")
                picture.sync_with_audio = True  # otherwise it is shown before the sound that came before it
                await self.push_frame(picture)
            case CaptionEvent(lane="response", text=text):
                if not self._said["response"]:
                    await self.push_frame(LLMFullResponseStartFrame())
                self._said["response"] += text
                words = TTSTextFrame(text, text_type=TextType.WORD)
                words.includes_inter_frame_spaces = True
                await self.push_frame(words)
            case CaptionEvent(lane="transcript", text=text):
                self._said["transcript"] += text
                heard = InterimTranscriptionFrame(self._said["transcript"].strip(), USER, time_now_iso8601())
                await self.push_frame(heard, FrameDirection.UPSTREAM)
            case TurnEvent(lane=lane, text=text) if self._said[lane]:
                said, self._said[lane] = (text or self._said[lane]).strip(), ""
                if lane == "response":
                    await self.push_frame(LLMFullResponseEndFrame())
                else:
                    whole = TranscriptionFrame(said, USER, time_now_iso8601(), finalized=True)
                    await self.push_frame(whole, FrameDirection.UPSTREAM)
            case ErrorEvent(message=message):
                await self.push_error(message)
            case SessionEvent(state="ended", message=message):
                self._reason = message


def _rgb(frame: InputImageRawFrame) -> np.ndarray:
    """uint8 [H, W, 3]. Raises `ShapeError`."""
    if frame.format is None:
        raise ShapeError("InputImageRawFrame: expected a format such as RGB, got None")
    try:
        return np.asarray(Image.frombytes(frame.format, frame.size, frame.image).convert("RGB"))
    except ValueError as error:
        raise ShapeError(f"InputImageRawFrame: expected {frame.size} pixels of {frame.format}: {error}") from None

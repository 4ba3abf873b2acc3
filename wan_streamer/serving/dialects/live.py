"""The Live dialect: session events as OpenAI's Live API names them, extended for the picture, typed text and playback.

`LiveDialect`   one connection's
`LIVE_EVENTS`, `LIVE_COMMANDS`   all that it sends and takes

Times are ms on the time line of the session: unit k of the call is at 160 k to 160 (k + 1). That of a transcript is the
unit in which the model has written it: the agent says it from then on, and has heard the end of the word before.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from wan_streamer.serving.dialects.base import MAX_EVENT_ID, Dialect, Wire, event_id_of
from wan_streamer.serving.messages import (
    GOODBYE,
    TIME_OVER,
    CaptionEvent,
    Clear,
    ErrorEvent,
    EventError,
    Goodbye,
    Message,
    Mute,
    NoticeEvent,
    Number,
    Ping,
    PlaybackEvent,
    PongEvent,
    ServerEvent,
    SessionEvent,
    StatsEvent,
    Text,
    TextInput,
    TurnEvent,
    parse_event,
)
from wan_streamer.units import UNIT_MS

EventId = Annotated[str, Field(max_length=MAX_EVENT_ID)]


@dataclass(frozen=True)
class VideoFormat:
    """The agent's picture; width and height in pixels."""

    width: int
    height: int
    fps: int


@dataclass(frozen=True)
class LiveSession:
    """unit_ms: the agent takes in and gives out so much at a time."""

    id: str
    model: str
    output_video: VideoFormat
    unit_ms: int


@dataclass(frozen=True)
class SessionStarted(Wire):
    """The call begins; zero of the time line."""

    event_id: str
    session: LiveSession
    type: Literal["session.started"] = "session.started"


@dataclass(frozen=True)
class Transcript(Wire):
    """What was heard (input) or is said (output) in a unit. Append deltas in the order in which they come."""

    event_id: str
    type: Literal["session.input_transcript.delta", "session.output_transcript.delta"]
    delta: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True)
class TranscriptDone(Wire):
    """The model has ended a turn of the visitor (input) or of the agent (output). text: all of it, if it was read again
    as a whole; counts instead of the deltas."""

    event_id: str
    type: Literal["session.input_transcript.done", "session.output_transcript.done"]
    end_ms: int
    text: str | None = None


@dataclass(frozen=True)
class Acknowledged(Wire):
    """A command was taken. client_event_id: its `event_id`, if it had one."""

    event_id: str
    type: Literal[
        "session.input_audio.muted",
        "session.input_audio.unmuted",
        "session.input_video.muted",
        "session.input_video.unmuted",
        "session.input_text.appended",
    ]
    client_event_id: str | None = None


@dataclass(frozen=True)
class OutputCleared(Wire):
    """What waited to be played was dropped: what lies after `position_ms` and `dropped_ms` long was never heard."""

    event_id: str
    position_ms: int
    dropped_ms: int
    client_event_id: str | None = None
    type: Literal["session.output.cleared"] = "session.output.cleared"


@dataclass(frozen=True)
class OutputPosition(Wire):
    """Once a second: the end of what the server has played out, and what waits to be."""

    event_id: str
    position_ms: int
    queued_ms: int
    type: Literal["session.output.position"] = "session.output.position"


@dataclass(frozen=True)
class Stats(Wire):
    """Once a second: the fields of the page's `stats`."""

    event_id: str
    stats: dict[str, Any]
    type: Literal["session.stats"] = "session.stats"


@dataclass(frozen=True)
class Pong(Wire):
    """Answer to a ping, with its stamp."""

    event_id: str
    t: float
    type: Literal["session.pong"] = "session.pong"


@dataclass(frozen=True)
class Info(Wire):
    """Something to know although the call goes on. code: "notice", or "recovering" while the model is restarted."""

    event_id: str
    code: str
    message: str
    type: Literal["info"] = "info"


@dataclass(frozen=True)
class Problem:
    type: Literal["invalid_request_error", "server_error"]
    code: str
    message: str
    client_event_id: str | None = None


@dataclass(frozen=True)
class Error(Wire):
    """One command was not taken; the call goes on. code "busy": another was faster, `session.closed` follows."""

    event_id: str
    error: Problem
    type: Literal["error"] = "error"


@dataclass(frozen=True)
class SessionClosed(Wire):
    """The last event. Without a reason the server had to end the call, and `message` says why."""

    event_id: str
    message: str
    reason: Literal["close_requested", "expired"] | None = None
    type: Literal["session.closed"] = "session.closed"


LIVE_EVENTS = (
    SessionStarted, Transcript, TranscriptDone, Acknowledged, OutputCleared, OutputPosition, Stats, Pong, Info, Error,
    SessionClosed,
)  # fmt: skip


@dataclass(frozen=True)
class SetMute:
    """Microphone or camera do not reach the model, or do again."""

    type: Literal[
        "session.input_audio.mute",
        "session.input_audio.unmute",
        "session.input_video.mute",
        "session.input_video.unmute",
    ]
    event_id: EventId | None = None


@dataclass(frozen=True)
class TextAppend:
    """What the visitor types."""

    text: Text
    event_id: EventId | None = None
    type: Literal["session.input_text.append"] = "session.input_text.append"


@dataclass(frozen=True)
class OutputClear:
    """Drop what waits to be played. The agent goes on: it hears an interruption by itself."""

    event_id: EventId | None = None
    type: Literal["session.output.clear"] = "session.output.clear"


@dataclass(frozen=True)
class SessionClose:
    """End the call; `session.closed` follows."""

    event_id: EventId | None = None
    type: Literal["session.close"] = "session.close"


@dataclass(frozen=True)
class SessionPing:
    """t: any number, sent back. A visitor that sends neither media nor messages is taken for gone."""

    t: Number
    event_id: EventId | None = None
    type: Literal["session.ping"] = "session.ping"


LiveCommand = SetMute | TextAppend | OutputClear | SessionClose | SessionPing
LIVE_COMMANDS: TypeAdapter[LiveCommand] = TypeAdapter(Annotated[LiveCommand, Field(discriminator="type")])


class LiveDialect(Dialect):
    """session: the id of the session, for `session.started`."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._started = False
        self._count = 0
        self._asked: str | None = None  # event_id of the command in hand

    def write(self, event: ServerEvent) -> list[str]:
        return [wire.to_json() for wire in self._translate(event)]

    def _translate(self, event: ServerEvent) -> list[Wire]:
        match event:
            case SessionEvent():
                return self._state(event)
            case CaptionEvent(lane=lane, unit=unit):
                side = "output" if lane == "response" else "input"
                start = unit * UNIT_MS
                kind: Any = f"session.{side}_transcript.delta"
                return [Transcript(self._id(), kind, event.text, start, start + UNIT_MS)]
            case TurnEvent(lane=lane, unit=unit, text=text):
                side = "output" if lane == "response" else "input"
                ended: Any = f"session.{side}_transcript.done"
                return [TranscriptDone(self._id(), ended, (unit + 1) * UNIT_MS, text or None)]
            case PlaybackEvent(dropped_ms=None):
                return [OutputPosition(self._id(), event.position_ms, event.queued_ms)]
            case PlaybackEvent(dropped_ms=int(dropped)):
                return [OutputCleared(self._id(), event.position_ms, dropped, self._asked)]
            case NoticeEvent():
                return [Info(self._id(), "notice", event.message)]
            case ErrorEvent():
                return [self._error("server_error" if event.code == "internal" else "invalid_request_error",
                                    event.code, event.message)]  # fmt: skip
            case PongEvent():
                return [Pong(self._id(), event.t)]
            case StatsEvent():
                return [Stats(self._id(), {name: v for name, v in asdict(event).items() if name != "type"})]
        return []

    def _state(self, event: SessionEvent) -> list[Wire]:
        match event.state:
            case "live" if not self._started:  # a model that was restarted is live again, the session goes on
                self._started = True
                video = VideoFormat(event.width, event.height, event.fps)
                return [SessionStarted(self._id(), LiveSession(self._session, event.agent, video, event.unit_ms))]
            case "recovering":
                return [Info(self._id(), "recovering", event.message)]
            case "busy":
                return [self._error("server_error", "busy", event.message), SessionClosed(self._id(), event.message)]
            case "ended":
                reasons: Any = {GOODBYE: "close_requested", TIME_OVER: "expired"}
                return [SessionClosed(self._id(), event.message, reasons.get(event.message))]
        return []

    def read(self, data: str | bytes) -> Message:
        self._asked = None
        try:
            command: LiveCommand = parse_event(data, LIVE_COMMANDS)
        except EventError:
            self._asked = event_id_of(data)
            raise
        self._asked = command.event_id
        match command:
            case SetMute(type=kind):
                return Mute("microphone" if "audio" in kind else "camera", not kind.endswith("unmute"))
            case TextAppend(text=text):
                return TextInput(text)
            case OutputClear():
                return Clear()
            case SessionClose():
                return Goodbye()
        return Ping(command.t)

    def acknowledge(self, message: Message) -> list[str]:
        asked, self._asked = self._asked, None
        kind: Any = None
        match message:
            case Mute(device=device, muted=muted):
                kind = f"session.input_{'audio' if device == 'microphone' else 'video'}.{'' if muted else 'un'}muted"
            case TextInput():
                kind = "session.input_text.appended"
        return [Acknowledged(self._id(), kind, asked).to_json()] if kind else []

    def _error(self, kind: Any, code: str, message: str) -> Error:
        asked, self._asked = self._asked, None
        return Error(self._id(), Problem(kind, code, message, asked))

    def _id(self) -> str:
        self._count += 1
        return f"event_{self._count}"

"""The Realtime dialect: the subset of OpenAI's Realtime events that this server can truly send and take.

`RealtimeDialect`   one connection's
`REALTIME_EVENTS`, `REALTIME_COMMANDS`   all that it sends and takes

There are no responses to ask for: the agent speaks when it wants to. What it says until the model ends the turn is one
response with one item. `input_audio_buffer.speech_started` is never sent, because the model does not tell it.
"""

import secrets
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from wan_streamer.serving.dialects.base import MAX_EVENT_ID, Dialect, Wire, event_id_of
from wan_streamer.serving.messages import (
    CaptionEvent,
    Clear,
    ErrorEvent,
    EventError,
    Message,
    PlaybackEvent,
    ServerEvent,
    SessionEvent,
    Text,
    TextInput,
    TurnEvent,
    parse_event,
)
from wan_streamer.units import UNIT_S

EventId = Annotated[str, Field(max_length=MAX_EVENT_ID)]
ItemId = Annotated[str, Field(min_length=1, max_length=32)]


@dataclass(frozen=True)
class RealtimeSession:
    """model: the agent's name. Its picture is sent too, as a video track, if the offer has a section for it."""

    id: str
    model: str
    type: Literal["realtime"] = "realtime"
    object: Literal["realtime.session"] = "realtime.session"
    output_modalities: tuple[Literal["audio"]] = ("audio",)


@dataclass(frozen=True)
class SessionCreated(Wire):
    """The call begins."""

    event_id: str
    session: RealtimeSession
    type: Literal["session.created"] = "session.created"


@dataclass(frozen=True)
class OutputDelta(Wire):
    """What the agent says."""

    event_id: str
    response_id: str
    item_id: str
    delta: str
    output_index: Literal[0] = 0
    content_index: Literal[0] = 0
    type: Literal["response.output_audio_transcript.delta"] = "response.output_audio_transcript.delta"


@dataclass(frozen=True)
class OutputDone(Wire):
    """The model has ended the agent's turn; all that was said in it."""

    event_id: str
    response_id: str
    item_id: str
    transcript: str
    output_index: Literal[0] = 0
    content_index: Literal[0] = 0
    type: Literal["response.output_audio_transcript.done"] = "response.output_audio_transcript.done"


@dataclass(frozen=True)
class InputDelta(Wire):
    """What the model heard."""

    event_id: str
    item_id: str
    delta: str
    content_index: Literal[0] = 0
    type: Literal["conversation.item.input_audio_transcription.delta"] = (
        "conversation.item.input_audio_transcription.delta"
    )


@dataclass(frozen=True)
class Duration:
    """seconds: from the first unit in which the model wrote to the last."""

    seconds: float
    type: Literal["duration"] = "duration"


@dataclass(frozen=True)
class InputCompleted(Wire):
    """The model has ended the visitor's turn; all that was heard in it."""

    event_id: str
    item_id: str
    transcript: str
    usage: Duration
    content_index: Literal[0] = 0
    type: Literal["conversation.item.input_audio_transcription.completed"] = (
        "conversation.item.input_audio_transcription.completed"
    )


@dataclass(frozen=True)
class TextPart:
    text: Text
    type: Literal["input_text"]


@dataclass(frozen=True)
class Item:
    """What the visitor has typed."""

    id: str
    content: tuple[TextPart]
    object: Literal["realtime.item"] = "realtime.item"
    type: Literal["message"] = "message"
    status: Literal["completed"] = "completed"
    role: Literal["user"] = "user"


@dataclass(frozen=True)
class ItemEvent(Wire):
    """Typed text was taken: `added`, then `done`."""

    event_id: str
    type: Literal["conversation.item.added", "conversation.item.done"]
    item: Item


@dataclass(frozen=True)
class BufferCleared(Wire):
    """What waited to be played was dropped. response_id: of what the agent says now, or will say next."""

    event_id: str
    response_id: str
    type: Literal["output_audio_buffer.cleared"] = "output_audio_buffer.cleared"


@dataclass(frozen=True)
class Problem:
    """event_id: of the visitor's event that was not taken, if it had one."""

    type: Literal["invalid_request_error", "server_error"]
    code: str
    message: str
    event_id: str | None = None


@dataclass(frozen=True)
class Error(Wire):
    """One event was not taken and the call goes on; or a "server_error" with the code "recovering" (the model is being
    restarted), "busy" (another was faster) or "ended" (the call is over, and why)."""

    event_id: str
    error: Problem
    type: Literal["error"] = "error"


REALTIME_EVENTS = (
    SessionCreated, OutputDelta, OutputDone, InputDelta, InputCompleted, ItemEvent, BufferCleared, Error,
)  # fmt: skip


@dataclass(frozen=True)
class NewItem:
    """Only text of the visitor, in one part, at the end of the conversation."""

    type: Literal["message"]
    role: Literal["user"]
    content: Annotated[list[TextPart], Field(min_length=1, max_length=1)]
    id: ItemId | None = None


@dataclass(frozen=True)
class ItemCreate:
    """Typed text."""

    item: NewItem
    previous_item_id: None = None
    event_id: EventId | None = None
    type: Literal["conversation.item.create"] = "conversation.item.create"


@dataclass(frozen=True)
class BufferClear:
    """Drop what waits to be played. The agent goes on."""

    event_id: EventId | None = None
    type: Literal["output_audio_buffer.clear"] = "output_audio_buffer.clear"


RealtimeCommand = ItemCreate | BufferClear
REALTIME_COMMANDS: TypeAdapter[RealtimeCommand] = TypeAdapter(Annotated[RealtimeCommand, Field(discriminator="type")])


@dataclass
class _Turn:
    """One side's turn until the model ends it. first: unit of its first text."""

    item: str = field(default_factory=lambda: f"item_{secrets.token_hex(8)}")
    response: str = field(default_factory=lambda: f"resp_{secrets.token_hex(8)}")
    text: str = ""
    first: int | None = None


class RealtimeDialect(Dialect):
    """session: the id of the call, for `session.created`."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._created = False
        self._count = 0
        self._asked: str | None = None  # event_id of the event in hand
        self._item = ""  # id that the visitor gave to the item in hand
        self._turns = {"response": _Turn(), "transcript": _Turn()}

    def write(self, event: ServerEvent) -> list[str]:
        return [wire.to_json() for wire in self._translate(event)]

    def _translate(self, event: ServerEvent) -> list[Wire]:
        match event:
            case SessionEvent(state="live") if not self._created:
                self._created = True
                return [SessionCreated(self._id(), RealtimeSession(self._session, event.agent))]
            case SessionEvent(state="recovering" | "busy" | "ended" as state):
                return [self._error("server_error", state, event.message)]
            case CaptionEvent():
                return [self._delta(event)]
            case TurnEvent():
                return self._done(event)
            case PlaybackEvent(dropped_ms=int()):
                return [BufferCleared(self._id(), self._turns["response"].response)]
            case ErrorEvent():
                kind = "server_error" if event.code == "internal" else "invalid_request_error"
                return [self._error(kind, event.code, event.message)]
        return []

    def _delta(self, event: CaptionEvent) -> Wire:
        turn = self._turns[event.lane]
        turn.text += event.text
        turn.first = event.unit if turn.first is None else turn.first
        if event.lane == "response":
            return OutputDelta(self._id(), turn.response, turn.item, event.text)
        return InputDelta(self._id(), turn.item, event.text)

    def _done(self, event: TurnEvent) -> list[Wire]:
        turn = self._turns[event.lane]
        if turn.first is None:  # it ended without a word
            return []
        self._turns[event.lane] = _Turn()
        if event.lane == "response":
            return [OutputDone(self._id(), turn.response, turn.item, turn.text)]
        seconds = round((event.unit + 1 - turn.first) * UNIT_S, 2)
        return [InputCompleted(self._id(), turn.item, event.text or turn.text, Duration(seconds))]

    def read(self, data: str | bytes) -> Message:
        self._asked = None
        try:
            command: RealtimeCommand = parse_event(data, REALTIME_COMMANDS)
        except EventError:
            self._asked = event_id_of(data)
            raise
        self._asked = command.event_id
        if isinstance(command, BufferClear):
            return Clear()
        self._item = command.item.id or f"item_{secrets.token_hex(8)}"
        return TextInput(command.item.content[0].text)

    def acknowledge(self, message: Message) -> list[str]:
        self._asked = None
        if not isinstance(message, TextInput):
            return []
        item = Item(self._item, (TextPart(message.text, "input_text"),))
        added = ItemEvent(self._id(), "conversation.item.added", item)
        return [added.to_json(), ItemEvent(self._id(), "conversation.item.done", item).to_json()]

    def _error(self, kind: Any, code: str, message: str) -> Error:
        asked, self._asked = self._asked, None
        return Error(self._id(), Problem(kind, code, message, asked))

    def _id(self) -> str:
        self._count += 1
        return f"event_{self._count}"

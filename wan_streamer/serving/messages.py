"""What a call tells its visitor and what it is told: the page's own events, which other dialects translate.

server to page   `SessionEvent` `CaptionEvent` `TurnEvent` `PlaybackEvent` `StatsEvent` `PongEvent` `NoticeEvent`
                 `ErrorEvent`
page to server   `TextInput` `Ping` `Devices` `Clear`, read by `parse_page_message`
                 `Mute` `Goodbye` come from other dialects only
`parse_event`    JSON text -> one of several dataclasses, for all dialects

On the page's data channel they are JSON objects with a `type`. The dataclasses are the only description there is:
messages are checked against them, and the JSON Schema is made of them.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from wan_streamer.errors import ServingError
from wan_streamer.files import parse_json

VERSION = 1
MAX_TEXT = 2_000  # characters of one typed message
MAX_MESSAGE = 16_384  # characters of one JSON message
GOODBYE = "The visitor said goodbye."
TIME_OVER = "The time for a call is over."

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT, pattern=r"\S")]
Lane = Literal["response", "transcript"]
Number = Annotated[float, Field(allow_inf_nan=False)]


class EventError(ServingError):
    """One message was not taken. The call goes on.

    code  "unknown_event", "invalid_event", "invalid_media" or "rate"
    """

    def __init__(self, message: str, code: str = "invalid_event") -> None:
        super().__init__(message)
        self.code = code


class _Event:
    def to_json(self) -> str:
        return json.dumps(asdict(self))  # type: ignore[call-overload]


@dataclass(frozen=True)
class SessionEvent(_Event):
    """The call's state: "live", "recovering" (the model is being restarted), "ended", or "busy" (another visitor was
    faster: a new offer waits in line). Size and rate of the agent's picture come with "live"."""

    type: Literal["session"] = field(default="session", init=False)
    state: Literal["live", "recovering", "ended", "busy"]
    message: str = ""
    agent: str = ""
    width: int = 0
    height: int = 0
    fps: int = 0
    unit_ms: int = 160
    version: int = VERSION


@dataclass(frozen=True)
class CaptionEvent(_Event):
    """Text that begins in a unit. lane: "response" (the agent says it) or "transcript" (the agent heard it)."""

    type: Literal["caption"] = field(default="caption", init=False)
    lane: Lane
    unit: int
    text: str


@dataclass(frozen=True)
class TurnEvent(_Event):
    """The model has ended a turn of a lane in this unit, after its text. text: what was said in it, where that counts
    instead of the captions, because it was read again as a whole; else ""."""

    type: Literal["turn"] = field(default="turn", init=False)
    lane: Lane
    unit: int
    text: str = ""


@dataclass(frozen=True)
class PlaybackEvent(_Event):
    """How far sound and picture have been played out, once a second and after `Clear`.

    position_ms  end of what has been played, on the time line of the units: unit k is at 160 k to 160 (k + 1)
    queued_ms    what waits to be played
    dropped_ms   what `Clear` has dropped; None if nobody asked for that
    """

    type: Literal["playback"] = field(default="playback", init=False)
    position_ms: int
    queued_ms: int
    dropped_ms: int | None = None


@dataclass(frozen=True)
class NoticeEvent(_Event):
    """Something the visitor should know although the call goes on."""

    type: Literal["notice"] = field(default="notice", init=False)
    message: str


@dataclass(frozen=True)
class ErrorEvent(_Event):
    """One message of the page was not understood or not taken. The call goes on.

    code  one of `EventError`, "not_taken" or "internal"
    """

    type: Literal["error"] = field(default="error", init=False)
    message: str
    code: str = "not_taken"


@dataclass(frozen=True)
class PongEvent(_Event):
    """Answer to `Ping`, with the page's own stamp."""

    type: Literal["pong"] = field(default="pong", init=False)
    t: float


@dataclass(frozen=True)
class StatsEvent(_Event):
    """Once a second. Milliseconds are over the last ten seconds, counts over the whole conversation: restarts of the
    model and lost connections do not begin them anew, but for `late`.

    stage_ms    {stage: {p50, p95}} of the model's stages and of the server's own (names in `meter`)
    backlog     units that the model still owes
    playout_ms  audio and video that wait to be played out
    held        units that the real-time policy repeated
    late        20 ms steps in which the answer was not there and silence was sent
    """

    type: Literal["stats"] = field(default="stats", init=False)
    units: int
    deadline_misses: int
    held: int
    late: int
    backlog: int
    playout_ms: float
    model_latency_ms: dict[str, float] = field(default_factory=dict)
    event_latency_ms: dict[str, float] = field(default_factory=dict)
    stage_ms: dict[str, dict[str, float]] = field(default_factory=dict)


ServerEvent = (
    SessionEvent
    | CaptionEvent
    | TurnEvent
    | PlaybackEvent
    | NoticeEvent
    | ErrorEvent
    | PongEvent
    | StatsEvent
)  # fmt: skip


@dataclass(frozen=True)
class TextInput:
    """What the visitor typed; it becomes `UserUnit.text` of the next unit."""

    text: Text
    type: Literal["text"] = "text"


@dataclass(frozen=True)
class Ping:
    """t: the page's own clock in ms, sent back untouched."""

    t: Number
    type: Literal["ping"] = "ping"


@dataclass(frozen=True)
class Devices:
    """Which devices the visitor has switched on."""

    microphone: bool
    camera: bool
    type: Literal["devices"] = "devices"


@dataclass(frozen=True)
class Clear:
    """Drop what waits to be played out. The agent goes on: what it says next is played."""

    type: Literal["clear"] = "clear"


@dataclass(frozen=True)
class Mute:
    """What this device sends does not reach the model, as if the device were off, until it is unmuted."""

    device: Literal["microphone", "camera"]
    muted: bool


@dataclass(frozen=True)
class Goodbye:
    """The visitor ends the call."""


PageMessage = TextInput | Ping | Devices | Clear
Message = PageMessage | Mute | Goodbye

PAGE_MESSAGES: TypeAdapter[PageMessage] = TypeAdapter(Annotated[PageMessage, Field(discriminator="type")])


def parse_event(data: str | bytes, kinds: TypeAdapter[Any], what: str = "event") -> Any:
    """Read one message as one of the dataclasses of `kinds`, a union with `type` as its tag; other fields are ignored.

    Raises `EventError` naming what was expected, never what was said.
    """
    if isinstance(data, bytes) or len(data) > MAX_MESSAGE:
        raise EventError(f"{what}: expected JSON text of at most {MAX_MESSAGE} characters")
    try:
        fields = parse_json(data)
    except ValueError:
        raise EventError(f"{what}: expected JSON") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise EventError(f"{what}: expected an object with a type")
    try:
        return kinds.validate_json(data, strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False, include_context=True)[0]
    if problem["type"] == "union_tag_invalid":
        raise EventError(f"{what}: expected one of the types {problem['ctx']['expected_tags']}", "unknown_event")
    place = ".".join(str(part) for part in problem["loc"])
    raise EventError(f"{what}: expected another value of {place or 'it'} ({problem['msg']})")


def parse_page_message(data: str | bytes) -> PageMessage:
    """Read one message of the page. Raises `EventError` naming what was expected, never what was said."""
    return parse_event(data, PAGE_MESSAGES, "page message")

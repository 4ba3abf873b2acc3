"""The events of a call's data channel: JSON objects with a `type`, in both directions.

server to page   `SessionEvent` `CaptionEvent` `StatsEvent` `PongEvent` `NoticeEvent` `ErrorEvent`
page to server   `TextInput` `Ping` `Devices`, read by `parse_page_message`
"""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from wan_streamer.errors import ServingError
from wan_streamer.files import parse_json

VERSION = 1
MAX_TEXT = 2_000  # characters of one typed message
MAX_MESSAGE = 16_384  # characters of one JSON message


class _Event:
    type: ClassVar[str]

    def to_json(self) -> str:
        return json.dumps({"type": self.type, **asdict(self)})  # type: ignore[call-overload]


@dataclass(frozen=True)
class SessionEvent(_Event):
    """The call's state: "live", "recovering" (the model is being restarted), "ended", or "busy" (another visitor was
    faster: a new offer waits in line)."""

    type: ClassVar[str] = "session"
    state: str
    message: str = ""
    agent: str = ""
    unit_ms: int = 160
    version: int = VERSION


@dataclass(frozen=True)
class CaptionEvent(_Event):
    """Text that begins in a unit. lane: "response" (the agent says it) or "transcript" (the agent heard it)."""

    type: ClassVar[str] = "caption"
    lane: str
    unit: int
    text: str


@dataclass(frozen=True)
class NoticeEvent(_Event):
    """Something the visitor should know although the call goes on."""

    type: ClassVar[str] = "notice"
    message: str


@dataclass(frozen=True)
class ErrorEvent(_Event):
    """One message of the page was not understood or not taken. The call goes on."""

    type: ClassVar[str] = "error"
    message: str


@dataclass(frozen=True)
class PongEvent(_Event):
    """Answer to `Ping`, with the page's own stamp."""

    type: ClassVar[str] = "pong"
    t: float


@dataclass(frozen=True)
class StatsEvent(_Event):
    """Once a second. Milliseconds are over the last ten seconds, counts over the whole call.

    stage_ms    {stage: {p50, p95}} of the model's stages and of the server's own (names in `meter`)
    backlog     units that the model still owes
    playout_ms  audio and video that wait to be played out
    held        units that the real-time policy repeated
    late        20 ms steps in which the answer was not there and silence was sent
    """

    type: ClassVar[str] = "stats"
    units: int
    deadline_misses: int
    held: int
    late: int
    backlog: int
    playout_ms: float
    model_latency_ms: dict[str, float] = field(default_factory=dict)
    event_latency_ms: dict[str, float] = field(default_factory=dict)
    stage_ms: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class TextInput:
    """What the visitor typed; it becomes `UserUnit.text` of the next unit."""

    text: str


@dataclass(frozen=True)
class Ping:
    """t: the page's own clock in ms, sent back untouched."""

    t: float


@dataclass(frozen=True)
class Devices:
    """Which devices the visitor has switched on."""

    microphone: bool
    camera: bool


PageMessage = TextInput | Ping | Devices


def parse_page_message(data: str | bytes) -> PageMessage:
    """Read one message of the page. Raises `ServingError` naming what was expected, never what was said."""
    if isinstance(data, bytes) or len(data) > MAX_MESSAGE:
        raise ServingError(f"page message: expected JSON text of at most {MAX_MESSAGE} characters")
    try:
        fields: Any = parse_json(data)
    except ValueError:
        raise ServingError("page message: expected JSON") from None
    match fields:
        case {"type": "text", "text": str(text)} if text.strip() and len(text) <= MAX_TEXT:
            return TextInput(text.strip())
        case {"type": "text"}:
            raise ServingError(f"page message: expected a text of 1 to {MAX_TEXT} characters")
        case {"type": "ping", "t": int(t) | float(t)} if math.isfinite(t):
            return Ping(float(t))
        case {"type": "devices", "microphone": bool(microphone), "camera": bool(camera)}:
            return Devices(microphone, camera)
    raise ServingError("page message: expected type text, ping with a finite number t, or devices")

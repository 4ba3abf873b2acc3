"""How a call over a WebSocket begins, before its events: one message of the page, one answer.

`Start`                          from the page, within the time that a request may take
`Started` `Waiting` `Refused`    from the server; after the last two it closes the connection
"""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

Token = Annotated[str, Field(max_length=256)]


@dataclass(frozen=True)
class Start:
    """token: the server's. queue: the ticket with which its visitor waited. resume: the token of the conversation to
    go on with."""

    type: Literal["start"]
    token: Token = ""
    queue: Token = ""
    resume: Token = ""


class _Answer:
    def to_json(self) -> str:
        return json.dumps(asdict(self))  # type: ignore[call-overload]


@dataclass(frozen=True)
class Started(_Answer):
    """The call begins. The fields are those of the answer to an offer."""

    session: str
    resume: str
    resume_s: float
    type: Literal["started"] = "started"


@dataclass(frozen=True)
class Waiting(_Answer):
    """All places are taken: ask `GET /api/queue` with the ticket, then connect again with it."""

    queue: str
    place: int
    estimate_s: float | None
    type: Literal["waiting"] = "waiting"


@dataclass(frozen=True)
class Refused(_Answer):
    """status, error, message: as a request would have been refused."""

    status: int
    error: str
    message: str
    type: Literal["refused"] = "refused"


START: TypeAdapter[Start] = TypeAdapter(Start)
ANSWERS: TypeAdapter[Started | Waiting | Refused] = TypeAdapter(Started | Waiting | Refused)

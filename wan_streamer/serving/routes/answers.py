"""What all routes answer alike.

`Refusal`, `refusals`   the body of every refusal, and its place in the OpenAPI document
`bearer`, `Gate`        who may open a call: the server's token, or a client secret
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from wan_streamer.errors import ServingError, WanStreamerError
from wan_streamer.serving.desk import BusyError, LimitError
from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.guard import refusal
from wan_streamer.serving.doors.keys import PREFIX, Keys, Secret
from wan_streamer.serving.doors.limits import Limits
from wan_streamer.serving.doors.line import Place

BUSY_S = 10  # who finds no place may ask again after so long
NEEDS_TOKEN = "This agent asks for a token: open the whole address that the server printed when it was started."
BAD_SECRET = "The client secret is wrong, has been used or is too old. Create another session."
WHY = {
    400: "`offer`: no usable SDP offer. `host` names that the server does not have get plain text",
    401: "`token`: the server's token is needed. `secret`: the client secret is wrong, used or too old",
    403: "`origin`: the request comes from another site's page",
    404: "`call` or `queue`: there is none with this id (any more)",
    409: "`busy`: all places and the line are full",
    413: "the body is too large; plain text",
    415: "`media`: another content type is expected",
    422: "`invalid`: the body has another form; `message` names the field",
    429: "`rate`: too many requests, offers or secrets; where there is a `Retry-After`, so many seconds",
    500: "`internal`: something went wrong in the server",
    503: "`model`: the model cannot be used now. `busy`: all places are taken; `Retry-After`: so many seconds",
}
EVERYWHERE = (400, 429, 500)
PLAIN = (400, 413)  # the doors answer these with plain text
BEARER = Depends(HTTPBearer(auto_error=False))  # for the OpenAPI document; `Gate` and `bearer` read the header


class Refusal(BaseModel):
    """error: a code for programs. message: for people."""

    error: str
    message: str


class Waiting(BaseModel):
    """All places are taken; this is one in the line. Ask `GET /api/queue` about it at least every ten seconds.

    queue       the ticket
    place       1 for the next
    estimate_s  seconds; none before the first call has ended
    """

    queue: str
    place: int
    estimate_s: float | None

    @classmethod
    def at(cls, place: Place) -> "Waiting":
        return cls(queue=place.ticket, place=place.place, estimate_s=place.estimate_s)


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that refuses with these codes, beside those of every route."""
    return {
        code: {"description": WHY[code]}
        | ({} if code == 413 else {"model": Refusal})
        | ({"content": {"text/plain": {"schema": {"type": "string"}}}} if code in PLAIN else {})
        for code in sorted({*codes, *EVERYWHERE})
    }


def bearer(request: Request) -> str:
    """The token in the `Authorization` header: that of the server, of a session, or a client secret."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def address(request: Request) -> str:
    return request.client.host if request.client else ""


def refuse(error: WanStreamerError, limits: Limits, full: int = 503) -> JSONResponse:
    """The answer to what `Desk.open` raises. full: the status when there is no place."""
    if isinstance(error, BusyError):
        answer = refusal(full, "busy", str(error))
        answer.headers["Retry-After"] = str(BUSY_S)
        return answer
    if isinstance(error, LimitError):
        answer = refusal(429, "rate", str(error))
        answer.headers["Retry-After"] = str(math.ceil(1 / limits.offers_per_s))
        return answer
    if isinstance(error, ServingError) and str(error).startswith("offer:"):
        return refusal(400, "offer", str(error))
    return refusal(503, "model", str(error))


class RefusedError(Exception):
    """Carries the answer."""

    def __init__(self, answer: JSONResponse) -> None:
        self.answer = answer


@dataclass
class Pass:
    """What a request is let in with. session: of the secret, if it has one. waiting: put the secret back with that."""

    session: str = ""
    ticket: str = ""
    opened: bool = False


class Gate:
    """Lets in who has the server's token or a client secret."""

    def __init__(self, access: Access, keys: Keys) -> None:
        self._access, self._keys = access, keys

    @asynccontextmanager
    async def enter(self, request: Request) -> AsyncIterator[Pass]:
        """A secret is used up if `opened` is set inside; two requests at a time cannot have the same.

        Raises `RefusedError`.
        """
        token, secret = bearer(request), None
        is_token = self._access.token is not None and self._access.knows(token)
        if token.startswith(PREFIX) and not is_token:
            secret = self._keys.take(token)
            if secret is None:
                raise RefusedError(refusal(401, "secret", BAD_SECRET))
        elif not self._access.knows(token):
            raise RefusedError(refusal(401, "token", NEEDS_TOKEN))
        entry = Pass(secret.session if secret else "", secret.ticket if secret else "")
        try:
            yield entry
        finally:
            self._give_back(secret, entry)

    def _give_back(self, secret: Secret | None, entry: Pass) -> None:
        if secret is not None and not entry.opened:
            self._keys.put_back(secret, entry.ticket)

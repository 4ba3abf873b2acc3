"""`POST /v1/live/sessions`: a session of the Live dialect, with a client secret or with an SDP answer."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from wan_streamer.errors import WanStreamerError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.runtime.worker import Ready
from wan_streamer.serving.desk import Desk
from wan_streamer.serving.dialects.live import LiveDialect, LiveSession, VideoFormat
from wan_streamer.serving.dialects.schema import event_schema
from wan_streamer.serving.doors.guard import refusal
from wan_streamer.serving.doors.keys import Keys
from wan_streamer.serving.doors.line import Place
from wan_streamer.serving.routes.answers import BEARER, Gate, RefusedError, Waiting, address, refusals, refuse
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.watch.metrics import IS_OFFER
from wan_streamer.units import FPS, UNIT_MS

MAX_SDP = 64_000
EVENTS = "/v1/events.schema.json"


class Offered(BaseModel):
    """The visitor's WebRTC offer. Any name of the data channel is good."""

    type: Literal["webrtc"]
    sdp: str = Field(min_length=1, max_length=MAX_SDP)


class Asked(BaseModel, extra="forbid"):
    """What a session may be asked for: nothing yet, the checkpoint decides. Unknown fields are refused, not ignored."""


class CreateSession(BaseModel):
    """session    what the session is to be like
    transport  the offer; without it, a client secret is given out with which the offer can be made later
    queue      the ticket with which its visitor has waited
    resume     the token of the conversation to go on with
    """

    session: Asked = Asked()
    transport: Offered | None = None
    queue: str = Field("", max_length=64)
    resume: str = Field("", max_length=64)


class ClientSecret(BaseModel):
    """It opens one call, here or at `/v1/realtime/calls`, as the bearer token. expires_at: Unix time in seconds."""

    value: str
    expires_at: int


class Answered(BaseModel):
    type: Literal["webrtc"] = "webrtc"
    sdp: str


class Resume(BaseModel):
    """token: for another session that goes on with this conversation after a lost connection, within `within_s`."""

    token: str
    within_s: float


class Created(BaseModel):
    """session        the id, which is known to its visitor only, and what the agent is
    events         where the JSON Schema of the events is
    client_secret  if there was no offer
    transport, resume  if there was one
    """

    session: LiveSession
    events: str = EVENTS
    client_secret: ClientSecret | None = None
    transport: Answered | None = None
    resume: Resume | None = None


def describe(session: str, ready: Ready) -> LiveSession:
    height, width = ready.frame_size
    return LiveSession(session, ready.name, VideoFormat(width, height, FPS), UNIT_MS)


def live_routes(desk: Desk, model: ModelProcess, config: ServingConfig, keys: Keys) -> APIRouter:
    router, gate = APIRouter(tags=["live"]), Gate(config.access, keys)

    @router.post(
        "/v1/live/sessions",
        status_code=201,
        response_model=Created,
        dependencies=[BEARER],
        responses=refusals(401, 403, 413, 422, 503)
        | {202: {"model": Waiting, "description": "All places are taken: a place in the line"}},
    )
    async def create(request: Request, body: CreateSession) -> Response:
        """Create a session. With an offer the call begins; a secret stays good while its visitor waits in the line."""
        try:
            async with gate.enter(request) as entry:
                ready = await model.ensure_ready()
                if body.transport is None:
                    request.scope[IS_OFFER] = False
                    if entry.session:
                        return refusal(422, "invalid", "body.transport: expected an offer, since there is a secret")
                    secret = keys.create(desk.new_session())
                    if secret is None:
                        return refusal(429, "rate", "Too many sessions were created and not used. Try again soon.")
                    key = ClientSecret(value=secret.value, expires_at=int(secret.expires))
                    return _answer(Created(session=describe(secret.session, ready), client_secret=key))
                opened = await desk.open(
                    body.transport.sdp, address(request), body.queue or entry.ticket, body.resume,
                    dialect=LiveDialect, session=entry.session,
                )  # fmt: skip
                if isinstance(opened, Place):
                    entry.ticket = opened.ticket
                    return _answer(Waiting.at(opened), 202)
                entry.opened = True
        except RefusedError as refused:
            return refused.answer
        except WanStreamerError as error:
            return refuse(error, config.limits)
        return _answer(Created(
            session=describe(opened.session, ready),
            transport=Answered(sdp=opened.answer),
            resume=Resume(token=opened.resume, within_s=config.resume_s),
        ))  # fmt: skip

    @router.get(EVENTS, responses=refusals())
    async def events() -> dict:
        """The JSON Schema of the events of all dialects."""
        return event_schema()

    return router


def _answer(body: BaseModel, status: int = 201) -> JSONResponse:
    return JSONResponse(body.model_dump(exclude_none=status == 201), status)

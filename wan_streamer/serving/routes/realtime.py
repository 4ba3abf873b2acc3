"""`POST /v1/realtime/calls`: a call for clients of OpenAI's Realtime API."""

from fastapi import APIRouter, Request, Response

from wan_streamer.errors import WanStreamerError
from wan_streamer.serving.desk import BusyError, Desk
from wan_streamer.serving.dialects.realtime import RealtimeDialect
from wan_streamer.serving.doors.guard import refusal
from wan_streamer.serving.doors.keys import Keys
from wan_streamer.serving.doors.line import Place
from wan_streamer.serving.routes.answers import BEARER, Gate, RefusedError, address, refusals, refuse
from wan_streamer.serving.settings import ServingConfig

SDP = "application/sdp"
SDP_BODY = {SDP: {"schema": {"type": "string"}}}


def realtime_routes(desk: Desk, config: ServingConfig, keys: Keys) -> APIRouter:
    router, gate = APIRouter(tags=["realtime"]), Gate(config.access, keys)

    @router.post(
        "/v1/realtime/calls",
        status_code=201,
        response_class=Response,
        dependencies=[BEARER],
        responses=refusals(400, 401, 403, 413, 415, 503)
        | {
            201: {
                "description": "The SDP answer",
                "content": SDP_BODY,
                "headers": {"Location": {"description": "the address of the call", "schema": {"type": "string"}}},
            }
        },
        openapi_extra={"requestBody": {"required": True, "content": SDP_BODY}},
    )
    async def call(request: Request) -> Response:
        """Answer an SDP offer. Who finds no place is refused with 503 and does not wait in the line."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != SDP:
            return refusal(415, "media", f"Content-Type: expected {SDP} (the server has no settings for a session)")
        sdp = (await request.body()).decode(errors="replace")
        try:
            async with gate.enter(request) as entry:
                opened = await desk.open(
                    sdp, address(request), entry.ticket, dialect=RealtimeDialect, session=entry.session, may_wait=False
                )
                if isinstance(opened, Place):  # its secret has a ticket of the other route: it waits there
                    entry.ticket = opened.ticket
                    raise BusyError("This visitor waits in the line.")
                entry.opened = True
        except RefusedError as refused:
            return refused.answer
        except WanStreamerError as error:
            return refuse(error, config.limits)
        return Response(
            opened.answer, 201, media_type=SDP, headers={"Location": f"/v1/realtime/calls/{opened.session}"}
        )

    @router.post("/v1/realtime/calls/{call_id}/hangup", response_class=Response, responses=refusals(403, 404, 422))
    async def hang_up(call_id: str) -> Response:
        """End a call. Its id is known to its visitor only, and is all that is asked for."""
        if len(call_id) > 64 or not desk.close(call_id):
            return refusal(404, "call", "There is no such call (any more).")
        return Response(status_code=200)

    return router

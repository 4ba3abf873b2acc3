"""`/api/socket`: the page's call over a WebSocket, where UDP does not pass. What travels is in `peers.frames`."""

import asyncio
import contextlib
from typing import Any

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from wan_streamer.errors import WanStreamerError
from wan_streamer.files import parse_json
from wan_streamer.serving.desk import Desk
from wan_streamer.serving.dialects.start import START, Refused, Start, Started, Waiting
from wan_streamer.serving.doors.line import Place
from wan_streamer.serving.messages import EventError, parse_event
from wan_streamer.serving.peers.socket import SocketPeer
from wan_streamer.serving.routes.answers import NEEDS_TOKEN, refuse
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.watch.metrics import FAILED, Metrics

PATH = "/api/socket"


def socket_routes(desk: Desk, config: ServingConfig, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.websocket(PATH)
    async def call(socket: WebSocket) -> None:
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            answer, peer = await enter(socket)
            await socket.send_text(answer.to_json())
            if peer is not None:
                return await peer.carry()
            await socket.close()

    async def enter(socket: WebSocket) -> tuple[Started | Waiting | Refused, SocketPeer | None]:
        outcome, made = FAILED, []

        def peer_of(*parts: Any) -> SocketPeer:
            made.append(SocketPeer(socket, *parts))
            return made[0]

        address = socket.client.host if socket.client else ""
        try:
            start = await _read_start(socket, config.limits.request_s)
            if not config.access.knows(start.token):
                outcome = "token"
                return Refused(401, "token", NEEDS_TOKEN), None
            opened = await desk.open("", address, start.queue, start.resume, peer_of=peer_of)
        except EventError as error:
            outcome = "invalid"
            return Refused(422, "invalid", str(error)), None
        except WanStreamerError as error:
            refused = refuse(error, config.limits, full=409)
            body = parse_json(bytes(refused.body))
            outcome = body["error"]
            return Refused(refused.status_code, **body), None
        else:
            outcome = "queued" if isinstance(opened, Place) else "answered"
        finally:
            metrics.offers.labels(outcome).inc()
        if isinstance(opened, Place):
            return Waiting(opened.ticket, opened.place, opened.estimate_s), None
        return Started(opened.session, opened.resume, config.resume_s), made[0]

    return router


async def _read_start(socket: WebSocket, within_s: float) -> Start:
    """Raises `EventError` if it is another message or none in time, `WebSocketDisconnect`."""
    try:
        message = await asyncio.wait_for(socket.receive(), within_s)
    except TimeoutError:
        raise EventError(f"start: expected within {within_s:.0f} s") from None
    if message["type"] != "websocket.receive":
        raise WebSocketDisconnect(message.get("code", 1006))
    text = message.get("text")
    return parse_event(text if text is not None else message["bytes"], START, "start")

"""The web application: the page, its own routes, and those of the dialects (`routes`).

`create_app`  GET /  /healthz  /readyz  /metrics  /openapi.json  /api/status  /api/queue  /api/ice
              POST /api/offer  /api/close   and with the routes' /api/socket /v1/...
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from wan_streamer import __version__
from wan_streamer.errors import WanStreamerError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.about import About
from wan_streamer.serving.desk import Desk
from wan_streamer.serving.doors.guard import add_doors, refusal
from wan_streamer.serving.doors.keys import Keys
from wan_streamer.serving.doors.line import Place
from wan_streamer.serving.routes.answers import BEARER, NEEDS_TOKEN, Waiting, address, bearer, refusals, refuse
from wan_streamer.serving.routes.live import MAX_SDP, live_routes
from wan_streamer.serving.routes.realtime import realtime_routes
from wan_streamer.serving.routes.socket import socket_routes
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.watch.metrics import CONTENT_TYPE, Metrics, OfferCounter

NO_METRICS = "Metrics are for programs of this machine while nobody else may call, and else for who knows the token."
PROXY_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class Offer(BaseModel):
    """The page's WebRTC offer.

    queue   the ticket with which it waited
    resume  the token of the conversation to go on with
    """

    sdp: str = Field(min_length=1, max_length=MAX_SDP)
    type: str = Field(pattern="^offer$")
    queue: str = Field("", max_length=64)
    resume: str = Field("", max_length=64)


class Answer(BaseModel):
    """session: its id, for `/api/status` and `/api/close`. resume: a token, good for `resume_s` after a lost
    connection."""

    sdp: str
    type: str
    session: str
    resume: str
    resume_s: float


class Server(BaseModel):
    """An entry of `RTCConfiguration.iceServers`."""

    urls: list[str]
    username: str | None = None
    credential: str | None = None


class Ways(BaseModel):
    """ice_servers: for the page's `RTCPeerConnection`. expires_s: so long its credentials are good; none: always."""

    ice_servers: list[Server]
    expires_s: int | None = None


class Close(BaseModel):
    """session: or the ticket of one that waits."""

    session: str = Field(max_length=64)


class Closed(BaseModel):
    closed: bool


class Health(BaseModel):
    ok: bool


class Readiness(BaseModel):
    ok: bool
    model: str


class Status(BaseModel):
    """agent: if its makers wrote that down. state, call_s: of the session whose id is the bearer token; left out for
    others."""

    busy: bool
    model: str
    agent: About | None
    state: str | None = None
    call_s: float | None = None


class Turn(BaseModel):
    """ready: an offer with this ticket is let in, for ten seconds."""

    place: int
    estimate_s: float | None
    ready: bool


def web_root() -> Path:
    return Path(str(files("wan_streamer.serving"))) / "web"


def create_app(
    model: ModelProcess, config: ServingConfig | None = None, *, on_started: Callable[[], None] | None = None
) -> FastAPI:
    """The application around a model process that the caller started and will shut down.

    on_started  called once when requests can be answered
    """
    config = config or ServingConfig()
    access = config.access
    metrics = Metrics()
    desk = Desk(model, config, metrics)
    metrics.follow(
        callers=lambda: len(desk.sessions),
        capacity=lambda: model.capacity,
        queue=lambda: desk.waiting,
        pending_offers=lambda: desk.pending,
        model_ready=lambda: model.state == "ready",
        model_restarts=lambda: max(0, model.restarts),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if on_started is not None:
            on_started()
        watch = asyncio.create_task(metrics.watch_loop())
        yield
        watch.cancel()
        await desk.shutdown()

    app = FastAPI(title="wan_streamer", lifespan=lifespan, docs_url=None, redoc_url=None, version=__version__)
    app.state.desk = desk
    add_doors(app, access, config.limits)
    app.add_middleware(OfferCounter, metrics=metrics)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        return refusal(422, "invalid", f"{field}: {problem['msg']}")

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, "route", str(error.detail))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return refusal(500, "internal", "Something went wrong in the server.")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(web_root() / "index.html")

    @app.get("/healthz", response_model=Health, responses=refusals() | {503: {"model": Health}})
    async def health() -> JSONResponse:
        """Whether this process is of use: 503 asks for a restart."""
        return JSONResponse({"ok": model.state != "stopped"}, 503 if model.state == "stopped" else 200)

    @app.get("/readyz", response_model=Readiness, responses=refusals() | {503: {"model": Readiness}})
    async def readiness() -> JSONResponse:
        """Whether visitors should be sent here."""
        ok = model.state == "ready" and not desk.stopping
        return JSONResponse({"ok": ok, "model": model.state}, 200 if ok else 503)

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=[BEARER], responses=refusals(401))
    async def numbers(request: Request) -> Response:
        """For Prometheus; see `Access.may_watch`."""
        forwarded = any(name in request.headers for name in PROXY_HEADERS)
        if not access.may_watch(address(request), bearer(request), forwarded):
            return refusal(401, "token", NO_METRICS)
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/api/status", response_model=Status, dependencies=[BEARER], responses=refusals(401))
    async def status(request: Request) -> Response:
        token = bearer(request)
        call = desk.status(token)
        if call is None and not access.knows(token):
            return refusal(401, "token", NEEDS_TOKEN)
        about = config.about.model_dump() if config.about else None
        return JSONResponse({"busy": desk.full, "model": model.state, "agent": about, **(call or {})})

    @app.post(
        "/api/offer",
        response_model=Answer,
        dependencies=[BEARER],
        responses=refusals(401, 403, 409, 413, 422, 503)
        | {202: {"model": Waiting, "description": "All places are taken: a place in the line"}},
    )
    async def offer(request: Request, body: Offer) -> Response:
        if not access.knows(bearer(request)):
            return refusal(401, "token", NEEDS_TOKEN)
        try:
            entry = await desk.open(body.sdp, address(request), body.queue, body.resume)
        except WanStreamerError as error:
            return refuse(error, config.limits, full=409)
        if isinstance(entry, Place):
            return JSONResponse(Waiting.at(entry).model_dump(), 202)
        return JSONResponse({
            "sdp": entry.answer, "type": "answer", "session": entry.session,
            "resume": entry.resume, "resume_s": config.resume_s,
        })  # fmt: skip

    @app.get("/api/queue", response_model=Turn, dependencies=[BEARER], responses=refusals(404))
    async def queue(request: Request) -> Response:
        """Where in the line the ticket is that comes as the bearer token. Held for a while if nothing is new."""
        place = await desk.wait(bearer(request))
        if place is None:
            return refusal(404, "queue", "There is no such place in the line, or it was not asked about for too long.")
        return JSONResponse({"place": place.place, "estimate_s": place.estimate_s, "ready": place.ready})

    @app.get("/api/ice", response_model=Ways, dependencies=[BEARER], responses=refusals(401))
    async def ways(request: Request) -> Response:
        """STUN and TURN servers for an offer, with credentials of this visitor's own where the relay can have them."""
        if not access.knows(bearer(request)):
            return refusal(401, "token", NEEDS_TOKEN)
        issued = config.ice.issue()
        servers = [{name: v for name, v in asdict(server).items() if v is not None} for server in issued.servers]
        return JSONResponse({"ice_servers": servers, "expires_s": issued.expires_s})

    @app.post("/api/close", response_model=Closed, responses=refusals(403, 413, 422))
    async def close(body: Close) -> dict[str, bool]:
        return {"closed": desk.close(body.session)}

    keys = Keys(config.secret_s, config.limits.secrets, desk.waits, config.mark)
    app.include_router(live_routes(desk, model, config, keys))
    app.include_router(realtime_routes(desk, config, keys))
    app.include_router(socket_routes(desk, config, metrics))
    app.mount("/static", StaticFiles(directory=web_root()), name="static")
    return app

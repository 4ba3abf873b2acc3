"""The web application: the page and the offer.

`create_app`  GET /  /healthz  /readyz  /metrics  /api/status  /api/queue  POST /api/offer  /api/close
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from wan_streamer.errors import ServingError, WanStreamerError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.desk import BusyError, Desk, LimitError
from wan_streamer.serving.doors.guard import add_doors, refusal
from wan_streamer.serving.doors.line import Place
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.watch.metrics import CONTENT_TYPE, Metrics, OfferCounter

MAX_SDP = 64_000
NEEDS_TOKEN = "This agent asks for a token: open the whole address that the server printed when it was started."
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


class Close(BaseModel):
    session: str = Field(max_length=64)


def web_root() -> Path:
    return Path(str(files("wan_streamer.serving"))) / "web"


def bearer(request: Request) -> str:
    """The token in the `Authorization` header: that of the server, or of a session."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


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

    app = FastAPI(title="wan_streamer", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk
    add_doors(app, access, config.limits)
    app.add_middleware(OfferCounter, metrics=metrics)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        return refusal(422, "invalid", f"{field}: {problem['msg']}")

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return refusal(500, "internal", "Something went wrong in the server.")

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(web_root() / "index.html")

    @app.get("/healthz")
    async def health() -> JSONResponse:
        """Whether this process is of use: 503 asks for a restart."""
        return JSONResponse({"ok": model.state != "stopped"}, 503 if model.state == "stopped" else 200)

    @app.get("/readyz")
    async def readiness() -> JSONResponse:
        """Whether visitors should be sent here."""
        ok = model.state == "ready" and not desk.stopping
        return JSONResponse({"ok": ok, "model": model.state}, 200 if ok else 503)

    @app.get("/metrics")
    async def numbers(request: Request) -> Response:
        """For Prometheus; see `Access.may_watch`."""
        address = request.client.host if request.client else ""
        forwarded = any(name in request.headers for name in PROXY_HEADERS)
        if not access.may_watch(address, bearer(request), forwarded):
            return refusal(401, "token", NO_METRICS)
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/api/status")
    async def status(request: Request) -> Response:
        token = bearer(request)
        call = desk.status(token)
        if call is None and not access.knows(token):
            return refusal(401, "token", NEEDS_TOKEN)
        return JSONResponse({"busy": desk.full, "model": model.state, **(call or {})})

    @app.post("/api/offer")
    async def offer(request: Request, body: Offer) -> Response:
        if not access.knows(bearer(request)):
            return refusal(401, "token", NEEDS_TOKEN)
        try:
            address = request.client.host if request.client else ""
            entry = await desk.open(body.sdp, address, body.queue, body.resume)
        except BusyError as error:
            return refusal(409, "busy", str(error))
        except LimitError as error:
            return refusal(429, "rate", str(error))
        except ServingError as error:
            code = "offer" if str(error).startswith("offer:") else "model"
            return refusal(400 if code == "offer" else 503, code, str(error))
        except WanStreamerError as error:
            return refusal(503, "model", str(error))
        if isinstance(entry, Place):
            return JSONResponse({"queue": entry.ticket, "place": entry.place, "estimate_s": entry.estimate_s}, 202)
        return JSONResponse({
            "sdp": entry.sdp, "type": "answer", "session": entry.session,
            "resume": entry.resume, "resume_s": config.resume_s,
        })  # fmt: skip

    @app.get("/api/queue")
    async def queue(request: Request) -> Response:
        """Where in the line the ticket is that comes as the bearer token. Held for a while if nothing is new."""
        place = await desk.wait(bearer(request))
        if place is None:
            return refusal(404, "queue", "There is no such place in the line, or it was not asked about for too long.")
        return JSONResponse({"place": place.place, "estimate_s": place.estimate_s, "ready": place.ready})

    @app.post("/api/close")
    async def close(body: Close) -> dict[str, bool]:
        return {"closed": desk.close(body.session)}

    app.mount("/static", StaticFiles(directory=web_root()), name="static")
    return app

"""The web application: the page, the offer, and who is in a call.

`Desk`        one visitor at a time; frees the place however the visitor leaves
`create_app`  GET /  GET /healthz  GET /api/status  POST /api/offer  POST /api/close
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from wan_streamer.errors import ServingError, WanStreamerError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.webrtc import Peer

MAX_SDP = 64_000
SECURITY_HEADERS = {
    "Content-Security-Policy": "object-src 'none'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

log = logging.getLogger(__name__)


class BusyError(ServingError):
    """Somebody else is in a call."""


class Offer(BaseModel):
    """The page's WebRTC offer."""

    sdp: str = Field(min_length=1, max_length=MAX_SDP)
    type: str = Field(pattern="^offer$")


class Close(BaseModel):
    session: str = Field(max_length=64)


class Desk:
    """The only place for a call. Claimed by an offer, freed when its task ends."""

    def __init__(self, model: ModelProcess, config: ServingConfig) -> None:
        self._model, self._config = model, config
        self._peer: Peer | None = None
        self._task: asyncio.Task[None] | None = None
        self.session: str | None = None
        self.since = 0.0
        self.calls = 0
        self.last_end = ""

    async def open(self, sdp: str) -> tuple[str, str]:
        """Answer an offer: (session, SDP). Raises `BusyError` or what the model or the offer raised."""
        if self.session is not None:
            raise BusyError(
                "Someone else is in a call with this agent. It serves one visitor at a time; try again soon."
            )
        self.session, self.since = secrets.token_hex(16), time.monotonic()  # claimed before the first await
        session = self.session
        peer: Peer | None = None
        try:
            await self._model.ensure_ready()
            self._peer = peer = Peer(self._model, self._config)
            answer = await peer.answer(sdp)
        except BaseException:
            self._peer = self.session = None
            if peer is not None:
                await peer.close()
            raise
        self.calls += 1
        self._task = asyncio.create_task(self._serve(peer))
        return session, answer

    async def _serve(self, peer: Peer) -> None:
        try:
            self.last_end = await peer.serve()
            log.info("call ended: %s", self.last_end)
        except Exception:
            log.exception("call ended by an unexpected error")
            self.last_end = "unexpected error"
        finally:
            with contextlib.suppress(Exception):
                await peer.close()
            self._peer = self.session = None

    def close(self, session: str) -> bool:
        """The page says goodbye."""
        if self._peer is None or session != self.session:
            return False
        self._peer.hang_up()
        return True

    async def shutdown(self) -> None:
        """End the call in progress."""
        if self._peer is not None:
            self._peer.hang_up()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=3)


def web_root() -> Path:
    return Path(str(files("wan_streamer.serving"))) / "web"


def _failure(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": code, "message": message}, status_code=status)


def create_app(
    model: ModelProcess, config: ServingConfig | None = None, *, on_started: Callable[[], None] | None = None
) -> FastAPI:
    """The application around a model process that the caller started and will shut down.

    on_started  called once when requests can be answered
    """
    desk = Desk(model, config or ServingConfig())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if on_started is not None:
            on_started()
        yield
        await desk.shutdown()

    app = FastAPI(title="wan_streamer", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        origin = request.headers.get("origin")
        if request.method == "POST" and origin and urlsplit(origin).netloc != request.headers.get("host"):
            return _failure(403, "origin", "Calls can only be started from this server's own page.")
        response = await call_next(request)
        response.headers.update(SECURITY_HEADERS)
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        return _failure(422, "invalid", f"{field}: {problem['msg']}")

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(web_root() / "index.html")

    @app.get("/healthz")
    async def health() -> JSONResponse:
        ok = model.state == "ready"
        return JSONResponse({"ok": ok, "model": model.state}, status_code=200 if ok else 503)

    @app.get("/api/status")
    async def status() -> dict[str, object]:
        busy = desk.session is not None
        return {
            "busy": busy,
            "call_s": round(time.monotonic() - desk.since, 1) if busy else 0.0,
            "calls": desk.calls,
            "last_end": desk.last_end,
            "model": model.state,
            "model_restarts": max(0, model.restarts),
        }

    @app.post("/api/offer")
    async def offer(body: Offer) -> Response:
        try:
            session, sdp = await desk.open(body.sdp)
        except BusyError as error:
            return _failure(409, "busy", str(error))
        except ServingError as error:
            code = "offer" if str(error).startswith("offer:") else "model"
            return _failure(400 if code == "offer" else 503, code, str(error))
        except WanStreamerError as error:
            return _failure(503, "model", str(error))
        return JSONResponse({"sdp": sdp, "type": "answer", "session": session})

    @app.post("/api/close")
    async def close(body: Close) -> dict[str, bool]:
        return {"closed": desk.close(body.session)}

    app.mount("/static", StaticFiles(directory=web_root()), name="static")
    return app

"""What every request passes before the application works on it.

`add_doors`  known hosts, known origins, sizes, rates; security headers on every answer
`refusal`    an answer that says no: {"error", "message"}
"""

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.limits import Limits, Rates, who

SCHEMES = {"ws": "http", "wss": "https"}  # of a WebSocket -> of the page that opens it
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(self), autoplay=(self), geolocation=(), display-capture=()",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def refusal(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": code, "message": message}, status_code=status, headers=SECURITY_HEADERS)


def add_doors(app: FastAPI, access: Access, limits: Limits) -> None:
    """Put the doors around an application; the last one added is the first that a request meets."""
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=limits.body_bytes)
    app.add_middleware(_Callers, access=access, limits=limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(access.hosts), www_redirect=False)
    if access.proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(access.proxies))
    app.add_middleware(_SecurityHeaders)


class _SecurityHeaders:
    """Refused clients are disconnected as well: what is left of their request would have to be read otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                if message["status"] >= 400:
                    headers["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Callers:
    """Refuses what pages of other origins send, and addresses that ask too often."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits) -> None:
        self._app, self._access = app, access
        self._rates = Rates(limits.requests_per_s, limits.request_burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            own = f"{SCHEMES.get(scope['scheme'], scope['scheme'])}://{headers['host']}"
            starts = scope["type"] == "websocket" or scope["method"] == "POST"
            if not self._rates.take(who((scope.get("client") or ("",))[0])):
                refused = refusal(429, "rate", "Too many requests came from this address. Wait a little.")
                return await refused(scope, receive, send)
            if starts and origin and origin.lower() not in (own.lower(), *self._access.origins):
                refused = refusal(403, "origin", "Calls can only be started from this server's own page.")
                return await refused(scope, receive, send)
        await self._app(scope, receive, send)

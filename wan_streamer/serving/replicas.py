"""Several servers behind one address, on Ray Serve: each visitor stays with the server that has the conversation.

`agents`         the application: `serve run wan_streamer.serving.replicas:agents replicas=2 checkpoint=nano`
`Replicas`       its options
`SessionRouter`  which replica a request goes to: the one that its ids name, otherwise the one with the most free places
`Sticky`         tells browsers, by a cookie, what their ids do not tell the router

Every id, ticket, token and secret of a replica begins with its name. Media go over the WebSocket, through Ray's proxy,
or over UDP, straight to the replica that has answered the offer.

Needs `pip install 'wan-streamer[serve,replicas]'`.
"""

import functools
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_streamer.errors import ExtraError, ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.runtime.worker import load_agent
from wan_streamer.serving.about import read_about
from wan_streamer.serving.app import create_app
from wan_streamer.serving.doors.access import is_loopback, plan_access
from wan_streamer.serving.doors.ice import read_ice
from wan_streamer.serving.peers.webrtc import use_loopback_candidates
from wan_streamer.serving.settings import ServingConfig

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
    from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
except ImportError as error:
    raise ExtraError("serving with replicas", "replicas", error) from error

COOKIE = "wan-streamer-replica"
STARTS = ("/api/offer", "/v1/live/sessions", "/v1/realtime/calls", "/api/socket")  # what makes a conversation
STATS_S = 1.0  # the router knows the free places of so long ago
MOST_REQUESTS = 1000  # at a time of a replica; a call over a WebSocket is one


class Replicas(BaseModel):
    """replicas         servers, each with a model of its own
    sessions         callers at a time at most of each
    cpus, gpus       that Ray keeps for each replica; the model process counts as part of it
    checkpoint, device, standby, max_minutes, token, ice_servers   as for `wan-streamer serve`
    agent            another agent, "package.module:function"
    host             where Ray's proxy listens: on any but localhost callers have to know a token
    public_urls, proxies   as for `wan-streamer serve`, with commas between them
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(2, ge=1)
    sessions: int = Field(4, ge=1)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    checkpoint: str = "nano"
    agent: str = ""
    device: str = "cpu"
    standby: bool = False
    max_minutes: float | None = None
    host: str = "127.0.0.1"
    token: str | None = None
    public_urls: str = ""
    proxies: str = ""
    ice_servers: str | None = None


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _mark(replica: str) -> str:
    return f"{replica}."


class SessionRouter(RequestRouter):
    """An id names its replica wherever it is: in `X-Session-Id`, which Ray knows as the session, as the bearer token,
    in the path, or in the cookie. An id of a replica that is no more goes to another one, which says that it does not
    know it."""

    def initialize_state(self, **_: Any) -> None:
        self._turns, self._turn_of = itertools.count(1), {}  # type: ignore[var-annotated]

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Sequence[list[RunningReplica]]:
        told = "" if pending_request is None else _told(pending_request)
        for candidate in candidate_replicas:
            if _mark(candidate.replica_id.unique_id) in told:
                return [[candidate]]
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True

        def by_places(candidate: RunningReplica) -> tuple[float, int]:
            replica = candidate.replica_id.unique_id
            return -candidate.routing_stats.get("free", 1), self._turn_of.get(replica, 0)

        ranked = sorted(candidate_replicas, key=by_places)
        if ranked and _starts(told):
            self._turn_of[ranked[0].replica_id.unique_id] = next(self._turns)  # its places are known a second later
        return [[candidate] for candidate in ranked]


def _told(request: PendingRequest) -> str:
    """What a request says about its conversation, its path first. Empty for one that did not come over HTTP."""
    if not request.args or not isinstance(request.args[0], bytes):
        return ""
    scope = pickle.loads(request.args[0]).asgi_scope  # Ray's own record, from its proxy
    headers = Headers(scope=scope)
    cookies = [part.strip() for part in headers.get("cookie", "").split(";")]
    ours = next((part for part in cookies if part.startswith(f"{COOKIE}=")), "")
    said = (request.metadata.session_id, headers.get("x-session-id", ""), headers.get("authorization", ""), ours)
    return " ".join((scope["path"], *said))


def _starts(told: str) -> bool:
    return told.partition(" ")[0] in STARTS


class Sticky:
    """A page sends its ids in bodies, and a browser nothing of its own with a WebSocket: a cookie names the replica,
    from the answer that begins a conversation to the one that ends it."""

    def __init__(self, app: ASGIApp, mark: str) -> None:
        self._app, self._mark = app, mark

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] not in (*STARTS, "/api/close"):
            return await self._app(scope, receive, send)
        kept = "Max-Age=0" if scope["path"] == "/api/close" else "HttpOnly"
        secure = "; Secure" if scope["scheme"] in ("https", "wss") else ""

        async def send_with_cookie(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                message.setdefault("headers", [])
                cookie = f"{COOKIE}={self._mark}; Path=/; SameSite=Strict; {kept}{secure}"
                MutableHeaders(scope=message).append("set-cookie", cookie)
            await send(message)

        await self._app(scope, receive, send_with_cookie)


class Replica:
    """One server in a Ray actor: the model process is its child, as in `wan-streamer serve`."""

    def __init__(self, options: Replicas) -> None:
        mark = _mark(serve.get_replica_context().replica_tag)
        public_urls, proxies = _parts(options.public_urls), _parts(options.proxies)
        config = ServingConfig(
            access=plan_access(options.host, public_urls, proxies, options.token),
            ice=read_ice(options.ice_servers),
            max_call_s=None if options.max_minutes is None else options.max_minutes * 60,
            about=None if options.agent else read_about(options.checkpoint),
            mark=mark,
        )
        self._model = ModelProcess(
            options.agent or functools.partial(load_agent, options.checkpoint, options.device),
            has_children="," in options.device,
            most=options.sessions,
            standby=options.standby,
        )
        self._model.wait_ready()
        if is_loopback(options.host):
            use_loopback_candidates()
        self._app = create_app(self._model, config)
        self._sticky = Sticky(self._app, mark)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Ray asks for it by this name
        return self._sticky

    def record_routing_stats(self) -> dict[str, float]:
        """For `SessionRouter`; asked for every second."""
        desk = self._app.state.desk
        return {"free": self._model.capacity - len(desk.sessions) - desk.pending - desk.waiting}

    def check_health(self) -> None:
        """Raises `ServingError` when Ray should make another replica."""
        if self._model.state == "stopped":
            raise ServingError("the model process could not be started again")

    def __del__(self) -> None:
        if hasattr(self, "_model"):
            self._model.shutdown()


def agents(options: Replicas) -> Any:
    """The application for `serve run` or `ray.serve.run`. Raises `ServingError` when an option is wrong."""
    if options.token is None and not is_loopback(options.host):
        raise ServingError(f"host={options.host}: expected a token too, as all replicas have to know the same")
    plan_access(options.host, _parts(options.public_urls), _parts(options.proxies), options.token)
    deployment = serve.deployment(serve.ingress()(Replica)).options(
        name="agent",
        num_replicas=options.replicas,
        max_ongoing_requests=MOST_REQUESTS,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=f"{SessionRouter.__module__}:{SessionRouter.__name__}",
            request_routing_stats_period_s=STATS_S,
        ),
    )
    return deployment.bind(options)

"""`serve`: everything between the command line and the first call, and back."""

import contextlib
import functools
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn
from rich.console import Console

from wan_streamer.errors import ServingError
from wan_streamer.process import log_as
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.runtime.worker import AgentFactory, load_agent
from wan_streamer.serving.about import read_about
from wan_streamer.serving.app import create_app
from wan_streamer.serving.doors.access import Access, is_loopback, plan_access
from wan_streamer.serving.doors.connections import limited_protocol, socket_settings
from wan_streamer.serving.doors.ice import read_ice
from wan_streamer.serving.doors.tls import load_tls, self_signed_tls
from wan_streamer.serving.peers.webrtc import use_loopback_candidates
from wan_streamer.serving.settings import ServingConfig

log = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ServingError` with what to do when the port or host cannot be used."""
    if not 0 <= port <= 65_535:
        raise ServingError(f"--port: expected 0 to 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ServingError(f"cannot listen on {host}:{port}: {error}; check --host and --port") from error
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno in (98, 48, 10048):  # EADDRINUSE on Linux, macOS, Windows
            raise ServingError(
                f"port {port} is already in use: stop what runs there or pick another with --port"
            ) from error
        raise ServingError(f"cannot listen on {host}:{port}: {error.strerror}; check --host and --port") from error
    sock.setblocking(False)
    return sock


def _tls(
    host: str, access: Access, certfile: str | Path | None, keyfile: str | Path | None, self_signed: bool
) -> ssl.SSLContext | None:
    if (certfile is None) != (keyfile is None):
        raise ServingError("--certfile and --keyfile: expected both or neither, got one")
    if certfile is not None and keyfile is not None:
        if self_signed:
            raise ServingError("--self-signed and --certfile: expected one of them, got both")
        return load_tls(certfile, keyfile)
    if self_signed:
        return self_signed_tls(access.hosts)
    if not is_loopback(host):
        raise ServingError(
            f"--host {host}: other machines are served over HTTPS only; add --self-signed, or --certfile and --keyfile"
        )
    return None


@contextlib.contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """SIGTERM raises `KeyboardInterrupt` as well, so that all is cleaned up. Only a main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(
    checkpoint: str | Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "cpu",
    *,
    sessions: int = 4,
    max_minutes: float | None = None,
    standby: bool = True,
    agent_factory: AgentFactory | str | None = None,
    config: ServingConfig | None = None,
    certfile: str | Path | None = None,
    keyfile: str | Path | None = None,
    self_signed: bool = False,
    public_urls: Sequence[str] = (),
    proxies: Sequence[str] = (),
    token: str | None = None,
    ice_servers: str | Path | None = None,
    log_format: str | None = None,
    console: Console | None = None,
) -> None:
    """Serve calls until Ctrl-C or SIGTERM. Prints the address when the first visitor can come.

    checkpoint      built-in name, folder or hub id, for `WanStreamer.from_pretrained`
    sessions        callers at a time at most; fewer, if the model does not keep pace with so many
    max_minutes     longest call; None: any
    standby         keep a second model process loaded, which takes over when the first dies
    agent_factory   another agent, as a picklable callable or "package.module:function"
    config          its `access`, `ice` and `max_call_s` are replaced by what the other arguments say
    certfile        with keyfile: HTTPS, which is needed on any host but localhost
    self_signed     HTTPS with a certificate made now
    public_urls     addresses under which visitors come, beside the local ones
    proxies         addresses or networks of reverse proxies whose forwarding headers are believed
    token           what callers have to know; on any host but localhost one is made up if it is not given
    ice_servers     file of STUN and TURN servers (see `read_ice`)
    log_format      "text" or "json" on standard error (see `log_as`); json prints nothing else. None: logging as it is

    Raises `ServingError` when an argument is wrong, the port is taken or the model process cannot start,
    `CheckpointError` when the checkpoint is bad; all before anything is served.
    """
    console = console or Console(quiet=log_format == "json")
    access = plan_access(host, public_urls, proxies, token)
    if log_format == "json" and access.token != token:
        raise ServingError("--log-format json: expected --token or WAN_STREAMER_TOKEN too, as logs tell no made-up one")
    tls = _tls(host, access, certfile, keyfile, self_signed)
    config = config or ServingConfig()
    config = replace(
        config,
        access=access,
        ice=read_ice(ice_servers),
        max_call_s=None if max_minutes is None else max_minutes * 60,
        about=config.about or read_about(checkpoint),
    )
    if log_format is not None:
        log_as(log_format)
    sock = bind(host, port)  # first, because loading a model to learn that the port is taken helps nobody
    model = ModelProcess(
        agent_factory or functools.partial(load_agent, str(checkpoint), device),
        has_children="," in device,
        most=sessions,
        standby=standby,
    )
    try:
        with _stopped_like_ctrl_c():
            with console.status("Loading the agent ..."):
                ready = model.wait_ready()
            if is_loopback(host):
                use_loopback_candidates()
            address = _address(access, host, sock.getsockname()[1], tls is not None, public_urls)

            def announce() -> None:
                height, width = ready.frame_size
                console.print(f"[bold]{ready.name}[/bold] is ready ({width}x{height}, loaded in {ready.load_s:.1f} s)")
                places = "1 caller" if model.capacity == 1 else f"{model.capacity} callers"
                console.print(f"This machine keeps pace with {places} at a time")
                console.print(f"Open [bold cyan]{address}[/bold cyan]   Ctrl-C stops", highlight=False, soft_wrap=True)
                if console.quiet:
                    log.info("ready: %s, %d callers, loaded in %.1f s", ready.name, model.capacity, ready.load_s)

            app = create_app(model, config, on_started=announce)
            logging.getLogger("aioice").setLevel(logging.WARNING)
            settings = uvicorn.Config(
                app,
                http=limited_protocol(config.limits, access),
                **socket_settings(config.limits),
                log_level="warning",
                log_config=None,  # its loggers go the way of all others
                access_log=False,
                proxy_headers=False,  # `add_doors` believes those that were named, uvicorn would believe this machine
                server_header=False,
                timeout_graceful_shutdown=2,
                ssl_context_factory=(lambda _config, _default: tls) if tls else None,
            )
            _Server(settings).run(sockets=[sock])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down and raises the signal again
    finally:
        model.shutdown()
        sock.close()
    console.print("Stopped.")
    if console.quiet:
        log.info("stopped")


class _Server(uvicorn.Server):
    """Callers are told before connections are closed: of a call over a WebSocket, the connection is all there is."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.config.app.state.desk.shutdown()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def _address(access: Access, host: str, port: int, secure: bool, public_urls: Sequence[str]) -> str:
    """What to open. The token is behind the #, which browsers send to no server and servers do not log."""
    name = "localhost" if is_loopback(host) or host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = public_urls[0] if public_urls else f"{'https' if secure else 'http'}://{name}:{port}"
    return url if access.token is None else f"{url}/#token={access.token}".replace("//#", "/#")

"""`serve`: everything between the command line and the first call, and back."""

import functools
import ipaddress
import logging
import socket
from pathlib import Path

import uvicorn
from rich.console import Console

from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.runtime.worker import AgentFactory, load_agent
from wan_streamer.serving.app import create_app
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.webrtc import use_loopback_candidates


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


def is_loopback(host: str) -> bool:
    """True for localhost and 127.0.0.0/8 and ::1: the only names on which browsers allow devices without HTTPS."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    checkpoint: str | Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "cpu",
    *,
    agent_factory: AgentFactory | str | None = None,
    config: ServingConfig | None = None,
    certfile: str | Path | None = None,
    keyfile: str | Path | None = None,
    console: Console | None = None,
) -> None:
    """Serve calls until Ctrl-C. Prints the address when the first visitor can come.

    checkpoint      built-in name, folder or hub id, for `WanStreamer.from_pretrained`
    agent_factory   another agent, as a picklable callable or "package.module:function"
    certfile        with keyfile: HTTPS, which browsers demand on any name but localhost

    Raises `ServingError` when the port is taken or the model process cannot start, `CheckpointError` when the
    checkpoint is bad; both before anything is served.
    """
    console = console or Console()
    for name, file in (("certificate", certfile), ("key", keyfile)):
        if file is not None and not Path(file).is_file():
            raise ServingError(f"HTTPS {name}: expected a PEM file, found nothing at {file}")
    sock = bind(host, port)  # first, because loading a model to learn that the port is taken helps nobody
    model = ModelProcess(
        agent_factory or functools.partial(load_agent, str(checkpoint), device), has_children="," in device
    )
    try:
        with console.status("Loading the agent ..."):
            ready = model.wait_ready()
        if is_loopback(host):
            use_loopback_candidates()
        port = sock.getsockname()[1]
        scheme = "https" if certfile else "http"
        name = "localhost" if is_loopback(host) or host in ("0.0.0.0", "::") else host

        def announce() -> None:
            height, width = ready.frame_size
            console.print(f"[bold]{ready.name}[/bold] is ready ({width}x{height}, loaded in {ready.load_s:.1f} s)")
            console.print(f"Open [bold cyan]{scheme}://{name}:{port}[/bold cyan]   Ctrl-C stops", highlight=False)
            if not is_loopback(host) and not certfile:
                console.print("[yellow]Other machines need HTTPS: browsers give no microphone on plain HTTP.[/yellow]")

        app = create_app(model, config, on_started=announce)
        logging.getLogger("aioice").setLevel(logging.WARNING)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=2,
            ssl_certfile=str(certfile) if certfile else None,
            ssl_keyfile=str(keyfile) if keyfile else None,
        )
        uvicorn.Server(settings).run(sockets=[sock])
    except KeyboardInterrupt:
        pass  # uvicorn has shut down and raises the signal again
    finally:
        model.shutdown()
        sock.close()
    console.print("Stopped.")

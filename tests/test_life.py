"""Life and death of a server: workers that die, signals, slow bodies and crowds."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import standin
import uvicorn
from test_serving import Visitor, until

from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.connections import limited_protocol
from wan_streamer.serving.doors.limits import Limits
from wan_streamer.serving.peers.webrtc import use_loopback_candidates

PATIENCE_S = 30


def test_a_worker_that_dies_idle_is_restarted_at_once() -> None:
    model = ModelProcess(standin.StandInAgent)
    try:
        model.wait_ready(PATIENCE_S)
        before = model.pid
        os.kill(before or 0, signal.SIGKILL)
        end = time.monotonic() + PATIENCE_S
        while model.pid == before or model.state != "ready":
            assert time.monotonic() < end, f"{model.state}, nobody called"
            time.sleep(0.05)
        assert model.restarts == 1
    finally:
        model.shutdown()
    with pytest.raises(ServingError, match="shut down"):
        model.start()


@contextlib.contextmanager
def server(tmp_path: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A stand-in that is served for real: its port and process. It writes to `tmp_path`/log.txt."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    log = (tmp_path / "log.txt").open("wb")
    line = [sys.executable, str(here / "standin.py"), str(port), *options]
    process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://localhost:{port}/readyz").status_code == 200:
                    break
            assert time.monotonic() < end
            time.sleep(0.1)
        yield port, process
    finally:
        process.kill()
        process.wait()


def test_sigterm_tells_the_caller_and_leaves_no_process(tmp_path: Path) -> None:
    with server(tmp_path) as (port, process):
        children = psutil.Process(process.pid).children(recursive=True)

        async def call() -> list[dict]:
            async with httpx.AsyncClient(base_url=f"http://localhost:{port}") as client:
                visitor = Visitor(client)
                await visitor.call()
                await until(lambda: visitor.told("session", state="live"), "the call")
                visitor.say("hang")
                await asyncio.sleep(0.5)
                process.send_signal(signal.SIGTERM)
                await until(lambda: visitor.told("session", state="ended"), "the end", 10)
                await visitor.leave()
                return visitor.told("session", state="ended")

        use_loopback_candidates()
        assert "stopped" in asyncio.run(call())[0]["message"]
        assert process.wait(15) == 0
        assert psutil.wait_procs(children, timeout=5)[1] == []
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log
    assert "leaked" not in log  # shared memory


@contextlib.contextmanager
def listening(limits: Limits) -> Iterator[tuple[str, int]]:
    """The address of a server that waits for bodies."""

    async def app(scope, receive, send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    config = uvicorn.Config(app, http=limited_protocol(limits, Access()), lifespan="off", log_level="critical")
    uvicorn_server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield sock.getsockname()
        finally:
            uvicorn_server.should_exit = uvicorn_server.force_exit = True
            thread.join()


BEGINNING = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"


def test_a_slow_body_is_cut_off() -> None:
    with listening(Limits(request_s=0.5)) as address, socket.create_connection(address) as client:
        client.sendall(BEGINNING)
        end = time.monotonic() + 5
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                client.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < end


def test_crowds_of_one_address_are_cut_off() -> None:
    def is_open(client: socket.socket) -> bool:
        client.settimeout(0.5)
        try:
            return client.recv(1) != b""
        except TimeoutError:
            return True
        except ConnectionResetError:
            return False

    with listening(Limits(connections_per_address=3)) as address:
        clients = [socket.create_connection(address) for _ in range(5)]
        assert sum(is_open(client) for client in clients) == 3
        for client in clients:
            client.close()

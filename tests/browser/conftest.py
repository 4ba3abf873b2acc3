"""A real server process, a real headless Chromium, a made-up microphone and camera."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
REPO = HERE.parent.parent
MIC_RATE = 48_000
CAMERA_COLOUR = (200, 60, 40)  # what the fake camera shows on average, R G B
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
]


def chromium_path() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.fail("the browser tests need Chromium: `apt install chromium`, or put it on PATH")


@pytest.fixture(scope="session")
def fake_devices(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Chromium flags for a microphone with speech-like bursts and a camera with a patch moving over plain colour."""
    folder = tmp_path_factory.mktemp("devices")
    wav, y4m = folder / "microphone.wav", folder / "camera.y4m"
    seconds = 4
    t = np.arange(seconds * MIC_RATE) / MIC_RATE
    pitch = 140 + 30 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / MIC_RATE
    voice = sum(np.sin(h * phase) / h for h in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 3 * t), 0, 1) * (t % 2 < 1.4)
    pcm = (voice * syllables * 9000).astype(np.int16)
    with av.open(str(wav), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=MIC_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = MIC_RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(y4m), "w", format="yuv4mpegpipe") as out:
        stream = out.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 672, 384, "yuv420p"
        for i in range(50):
            picture = np.full((384, 672, 3), CAMERA_COLOUR, np.uint8)
            picture[150:200, 10 * i : 10 * i + 50] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return [f"--use-file-for-fake-audio-capture={wav}", f"--use-file-for-fake-video-capture={y4m}"]


@pytest.fixture(scope="session")
def browser(fake_devices: list[str]) -> Iterator[Browser]:
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS + fake_devices)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[str], Page]]:
    """Opens pages that must not log errors; `page.problems` collects them."""
    contexts = []

    def open_one(url: str) -> Page:
        context = browser.new_context(bypass_csp=True, permissions=["microphone", "camera"])
        contexts.append(context)
        page = context.new_page()
        page.problems = []  # type: ignore[attr-defined]
        page.on("console", lambda m: m.type in ("error", "warning") and page.problems.append(m.text))  # type: ignore[attr-defined]
        page.on("pageerror", lambda e: page.problems.append(str(e)))  # type: ignore[attr-defined]
        page.add_init_script(path=HERE / "probe.js")
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def status(self) -> dict:
        import json

        with urllib.request.urlopen(self.url + "/api/status", timeout=5) as response:
            return json.load(response)

    def wait_free(self, timeout_s: float = 10) -> None:
        end = time.monotonic() + timeout_s
        while self.status()["busy"]:
            assert time.monotonic() < end, "the server did not free the call"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts `standin.py` (or a checkpoint) as a process of its own; ends it with Ctrl-C and checks how it ends."""
    servers: list[Server] = []

    def start(*arguments: str, timeout_s: float = 120) -> Server:
        port = _free_port()
        log = tmp_path_factory.mktemp("server") / "log.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
        command = [sys.executable, str(HERE.parent / "standin.py"), str(port), *arguments]
        process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=environment)
        server = Server(f"http://localhost:{port}", process, log)
        servers.append(server)
        end = time.monotonic() + timeout_s
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            try:
                if server.status()["model"] == "ready":
                    return server
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)

    yield start
    for server in servers:
        server.process.send_signal(signal.SIGINT)
        try:
            code = server.process.wait(15)
        except subprocess.TimeoutExpired:
            server.process.kill()
            pytest.fail("the server did not stop on Ctrl-C")
        text = server.log.read_text()
        assert code == 0 and "Traceback" not in text, text


def audio_of(result: dict) -> np.ndarray:
    """float32 [samples] at 48 kHz of a probe's result."""
    return np.frombuffer(base64.b64decode(result["audio"]), np.int16).astype(np.float32) / 32767

"""What the browser tests and measurements stand on: Chromium's flags, made-up devices, a server process."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import standin
from playwright.sync_api import Browser, Error, Page, Playwright, expect, sync_playwright

HERE = Path(__file__).parent
REPO = HERE.parent.parent
MIC_RATE = 48_000
START_MS = 30_000  # a page on a busy machine
CAMERA_COLOUR = (200, 60, 40)  # what the fake camera shows on average, R G B
# While WebRTC is tried, timers of ten seconds and more go off in a tenth of their time: what leads nowhere is given up,
# and a test need not wait for that.
HURRY = """const later = window.setTimeout;
window.setTimeout = (done, ms, ...more) => {
  const tried = window.peers.some((peer) => peer.connectionState !== "closed");
  return later(done, tried && ms >= 10_000 ? ms / 10 : ms, ...more);
};"""
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


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/readyz", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def status(self) -> dict:
        with urllib.request.urlopen(self.url + "/api/status", timeout=5) as response:
            return json.load(response)

    def wait_free(self, timeout_s: float = 20) -> None:
        end = time.monotonic() + timeout_s
        while self.status()["busy"]:
            assert time.monotonic() < end, "the server did not free the call"
            time.sleep(0.1)


@contextlib.contextmanager
def run_server(folder: Path, *arguments: str, timeout_s: float = 120) -> Iterator[Server]:
    """`standin.py` as a process of its own; ended with Ctrl-C, and how it ends is checked."""
    port = _free_port()
    log = folder / f"server-{port}.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    command = [sys.executable, str(HERE.parent / "standin.py"), str(port), *arguments]
    process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=environment)
    server = Server(f"http://localhost:{port}", process, log)
    try:
        end = time.monotonic() + timeout_s
        while not server.ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"the server was not ready after {timeout_s} s: {log.read_text()}"
            time.sleep(0.2)
        yield server
        process.send_signal(signal.SIGINT)
        code = process.wait(15)
        text = log.read_text()
        assert code == 0, text
        assert "Traceback" not in text, text
    finally:
        process.kill()
        process.wait()


def audio_of(result: dict) -> np.ndarray:
    """float32 [samples] at 48 kHz of a probe's result."""
    return np.frombuffer(base64.b64decode(result["audio"]), np.int16).astype(np.float32) / 32767


def write_devices(folder: Path, pcm: np.ndarray, pictures: Iterable[np.ndarray]) -> list[str]:
    """Chromium flags that make a recording the microphone and the camera, over and over.

    pcm int16 [samples] at 48 kHz; pictures uint8 [H, W, 3] at 25 fps.
    """
    wav, y4m = folder / "microphone.wav", folder / "camera.y4m"
    with av.open(str(wav), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=MIC_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = MIC_RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(y4m), "w", format="yuv4mpegpipe") as out:
        stream = out.add_stream("rawvideo", rate=25)
        for i, picture in enumerate(pictures):
            if i == 0:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return [f"--use-file-for-fake-audio-capture={wav}", f"--use-file-for-fake-video-capture={y4m}"]


def synthetic_devices(folder: Path) -> list[str]:
    """A microphone with speech-like bursts and a camera with a patch moving over plain colour."""
    t = np.arange(4 * MIC_RATE) / MIC_RATE
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * t)) / MIC_RATE
    voice = sum(np.sin(h * phase) / h for h in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 3 * t), 0, 1) * (t % 2 < 1.4)
    pictures = np.full((50, 384, 672, 3), CAMERA_COLOUR, np.uint8)
    for i, picture in enumerate(pictures):
        picture[150:200, 10 * i : 10 * i + 50] = 255
    return write_devices(folder, (voice * syllables * 9000).astype(np.int16), pictures)


def film_devices(folder: Path, film: Path) -> list[str]:
    """A film with sound and 25 fps as the devices."""
    with av.open(str(film)) as source:
        pictures = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    resampler = av.AudioResampler(format="s16", layout="mono", rate=MIC_RATE)
    with av.open(str(film)) as source:
        frames = [out for frame in source.decode(audio=0) for out in resampler.resample(frame)]
    return write_devices(folder, np.concatenate([frame.to_ndarray()[0] for frame in frames]), pictures)


@contextlib.contextmanager
def launch(playwright: Playwright, devices: list[str]) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=chromium_path(), args=CHROMIUM_FLAGS + devices)
    yield browser
    browser.close()


@contextlib.contextmanager
def pages(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Yields a function that opens a page which must not log errors; `page.problems` collects them.

    Every page is in a context of its own: nothing is left of it for the next one. The page's Content-Security-Policy
    forbids the probe; with `probe=False` the policy is in force.
    """

    def open_page(url: str, probe: bool = True) -> Page:
        page = browser.new_context(permissions=["microphone", "camera"], bypass_csp=probe).new_page()
        problems: list[str] = []
        page.problems = problems  # type: ignore[attr-defined]
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.add_init_script(path=HERE / "probe.js")
        page.goto(url)
        return page

    try:
        yield open_page
    finally:
        for context in browser.contexts:
            for page in context.pages:  # says goodbye: the server would keep its place for it
                with contextlib.suppress(Error):
                    page.evaluate("document.querySelector('[data-testid=stop]')?.click()")
            context.close()


@contextlib.contextmanager
def chromium(devices: list[str]) -> Iterator[Callable[..., Page]]:
    """The pages of a browser of its own."""
    with sync_playwright() as playwright, launch(playwright, devices) as browser, pages(browser) as open_page:
        yield open_page


def start_call(page: Page) -> None:
    """Begins a call; returns when the agent is seen."""
    page.get_by_test_id("start").click()
    expect(page.get_by_test_id("status")).to_have_text("Live", timeout=START_MS)
    expect(page.get_by_test_id("agent-video")).to_have_js_property("videoWidth", standin.WIDTH, timeout=START_MS)

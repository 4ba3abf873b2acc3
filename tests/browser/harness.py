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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

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
            return self.status()["model"] == "ready"
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def status(self) -> dict:
        with urllib.request.urlopen(self.url + "/api/status", timeout=5) as response:
            return json.load(response)

    def wait_free(self, timeout_s: float = 10) -> None:
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


def make_devices(folder: Path) -> list[str]:
    """Chromium flags for a microphone with speech-like bursts and a camera with a patch moving over plain colour."""
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

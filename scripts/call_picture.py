"""The pictures of the page: a real browser calls an agent, `examples/hello.mp4` is microphone and camera.

    PYTHONPATH=scripts python scripts/call_picture.py --checkpoint nano

They are taken when the agent has said something: on a desktop (`--out`), and on a phone, light and dark (`--narrow`).
`--ahead` is for machines that are too slow for the agent: its answer to the film is computed before the call and
played in it, and the figures of latency are left out.
"""

import argparse
import contextlib
import functools
import io
import multiprocessing
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from wan_streamer import AgentUnit, UserUnit, WanStreamer, read_units
from wan_streamer.serving.server import serve

ROOT = Path(__file__).parent.parent
FILM = ROOT / "examples" / "hello.mp4"
SPOKEN = 55  # letters of the agent's that are waited for
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT / "tests")]


class Rehearsed:
    """An agent whose every session gives the answer that `checkpoint` gives to the film."""

    concurrency = 1

    def __init__(self, checkpoint: str) -> None:
        agent = WanStreamer.from_pretrained(checkpoint)
        self.name, self.frame_size, self.default_steps = agent.name, agent.frame_size, agent.default_steps
        session = agent.session(seed=0)
        with read_units(FILM) as units:
            self.units = [replace(session.step(unit), stage_ms={}) for unit in units]

    def session(self, seed: int = 0) -> "Rehearsed":
        self.rest = iter(self.units)
        return self

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        return next(self.rest, self.units[0])

    def warmup(self) -> None:
        """It has answered already."""

    def close(self) -> None:
        """Nothing else works for it."""


@contextlib.contextmanager
def server(checkpoint: str, ahead: bool) -> Iterator[str]:
    """The address of a server in a process of its own, ready for a call."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    factory = functools.partial(Rehearsed, checkpoint) if ahead else None
    options = {"checkpoint": checkpoint, "port": port, "agent_factory": factory}
    process = multiprocessing.get_context("spawn").Process(target=serve, kwargs=options)
    process.start()
    url = f"http://localhost:{port}"
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz") as answer:
            if answer.status == 200:
                break
        time.sleep(0.5)
    try:
        yield url
    finally:
        process.terminate()
        process.join()


def main() -> None:
    from harness import chromium, film_devices
    from playwright.sync_api import expect

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "call.jpg")
    parser.add_argument("--narrow", type=Path, default=ROOT / "docs" / "images" / "page-narrow.jpg")
    parser.add_argument("--ahead", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(options.checkpoint, options.ahead) as url,
        chromium(film_devices(Path(folder), FILM)) as open_page,
    ):
        page = open_page(url)
        page.set_viewport_size({"width": 1440, "height": 900})
        page.get_by_test_id("start").click()
        expect(page.get_by_test_id("status")).to_have_text("Live", timeout=30_000)
        said = page.get_by_test_id("captions").locator("[data-lane=response]")
        until = time.monotonic() + 60
        while len("".join(said.all_inner_texts())) < SPOKEN and time.monotonic() < until:
            time.sleep(0.1)
        if options.ahead:
            page.add_style_tag(content="[data-testid=latency], #alert { display: none }")
        page.screenshot(path=options.out, type="jpeg", quality=85)
        page.set_viewport_size({"width": 390, "height": 844})
        phones = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(500)
            phones.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        page.get_by_test_id("stop").click()
    both = Image.new("RGB", (2 * phones[0].width + 20, phones[0].height), "white")
    for number, phone in enumerate(phones):
        both.paste(phone, (number * (phone.width + 20), 0))
    both.save(options.narrow, quality=85)


if __name__ == "__main__":
    main()

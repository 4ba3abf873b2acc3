"""The picture of the page in the README: a real browser calls an agent, `examples/hello.mp4` is microphone and camera.

    python scripts/call_picture.py --checkpoint nano --out docs/images/call.jpg

It is taken when the agent has said something. `--no-figures` leaves the latencies out: for machines that are not live.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from harness import chromium, film_devices, run_server  # noqa: E402
from playwright.sync_api import expect  # noqa: E402

SPOKEN = 12  # letters of the agent's that are waited for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "call.jpg")
    parser.add_argument("--no-figures", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        devices = film_devices(Path(name), ROOT / "examples" / "hello.mp4")
        with run_server(Path(name), "--checkpoint", options.checkpoint) as server, chromium(devices) as open_page:
            page = open_page(server.url)
            page.set_viewport_size({"width": 1180, "height": 860})
            page.get_by_test_id("start").click()
            expect(page.get_by_test_id("status")).to_have_text("Live", timeout=30_000)
            said = page.get_by_test_id("captions").locator("[data-lane=response]")
            until = time.monotonic() + 60
            while len("".join(said.all_inner_texts())) < SPOKEN and time.monotonic() < until:
                time.sleep(0.1)
            if options.no_figures:
                page.add_style_tag(content="[data-testid=latency], .latency { display: none !important }")
            page.screenshot(path=options.out, type="jpeg", quality=85)
            page.get_by_test_id("stop").click()


if __name__ == "__main__":
    main()

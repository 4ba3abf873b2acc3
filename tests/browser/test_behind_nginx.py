"""Behind nginx, under a path and with TLS, as `deploy/nginx.conf` sets it up: the page works in both browsers."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import standin
from firefox import firefox
from harness import Server, launch, pages, run_server, start_call
from playwright.sync_api import Playwright, expect
from test_firefox import CAPTIONS, VIDEO
from test_proxy import NGINX, free_port, is_open, nginx_line, site

pytestmark = [pytest.mark.browser, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]
HOST = "agent.example"
HERE = [f"--host-resolver-rules=MAP {HOST} 127.0.0.1", "--ignore-certificate-errors"]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """The server, and the page's address through nginx."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    known = [f"--public-url=https://{HOST}{where}/agent/" for where in ("", f":{port}")]  # nginx names no port
    with run_server(folder, *known, "--proxy", "127.0.0.1") as server:
        line = nginx_line(folder, site(port, int(server.url.rsplit(":", 1)[1])))
        process = subprocess.Popen(line, stderr=(folder / "nginx.log").open("wb"))
        try:
            end = time.monotonic() + 30
            while not is_open(port):
                assert time.monotonic() < end, (folder / "nginx.log").read_text()
                time.sleep(0.05)
            yield server, f"https://{HOST}:{port}/agent/"
        finally:
            process.terminate()
            process.wait(10)


def test_chromium(agent: tuple[Server, str], playwright: Playwright, devices: list[str]) -> None:
    server, url = agent
    with launch(playwright, devices + HERE) as browser:
        for transport in ("webrtc", "socket"):
            server.wait_free()
            with pages(browser) as open_page:
                page = open_page(f"{url}?transport={transport}", probe=False)
                start_call(page)
                expect(page.get_by_test_id("captions")).to_contain_text("Unit ", timeout=20_000)
                expect(page.get_by_test_id("captions")).to_contain_text("heard 0.", timeout=20_000)
                assert page.problems == [], transport  # type: ignore[attr-defined]


def test_firefox(agent: tuple[Server, str], tmp_path: Path) -> None:
    server, url = agent
    server.wait_free()
    with firefox(tmp_path) as page:
        page.goto(url)
        page.evaluate("document.querySelector('[data-testid=start]').click()")
        page.until("document.querySelector('[data-testid=status]').innerText === 'Live'")
        page.until(f"{VIDEO}.videoWidth === {standin.WIDTH}")
        page.until(f"/Unit \\d+/.test({CAPTIONS}) && /heard 0\\.[01]/.test({CAPTIONS})")
        page.evaluate("document.querySelector('[data-testid=stop]').click()")
        server.wait_free()
        assert [problem for problem in page.problems if "WebRTC" not in problem] == []

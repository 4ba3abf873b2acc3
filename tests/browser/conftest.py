"""A real server process, a real headless Chromium, a made-up microphone and camera."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # harness and standin, also when only this folder is collected

from harness import Server, launch, pages, run_server, synthetic_devices  # noqa: E402


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return synthetic_devices(tmp_path_factory.mktemp("devices"))


# Of a module, not of the session: while Playwright runs, its thread has an event loop, and other tests start their own.
@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright, devices: list[str]) -> Iterator[Browser]:
    with launch(playwright, devices) as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    with pages(browser) as open_one:
        yield open_one


@pytest.fixture(scope="session")
def standin_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def standin_server(standin_process: Server) -> Server:
    """The stand-in agent's server, free for a call."""
    standin_process.wait_free()
    return standin_process

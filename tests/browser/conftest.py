"""A real server process, a real headless Chromium, a made-up microphone and camera."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # harness and standin, also when only this folder is collected

from harness import CHROMIUM_FLAGS, Server, chromium_path, make_devices, run_server  # noqa: E402


@pytest.fixture(scope="session")
def fake_devices(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_devices(tmp_path_factory.mktemp("devices"))


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
        context = browser.new_context(permissions=["microphone", "camera"])
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


@pytest.fixture(scope="session")
def standin_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(tmp_path_factory.mktemp("server")) as server:
        yield server

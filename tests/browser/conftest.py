"""A real server process, a real headless Chromium, a made-up microphone and camera."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # harness and standin, also when only this folder is collected

from harness import Server, chromium, run_server, synthetic_devices  # noqa: E402


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return synthetic_devices(tmp_path_factory.mktemp("devices"))


@pytest.fixture
def open_page(devices: list[str]) -> Iterator[Callable[[str], Page]]:
    with chromium(devices) as open_one:
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

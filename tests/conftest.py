"""Tests marked `moonshine` need the package moonshine-voice: they run only when asked for, with `-m moonshine`.

`model`   a process with the stand-in agent
"""

from collections.abc import Iterator

import pytest
import standin

from wan_streamer.process import tune_process
from wan_streamer.runtime.processes import ModelProcess


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "moonshine: needs the package moonshine-voice; run with -m moonshine")
    tune_process()  # as the command line: a step of training in this process takes four fifths of the time


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # files with slow tests first: at the end every core shall have something to do
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if "moonshine" in str(config.getoption("-m")):
        return
    left_out = [item for item in items if item.get_closest_marker("moonshine")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    model = ModelProcess(standin.StandInAgent)
    model.wait_ready(30)
    yield model
    model.shutdown()

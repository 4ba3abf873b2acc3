"""A call's units are complete when the server's clock says so, even if its event loop is busy at that moment."""

import asyncio
import itertools
import time
from typing import Any

import pytest

from wan_streamer.runtime.worker import Ready
from wan_streamer.serving.call import Call
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.units import UNIT_S, UserUnit


class SilentModel:
    """Takes units and answers none."""

    pending = 0

    def __init__(self) -> None:
        self.sent: list[tuple[float, float]] = []  # when the unit was complete, when it was sent

    async def ensure_ready(self) -> Ready:
        return Ready("silent", (192, 336), 0.0)

    async def open_session(self, seed: int) -> "SilentModel":
        return self

    def close_session(self, session: "SilentModel") -> None: ...

    def step(self, index: int, unit: UserUnit, t_in: float) -> None:
        self.sent.append((t_in, time.monotonic()))

    async def receive(self) -> Any:
        await asyncio.Event().wait()


def test_a_late_event_loop_counts_as_latency() -> None:
    model = SilentModel()

    async def converse() -> None:
        call = asyncio.create_task(Call(model, ServingConfig(), lambda event: None).run())  # type: ignore[arg-type]
        while len(model.sent) < 4:
            await asyncio.sleep(0)
            time.sleep(0.1)  # the event loop is busy
        call.cancel()

    asyncio.run(converse())
    complete = [t_in for t_in, _ in model.sent[:4]]
    assert [after - before for before, after in itertools.pairwise(complete)] == pytest.approx([UNIT_S] * 3, abs=1e-6)
    assert max(sent - t_in for t_in, sent in model.sent) > 0.02

"""A call's units are complete when the server's clock says so, even if its event loop is busy at that moment."""

import asyncio
import itertools
import time
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from wan_streamer.runtime.worker import Ready
from wan_streamer.serving.call import RESYNC_S, Call
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.units import SAMPLES_PER_UNIT, UNIT_S, UserUnit


class SilentModel:
    """Takes units and answers none."""

    pending = 0

    def __init__(self) -> None:
        self.sent: list[tuple[float, float]] = []  # when the unit was complete, when it was sent

    async def ensure_ready(self) -> Ready:
        return Ready("silent", (192, 336), 0.0, 1)

    async def open_session(self, seed: int, resume: bool = False) -> "SilentModel":
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
        while len(model.sent) < 4 and not call.done():
            await asyncio.sleep(0)
            time.sleep(0.1)  # the event loop is busy
        call.cancel()

    asyncio.run(converse())
    complete = [t_in for t_in, _ in model.sent[:4]]
    assert [after - before for before, after in itertools.pairwise(complete)] == pytest.approx([UNIT_S] * 3, abs=1e-6)
    assert max(sent - t_in for t_in, sent in model.sent) > 0.02


def test_after_a_stall_no_old_sound_is_left() -> None:
    """The machine sleeps for longer than units are caught up with; what was said meanwhile arrives at once and must not
    delay all that is said later."""
    model, waiting = SilentModel(), []

    async def converse() -> None:
        call = Call(model, ServingConfig(), lambda event: None)  # type: ignore[arg-type]
        task = asyncio.create_task(call.run())
        while len(model.sent) < 2:
            await asyncio.sleep(0.01)
        sent = len(model.sent)
        time.sleep(RESYNC_S + 0.5)
        await asyncio.sleep(0.05)
        for number in range(75):  # 1.5 s
            frame = av.AudioFrame.from_ndarray(np.ones((1, 960), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, number * 960, Fraction(1, 48_000)
            call.uplink.audio.push(frame, time.monotonic())
        while len(model.sent) < sent + 2:
            await asyncio.sleep(0.01)
        waiting.append(call.uplink.audio._available)
        task.cancel()

    asyncio.run(converse())
    assert waiting[0] <= SAMPLES_PER_UNIT

"""Where the milliseconds of a call go, over the last ten seconds.

Stages of the model come from `AgentUnit.stage_ms` as they are. The server adds its own:
    server: to model    through the pipe, including the wait for the unit before
    server: from model  back through the pipe
    server: playout     how long the answer waits in the playout queue
"""

from collections import deque

import numpy as np

from wan_streamer.units import UNIT_MS

WINDOW_UNITS = 64  # about ten seconds


def percentiles(values: list[float], points: tuple[int, ...]) -> dict[str, float]:
    """{"p50": ...} rounded to 0.1; empty when there are no values."""
    if not values:
        return {}
    return {f"p{p}": round(float(v), 1) for p, v in zip(points, np.percentile(values, points), strict=True)}


class Meter:
    """Collects per-unit times; `stages`, `model_latency` and `event_latency` summarise the window."""

    def __init__(self) -> None:
        self._stages: dict[str, deque[float]] = {}
        self._latency: deque[float] = deque(maxlen=WINDOW_UNITS)

    def add(self, stage: str, ms: float) -> None:
        self._stages.setdefault(stage, deque(maxlen=WINDOW_UNITS)).append(ms)

    def add_latency(self, ms: float) -> None:
        """From the unit's last sample to its answer in this process."""
        self._latency.append(ms)

    def stages(self) -> dict[str, dict[str, float]]:
        return {name: percentiles(list(values), (50, 95)) for name, values in self._stages.items()}

    def model_latency(self) -> dict[str, float]:
        return percentiles(list(self._latency), (50, 95, 99))

    def event_latency(self) -> dict[str, float]:
        """An event lies anywhere in its unit: 0 to 160 ms of accumulation come before the model-side latency."""
        waits = np.linspace(0, UNIT_MS, 9)
        return percentiles([ms + w for ms in self._latency for w in waits], (50, 95, 99))

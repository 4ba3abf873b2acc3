"""Where the milliseconds of a call go, over the last ten seconds.

Stages of the model come from `AgentUnit.stage_ms` as they are. The server adds its own:
    server: to model    through the pipe, including the wait for the unit before
    server: from model  back through the pipe
    server: playout     how long the answer waits in the playout queue
"""

from collections import deque

from wan_streamer.runtime.clock import event_latency, percentiles

WINDOW_UNITS = 64  # about ten seconds


class Meter:
    """Collects per-unit times; `stages`, `model_latency` and `event_latency` summarise the window (`runtime.clock`)."""

    def __init__(self) -> None:
        self._stages: dict[str, deque[float]] = {}
        self._latency: deque[float] = deque(maxlen=WINDOW_UNITS)

    def add(self, stage: str, ms: float) -> None:
        self._stages.setdefault(stage, deque(maxlen=WINDOW_UNITS)).append(ms)

    def add_latency(self, ms: float) -> None:
        """From the unit's last sample to its answer in this process."""
        self._latency.append(ms)

    def stages(self) -> dict[str, dict[str, float]]:
        return {name: percentiles(values, (50, 95)) for name, values in self._stages.items()}

    def model_latency(self) -> dict[str, float]:
        return percentiles(self._latency)

    def event_latency(self) -> dict[str, float]:
        return event_latency(self._latency)

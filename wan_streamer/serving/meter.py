"""Where the milliseconds of a call go, over the last ten seconds.

Stages of the model come from `AgentUnit.stage_ms` as they are. The server adds its own:
    server: to model    through the pipe, including the wait for the unit before
    server: from model  back through the pipe
    server: playout     how long the answer waits in the playout queue
"""

from collections import deque

from wan_streamer.runtime.clock import event_latency, percentiles
from wan_streamer.serving.watch.metrics import Metrics
from wan_streamer.units import UNIT_MS, AgentUnit

WINDOW_UNITS = 64  # about ten seconds


class Meter:
    """Collects per-unit times; `stages`, `model_latency` and `event_latency` summarise the window (`runtime.clock`).

    metrics  where the units of all calls are counted
    """

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._stages: dict[str, deque[float]] = {}
        self._latency: deque[float] = deque(maxlen=WINDOW_UNITS)

    def add(self, stage: str, ms: float) -> None:
        self._stages.setdefault(stage, deque(maxlen=WINDOW_UNITS)).append(ms)
        self._metrics.stages.labels(stage).observe(ms / 1000)

    def add_latency(self, ms: float) -> None:
        """From the unit's last sample to its answer in this process."""
        self._latency.append(ms)
        self._metrics.latency.observe(ms / 1000)

    def add_unit(self, unit: AgentUnit, latency_ms: float) -> None:
        """An answer, its latency and its stages."""
        self.add_latency(latency_ms)
        for stage, ms in unit.stage_ms.items():
            self.add(stage, ms)
        self._metrics.units.inc()
        self._metrics.held.inc(unit.held)
        self._metrics.broken.inc(unit.broken)
        self._metrics.late.inc(latency_ms > UNIT_MS)

    def stages(self) -> dict[str, dict[str, float]]:
        return {name: percentiles(values, (50, 95)) for name, values in self._stages.items()}

    def model_latency(self) -> dict[str, float]:
        return percentiles(self._latency)

    def event_latency(self) -> dict[str, float]:
        return event_latency(self._latency)

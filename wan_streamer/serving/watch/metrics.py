"""Numbers for Prometheus, of all callers together: no words, no addresses, nothing that tells callers apart.

`Metrics`      the numbers of one server
`OfferCounter` counts what became of offers, those that the doors refused included
"""

import asyncio
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOOK_S = 1.0  # between two looks at the event loop
LATENCY_S = (0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.24, 0.32, 0.48, 0.64, 1, 2, 4)  # 0.16 is the deadline
STAGE_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.48, 1)
LAG_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.5, 1, 5)

OFFER_PATHS = ("/api/offer", "/v1/live/sessions", "/v1/realtime/calls")
IS_OFFER = "wan_streamer.is_offer"
OFFERS = {  # by the status of the answer; the names are those of its `error`
    200: "answered", 201: "answered", 202: "queued", 400: "offer", 401: "token", 403: "origin", 409: "busy",
    413: "invalid", 422: "invalid", 429: "rate", 503: "model",
}  # fmt: skip
FAILED = "internal"
ENDS = ("left", "silent", "time", "stopped", "not_connected", "taken", "model", "error")
READINGS: dict[str, tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], str]] = {
    "callers": (GaugeMetricFamily, "Callers in a call."),
    "capacity": (GaugeMetricFamily, "Callers at a time that the model keeps pace with."),
    "queue": (GaugeMetricFamily, "Visitors who wait in line."),
    "pending_offers": (GaugeMetricFamily, "Offers whose connection does not stand yet."),
    "model_ready": (GaugeMetricFamily, "1 when the model process is ready, 0 while it loads or is dead."),
    "model_restarts": (CounterMetricFamily, "Model processes that were replaced."),
}


class Metrics:
    """The numbers of one server, in a registry of their own. Times are seconds.

    offers    by outcome, of `OFFERS`
    ended     calls, by reason, of `ENDS`
    resumed   conversations that went on over another connection
    units     answers of the model; `held`, `late` (after the deadline) and `broken` ones are among them
    latency   from the last sample of a unit to its answer in this process
    stages    of units, by the names that `Meter` has
    lag       by which the event loop woke late
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.offers = self._counter("offers", "Offers, by what became of them.", "outcome")
        self.ended = self._counter("calls_ended", "Visits that ended, by reason.", "reason")
        self.resumed = self._counter("conversations_resumed", "Conversations that went on over another connection.")
        self.units = self._counter("units", "Answers of the model, of 160 ms each.")
        self.held = self._counter("units_held", "Answers repeated because the model was behind.")
        self.late = self._counter("units_late", "Answers that came after their deadline of 160 ms.")
        self.broken = self._counter("units_broken", "Answers that were no numbers, so that the last picture was shown.")
        self.latency = self._histogram("unit_latency_seconds", "From a unit's last sample to its answer.", LATENCY_S)
        self.stages = self._histogram("stage_seconds", "Time of a unit in each stage.", STAGE_S, "stage")
        self.lag = self._histogram("event_loop_lag_seconds", "By which the event loop woke late.", LAG_S)
        for outcome in {*OFFERS.values(), FAILED}:  # a rate needs the 0 before the first one
            self.offers.labels(outcome)
        for reason in ENDS:
            self.ended.labels(reason)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"wan_streamer_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"wan_streamer_{name}", what, labels, buckets=buckets, registry=self.registry)

    def follow(self, **readings: Callable[[], float]) -> None:
        """What is known elsewhere and read when somebody asks. readings: functions for the names in `READINGS`."""
        self.registry.register(_Readings(readings))

    def text(self) -> bytes:
        """All numbers, in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self.registry)

    async def watch_loop(self) -> None:
        """Measure the event loop's lag until cancelled."""
        while True:
            due = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self.lag.observe(max(0.0, time.monotonic() - due))


class _Readings(Collector):
    def __init__(self, readings: dict[str, Callable[[], float]]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        for name, read in self._readings.items():
            family, what = READINGS[name]
            yield family(f"wan_streamer_{name}", what, value=read())


class OfferCounter:
    """Around the application and its doors. A request that turns out to hold no offer says so in its scope."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in OFFER_PATHS:
            return await self._app(scope, receive, send)
        outcome = FAILED  # also when no answer comes

        async def send_counted(message: Message) -> None:
            nonlocal outcome
            if message["type"] == "http.response.start":
                outcome = OFFERS.get(message["status"], FAILED)
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            if scope.get(IS_OFFER, True):
                self._metrics.offers.labels(outcome).inc()

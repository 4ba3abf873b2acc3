"""Real time as a contract: deadlines, what to do when one cannot be met, and the figures.

`Session`       what is run: one unit in, one unit out
`StepCost`      what a step is expected to cost
`UnitDriver`    runs a session against the clock
`DriverStats`   counts and percentiles of a run;   `percentiles`, `event_latency` of any times
`why_late`      a line about a run that was not live

The policy. Unit k is complete at t_in(k); the agent's unit k is due at t_in(k) + 160 ms, when unit k + 1 is complete.
1. If the predicted time of the default number of solver steps does not fit, the step uses fewer, at least one.
2. If the unit begins its step at or after its own deadline, it is *held*: the model does not see it, the last frame
   is repeated and the sound fades to silence. A held unit costs nothing, so the delay shrinks by 160 ms.
No unit waits longer than 160 ms before its step begins, so the delay is never more than 160 ms plus one step.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from wan_streamer.runtime.still import Still
from wan_streamer.runtime.trace import Span, Trace
from wan_streamer.threads import SPARE, Threads
from wan_streamer.units import UNIT_MS, UNIT_S, AgentUnit, UserUnit

SETTLE_STAGE = "settle"  # what is done between two units
SOLVE_STAGE = "solve"  # the entry of `AgentUnit.stage_ms` that grows with the number of solver steps
SURPRISE_S = 0.08
KEEP_UNITS = 22_500  # figures cover the last hour, so that a long session does not grow


class Session(Protocol):
    """One conversation: a call per 160 ms, in order; it knows no more of the user than the units so far.

    steps  solver steps instead of its own number; a session that solves nothing ignores them
    """

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit: ...


def percentiles(values: Sequence[float] | np.ndarray, points: tuple[int, ...] = (50, 95, 99)) -> dict[str, float]:
    """{"p50": ..., "p95": ..., "p99": ...}, rounded to 0.01; empty if there are no values: unknown is not zero."""
    found = np.percentile(values, points) if len(values) else ()
    return {f"p{point}": round(float(value), 2) for point, value in zip(points, found, strict=False)}


def event_latency(model_ms: Sequence[float]) -> dict[str, float]:
    """Percentiles in ms for an event inside a unit, such as the onset of a word, which first waits for the unit's end.

    model_ms  model latency of each unit

    Events are spread evenly: each unit counts with one event in the middle of each of 16 spans of 10 ms.
    """
    waits_ms = UNIT_MS - (np.arange(16) + 0.5) * UNIT_MS / 16
    return percentiles((np.array(model_ms)[:, None] + waits_ms).ravel())


def why_late(report: Mapping[str, Any]) -> str:
    """One line for people about the units of `UnitDriver.summary` that were held: how many, why, what to do."""
    machine, latency = report["machine"], report["model_latency_ms"]["p50"]
    taken, cores = machine["others_cores"]["mean"], machine["cores"]
    late = f"{report['held_units']} units came too late to be answered: "
    if taken > SPARE:
        return f"{late}other programs took {taken:.1f} of {cores} cores; close some of them"
    return f"{late}a unit takes {latency:.0f} ms here, of {UNIT_MS}; a faster machine or a smaller agent is needed"


class StepCost:
    """Predicts the seconds of a step with n solver steps as fixed + n * per_step, from moving averages.

    Without a "solve" entry among the stages all of the time is taken to grow with n. One stall is no reason to expect
    the next, so a step counts for at most `SURPRISE_S` above what was expected.
    """

    def __init__(self, weight: float = 0.2) -> None:
        self.weight = weight  # of the newest step
        self.fixed: float | None = None
        self.per_step = 0.0

    def update(self, total_s: float, steps: int, stage_ms: dict[str, float]) -> None:
        solve_s = min(total_s, stage_ms.get(SOLVE_STAGE, total_s * 1000) / 1000)
        fixed, per_step = total_s - solve_s, solve_s / steps
        if self.fixed is None:
            self.fixed, self.per_step = fixed, per_step
        self.fixed += self.weight * min(fixed - self.fixed, SURPRISE_S)
        self.per_step += self.weight * min(per_step - self.per_step, SURPRISE_S / steps)

    def steps_that_fit(self, seconds: float, wanted: int) -> int:
        """The largest number of solver steps from 1 to `wanted` whose predicted time is within `seconds`."""
        if self.fixed is None:
            return wanted
        for steps in range(wanted, 1, -1):
            if self.fixed + steps * self.per_step <= seconds:
                return steps
        return 1


def _recent() -> deque[float]:
    return deque(maxlen=KEEP_UNITS)


@dataclass
class DriverStats:
    """What happened. Latencies are milliseconds and cover the last `KEEP_UNITS` units; counts cover the whole run.

    units       agent units that came out, held ones included
    misses      units that left after their deadline, held ones included
    held        units the model did not see
    broken      units whose latents were no numbers, so that the last picture was shown again
    reduced     units solved with fewer steps than wanted
    backlog_max largest number of complete units that were waiting when a step began
    """

    units: int = 0
    misses: int = 0
    held: int = 0
    broken: int = 0
    reduced: int = 0
    backlog_max: int = 0
    model_ms: deque[float] = field(default_factory=_recent)
    stage_ms: dict[str, deque[float]] = field(default_factory=dict)

    def count(self, latency_s: float, waited_s: float, out: AgentUnit) -> None:
        self.units += 1
        self.held += out.held
        self.broken += out.broken
        self.misses += out.held or latency_s > UNIT_S
        self.backlog_max = max(self.backlog_max, int(waited_s / UNIT_S + 1e-9))
        self.model_ms.append(latency_s * 1000)
        for name, value in out.stage_ms.items():
            self.stage_ms.setdefault(name, _recent()).append(value)

    def counters(self) -> dict[str, int]:
        """Of the whole run."""
        return {
            "units": self.units,
            "missed_deadlines": self.misses,
            "held": self.held,
            "broken": self.broken,
            "reduced": self.reduced,
        }

    @property
    def model_latency_ms(self) -> dict[str, float]:
        """t_out - t_in: from the last sample of a unit to the first sample and frame of its answer."""
        return percentiles(self.model_ms)

    def summary(self) -> dict:
        """The keys that the report of `talk` and the latency display share."""
        return {
            "deadline_misses": self.misses,
            "held_units": self.held,
            "broken_units": self.broken,
            "reduced_units": self.reduced,
            "backlog_max": self.backlog_max,
            "model_latency_ms": self.model_latency_ms,
            "event_latency_ms": event_latency(self.model_ms),
            "stage_ms": {name: percentiles(values, (50, 95)) for name, values in self.stage_ms.items()},
        }


class UnitDriver:
    """One session against the clock.

    session      anything with `step(user, steps)`
    steps        solver steps when there is time enough
    frame_size   height and width of the agent's picture, for a unit held before there is any
    policy       False for offline work: every unit gets all its steps and none is held
    threads      of the model, to be adapted to what else the machine does; None leaves them as they are
    clock        seconds, monotonic; replaced in tests
    trace        where the stages of every unit are noted
    """

    def __init__(
        self,
        session: Session,
        steps: int,
        frame_size: tuple[int, int],
        policy: bool = True,
        clock: Callable[[], float] = time.monotonic,
        threads: Threads | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.session, self.steps, self.policy, self.clock, self.threads = session, steps, policy, clock, threads
        self.trace = trace
        self.cost = StepCost()
        self.stats = DriverStats()
        self._still = Still(frame_size)
        self._typed: deque[str] = deque()  # of units that were held, too: what somebody typed is not lost with them

    def step(self, user: UserUnit, t_in: float) -> AgentUnit:
        """The agent's answer to a unit that was complete at `t_in` on the clock; never later than 160 ms + one step."""
        began = self.clock()
        if user.text:
            self._typed.append(user.text)
        too_late = self.policy and began - t_in >= UNIT_S
        out = self._still.unit(self.stats.units, held=True) if too_late else self._solve(user, began, t_in + UNIT_S)
        self._still.follow(out)
        if self.trace is not None:
            self._note(t_in, began, out)
        latency_s = self.clock() - t_in
        self.stats.count(latency_s, began - t_in, out)
        if self.threads is not None:
            self.threads.check(late=latency_s > UNIT_S)
        return out

    def settle(self) -> None:
        """Between two units, when the answer is on its way: see `Session.settle`."""
        if (settle := getattr(self.session, "settle", None)) is None:
            return
        began = self.clock()
        settle()
        ended = self.clock()
        self.stats.stage_ms.setdefault(SETTLE_STAGE, _recent()).append((ended - began) * 1000)
        if self.trace is not None:
            self.trace.add(self.stats.units - 1, "stages", [Span(SETTLE_STAGE, began, ended)])

    def _note(self, t_in: float, began: float, out: AgentUnit) -> None:
        assert self.trace is not None
        unit, name = self.stats.units, "held" if out.held else "unit"
        watch = getattr(self.session, "watch", None)
        stages = [] if watch is None or out.held else watch.spans
        self.trace.add(unit, "units", [Span(name, t_in, self.clock())])
        self.trace.add(unit, "stages", [Span("wait", t_in, began), *stages])

    def summary(self) -> dict:
        """That of `stats`, and what the machine was like: `Threads.summary`."""
        machine = {} if self.threads is None else {"machine": self.threads.summary()}
        return self.stats.summary() | machine

    def _solve(self, user: UserUnit, began: float, deadline: float) -> AgentUnit:
        steps = self.cost.steps_that_fit(deadline - began, self.steps) if self.policy else self.steps
        text = self._typed.popleft() if self._typed else ""
        out = self.session.step(user if text == user.text else replace(user, text=text), steps=steps)
        self.cost.update(self.clock() - began, steps, out.stage_ms)
        self.stats.reduced += steps < self.steps
        return replace(out, index=self.stats.units, audio=self._still.fade_in(out.audio))

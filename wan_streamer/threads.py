"""How many threads PyTorch computes with on a CPU.

`Load`     what other programs take of the cores
`Threads`  the number: chosen by measurement, changed while the program runs

The threads of one matrix product wait for each other by spinning. If another program takes a core from one of them, all
of them wait until the scheduler gives it back, again and again: on two busy cores two threads are far slower than one,
which loses only what the other program takes (docs/decisions.md, 47).
"""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import psutil

MOST = 8  # more threads gain nothing at one unit of 160 ms
LOOK_S = 1.0  # between two looks at the load; shorter ones are noise, the counters have ticks of 10 ms
LATE_S = 0.2  # the same after a late step
QUIET_S = 5.0  # so long there must be room for more threads before there are more
SPARE = 0.25  # so much of a core may be taken by others before it counts as taken
FASTER = 0.9  # more threads must bring at least this
KEEP = 3600  # looks that the figures cover


class Load:
    """Cores that others take, by the counters of the operating system; what a hypervisor takes counts as well."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._ids = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self.cores = len(self._ids)  # those on which this process may run
        self._before = self._read()

    def others(self) -> float:
        """Cores that other programs took on average since the last call, between 0 and `cores`."""
        before, now = self._before, self._read()
        self._before = now
        clock, idle, own = (new - old for new, old in zip(now, before, strict=True))
        return min(max(0.0, self.cores - (idle + own) / clock), float(self.cores)) if clock > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Seconds so far: of the clock, of all cores without work, of this process on any core."""
        times = psutil.cpu_times(percpu=True)
        idle = sum(times[i].idle + getattr(times[i], "iowait", 0.0) for i in self._ids)  # iowait: only Linux
        own = self._process.cpu_times()
        return time.monotonic(), idle, own.user + own.system


class Threads:
    """The number of threads of PyTorch, for the thread of Python that calls.

    fixed  this number, whatever happens; default: OMP_NUM_THREADS, if it is set

    `measure` looks which cores others leave free, and finds the number of threads beyond which more bring nothing.
    `check`, between two steps, goes down as soon as others take cores, and up again after `QUIET_S`.
    """

    def __init__(
        self, fixed: int | None = None, load: Load | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load, self._clock = load or Load(), clock
        self.fixed = fixed or _of_the_environment()
        self.best = self.fixed or min(self._load.cores, MOST)
        self._steps: Counter[int] = Counter()
        self._others: deque[float] = deque(maxlen=KEEP)
        self._looked = self._crowded = clock()
        self._use(self.best)

    def measure(self, step: Callable[[], object]) -> None:
        """Time `step` with one thread, two ... up to what is free now, and keep to the number that pays."""
        if self.fixed:
            return
        times = {1: self._timed(step, 1)}
        free = min(
            self.best, self._free()
        )  # of the time of that step: an instant is shorter than a tick of the counters
        if free == 1:  # one core, or a busy machine, where more threads would seem to be worth nothing for ever
            return
        times |= {number: self._timed(step, number) for number in range(2, free + 1)}
        for number in times:  # once more: what disturbed one of them is not to decide for the whole run
            times[number] = min(times[number], self._timed(step, number))
        self.best = 1
        for number, seconds in times.items():
            if seconds < FASTER * times[self.best]:
                self.best = number
        self._use(self.best)

    def _timed(self, step: Callable[[], object], number: int) -> float:
        self._use(number)
        began = self._clock()
        step()
        return self._clock() - began

    def check(self, late: bool = False) -> None:
        """A step is over, in time or too late: look at the load, if that was not done just now, and change."""
        self._steps[self.now] += 1
        now = self._clock()
        if now - self._looked < (LATE_S if late else LOOK_S):
            return
        free = self._free()  # looked at in any case, for the report
        if self.fixed:
            return
        number = min(self.best, free)
        if number <= self.now:
            self._crowded = now
        if number < self.now or now - self._crowded >= QUIET_S:
            self._use(number)

    def here(self, sessions: int) -> None:
        """Give the calling thread its share, if so many sessions are open, each on a thread of its own."""
        _compute_with(max(1, self.now // sessions))

    def summary(self) -> dict[str, Any]:
        """For reports: cores, how many of them others took, steps by the number of threads, whether it was fixed."""
        others = self._others or [0.0]
        return {
            "cores": self._load.cores,
            "others_cores": {"mean": round(sum(others) / len(others), 2), "max": round(max(others), 2)},
            "threads": {str(number): steps for number, steps in sorted(self._steps.items())},
            "threads_fixed": self.fixed is not None,
        }

    def _free(self) -> int:
        self._looked = self._clock()
        self._others.append(self._load.others())
        return max(1, int(self._load.cores - self._others[-1] + SPARE))

    def _use(self, number: int) -> None:
        self.now = number
        _compute_with(number)


def _compute_with(number: int) -> None:
    if "torch" in sys.modules:  # programs that only move media are not to load it
        sys.modules["torch"].set_num_threads(number)


def _of_the_environment() -> int | None:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) else None

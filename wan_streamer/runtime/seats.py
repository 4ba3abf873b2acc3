"""Several sessions of one agent, each on a thread of its own, so that a slow one delays no other.

`Turns`  lets so many compute at a time, in the order in which they asked
`Seat`   a session, its driver and its thread
`capacity`  how many sessions are live at once, measured
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from wan_streamer.units import UNIT_S

FULL = 0.85  # of a unit's time may be used when all seats are taken
PROBE_UNITS = 3

log = logging.getLogger(__name__)


class Turns:
    """`with turns:` holds one of so many places; who waits longest is next."""

    def __init__(self, places: int) -> None:
        self._free, self._lock = places, threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        mine = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            self._waiting.append(mine)
        mine.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class Seat:
    """Answers what is `put`, one after the other, on its own thread.

    answer    called with each item; an error in it ends the seat
    on_error  called with that error;   on_end  called at the end in any case
    """

    def __init__(
        self,
        number: int,
        answer: Callable[[Any], None],
        on_error: Callable[[Exception], None],
        on_end: Callable[[], None],
    ) -> None:
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answer, self._on_error, self._on_end = answer, on_error, on_end
        self._thread = threading.Thread(target=self._run, name=f"session-{number}", daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        self._inbox.put(item)

    def close(self) -> None:
        """No more; what is being answered is answered."""
        self._inbox.put(None)

    def _run(self) -> None:
        try:
            while (item := self._inbox.get()) is not None:
                self._answer(item)
        except Exception as error:
            log.exception("a session failed")
            self._on_error(error)
        finally:
            self._on_end()


def capacity(step: Callable[[int], Callable[[], object]], most: int, places: int) -> int:
    """How many sessions keep pace at once, from 1 to `most`.

    step    of a number of sessions: a fresh session, as a function that plays its next unit
    places  so many compute at a time
    """
    for sessions in range(1, most + 1):
        if _slowest_unit_s([step(sessions) for _ in range(sessions)], Turns(places)) > FULL * UNIT_S:
            return max(1, sessions - 1)
    return most


def _slowest_unit_s(steps: list[Callable[[], object]], turns: Turns) -> float:
    """Seconds from one round of all sessions to the next, the best of `PROBE_UNITS`."""
    start = threading.Barrier(len(steps) + 1)

    def play(step: Callable[[], object]) -> None:
        for _ in range(PROBE_UNITS):
            start.wait()
            with turns:
                step()
            start.wait()

    threads = [threading.Thread(target=play, args=(step,), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    rounds = []
    for _ in range(PROBE_UNITS):
        start.wait()
        began = time.perf_counter()
        start.wait()
        rounds.append(time.perf_counter() - began)
    return min(rounds)

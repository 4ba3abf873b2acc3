"""Batches made ahead of time by threads, so that a GPU does not wait for files."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

WORKERS = 4


class Prefetch:
    """Calls `make(step, rows)` for the parts of the next steps before they are asked for, in order.

    parts    rows of each part of a step
    workers  threads; so many parts are made ahead

    A batch is a pure function of its arguments, so what is made ahead is what would be made later. An error of `make`
    is raised by the `get` of that part.
    """

    def __init__(self, make: Callable[[int, range], Any], parts: list[range], workers: int = WORKERS) -> None:
        self._make, self._parts, self._ahead = make, parts, workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
        self._waiting: deque[tuple[tuple[int, int], Future]] = deque()

    def get(self, step: int, part: int) -> Any:
        """Part `part` of step `step`."""
        if not self._waiting or self._waiting[0][0] != (step, part):  # the start, or somewhere else than expected
            self._drop()
            self._ask(step, part)
        _, batch = self._waiting.popleft()
        last = self._waiting[-1][0] if self._waiting else (step, part)
        while len(self._waiting) < self._ahead:
            following = last[0] * len(self._parts) + last[1] + 1
            last = divmod(following, len(self._parts))
            self._ask(*last)
        return batch.result()

    def close(self) -> None:
        """Stop the threads; what they have made ahead is dropped."""
        self._drop()
        self._pool.shutdown()

    def _ask(self, step: int, part: int) -> None:
        self._waiting.append(((step, part), self._pool.submit(self._make, step, self._parts[part])))

    def _drop(self) -> None:
        for _, batch in self._waiting:
            batch.cancel()
        self._waiting.clear()

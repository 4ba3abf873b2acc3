"""Batches made ahead of time by other processes, so that a GPU does not wait for files."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from wan_streamer.errors import WanStreamerError

SPARE = 2  # cores left to the program that trains


class Prefetch:
    """Calls `make(step, rows)` for the parts of the next steps before they are asked for, in order.

    parts    rows of each part of a step
    workers  processes (default: one a core, but for two); each makes two parts ahead
    pinned   keep batches in memory that a GPU copies from by itself; a batch then has `pin_memory`, or is a tuple

    A batch is a pure function of its arguments, so what is made ahead is what would be made later. An error of `make`
    is raised by the `get` of that part. The processes are forked by the first `get`.
    """

    def __init__(
        self,
        make: Callable[[int, range], Any],
        parts: list[range],
        workers: int | None = None,
        pinned: bool = False,
    ) -> None:
        self._parts, self._pinned = parts, pinned
        self._made = _Made(make, parts)
        self._workers = max(1, (os.cpu_count() or 1) - SPARE) if workers is None else workers
        self._next = (-1, -1)
        self._batches: Iterator[Any] = iter(())

    def get(self, step: int, part: int) -> Any:
        """Part `part` of step `step`."""
        if (step, part) != self._next:  # the start, or somewhere else than expected
            self.close()
            loader = DataLoader(
                self._made,
                batch_size=None,
                sampler=_Order(step, part, len(self._parts)),
                collate_fn=_as_it_is,
                num_workers=self._workers,
                multiprocessing_context="fork",
                pin_memory=self._pinned,
            )
            self._batches = iter(loader)
        self._next = (step, part + 1) if part + 1 < len(self._parts) else (step + 1, 0)
        batch = next(self._batches)
        if isinstance(batch, WanStreamerError):
            raise batch
        return batch

    def close(self) -> None:
        """Stop the processes; what they have made ahead is dropped."""
        self._next, self._batches = (-1, -1), iter(())


def _as_it_is(batch: Any) -> Any:
    return batch


class _Made(Dataset):
    def __init__(self, make: Callable[[int, range], Any], parts: list[range]) -> None:
        self.make, self.parts = make, parts

    def __getitem__(self, place: tuple[int, int]) -> Any:
        step, part = place
        try:
            return self.make(step, self.parts[part])
        except WanStreamerError as error:  # the loader would wrap it in a traceback
            return error


class _Order(Sampler):
    """All parts of all steps from one on, without an end."""

    def __init__(self, step: int, part: int, parts: int) -> None:
        self.step, self.part, self.parts = step, part, parts

    def __iter__(self) -> Iterator[tuple[int, int]]:
        step, part = self.step, self.part
        while True:
            yield step, part
            step, part = (step, part + 1) if part + 1 < self.parts else (step + 1, 0)

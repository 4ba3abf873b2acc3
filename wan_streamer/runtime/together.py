"""One pass for several sessions: calls of `Backbone.step` that come at about the same time from different threads.

A GPU takes hardly longer for the tokens of several sessions than for those of one, because a pass reads all weights
either way. Sessions need not know of each other: each runs its own units, and they meet here.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wan_streamer.model.backbone import Step
from wan_streamer.model.cache import KVCache, KVSlice
from wan_streamer.model.layers import States, join_rows, rows_of


@dataclass(eq=False)
class _Call:
    x_BND: States
    index_N: Tensor
    caches: Sequence[KVCache]
    done: threading.Event = field(default_factory=threading.Event)
    result: tuple[States, list[KVSlice]] | BaseException | None = None

    def joins(self, other: "_Call") -> bool:
        return torch.equal(self.index_N, other.index_N)


class Together:
    """`step` for threads that are inside `joined`: the last to ask runs the pass for all that ask for the same tokens.

    patience_s  nobody waits longer for those that are at something else

    A member that fails or is slow delays the others by the patience, no more.
    """

    def __init__(self, step: Step, patience_s: float = 0.002) -> None:
        self._step, self.patience_s = step, patience_s
        self._members = 0
        self._waiting: list[_Call] = []
        self._changed = threading.Condition()
        self.passes = self.calls = 0  # calls per pass is what meeting gains

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Around what a session asks for one unit."""
        with self._changed:
            self._members += 1
        try:
            yield
        finally:
            with self._changed:
                self._members -= 1
                self._changed.notify_all()

    def __call__(self, x_BND: States, index_N: Tensor, caches: Sequence[KVCache]) -> tuple[States, list[KVSlice]]:
        mine = _Call(x_BND, index_N, caches)
        with self._changed:
            self._waiting.append(mine)
            self._changed.notify_all()
            self._changed.wait_for(lambda: mine not in self._waiting or self._all_ask(), self.patience_s)
            batch = [call for call in self._waiting if call.joins(mine)] if mine in self._waiting else []
            self._waiting = [call for call in self._waiting if call not in batch]
            self.passes += bool(batch)
            self.calls += len(batch)
            self._changed.notify_all()
        if batch:
            self._run(batch)
        mine.done.wait()
        if isinstance(mine.result, BaseException):
            raise mine.result
        assert mine.result is not None
        return mine.result

    def _all_ask(self) -> bool:
        return len(self._waiting) >= self._members

    def _run(self, batch: list[_Call]) -> None:
        try:
            x_BND = join_rows([call.x_BND for call in batch])
            hidden_BND, slices = self._step(x_BND, batch[0].index_N, [c for call in batch for c in call.caches])
            first = 0
            for call in batch:
                rows = slice(first, first := first + len(call.caches))
                call.result = rows_of(hidden_BND, rows), slices[rows]
        except BaseException as error:
            for call in batch:
                call.result = error
        finally:
            for call in batch:
                call.done.set()

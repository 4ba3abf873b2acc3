"""The latest state of a session in memory that outlives the process that wrote it.

`KeptSession`  a session and its keeper
`Keeper`  written by the model process after each unit, read by the next model process; the memory belongs to the parent

Two halves are written in turns, and a half counts only when it is whole: a kill in the middle leaves the state before.
"""

import contextlib
import json
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import torch
from torch import Tensor

from wan_streamer.errors import DataError
from wan_streamer.files import parse_json
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.state import STATES, resume_session, session_state
from wan_streamer.tensors import flatten, places_of, rebuild, view_of

HEADER = 64  # bytes of each half: number of the state, or 0; bytes of its outline, bytes of its tensors


class Keeper:
    """States in the shared memory called `name`, each of at most half its bytes."""

    def __init__(self, name: str) -> None:
        self._block = SharedMemory(name)
        self._half = self._block.size // 2 // HEADER * HEADER

    def forget(self) -> None:
        """There is no state any more."""
        for half in range(2):
            self._numbers(half)[0] = 0

    def keep(self, number: int, record: Any) -> None:
        """Keep `record` as state `number`, from 1. What is too large is not kept, and what was before neither."""
        outline, tensors = flatten(record)
        places, size = places_of(tensors)
        head = json.dumps({"outline": outline, "tensors": places}).encode()
        half = number % 2
        numbers = self._numbers(half)
        numbers[0] = 0
        if HEADER + size + len(head) > self._half:
            return
        bytes_N = self._bytes(half)
        for tensor, place in zip(tensors, places, strict=True):
            view_of(bytes_N, place).copy_(tensor)
        bytes_N[size : size + len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        numbers[1], numbers[2] = len(head), size
        numbers[0] = number

    def latest(self, classes: tuple[type, ...], device: torch.device) -> Any:
        """A copy of the newest state on `device`; None if there is none."""
        half = max(range(2), key=lambda half: self._numbers(half)[0])
        number, length, size = self._numbers(half)[:3]
        if number == 0:
            return None
        bytes_N = self._bytes(half)[: size + length].clone()
        try:
            head = parse_json(bytes(bytes_N[size:].numpy()))
            return rebuild(head["outline"], [view_of(bytes_N, place).to(device) for place in head["tensors"]], classes)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"a damaged state of a session ({error})") from error

    def close(self) -> None:
        """The memory stays, for others."""
        with contextlib.suppress(BufferError):  # a tensor still looks at it; the mapping goes with the last one
            self._block.close()

    def _numbers(self, half: int) -> memoryview:
        first = half * self._half
        assert self._block.buf is not None
        return self._block.buf[first : first + HEADER].cast("q")

    def _bytes(self, half: int) -> Tensor:
        first = half * self._half + HEADER
        return torch.frombuffer(self._block.buf, dtype=torch.uint8, count=self._half - HEADER, offset=first)


class KeptSession:
    """A session whose state is kept."""

    def __init__(self, session: Session, memory: str) -> None:
        self._session, self._keeper = session, Keeper(memory)
        self._last = 0

    def begin(self, resume: bool) -> int:
        """Forget what is kept, or go on from there. Returns the number of units that the session has behind it."""
        if not resume:
            self._keeper.forget()
        elif (state := self._keeper.latest(STATES, self._session.streamer.device)) is not None:
            resume_session(self._session, state)
        self._last = self._session.index
        return self._last

    def keep(self) -> None:
        """Between two units. A unit that was held has changed nothing."""
        if self._session.index > self._last:
            self._last = self._session.index
            self._keeper.keep(self._last, session_state(self._session))

    def close(self) -> None:
        self._keeper.close()

"""Links between thinker and performer: records of tensors go over, nothing is pickled.

`Link`             send and receive
`local_pair`       two ends in one process
`shared_pair`      two ends for two processes of a machine: tensors in shared memory, outlines through a pipe
`DistributedLink`  two ranks of `torch.distributed`: gloo between CPUs, NCCL between GPUs

What `receive` returns may lie in the link's own memory: it is valid until the next `receive` of that end.
"""

import contextlib
import json
import queue
import time
from collections.abc import Iterable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

import torch
from torch import distributed as dist

from wan_streamer.errors import LinkError
from wan_streamer.files import parse_json
from wan_streamer.tensors import ALIGN, flatten, places_of, rebuild, view_of

PROTOCOL = 2
SLOTS = 2  # messages that may be under way
HEADER = 64  # bytes of a shared block that count what was received
POLL_S = 0.0002


class Link(Protocol):
    """One end. Both raise `LinkError` when the other end is gone, closed, or speaks another version."""

    def send(self, message: Any) -> None: ...

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next message; None if none came in time."""

    def close(self) -> None: ...


# ---------------------------------------------------------------- one process


class _LocalEnd:
    def __init__(self, inbox: queue.SimpleQueue, outbox: queue.SimpleQueue) -> None:
        self._inbox, self._outbox = inbox, outbox

    def send(self, message: Any) -> None:
        self._outbox.put(message)

    def receive(self, timeout_s: float | None = None) -> Any:
        try:
            message = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if message is None:
            self._inbox.put(None)
            raise LinkError("the other end of the link is closed")
        return message

    def close(self) -> None:
        self._outbox.put(None)


def local_pair() -> tuple[Link, Link]:
    """Two ends between threads of a process. Messages are handed over as they are."""
    there: queue.SimpleQueue = queue.SimpleQueue()
    back: queue.SimpleQueue = queue.SimpleQueue()
    return _LocalEnd(back, there), _LocalEnd(there, back)


# ---------------------------------------------------------------- wire format


def _head(outline: Any, places: list[list]) -> bytes:
    return json.dumps({"version": PROTOCOL, "outline": outline, "tensors": places}).encode()


def _opened(head: bytes) -> tuple[Any, list[list]]:
    try:
        values = parse_json(head)
        if values["version"] != PROTOCOL:
            raise LinkError(f"link: expected messages of version {PROTOCOL}, got {values['version']}")
        return values["outline"], values["tensors"]
    except (ValueError, KeyError, TypeError) as error:
        raise LinkError(f"link: a damaged message ({error})") from error


# ---------------------------------------------------------------- two processes


class SharedEnd:
    """One end; `shared_pair` makes both, and the one that is handed to a process when it starts works there.

    A block holds `SLOTS` messages. Before a slot is written again, the other end has to have asked for a later message.
    """

    def __init__(
        self, pipe: Connection, inbox: SharedMemory, outbox: SharedMemory, classes: tuple[type, ...], owner: bool
    ) -> None:
        self._pipe, self._inbox, self._outbox, self._classes, self._owner = pipe, inbox, outbox, classes, owner
        self._sent = self._received = 0
        self.patience_s = 10.0  # for an end that does not read

    def send(self, message: Any) -> None:
        outline, tensors = flatten(message)
        places, size = places_of(tensors)
        slot = _slot_bytes(self._outbox)
        if size > slot:
            raise LinkError(f"link: expected messages of at most {slot} bytes, got {size}; make the link with more")
        self._wait_for_room()
        first = HEADER + self._sent % SLOTS * slot
        if size:
            block_N = torch.frombuffer(self._outbox.buf, dtype=torch.uint8, count=size, offset=first)
            for tensor, place in zip(tensors, places, strict=True):
                view_of(block_N, place).copy_(tensor)
        self._sent += 1
        try:
            self._pipe.send_bytes(_head(outline, places))
        except (OSError, ValueError) as error:
            raise LinkError(f"the other end of the link is gone ({error})") from error

    def receive(self, timeout_s: float | None = None) -> Any:
        self._count(self._inbox)[0] = self._received  # what came before may be overwritten now
        try:
            if not self._pipe.poll(timeout_s):
                return None
            outline, places = _opened(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise LinkError(f"the other end of the link is gone ({error})") from error
        slot = _slot_bytes(self._inbox)
        first = HEADER + self._received % SLOTS * slot
        self._received += 1
        block_N = torch.frombuffer(self._inbox.buf, dtype=torch.uint8, count=slot, offset=first)
        return rebuild(outline, [view_of(block_N, place) for place in places], self._classes)

    def close(self) -> None:
        self._pipe.close()
        for block in (self._inbox, self._outbox):
            with contextlib.suppress(BufferError):  # a tensor still looks at it; the memory goes with the last one
                block.close()
            if self._owner:
                block.unlink()

    def hand_over(self) -> None:
        """This end lives in another process now: close the pipe here, so that its death is noticed."""
        self._pipe.close()

    def _wait_for_room(self) -> None:
        until = time.monotonic() + self.patience_s
        while self._sent - int(self._count(self._outbox)[0]) >= SLOTS:
            if time.monotonic() > until:
                raise LinkError(f"the other end of the link has read nothing for {self.patience_s:.0f} s")
            time.sleep(POLL_S)

    @staticmethod
    def _count(block: SharedMemory) -> memoryview:
        """Messages after which the reader of a block has asked for the next."""
        assert block.buf is not None
        return block.buf[:8].cast("q")


def _slot_bytes(block: SharedMemory) -> int:
    return (block.size - HEADER) // SLOTS // ALIGN * ALIGN


def shared_pair(classes: Iterable[type], slot_bytes: int = 32 << 20) -> tuple[SharedEnd, SharedEnd]:
    """Two ends, the second of which goes to another process as an argument of its start.

    classes     records that may come over the link
    slot_bytes  of the largest message
    """
    here, there = get_context("spawn").Pipe(duplex=True)
    mine = [SharedMemory(create=True, size=HEADER + SLOTS * slot_bytes) for _ in range(2)]
    theirs = [SharedMemory(block.name) for block in reversed(mine)]
    known = tuple(classes)
    return SharedEnd(here, mine[0], mine[1], known, True), SharedEnd(there, theirs[0], theirs[1], known, False)


# ---------------------------------------------------------------- two ranks


class DistributedLink:
    """The way to the rank `peer` of an initialised process group. Tensors travel on `device`.

    Here a message that does not come in time raises `LinkError`: a receive that was begun cannot be taken back.
    """

    def __init__(self, peer: int, classes: Iterable[type], device: torch.device | str = "cpu") -> None:
        self.peer, self.classes, self.device = peer, tuple(classes), torch.device(device)

    def send(self, message: Any) -> None:
        outline, tensors = flatten(message)
        places, size = places_of(tensors)
        head = _head(outline, places)
        block_N = torch.empty(size, dtype=torch.uint8, device=self.device)
        for tensor, place in zip(tensors, places, strict=True):
            view_of(block_N, place).copy_(tensor)
        try:
            dist.send(torch.tensor([len(head), size], device=self.device), self.peer)
            dist.send(torch.frombuffer(bytearray(head), dtype=torch.uint8).to(self.device), self.peer)
            if size:
                dist.send(block_N, self.peer)
        except RuntimeError as error:
            raise LinkError(f"rank {self.peer} is gone ({error})") from error

    def receive(self, timeout_s: float | None = None) -> Any:
        sizes_2 = torch.empty(2, dtype=torch.long, device=self.device)
        try:
            work = dist.irecv(sizes_2, self.peer)
            assert work is not None  # only for a rank outside the group
            if timeout_s is None:
                work.wait()
            else:
                work.wait(timedelta(seconds=timeout_s))
            head_N, block_N = (torch.empty(size, dtype=torch.uint8, device=self.device) for size in sizes_2.tolist())
            dist.recv(head_N, self.peer)
            if len(block_N):
                dist.recv(block_N, self.peer)
        except RuntimeError as error:
            raise LinkError(f"rank {self.peer} is gone, or did not answer in time ({error})") from error
        outline, places = _opened(bytes(head_N.cpu().numpy()))
        return rebuild(outline, [view_of(block_N, place) for place in places], self.classes)

    def close(self) -> None:
        pass  # the process group belongs to whoever made it

"""The model in a process of its own, so that nothing it computes can delay the media of a call.

`ModelProcess`   starts, watches and replaces the worker; never blocks an event loop
`ModelSession`   one visitor's session in the worker

A thread per direction stands between the pipe and the event loop: a unit with video is larger than a pipe's buffer, so
that both ends of a pipe can block. The other side is in `worker`.
"""

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from wan_streamer import errors
from wan_streamer.errors import ServingError, WanStreamerError
from wan_streamer.runtime.worker import (
    AgentFactory,
    CloseSession,
    Failed,
    Opened,
    OpenSession,
    Ready,
    SessionLost,
    Shutdown,
    Stats,
    UnitIn,
    UnitOut,
    serve_model,
)
from wan_streamer.units import UserUnit

STATE_BYTES = 48 << 20  # of shared memory for two states of a session; nano's has up to 17 MB in float32
BUSY = "the model already serves as many sessions as it can; close one first"

log = logging.getLogger(__name__)


def _typed(kind: str, message: str) -> WanStreamerError:
    """The error that a worker reported, as the same class here."""
    cls = getattr(errors, kind, ServingError)
    is_ours = isinstance(cls, type) and issubclass(cls, WanStreamerError)
    return cls(message) if is_ours else ServingError(message)


class _Worker:
    """One life of the child process: its pipe and the two threads that move messages."""

    def __init__(self, factory: AgentFactory | str, most: int, measure: bool, standby: bool, has_children: bool,
                 on_message: Callable[[Any], None], on_death: Callable[["_Worker"], None]) -> None:  # fmt: skip
        context = multiprocessing.get_context("spawn")  # fork would copy the event loop, its sockets and its threads
        self.conn, child = context.Pipe(duplex=True)
        self.process = context.Process(
            target=serve_model, args=(child, factory, most, measure, standby), name="wan-streamer-model",
            daemon=not has_children,
        )  # fmt: skip
        self.ready: Future[Ready] = Future()
        self.dead = False
        self.outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._on_message, self._on_death = on_message, on_death
        self.process.start()
        child.close()  # so that the worker's end of file is seen here
        threading.Thread(target=self._read, name="model-reader", daemon=True).start()
        threading.Thread(target=self._write, name="model-writer", daemon=True).start()

    @property
    def alive(self) -> bool:
        return self.process.is_alive() and not self.dead

    def _read(self) -> None:
        try:
            while True:
                message = self.conn.recv()
                if isinstance(message, Ready):
                    self.ready.set_result(message)
                elif isinstance(message, Failed):
                    if not self.ready.done():
                        self.ready.set_exception(_typed(message.kind, message.message))
                    break
                else:
                    self._on_message(message)
        except (EOFError, OSError):
            pass
        finally:
            self.dead = True
            self.outbox.put(None)
            self.process.join(timeout=2)
            if not self.ready.done():
                code = self.process.exitcode
                self.ready.set_exception(
                    ServingError(f"the model process ended before it was ready (exit code {code})")
                )
            self._on_death(self)

    def _write(self) -> None:
        while (message := self.outbox.get()) is not None:
            try:
                self.conn.send(message)
            except (OSError, ValueError):
                return  # the reader sees the same end and reports it

    def stop(self, timeout_s: float) -> None:
        self.outbox.put(Shutdown())
        self.process.join(timeout=timeout_s)
        self.kill()
        self.conn.close()

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()
            self.process.join(timeout=2)


@dataclass
class ModelSession:
    """One session in the worker. Belongs to the event loop that opened it.

    memory   where the worker keeps its state
    pending  units sent and not yet answered: the backlog
    units    units that the session had behind it when it was opened; known with the first answer
    """

    number: int
    memory: SharedMemory
    loop: asyncio.AbstractEventLoop
    send: Callable[[Any], None]
    pending: int = 0
    units: int = 0
    inbox: asyncio.Queue[UnitOut | Stats | Opened | ServingError] = field(default_factory=asyncio.Queue)

    def step(self, index: int, unit: UserUnit, t_in: float) -> None:
        """Hand one unit to the worker; returns at once. The answer comes out of `receive`."""
        self.pending += 1
        self.send(UnitIn(self.number, index, t_in, unit))

    async def receive(self) -> UnitOut | Stats:
        """The next answer. Raises `ServingError` when the session is lost: the worker died or a step failed."""
        message = await self.inbox.get()
        if isinstance(message, ServingError):
            raise message
        if isinstance(message, Opened):
            self.units = message.units
            return await self.receive()
        if isinstance(message, UnitOut):
            self.pending -= 1
        return message

    def close(self) -> None:
        self.send(CloseSession(self.number))


class ModelProcess:
    """The worker as the server sees it, and another that stands by, loaded, to take over when it dies.

    factory       picklable callable or "package.module:function" that returns an `Agent`
    has_children  whether that agent has processes of its own
    most          sessions at once; `capacity` of them, if so many do not keep pace
    standby       whether another worker stands by; it takes as much memory as the first
    """

    def __init__(
        self, factory: AgentFactory | str, has_children: bool = False, most: int = 1, standby: bool = False
    ) -> None:
        self._factory, self._has_children, self.most, self._standby = factory, has_children, most, standby
        self._worker: _Worker | None = None
        self._spare: _Worker | None = None
        self._sessions: dict[int, ModelSession] = {}
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        self._ended = False
        self._measured: int | None = None
        self.restarts = -1  # the first start is not a restart

    @property
    def state(self) -> str:
        """ "ready", "starting" or "stopped"."""
        worker = self._worker
        if worker is None or not worker.alive:
            return "stopped"
        return "ready" if worker.ready.done() else "starting"

    @property
    def capacity(self) -> int:
        """So many sessions may be open. Known when the first worker is ready."""
        return self.most if self._measured is None else self._measured

    @property
    def pid(self) -> int | None:
        return self._worker.process.pid if self._worker else None

    def start(self) -> None:
        """See that there is a worker. Returns at once; `wait_ready` or `ensure_ready` tell the outcome."""
        with self._lock:
            if self._ended:
                raise ServingError("the model process was shut down")
            if self._worker is None or not self._worker.alive:
                self.restarts += 1
                spare, self._spare = self._spare, None
                self._worker = spare if spare is not None and spare.alive else self._new_worker()
                self._worker.ready.add_done_callback(self._is_ready)

    def _new_worker(self, standby: bool = False) -> _Worker:
        measure = self._measured is None
        return _Worker(self._factory, self.capacity, measure, standby, self._has_children, self._deliver, self._lose)

    def _is_ready(self, ready: Future[Ready]) -> None:
        if ready.exception() is not None:
            return
        with self._lock:
            if self._measured is None:
                self._measured = ready.result().capacity
            if self._standby and self._spare is None and not self._ended:
                self._spare = self._new_worker(standby=True)

    def wait_ready(self, timeout_s: float = 600.0) -> Ready:
        """Block until the agent is loaded. Raises what loading raised, e.g. `CheckpointError`."""
        self.start()
        assert self._worker is not None
        try:
            return self._worker.ready.result(timeout_s)
        except FutureTimeoutError:
            raise ServingError(f"the model was not ready after {timeout_s:.0f} s") from None

    async def ensure_ready(self) -> Ready:
        """The same for an event loop; replaces a dead worker."""
        self.start()
        assert self._worker is not None
        return await asyncio.shield(asyncio.wrap_future(self._worker.ready))

    async def open_session(self, seed: int = 0, resume: ModelSession | None = None) -> ModelSession:
        """Open a session. Raises `ServingError` if there are as many as can be, or the worker cannot start.

        resume  go on with this one, whose worker died; `ModelSession.units` tells
        """
        await self.ensure_ready()
        with self._lock:
            worker = self._worker
            assert worker is not None
            if len(self._sessions) >= self.capacity:
                raise ServingError(BUSY)
            memory = SharedMemory(create=True, size=STATE_BYTES) if resume is None else resume.memory
            session = ModelSession(next(self._numbers), memory, asyncio.get_running_loop(), worker.outbox.put)
            self._sessions[session.number] = session
        session.send(OpenSession(session.number, seed, memory.name, resume is not None))
        return session

    def close_session(self, session: ModelSession) -> None:
        """Its state is forgotten too."""
        session.close()
        self._sessions.pop(session.number, None)
        _free(session.memory)

    def kill(self) -> None:
        """End a worker that no longer answers; its session sees a `ServingError`."""
        if self._worker is not None:
            self._worker.kill()

    def shutdown(self, timeout_s: float = 3.0) -> None:
        """End the workers: politely, then by force."""
        with self._lock:
            self._ended = True
            workers, sessions = (self._worker, self._spare), list(self._sessions.values())
            self._worker = self._spare = None
            self._sessions.clear()
        for worker in workers:
            if worker is not None:
                worker.stop(timeout_s)
        for session in sessions:
            _free(session.memory)

    def _deliver(self, message: Any) -> None:  # called by the reader thread
        session = self._sessions.get(message.session)
        if session is None:
            return
        if isinstance(message, SessionLost):
            self._sessions.pop(session.number, None)
            message = ServingError(f"a model step failed: {message.kind}: {message.message}")
        self._post(session, message)

    def _lose(self, worker: _Worker) -> None:  # called by the reader thread
        with self._lock:
            if worker is self._spare:
                self._spare = None  # the next is started with the next worker
                log.warning("the model process that stood by ended (exit code %s)", worker.process.exitcode)
            if worker is not self._worker:
                return
            sessions = list(self._sessions.values())
            self._sessions.clear()
        if worker.ready.exception() is None:  # one that never became ready would not the next time either
            log.warning("the model process ended (exit code %s) and is replaced", worker.process.exitcode)
            with contextlib.suppress(ServingError):
                self.start()
        for session in sessions:
            self._post(session, ServingError(f"the model process ended (exit code {worker.process.exitcode})"))

    @staticmethod
    def _post(session: ModelSession, message: UnitOut | Stats | Opened | ServingError) -> None:
        try:
            session.loop.call_soon_threadsafe(session.inbox.put_nowait, message)
        except RuntimeError:
            log.debug("the event loop of session %d is closed", session.number)


def _free(memory: SharedMemory) -> None:
    with contextlib.suppress(FileNotFoundError):  # freed before
        memory.close()
        memory.unlink()

"""The model in a process of its own, so that nothing it computes can delay the media of a call.

`ModelProcess`   starts, watches and restarts the worker; never blocks an event loop
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

STATE_BYTES = 32 << 20  # of shared memory for two states of a session; nano's has 9 MB in float32

log = logging.getLogger(__name__)


def _typed(kind: str, message: str) -> WanStreamerError:
    """The error that a worker reported, as the same class here."""
    cls = getattr(errors, kind, ServingError)
    is_ours = isinstance(cls, type) and issubclass(cls, WanStreamerError)
    return cls(message) if is_ours else ServingError(message)


class _Worker:
    """One life of the child process: its pipe and the two threads that move messages."""

    def __init__(self, factory: AgentFactory | str, memory: str, has_children: bool,
                 on_message: Callable[[Any], None], on_death: Callable[["_Worker"], None]) -> None:  # fmt: skip
        context = multiprocessing.get_context("spawn")  # fork would copy the event loop, its sockets and its threads
        self.conn, child = context.Pipe(duplex=True)
        self.process = context.Process(
            target=serve_model, args=(child, factory, memory), name="wan-streamer-model", daemon=not has_children
        )
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

    pending  units sent and not yet answered: the backlog
    units    units that the session had behind it when it was opened; known with the first answer
    """

    number: int
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
    """The worker as the server sees it: one session at a time, a new worker whenever the old one died.

    factory       picklable callable or "package.module:function" that returns an `Agent`
    has_children  whether that agent has processes of its own
    """

    def __init__(self, factory: AgentFactory | str, has_children: bool = False) -> None:
        self._factory, self._has_children = factory, has_children
        self._memory = SharedMemory(create=True, size=STATE_BYTES)  # outlives the worker
        self._worker: _Worker | None = None
        self._session: ModelSession | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._ended = False
        self.restarts = -1  # the first start is not a restart

    @property
    def state(self) -> str:
        """ "ready", "starting" or "stopped"."""
        worker = self._worker
        if worker is None or not worker.alive:
            return "stopped"
        return "ready" if worker.ready.done() else "starting"

    @property
    def pid(self) -> int | None:
        return self._worker.process.pid if self._worker else None

    def start(self) -> None:
        """Start the worker unless one is alive. Returns at once; `wait_ready` or `ensure_ready` tell the outcome."""
        with self._lock:
            if self._ended:
                raise ServingError("the model process was shut down")
            if self._worker is None or not self._worker.alive:
                self.restarts += 1
                self._worker = _Worker(self._factory, self._memory.name, self._has_children, self._deliver, self._lose)

    def wait_ready(self, timeout_s: float = 600.0) -> Ready:
        """Block until the agent is loaded. Raises what loading raised, e.g. `CheckpointError`."""
        self.start()
        assert self._worker is not None
        try:
            return self._worker.ready.result(timeout_s)
        except FutureTimeoutError:
            raise ServingError(f"the model was not ready after {timeout_s:.0f} s") from None

    async def ensure_ready(self) -> Ready:
        """The same for an event loop; restarts a dead worker."""
        self.start()
        assert self._worker is not None
        return await asyncio.shield(asyncio.wrap_future(self._worker.ready))

    async def open_session(self, seed: int = 0, resume: bool = False) -> ModelSession:
        """Open the worker's only session. Raises `ServingError` if one is open or the worker cannot start.

        resume  go on with the session that was open last, if a worker died in it; `ModelSession.units` tells
        """
        await self.ensure_ready()
        worker = self._worker
        assert worker is not None
        if self._session is not None:
            raise ServingError("the model already serves a session; close it first")
        session = ModelSession(next(self._numbers), asyncio.get_running_loop(), worker.outbox.put)
        self._session = session
        worker.outbox.put(OpenSession(session.number, seed, resume))
        return session

    def close_session(self, session: ModelSession) -> None:
        session.close()
        if self._session is session:
            self._session = None

    def kill(self) -> None:
        """End a worker that no longer answers; its session sees a `ServingError`."""
        if self._worker is not None:
            self._worker.kill()

    def shutdown(self, timeout_s: float = 3.0) -> None:
        """End the worker: politely, then by force."""
        with self._lock:
            self._ended = True
            worker, self._worker, self._session = self._worker, None, None
        if worker is not None:
            worker.stop(timeout_s)
        with contextlib.suppress(FileNotFoundError):  # shut down before
            self._memory.close()
            self._memory.unlink()

    def _deliver(self, message: Any) -> None:  # called by the reader thread
        session = self._session
        if session is None or message.session != session.number:
            return
        if isinstance(message, SessionLost):
            self._session = None
            message = ServingError(f"a model step failed: {message.kind}: {message.message}")
        self._post(session, message)

    def _lose(self, worker: _Worker) -> None:  # called by the reader thread
        if worker is not self._worker:
            return
        session, self._session = self._session, None
        if session is not None:
            self._post(session, ServingError(f"the model process ended (exit code {worker.process.exitcode})"))
        if worker.ready.exception() is None:  # one that never became ready would not the next time either
            log.warning("the model process ended (exit code %s) and is restarted", worker.process.exitcode)
            with contextlib.suppress(ServingError):
                self.start()

    @staticmethod
    def _post(session: ModelSession, message: UnitOut | Stats | Opened | ServingError) -> None:
        try:
            session.loop.call_soon_threadsafe(session.inbox.put_nowait, message)
        except RuntimeError:
            log.debug("the event loop of session %d is closed", session.number)

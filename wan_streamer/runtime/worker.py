"""The child side of `processes`: what travels between the two processes, and the loop that answers it.

messages      `Ready` `Failed` `OpenSession` `Opened` `UnitIn` `UnitOut` `Stats` `SessionLost` `CloseSession` `Shutdown`
`serve_model` loads the agent once, then serves its sessions, each on a thread of its own

Times are `time.monotonic()` seconds, one clock for all processes of a machine.
"""

import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from wan_streamer.errors import ServingError, WanStreamerError
from wan_streamer.process import log_as_parent, tune_process
from wan_streamer.runtime.clock import Session, UnitDriver
from wan_streamer.runtime.seats import Seat, Turns, capacity
from wan_streamer.runtime.trace import Trace, traced
from wan_streamer.threads import Threads
from wan_streamer.units import AgentUnit, UserUnit

if TYPE_CHECKING:
    from wan_streamer.runtime.keeper import KeptSession

PROTOCOL = 3
STATS_EVERY_UNITS = 6  # about once a second

log = logging.getLogger(__name__)


class Agent(Protocol):
    """What the worker needs of an agent; `WanStreamer` is one."""

    @property
    def name(self) -> str: ...

    @property
    def frame_size(self) -> tuple[int, int]: ...

    @property
    def default_steps(self) -> int: ...

    @property
    def concurrency(self) -> int: ...

    def session(self, seed: int = 0) -> Session: ...

    def warmup(self) -> None: ...


AgentFactory = Callable[[], Agent]


@dataclass(frozen=True)
class _Message:
    version: int = field(default=PROTOCOL, kw_only=True)


@dataclass(frozen=True)
class Ready(_Message):
    """Worker to parent: the agent is loaded and warm. capacity: so many sessions keep pace at once"""

    name: str
    frame_size: tuple[int, int]
    load_s: float
    capacity: int


@dataclass(frozen=True)
class Failed(_Message):
    """Worker to parent: the agent could not be loaded. `kind` is the name of the error class."""

    kind: str
    message: str


@dataclass(frozen=True)
class OpenSession(_Message):
    """Parent to worker.

    memory  name of the shared memory in which the session's state is kept
    resume  go on with the state that is kept there, of a session of a worker before
    """

    session: int
    seed: int
    memory: str
    resume: bool = False


@dataclass(frozen=True)
class Opened(_Message):
    """Worker to parent. units: how many the session has behind it; more than 0 if it was resumed."""

    session: int
    units: int


@dataclass(frozen=True)
class UnitIn(_Message):
    """Parent to worker. t_in: when the unit's last sample was complete."""

    session: int
    index: int
    t_in: float
    unit: UserUnit


@dataclass(frozen=True)
class UnitOut(_Message):
    """Worker to parent. t_start and t_out: when the worker took the unit and when it had the answer."""

    session: int
    index: int
    t_in: float
    t_start: float
    t_out: float
    unit: AgentUnit


@dataclass(frozen=True)
class Stats(_Message):
    """Worker to parent, about once a second: the driver's summary since the session began."""

    session: int
    summary: dict[str, Any]


@dataclass(frozen=True)
class SessionLost(_Message):
    """Worker to parent: a step failed; the session is gone but the worker lives."""

    session: int
    kind: str
    message: str


@dataclass(frozen=True)
class CloseSession(_Message):
    session: int


@dataclass(frozen=True)
class Shutdown(_Message):
    pass


def load_agent(checkpoint: str, device: str) -> Agent:
    """The agent of a checkpoint: a built-in name such as "nano", a folder, or a hub id."""
    from wan_streamer.runtime.split.agents import (
        open_agent,  # here, so that the parent process never loads the model's code
    )

    return open_agent(checkpoint, device)


def _resolve(factory: AgentFactory | str) -> AgentFactory:
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ServingError(f"agent factory: expected an import path such as package.module:function, got {factory!r}"
                           f" ({error})") from error  # fmt: skip


def serve_model(conn: Connection, factory: AgentFactory | str, most: int, measure: bool, standby: bool) -> None:
    """Load the agent, report `Ready` or `Failed`, then answer messages until `Shutdown` or until the parent is gone.

    most     sessions at once; fewer, if so many do not keep pace
    measure  whether to find that out, which takes all cores for a moment
    standby  load behind everything else, because calls may be going on
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to stop
    tune_process()
    log_as_parent()
    try:
        started = time.monotonic()
        load = partial(_load, factory)
        agent = _politely(load) if standby else load()
        threads = Threads()
        if not standby:
            threads.measure(agent.warmup)
        seats = _capacity(agent, threads, most) if measure and most > 1 else most
        conn.send(Ready(agent.name, agent.frame_size, time.monotonic() - started, seats))
        with traced() as trace:
            _Sessions(conn, agent, threads, trace).serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone: nobody is left to answer
    except WanStreamerError as error:
        conn.send(Failed(type(error).__name__, str(error)))
    except Exception as error:
        log.exception("the model process failed")
        conn.send(Failed("ServingError", f"the model process failed: {type(error).__name__}: {error}"))


def _load(factory: AgentFactory | str) -> Agent:
    agent = _resolve(factory)()
    agent.warmup()
    return agent


def _politely(load: Callable[[], Agent]) -> Agent:
    """`load` on a thread of the lowest priority; on Linux the threads of sessions, which come later, keep theirs."""

    def run() -> Agent:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        return load()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


def _capacity(agent: Agent, threads: Threads, most: int) -> int:
    def fresh(sessions: int) -> Callable[[], object]:
        session = agent.session()

        def play() -> object:
            threads.here(sessions)
            return session.step(UserUnit())

        return play

    return capacity(fresh, most, agent.concurrency)


class _Sessions:
    """The sessions of a worker."""

    def __init__(self, conn: Connection, agent: Agent, threads: Threads, trace: Trace | None = None) -> None:
        self.conn, self.agent, self.threads, self.trace = conn, agent, threads, trace
        self.turns = Turns(agent.concurrency)
        self.seats: dict[int, Seat] = {}
        self._sending = threading.Lock()

    def send(self, message: _Message) -> None:
        with self._sending:
            self.conn.send(message)

    def serve(self) -> None:
        """Hand messages to the seats. An answer of a seat that is closed may still be sent; the parent drops it."""
        while True:
            message = self.conn.recv()
            if message.version != PROTOCOL:
                raise ServingError(f"model process: expected messages of version {PROTOCOL}, got {message.version}")
            match message:
                case Shutdown():
                    return
                case OpenSession():
                    number = message.session
                    talk = _Conversation(self)
                    self.seats[number] = Seat(number, talk.answer, partial(self._lose, number), talk.close)
                    self.seats[number].put(message)
                case CloseSession() if (seat := self.seats.pop(message.session, None)) is not None:
                    seat.close()
                case UnitIn() if message.session in self.seats:
                    self.seats[message.session].put(message)

    def _lose(self, number: int, error: Exception) -> None:
        if self.seats.pop(number, None) is not None:
            self.send(SessionLost(number, type(error).__name__, str(error)))


class _Conversation:
    """What a seat does."""

    def __init__(self, worker: _Sessions) -> None:
        self._worker = worker
        self._driver: UnitDriver | None = None
        self._kept: KeptSession | None = None

    def answer(self, message: OpenSession | UnitIn) -> None:
        with self._worker.turns:
            self._worker.threads.here(len(self._worker.seats) or 1)
            if isinstance(message, OpenSession):
                self._open(message)
            else:
                self._step(message)

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()

    def _open(self, message: OpenSession) -> None:
        agent = self._worker.agent
        session = agent.session(seed=message.seed)
        self._kept = _kept(session, message.memory)
        units = 0 if self._kept is None else self._kept.begin(message.resume)
        trace = None if self._worker.trace is None else self._worker.trace.session(f"session {message.session}")
        self._driver = UnitDriver(
            session, agent.default_steps, agent.frame_size, threads=self._worker.threads, trace=trace
        )
        self._worker.send(Opened(message.session, units))

    def _step(self, message: UnitIn) -> None:
        assert self._driver is not None
        t_start = time.monotonic()
        out = self._driver.step(message.unit, message.t_in)
        if self._kept is not None:
            self._kept.keep()  # before the answer: what a visitor has heard is in the history, whenever the kill comes
        self._worker.send(UnitOut(message.session, message.index, message.t_in, t_start, time.monotonic(), out))
        if (message.index + 1) % STATS_EVERY_UNITS == 0:
            self._worker.send(Stats(message.session, self._driver.summary()))
        self._driver.settle()


def _kept(session: Session, memory: str) -> "KeptSession | None":
    """`session` and where its state is kept; None for sessions of other agents, which have none."""
    if "torch" not in sys.modules:
        return None
    from wan_streamer.runtime.keeper import KeptSession
    from wan_streamer.runtime.session import Session as OwnSession

    return KeptSession(session, memory) if isinstance(session, OwnSession) else None

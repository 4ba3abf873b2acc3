"""The child side of `processes`: what travels between the two processes, and the loop that answers it.

messages      `Ready` `Failed` `OpenSession` `Opened` `UnitIn` `UnitOut` `Stats` `SessionLost` `CloseSession` `Shutdown`
`serve_model` loads the agent once, then serves one session at a time

Times are `time.monotonic()` seconds, one clock for all processes of a machine.
"""

import importlib
import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from wan_streamer.errors import ServingError, WanStreamerError
from wan_streamer.process import tune_process
from wan_streamer.runtime.clock import Session, UnitDriver
from wan_streamer.threads import Threads
from wan_streamer.units import AgentUnit, UserUnit

if TYPE_CHECKING:
    from wan_streamer.runtime.keeper import KeptSession

PROTOCOL = 2
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

    def session(self, seed: int = 0) -> Session: ...

    def warmup(self) -> None: ...


AgentFactory = Callable[[], Agent]


@dataclass(frozen=True)
class _Message:
    version: int = field(default=PROTOCOL, kw_only=True)


@dataclass(frozen=True)
class Ready(_Message):
    """Worker to parent: the agent is loaded and warm."""

    name: str
    frame_size: tuple[int, int]
    load_s: float


@dataclass(frozen=True)
class Failed(_Message):
    """Worker to parent: the agent could not be loaded. `kind` is the name of the error class."""

    kind: str
    message: str


@dataclass(frozen=True)
class OpenSession(_Message):
    """Parent to worker. resume: go on where the session of a worker before stopped, if its state was kept."""

    session: int
    seed: int
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
    from wan_streamer.runtime.split import open_agent  # here, so that the parent process never loads the model's code

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


def serve_model(conn: Connection, factory: AgentFactory | str, memory: str) -> None:
    """Load the agent, report `Ready` or `Failed`, then answer messages until `Shutdown` or until the parent is gone.

    memory  name of the shared memory in which the state of the session is kept
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to stop
    tune_process()
    try:
        started = time.monotonic()
        agent = _resolve(factory)()
        agent.warmup()
        threads = Threads()
        threads.measure(agent.warmup)
        conn.send(Ready(agent.name, agent.frame_size, time.monotonic() - started))
        _serve_sessions(conn, agent, threads, memory)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone: nobody is left to answer
    except WanStreamerError as error:
        conn.send(Failed(type(error).__name__, str(error)))
    except Exception as error:
        log.exception("the model process failed")
        conn.send(Failed("ServingError", f"the model process failed: {type(error).__name__}: {error}"))


def _serve_sessions(conn: Connection, agent: Agent, threads: Threads, memory: str) -> None:
    driver: UnitDriver | None = None
    kept: KeptSession | None = None
    current = -1
    while True:
        message = conn.recv()
        if message.version != PROTOCOL:
            raise ServingError(f"model process: expected messages of version {PROTOCOL}, got {message.version}")
        match message:
            case Shutdown():
                return
            case OpenSession():
                session = agent.session(seed=message.seed)
                kept = _kept(session, memory)
                units = 0 if kept is None else kept.begin(message.resume)
                driver = UnitDriver(session, agent.default_steps, agent.frame_size, threads=threads)
                current = message.session
                conn.send(Opened(current, units))
            case CloseSession() if message.session == current:
                driver, current = None, -1
            case UnitIn() if driver is not None and message.session == current:
                t_start = time.monotonic()
                try:
                    out = driver.step(message.unit, message.t_in)
                except Exception as error:
                    log.exception("a step failed in the model process")
                    conn.send(SessionLost(current, type(error).__name__, str(error)))
                    driver, current = None, -1
                    continue
                conn.send(UnitOut(current, message.index, message.t_in, t_start, time.monotonic(), out))
                if kept is not None:
                    kept.keep()
                if (message.index + 1) % STATS_EVERY_UNITS == 0:
                    conn.send(Stats(current, driver.summary()))


def _kept(session: Session, memory: str) -> "KeptSession | None":
    """`session` and where its state is kept; None for sessions of other agents, which have none."""
    if "torch" not in sys.modules:
        return None
    from wan_streamer.runtime.keeper import KeptSession
    from wan_streamer.runtime.session import Session as OwnSession

    return KeptSession(session, memory) if isinstance(session, OwnSession) else None

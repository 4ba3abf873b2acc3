"""When each stage of each unit ran: a file for ui.perfetto.dev (Trace Event Format, complete events).

`Span`   a stage, from when to when;   `Trace`  collects them and writes the file
`traced`   one for the model process of a server, if `serve --trace` asks for it
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from wan_streamer.files import write_bytes

ENVIRONMENT = "WAN_STREAMER_TRACE"  # what `serve --trace` sets, for the model process
MOST = 200_000  # spans that are kept, about an hour; older ones are dropped


class Span(NamedTuple):
    """Seconds of `time.monotonic()`. pid: the process in which it ran, if not the one that notes it"""

    name: str
    start_s: float
    end_s: float
    pid: int | None = None


class Trace:
    """Spans of the units of a session. A unit has its number, so that its wait, stages and links are found together."""

    def __init__(self, session: str = "") -> None:
        self._session = session
        self._events: deque[dict[str, Any]] = deque(maxlen=MOST)

    def session(self, name: str) -> "Trace":
        """For another session, whose spans are drawn on lines of its own in the same file."""
        other = Trace(f", {name}")
        other._events = self._events
        return other

    def add(self, unit: int, track: str, spans: Iterable[Span]) -> None:
        """track  the line on which they are drawn; those of a line do not cross each other"""
        for span in spans:
            self._events.append(
                {
                    "name": span.name,
                    "ph": "X",
                    "ts": round(span.start_s * 1e6),
                    "dur": round((span.end_s - span.start_s) * 1e6),
                    "pid": span.pid or os.getpid(),
                    "tid": track + self._session,
                    "args": {"unit": unit},
                }
            )

    def write(self, path: Path) -> None:
        """Raises `OutputError` if the file cannot be written."""
        events = sorted(self._events, key=lambda event: (event["ts"], -event["dur"]))
        write_bytes(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())


@contextmanager
def traced() -> Iterator[Trace | None]:
    """A trace that is written at the end, if the environment asks for one; a process without units writes nothing."""
    path = os.environ.get(ENVIRONMENT)
    trace = Trace() if path else None
    try:
        yield trace
    finally:
        if trace is not None and path and trace._events:
            trace.write(Path(path))

"""When each stage of each unit ran: a file for ui.perfetto.dev (Trace Event Format, complete events).

`Span`   a stage, from when to when;   `Trace`  collects them and writes the file
"""

import json
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from wan_streamer.files import write_bytes

MOST = 200_000  # spans that are kept, about an hour; older ones are dropped


class Span(NamedTuple):
    """Seconds of `time.monotonic()`."""

    name: str
    start_s: float
    end_s: float


class Trace:
    """Spans of one process. A unit has its number, so that its wait, its stages and its links are found together."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=MOST)

    def add(self, unit: int, track: str, spans: Iterable[Span]) -> None:
        """track  the line on which they are drawn; those of a line do not cross each other"""
        for span in spans:
            self._events.append(
                {
                    "name": span.name,
                    "ph": "X",
                    "ts": round(span.start_s * 1e6),
                    "dur": round((span.end_s - span.start_s) * 1e6),
                    "pid": os.getpid(),
                    "tid": track,
                    "args": {"unit": unit},
                }
            )

    def write(self, path: Path) -> None:
        """Raises `OutputError` if the file cannot be written."""
        events = sorted(self._events, key=lambda event: (event["ts"], -event["dur"]))
        write_bytes(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())

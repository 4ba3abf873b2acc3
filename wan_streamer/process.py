"""Settings of a process. Called by the command line and the model's worker process.

`tune_process`   memory of a process that runs the model on a CPU
`log_as`         how this process, and those that it starts, write their logs
`log_as_parent`  the same in such a process
`masked`         a secret, in logs
"""

import ctypes
import hashlib
import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
LOG_FORMAT = "WAN_STREAMER_LOG_FORMAT"  # tells the model process
FRAMES_KEPT = 8  # of an exception, those next to where it was raised


def tune_process() -> None:
    """Keep freed memory inside the process.

    By default glibc hands every large tensor back to the kernel and asks for zeroed pages again: that was a fifth of
    all CPU time of a training step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in musl
        if mallopt:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(M_TOP_PAD, 64 << 20)


def hand_back() -> None:
    """Give free memory back to the kernel, in spite of `tune_process`: after something large was loaded."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in musl
        if trim:
            trim(0)


def log_as(form: str) -> None:
    """Write logs to standard error, a line each. form: "text", or "json" for one object a line."""
    os.environ[LOG_FORMAT] = form
    handler = logging.StreamHandler()
    handler.setFormatter(_Line(form))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)  # aioice's INFO has addresses
    logging.getLogger("wan_streamer").setLevel(logging.INFO)


def log_as_parent() -> None:
    """As the process that started this one called `log_as`, if it did."""
    if form := os.environ.get(LOG_FORMAT):
        log_as(form)


def masked(secret: str) -> str:
    """Enough to find the lines of one call, and good for nothing else."""
    return hashlib.sha256(secret.encode()).hexdigest()[:8]


class _Line(logging.Formatter):
    """Time (UTC), level, logger, event, and if there are: the `session` that the record has as an extra, the error.

    Of an exception the class and the places are told, and of a message its first line: the rest may quote a caller.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self._json = form == "json"

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        fields["event"] = next(iter(record.getMessage().splitlines()), "")
        if session := vars(record).get("session"):
            fields["session"] = session
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])[-FRAMES_KEPT:]
            places = (f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
            fields["error"], fields["at"] = record.exc_info[0].__name__, " < ".join(reversed(list(places)))
        if self._json:
            return json.dumps(fields)
        head = [fields.pop(name) for name in ("time", "level", "logger", "event")]
        return " ".join([*head, *(f"{name}={value}" for name, value in fields.items())])

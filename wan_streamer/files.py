"""Files that appear whole or not at all, and JSON from files that may hold anything."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from wan_streamer.errors import OutputError

DIGITS = 20  # of the longest integer that is read: more than 64 bits hold


def parse_json(data: str | bytes) -> Any:
    """The value of JSON text in UTF-8, a byte order mark allowed.

    Raises `ValueError` for whatever else it is: also for lists in lists without end, integers that nothing can hold
    and halves of surrogate pairs, which no file could be written with.
    """
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\u" in text or not text.isascii():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write `value` as JSON, as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it; makes the folders above it.

    Raises `OutputError` with path and cause; what was there before is untouched.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error

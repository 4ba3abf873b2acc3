"""Files that appear whole or not at all, and JSON from files that may hold anything."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
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
    try:
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another path to write to, which takes the place of `path` when all went well and is removed when not.

    Makes the folders above it. The name is of this process alone; the mode is what the umask leaves, also where a
    library makes the file by itself and narrower. Raises `OSError`; what was there before is untouched.
    """
    part = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def remove_halves(folder: Path) -> None:
    """Remove what processes of this machine that were killed have left half written in `folder`."""
    for part in folder.glob(f".*.{platform.node()}-*.part"):
        with contextlib.suppress(OSError, ValueError):
            if not _lives(int(part.suffixes[-2].rpartition("-")[2])):
                part.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True

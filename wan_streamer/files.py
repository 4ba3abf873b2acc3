"""Files that appear whole or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from wan_streamer.errors import OutputError


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

"""What aiortc keeps to itself."""

from typing import Any

from wan_streamer.errors import ServingError


def private(owner: Any, name: str) -> Any:
    """An attribute of an object of aiortc. Raises `ServingError` where there is none."""
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise ServingError(f"aiortc 1.16 is needed: this version has no {name}; install aiortc==1.16.*") from error

"""An open duplex audio-visual agent: one causal Transformer that listens, watches, speaks and shows a face, live.

`WanStreamer`            a loaded agent: `from_pretrained`, `session`
`UserUnit`, `AgentUnit`  160 ms of the user, 160 ms of the agent
`read_units`             any film or sound file -> `UserUnit`s
`Microphone`             arrays of sound, any length and rate -> `UserUnit`s
`ReplyWriter`            both sides -> a film
`WanStreamerError`       base of every error that a user can cause and fix

Names are loaded when they are first used, so that `wan-streamer --help` does not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_streamer.data.film import ReplyWriter
    from wan_streamer.data.media import read_units
    from wan_streamer.data.sound import Microphone
    from wan_streamer.errors import WanStreamerError
    from wan_streamer.runtime.agent import WanStreamer
    from wan_streamer.units import AgentUnit, UserUnit

__version__ = "0.1.0"
__all__ = [
    "AgentUnit",
    "Microphone",
    "ReplyWriter",
    "UserUnit",
    "WanStreamer",
    "WanStreamerError",
    "__version__",
    "read_units",
]

_HOMES = {
    "AgentUnit": "wan_streamer.units",
    "Microphone": "wan_streamer.data.sound",
    "ReplyWriter": "wan_streamer.data.film",
    "UserUnit": "wan_streamer.units",
    "WanStreamer": "wan_streamer.runtime.agent",
    "WanStreamerError": "wan_streamer.errors",
    "read_units": "wan_streamer.data.media",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""An open duplex audio-visual agent: one causal Transformer that listens, watches, speaks and shows a face, live.

`WanStreamer`, `WanStreamerError`   a loaded agent; base of every error that a user can cause and fix
`UserUnit`, `AgentUnit`             160 ms of the user, 160 ms of the agent
`read_units`, `Microphone`          files, and arrays of sound of any length, -> `UserUnit`s
`ReplyWriter`                       both sides -> a film

Names are loaded when first used: `wan-streamer --help` does not wait for PyTorch.
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

"""An open duplex audio-visual agent: one causal Transformer that listens, watches, speaks and shows a face, live.

`WanStreamer`            a loaded agent: `from_pretrained`, `session`
`UserUnit`, `AgentUnit`  160 ms of the user, 160 ms of the agent
`WanStreamerError`       base of every error that a user can cause and fix

Names are loaded when they are first used, so that `wan-streamer --help` does not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_streamer.errors import WanStreamerError
    from wan_streamer.runtime.agent import WanStreamer
    from wan_streamer.units import AgentUnit, UserUnit

__version__ = "0.1.0"
__all__ = ["AgentUnit", "UserUnit", "WanStreamer", "WanStreamerError", "__version__"]

_HOMES = {
    "AgentUnit": "wan_streamer.units",
    "UserUnit": "wan_streamer.units",
    "WanStreamer": "wan_streamer.runtime.agent",
    "WanStreamerError": "wan_streamer.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

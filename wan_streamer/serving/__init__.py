"""The live call: page, WebRTC media, and the process that runs the model."""

from wan_streamer.serving.server import serve
from wan_streamer.serving.settings import ServingConfig

__all__ = ["ServingConfig", "serve"]

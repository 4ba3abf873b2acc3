"""The live call: page, WebRTC media, units cut on the server's clock, playout.
In: a visitor's microphone, camera and typed text
Out: the agent's sound, picture and captions"""

from wan_streamer.serving.server import serve
from wan_streamer.serving.settings import ServingConfig

__all__ = ["ServingConfig", "serve"]

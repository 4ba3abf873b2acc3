"""A call with a served agent from Python, and the agent in other frameworks: Pipecat, LiveKit.
In: the address of a server, and units, a film, or frames as they come, as microphone and camera
Out: the agent's events, sound and pictures"""

from wan_streamer.client.live import LiveClient
from wan_streamer.client.socket import LiveSocket

__all__ = ["LiveClient", "LiveSocket"]

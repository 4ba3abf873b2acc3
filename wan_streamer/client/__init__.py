"""A call with a served agent from Python.
In: the address of a server, and units or a film as microphone and camera
Out: the agent's events, sound and pictures"""

from wan_streamer.client.live import LiveClient

__all__ = ["LiveClient"]

"""A small world with exact truth: voices, faces and conversations that train and test the agent.

`simulate`         shards of conversations
`make_codec_data`  media for training the codecs

Needs `pip install 'wan-streamer[simulate]'`; nothing of it is imported at run time.
"""

from wan_streamer.simulation.codec_data import make_codec_data
from wan_streamer.simulation.generate import simulate

__all__ = ["make_codec_data", "simulate"]

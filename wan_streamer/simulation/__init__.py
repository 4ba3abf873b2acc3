"""A small world with exact truth: voices, faces and conversations. Needs `pip install 'wan-streamer[simulate]'`.
In: a seed, and optionally recorded voices
Out: shards of conversations or tasks (`simulate`), media for the codecs (`make_codec_data`)"""

from wan_streamer.simulation.codec_data import make_codec_data
from wan_streamer.simulation.generate import simulate

__all__ = ["make_codec_data", "simulate"]

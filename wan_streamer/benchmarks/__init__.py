"""How fast codecs, training steps and live units are on this machine, beside peers on the same input and in turns.
In: a checkpoint or presets
Out: a report of times, which `wan-streamer bench` prints and writes"""

"""How fast codecs and training steps are on this machine, beside peers on the same input and in turns.
In: a checkpoint or presets
Out: a report of times, which `wan-streamer bench` prints and writes"""

"""Synthetic voices: espeak-ng, Piper, Kokoro.
In: text, a voice, a seed
Out: `Speech`: samples at 24 kHz with the exact time of every word and phoneme"""

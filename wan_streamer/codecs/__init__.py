"""Causal codecs with explicit state, for sound, pictures and text.
In: samples at 24 kHz, frames at 25 fps, text
Out: latents and tokens, and back"""

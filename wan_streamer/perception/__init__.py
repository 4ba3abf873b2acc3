"""Causal encoders of the user's sound and pictures, with explicit state.
In: samples at 24 kHz, frames at 25 fps
Out: features: four tokens of sound and four frames in a unit"""

"""Sounds that are not speech, and what room, microphone and call do to a voice.
In: random numbers, or clean samples at 24 kHz
Out: samples at 24 kHz"""

"""Sounds of speech: what the agent says in each tick (40 ms), and in each quarter of it.

`sounds_of`   labels of phonemes -> sounds;   `no_sounds`  where they are not known
"""

import math

import numpy as np
import torch
from torch import Tensor

from wan_streamer.units import TICKS_PER_UNIT, UNIT_S

SOUNDS_PER_TICK = 4
SOUNDS_PER_UNIT = TICKS_PER_UNIT * SOUNDS_PER_TICK
MIDDLE = 1  # that of the parts of a tick which always has the sound of the tick

SYMBOLS = "iɪyᵻuʊeɛoɔaɑɒæʌɐəɜɚøpbtdkɡɾʔfvθðszʃʒʲxhmnŋlɹrjw"
"""The letters of IPA that are told apart; of a symbol of several the first counts, and any other is one more."""
QUIET, OTHER = 0, len(SYMBOLS) + 1
SOUNDS = OTHER + 1  # how many there are
UNKNOWN = -1


def sounds_of(labels: dict, parts_per_unit: int = SOUNDS_PER_UNIT) -> np.ndarray:
    """int64 [units, parts_per_unit]: what is heard in the middle of every part; `UNKNOWN` where nothing is labelled.

    A short one that no middle lies in takes the part that it lies in, if the other sound of that part has more.
    """
    parts, phonemes = labels["units"] * parts_per_unit, labels.get("phonemes", {}).get("agent")
    if not phonemes:
        return np.full(parts, UNKNOWN).reshape(-1, parts_per_unit)
    sounds, owner = np.full(parts, QUIET), np.full(parts, -1)  # of a part: the number of its phoneme
    spans = [[p["start"] / UNIT_S * parts_per_unit, p["end"] / UNIT_S * parts_per_unit] for p in phonemes]
    for number, (start, end) in enumerate(spans):
        owner[max(0, math.ceil(start - 0.5)) : max(0, math.ceil(end - 0.5))] = number
    for number, (start, end) in enumerate(spans):
        part = int((start + end) / 2)
        if number not in owner[max(0, part - 1) : part + 2] and part < parts and np.sum(owner == owner[part]) > 1:
            owner[part] = number
    for number, phoneme in enumerate(phonemes):
        place = SYMBOLS.find(phoneme["symbol"][:1]) if phoneme["symbol"] else -1
        sounds[owner == number] = place + 1 if place >= 0 else OTHER
    return sounds.reshape(-1, parts_per_unit)


def no_sounds(clips: int, units: int) -> Tensor:
    """int64 [clips, units, 16]"""
    return torch.full((clips, units, SOUNDS_PER_UNIT), UNKNOWN)

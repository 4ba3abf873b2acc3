"""Labels of phonemes -> which sound of speech the agent makes in every tick.

`sounds_of`   of a labelled conversation
`no_sounds`   where it is not known
"""

import math

import numpy as np
import torch
from torch import Tensor

from wan_streamer.units import TICKS_PER_UNIT, UNIT_S

SYMBOLS = "iɪyᵻuʊeɛoɔaɑɒæʌɐəɜɚøpbtdkɡɾʔfvθðszʃʒʲxhmnŋlɹrjw"
"""The letters of IPA that are told apart; of a symbol of several the first counts, and any other is one more."""
QUIET, OTHER = 0, len(SYMBOLS) + 1
SOUNDS = OTHER + 1  # how many there are
UNKNOWN = -1


def sounds_of(labels: dict) -> np.ndarray:
    """int64 [units, ticks]: what is heard in the middle of every tick; `UNKNOWN` where no phonemes are labelled."""
    ticks, phonemes = labels["units"] * TICKS_PER_UNIT, labels.get("phonemes", {}).get("agent")
    if not phonemes:
        return np.full(ticks, UNKNOWN).reshape(-1, TICKS_PER_UNIT)
    sounds = np.full(ticks, QUIET)
    for phoneme in phonemes:
        first, behind = (math.ceil(phoneme[edge] / UNIT_S * TICKS_PER_UNIT - 0.5) for edge in ("start", "end"))
        place = SYMBOLS.find(phoneme["symbol"][:1]) if phoneme["symbol"] else -1
        sounds[max(0, first) : max(0, behind)] = place + 1 if place >= 0 else OTHER
    return sounds.reshape(-1, TICKS_PER_UNIT)


def no_sounds(clips: int, units: int) -> Tensor:
    """int64 [clips, units, ticks]"""
    return torch.full((clips, units, TICKS_PER_UNIT), UNKNOWN)

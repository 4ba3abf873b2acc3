"""Sounds of speech: which the agent makes, chosen after its words and before its voice is drawn.

`sounds_of`   labels of phonemes -> one sound for each tick;   `no_sounds`  where they are not known
`Sounds`      what a model has to choose them and to be told them
`preceding`   the sound before each tick of a clip

Words tell what is said, the sounds when: one for each tick (40 ms), chosen from what the last word's token has read and
from the sound before. Where the voice is drawn they are told, and they stay in the history; so the agent always knows
where in a word it is, however blurred its voice is. They take no tokens and no pass of their own. (Text before semantic
tokens before acoustic ones, as in Moshi, Défossez et al. 2024, section 3.4.)
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.units import TICKS_PER_UNIT, UNIT_S

SYMBOLS = "iɪyᵻuʊeɛoɔaɑɒæʌɐəɜɚøpbtdkɡɾʔfvθðszʃʒʲxhmnŋlɹrjw"
"""The letters of IPA that are told apart; of a symbol of several the first counts, and any other is one more."""
QUIET, OTHER = 0, len(SYMBOLS) + 1
SOUNDS = OTHER + 1  # how many there are
UNKNOWN = -1
TOLD = 0.5  # what is told, before training, beside noise of 1: a tenth of it was not listened to for 300 steps


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


class Sounds(nn.Module):
    """count  sounds that are told apart;   width, media  of hidden states of words, and of tokens of sound"""

    def __init__(self, count: int, width: int, media: int) -> None:
        super().__init__()
        self.before = nn.Embedding(count, width)
        self.tick = nn.Parameter(torch.randn(TICKS_PER_UNIT, width) * 0.1)
        self.inner = nn.Linear(width, width)
        self.out = nn.Linear(width, count)
        self.told = nn.Embedding(count, media)

    def reset(self) -> None:
        """Weights to begin with, where those of a whole model are set."""
        nn.init.normal_(self.told.weight, std=TOLD)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Logits [..., 4, S] of the ticks of units, from hidden states [..., D] and the sound before each [..., 4]."""
        return self._of(hidden[..., None, :] + self.tick, before)

    def _of(self, asked: Tensor, before: Tensor) -> Tensor:
        return self.out(F.gelu(self.inner(asked + self.before(before)))).float()

    def choose(self, hidden_D: Tensor, last: Tensor | None) -> Tensor:
        """The likeliest sounds [4] of a unit, one after the other; `last` those of the unit before."""
        before = torch.tensor(QUIET, device=hidden_D.device) if last is None else last[-1].clamp(min=QUIET)
        chosen = []
        for tick in self.tick:
            before = self._of(hidden_D + tick, before).argmax(-1)
            chosen.append(before)
        return torch.stack(chosen)

    def tell(self, sounds: Tensor) -> Tensor:
        """What sounds [..., 4] add to tokens of sound [..., 4, D]; nothing where they are not known."""
        return self.told(sounds.clamp(min=QUIET)) * (sounds >= QUIET)[..., None]


def preceding(sound_BKT: Tensor) -> Tensor:
    """The sound before each tick of units 0 to K - 1, of the sounds [B, K + 1, 4] of a clip."""
    before = torch.cat([sound_BKT[:, :-1, -1:], sound_BKT[:, 1:, :-1]], dim=2)
    return before.clamp(min=QUIET)

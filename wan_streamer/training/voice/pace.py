"""How long the agent's voice takes for each token: what letters and marks do not tell (`speaking/pace.py`).

`longer`  from words and their times
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from wan_streamer.codecs.text import TextCodec
from wan_streamer.speaking.pace import seconds_of

RARE = 8  # so many times a token has to be said until half of what it seems to take is believed
PASSES = 12
PAUSE = 1.5  # seconds between the begins of two words; who waits longer does not say the first one


def longer(labels: Sequence[dict], text: TextCodec) -> Tensor:
    """float [vocabulary]: seconds that tokens take longer than `seconds_of` finds. Damped backfitting."""
    tokens, known = [], []
    for conversation in labels:
        words = conversation["words"]["agent"]
        for said in (e for e in conversation["events"] if e["side"] == "agent" and e["type"] == "speech"):
            inside = [w for w in words if said["start"] - 0.05 <= w["start"] < said["end"]]
            for word, following in pairwise(inside):
                seconds = following["start"] - word["start"]
                if seconds < PAUSE:
                    tokens.append(text.encode(word["text"]))
                    known.append(seconds)
    vocabulary = text.tokenizer.get_vocab_size()
    foreseen_V = np.array([seconds_of(text.tokenizer.id_to_token(token) or "") for token in range(vocabulary)])
    token_F, longer_V = np.array([t for word in tokens for t in word], int), np.zeros(vocabulary)
    count_W = np.array([len(word) for word in tokens], int)
    word_F = np.repeat(np.arange(len(tokens)), count_W)
    often_V = np.bincount(token_F, minlength=vocabulary)
    for _ in range(PASSES):
        taken_F = (foreseen_V + longer_V)[token_F]
        left_W = (np.array(known) - np.bincount(word_F, taken_F, len(tokens))) / np.maximum(count_W, 1)
        longer_V += np.bincount(token_F, left_W[word_F], vocabulary) / (often_V + RARE)
    return torch.from_numpy(longer_V).float()

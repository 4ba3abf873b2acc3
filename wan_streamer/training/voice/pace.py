"""How long the agent's voice takes for each token: what letters and marks do not tell (`speaking/pace.py`).

`times`   the agent's words and how long each takes
`longer`  what its tokens take, from these
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from wan_streamer.codecs.text import TextCodec
from wan_streamer.speaking.pace import seconds_of

RARE = 8  # so many times a token has to be said until half of what it seems to take is believed
PASSES = 12
PAUSE = 1.5  # seconds between the begins of two words; who waits longer does not say the first one


def times(labels: dict) -> Iterator[tuple[str, float]]:
    """Words of a conversation, and the seconds until the next of the same utterance begins."""
    words = labels["words"]["agent"]
    for said in (e for e in labels["events"] if e["side"] == "agent" and e["type"] == "speech"):
        inside = [w for w in words if said["start"] - 0.05 <= w["start"] < said["end"]]
        for word, following in pairwise(inside):
            yield word["text"], following["start"] - word["start"]


def longer(labels: Sequence[dict], text: TextCodec) -> Tensor:
    """float [vocabulary]: seconds that tokens take longer than `seconds_of` finds. Damped backfitting."""
    tokens, known = [], []
    for conversation in labels:
        for word, seconds in times(conversation):
            if seconds < PAUSE:
                tokens.append(text.encode(word))
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

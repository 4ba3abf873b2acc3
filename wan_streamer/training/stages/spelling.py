"""What a token sounds like is in its letters: a correction of the embedding that is computed from them.

`add_spelling`   give a model the correction; it begins as nothing
`Spelling`       the correction

A word that was seen a few times in training has a vector that knows little of how it is said, while the letters of all
words together were seen thousands of times (character-aware embeddings, Kim et al. 2016). The embedding that a
checkpoint keeps has the correction in it (`merged`): live, nothing of this is there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wan_streamer.codecs.text import CONTROL, SPACE, TextCodec
from wan_streamer.model.streamer import Streamer

LONGEST = 12  # letters of a token that are read
BLANK = "\u0120"  # in the pieces of a byte-level BPE
ALPHABET = SPACE + "abcdefghijklmnopqrstuvwxyz'0123456789"  # anything else is one more letter
WIDTH, KERNEL, HIDDEN = 32, 3, 256


class Spelling(nn.Module):
    """weight [V, D] -> weight + what the letters of the V tokens add; zero at first."""

    letter_VL: Tensor

    def __init__(self, text: TextCodec, dim: int, size: int) -> None:
        super().__init__()
        self.register_buffer("letter_VL", letters(text, size), persistent=False)
        self.letter = nn.Embedding(len(ALPHABET) + 2, WIDTH, padding_idx=0)  # nothing, those, any other
        self.place = nn.Parameter(torch.randn(LONGEST, WIDTH) * 0.1)
        self.pieces = nn.Conv1d(WIDTH, HIDDEN, KERNEL, padding=KERNEL // 2)
        self.out = nn.Linear(HIDDEN, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, weight: Tensor) -> Tensor:
        there_VL1 = (self.letter_VL > 0)[..., None]
        x_VLW = (self.letter(self.letter_VL.long()) + self.place) * there_VL1
        x_VLH = F.gelu(self.pieces(x_VLW.mT).mT) * there_VL1
        return weight + self.out(x_VLH.amax(1)) * there_VL1.any(1)


def letters(text: TextCodec, size: int) -> Tensor:
    """The letters of `size` tokens, uint8 [V, LONGEST], 0 behind the last; none for tokens of control."""
    table = torch.zeros(size, LONGEST, dtype=torch.uint8)
    for piece, number in text.tokenizer.get_vocab().items():
        if number >= len(CONTROL):
            spelled = [
                ALPHABET.find(letter) % (len(ALPHABET) + 1) + 1
                for letter in piece.replace(BLANK, SPACE).lower()[:LONGEST]
            ]
            table[number, : len(spelled)] = torch.tensor(spelled, dtype=torch.uint8)
    return table


def add_spelling(streamer: Streamer, text: TextCodec) -> None:
    """Change `streamer` in place."""
    V, D = streamer.text_in.weight.shape
    parametrize.register_parametrization(streamer.text_in, "weight", Spelling(text, D, V).to(streamer.device))

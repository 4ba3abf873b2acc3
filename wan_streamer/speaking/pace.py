"""How long the agent's voice takes for words: as long as they are said, the next one of an answer waits.

Four numbers, fitted to the voice from which the agent has learned to speak (`scripts/pace_of_words.py`), and what that
voice knows of each token (`Voice.longer_V`).
"""

import torch
from torch import Tensor

from wan_streamer.codecs.text import END, SPACE, TextCodec
from wan_streamer.units import UNIT_S

WORD, LETTER, COMMA, STOP = 0.051, 0.049, 0.222, 0.234  # seconds: of a word, of each letter, of the pause behind marks
COMMAS, STOPS = (",", ";", ":"), (".", "?", "!")
BLANKS = (SPACE, "\u0120")  # in the pieces of recognisers and of language models


class Pace:
    """Of the words of a vocabulary.

    longer_V  float [vocabulary]: seconds that a voice takes more for each of its tokens than is foreseen here
    """

    def __init__(self, text: TextCodec, longer_V: Tensor | None = None) -> None:
        pieces = [text.tokenizer.id_to_token(token) or "" for token in range(text.tokenizer.get_vocab_size())]
        self.begins = [piece.startswith(BLANKS) for piece in pieces]
        self.seconds_V = torch.tensor([seconds_of(piece) for piece in pieces])
        if longer_V is not None:
            self.seconds_V = self.seconds_V + longer_V[: len(pieces)].float().cpu()

    def due(self, token: int, lane_T: Tensor, slots: int) -> bool:
        """Whether it is time for a token: what has begun a word is written to its end.

        lane_T  what the agent has written up to the slot that is asked for, `slots` a unit; of much the latest
        """
        if not self.begins[token]:
            return True
        ended = (lane_T == END).nonzero()
        lane_T = lane_T[int(ended[-1]) + 1 :] if len(ended) else lane_T
        words = (lane_T > END).nonzero()
        said_T = lane_T[int(words[0]) :] if len(words) else lane_T[:0]
        seconds = float(self.seconds_V[said_T[said_T > END].cpu()].sum())
        return len(said_T) * UNIT_S / slots >= seconds


def seconds_of(piece: str) -> float:
    """What a piece of a word adds."""
    letters = sum(letter.isalpha() for letter in piece)
    marks = COMMA * piece.endswith(COMMAS) + STOP * piece.endswith(STOPS)
    return WORD * piece.startswith(BLANKS) + LETTER * letters + marks

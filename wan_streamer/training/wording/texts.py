"""Conversations -> what a wording reads: who said which words, one after the other.

`Texts`            batches of conversations as they are planned, of talk about what is seen, of drills and quizzes
`response_places`  what the agent says in a text;   `turn_places`  whose turn it is there
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.codecs.text import END, TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.model.memory import PADDING, RESPONSE, SOURCES, TRANSCRIPT
from wan_streamer.simulation.conversation.facts import chatter, drill, quiz
from wan_streamer.simulation.conversation.free import free_texts
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.partners import written_conversation
from wan_streamer.training.examples.clips import told
from wan_streamer.training.examples.misheard import Heard

TOKENS, LONG_TOKENS = 224, 768  # of a text, and of one in which much was said in between
LONG_EVERY, FEWER = 4, 4  # so many steps are one of those, with so many times fewer rows
DRILLED, QUIZZED, SHOWN = 0.3, 0.2, 0.2  # shares of drills, of quizzes, and of talk of what is seen in the others
EXCHANGES, LONG_EXCHANGES = 16, 60  # of those
CHATTER = (12, 45)  # exchanges that lie in between
TYPED = 0.3  # share of conversations in which the user types
EARLIER, LATER = 2, 2  # units by which the user's words are read before and after they are written down, at most
MISREAD = 0.5  # share of conversations with words that are misheard
FROM_START = 0.4  # share of longer conversations that are read from their beginning
USERS = SOURCES.index("typed")


class Texts:
    """Of one split."""

    def __init__(self, split: str, config: StreamerConfig, text: TextCodec) -> None:
        self.split, self.config, self.text = split, config, text

    def batch(self, seed: int, step: int, rows: range, misread: float = MISREAD) -> Tensor:
        """Memory tokens [B, N, 2] of these rows of the batch of `step`, with padding behind."""
        long = step % LONG_EVERY == LONG_EVERY - 1
        said = [self._row(seed, step, row, long, misread) for row in rows if not (long and row % FEWER)]
        return nn.utils.rnn.pad_sequence(said, batch_first=True, padding_value=PADDING)

    def _row(self, seed: int, step: int, row: int, long: bool, misread: float) -> Tensor:
        rng = np.random.default_rng((seed, step, row))
        texts, most = free_texts(self.split), LONG_TOKENS if long else TOKENS
        heard = Heard.somehow(rng, misread)
        if rng.random() < DRILLED + QUIZZED:
            drilled = rng.random() * (DRILLED + QUIZZED) < DRILLED
            exchanges = LONG_EXCHANGES if long else EXCHANGES
            turns = drill(exchanges, texts, rng, MANY) if drilled else quiz(exchanges, rng, MANY)
            said_N2 = told(heard.turns(turns), self.text).numpy()
            if rng.random() < TYPED:
                said_N2[:, 0] = np.where(said_N2[:, 0] == TRANSCRIPT, USERS, said_N2[:, 0])
            said_N2[:, 1] = heard.tokens(said_N2[:, 0], said_N2[:, 1], self.config.text.vocab_size)
            return torch.from_numpy(said_N2[:most])
        labels = written_conversation(seed, self.split, (step << 16) + row, seen=bool(rng.random() < SHOWN))
        between = chatter(int(rng.integers(*CHATTER)), texts, rng) if long and labels["before"] else []
        before = told(heard.turns([*labels["before"], *between]), self.text).numpy()
        said_N2 = np.concatenate([before, self._said(labels, rng, heard)])
        first = 0 if rng.random() < FROM_START else int(rng.integers(max(1, len(said_N2) - most + 1)))
        return torch.from_numpy(said_N2[first : first + most])

    def _said(self, labels: dict, rng: np.random.Generator, heard: Heard) -> np.ndarray:
        """Words [N, 2] in the order in which they are known."""
        typed, lanes = conversation_lanes(heard.labels(labels), self.config.text, self.text)
        said_KSX = np.concatenate([lanes, typed[..., None]], axis=2)
        unit_N, slot_N, source_N = np.nonzero(said_KSX >= END)
        token_N, slots = said_KSX[unit_N, slot_N, source_N], said_KSX.shape[1]
        place_N, heard_N = unit_N * slots + slot_N, source_N == TRANSCRIPT
        if rng.random() < TYPED:
            place_N, source_N = _sent(place_N, token_N, heard_N), np.where(heard_N, USERS, source_N)
        else:
            place_N = place_N + heard_N * slots * int(rng.integers(-EARLIER, LATER))
        order_N = np.argsort(2 * place_N + heard_N, kind="stable")
        source_N, token_N = source_N[order_N], token_N[order_N]
        return np.stack([source_N, heard.tokens(source_N, token_N, self.config.text.vocab_size)], axis=1)


def _sent(place_N: np.ndarray, token_N: np.ndarray, heard_N: np.ndarray) -> np.ndarray:
    """Places of words that arrive with the end of what they belong to, as what is typed does."""
    ends = np.nonzero(heard_N & (token_N == END))[0]
    place_N = place_N.copy()
    for number in np.nonzero(heard_N)[0]:
        later = ends[ends >= number]
        place_N[number] = place_N[later[0]] if len(later) else place_N[number]
    return place_N


def response_places(said_BN2: Tensor) -> tuple[Tensor, Tensor]:
    """Where the agent says a word, and where one of the first two of an utterance or behind a word of the user's: bool
    [B, N] each.
    """
    own_BN = said_BN2[..., 0] == RESPONSE
    before_BN = F.pad(own_BN & (said_BN2[..., 1] != END), (1, 0))[:, :-1]
    first_BN = own_BN & ~before_BN
    return own_BN, first_BN | (own_BN & F.pad(first_BN, (1, 0))[:, :-1])


def turn_places(said_BN2: Tensor) -> tuple[Tensor, Tensor]:
    """Which words but the last are the user's while the agent says nothing, and which are followed by the agent's: bool
    [B, N - 1] each.
    """
    own_BN, there_BN = said_BN2[..., 0] == RESPONSE, said_BN2[..., 0] != PADDING
    place_N = torch.arange(said_BN2.shape[1], device=said_BN2.device)
    spoke_BN = torch.where(own_BN, place_N, -1).cummax(1).values
    ended_BN = torch.where(own_BN & (said_BN2[..., 1] == END), place_N, -1).cummax(1).values
    after_BN = there_BN & ~own_BN & (spoke_BN == ended_BN)
    return after_BN[:, :-1] & there_BN[:, 1:], own_BN[:, 1:]

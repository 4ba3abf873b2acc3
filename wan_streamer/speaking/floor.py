"""Whose turn it is: a small recurrent network follows what is heard, seen and written, and tells what comes next.

`Floor`    what happened up to a unit -> `Odds` of what the agent writes in it
`Odds`     of nothing, an end, words, or the words of a listener, in every slot
`settled`  the logits of a slot, as the agent and its floor together find likely;   `leaning`  to what, in a call

Whether someone stops to think or is done, breaks in or listens on, is told by a few numbers of what is heard and by
when what was said. A small network learns that from conversations in minutes, the Transformer among a thousand other
things. Of what is said it knows the words as they come by and what the wording makes of them, which has read many more.
(Turns foretold, frame by frame, by a recurrent network: Skantze 2017, section 3.)
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.codecs.text import END, SILENCE
from wan_streamer.config import FloorConfig

NOTHING, STOP, WORDS, BRIEF = range(4)  # what a slot holds; the last is what a listener says, such as "mm-hm"
KINDS, BEFORE = 4, 3  # of slots; of the slot before, in which all words are alike
UNLIKELY = -15.0  # logarithm of a probability that is not passed


class Odds(NamedTuple):
    """kind_SBK  logits [..., slots, `BEFORE`, `KINDS`], after each kind of the slot before

    brief  [V], log p of the word with which a listener begins
    """

    kind_SBK: Tensor
    brief: Tensor

    def of(self, slot: int, before: Tensor) -> Tensor:
        """log p [..., `KINDS`] of what a slot holds after the token [...] before it."""
        logits = self.kind_SBK[..., slot, :, :]
        index = kind_of(before)[..., None, None].expand(*before.shape, 1, KINDS)
        return logits.gather(-2, index)[..., 0, :].log_softmax(-1)


class Floor(nn.Module):
    """config;   heard, seen  tokens and features of a unit;   vocabulary, slots, lanes  of what is written

    told  numbers in which a wording tells what it makes of the words
    """

    def __init__(
        self,
        config: FloorConfig,
        heard: tuple[int, int],
        seen: tuple[int, int],
        vocabulary: int,
        slots: int,
        lanes: int,
        told: int = 0,
    ) -> None:
        super().__init__()
        D, token_dim = config.dim, config.token_dim
        self.config, self.slots, self.lanes, self.heard, self.seen = config, slots, lanes, heard, seen
        self.ear, self.eye = nn.Linear(heard[1], token_dim), nn.Linear(seen[1], config.seen_dim)
        self.words = nn.Embedding(vocabulary, token_dim)
        self.told = nn.Linear(told, config.told_dim) if config.told_dim else None
        written = slots * lanes * (token_dim + BEFORE + 1) + config.told_dim
        self.enter = nn.Linear(heard[0] * token_dim + seen[0] * config.seen_dim + written + 3, D)
        self.past = nn.GRU(D, D, config.layers, batch_first=True)
        self.inner, self.out = nn.Linear(2 * D, D), nn.Linear(D, slots * BEFORE * KINDS)
        self.brief = nn.Parameter(torch.zeros(vocabulary))
        self.requires_grad_(False)

    def reset(self) -> None:
        """Weights to begin with, where those of a whole model are set."""
        nn.init.normal_(self.words.weight, std=0.3)

    def begin(self, rows: int = 1) -> Tensor:
        """What is known before the first unit [layers, rows, D]."""
        return self.brief.new_zeros(self.config.layers, rows, self.config.dim, dtype=torch.float32)

    def forward(
        self,
        heard: Tensor | None,
        microphone_BK: Tensor,
        seen: Tensor | None,
        camera_BK: Tensor,
        typed_BK: Tensor,
        before_BKSL: Tensor,
        past_ZBD: Tensor,
        drop: float = 0.0,
        told_BKD: Tensor | None = None,
    ) -> tuple[Odds, Tensor]:
        """Odds of what is written in K units, and what is known after them.

        heard, seen  [B, K, tokens, features], None where nobody hears or sees;   typed_BK  whether the user types
        before_BKSL  tokens of the unit before each;   drop  share of the numbers that are left out, in training
        told_BKD     what the wording makes of the words before each unit
        """
        with torch.autocast(self.brief.device.type, enabled=False):
            parts = [
                self._sensed(heard, microphone_BK, self.ear, self.heard[0]),
                self._sensed(seen, camera_BK, self.eye, self.seen[0]),
                self.words(before_BKSL).flatten(2),
            ]
            if self.told is not None:
                assert told_BKD is not None
                parts.append(self.told(told_BKD.float()))
            known_BK3 = torch.stack([microphone_BK & (heard is not None), camera_BK & (seen is not None), typed_BK], -1)
            token = F.one_hot(before_BKSL.clamp(max=END + 1), BEFORE + 1).flatten(2)
            x_BKD = torch.cat([*(F.dropout(part, drop) for part in parts), token, known_BK3], dim=-1)
            x_BKD = F.silu(self.enter(x_BKD))
            past_BKD, past_ZBD = self.past(F.dropout(x_BKD, drop), past_ZBD)
            x_BKD = F.silu(self.inner(torch.cat([x_BKD, past_BKD], dim=-1)))
            kinds = self.out(F.dropout(x_BKD, drop)).unflatten(-1, (self.slots, BEFORE, KINDS))
            return Odds(kinds, F.pad(self.brief[END + 1 :].log_softmax(-1), (END + 1, 0))), past_ZBD

    def _sensed(self, x: Tensor | None, there_BK: Tensor, project: nn.Linear, tokens: int) -> Tensor:
        if x is None:
            return there_BK.new_zeros(*there_BK.shape, tokens * project.out_features, dtype=torch.float32)
        return project(x.float()).flatten(2) * there_BK[..., None]


def kind_of(token: Tensor) -> Tensor:
    """`NOTHING`, `STOP` or `WORDS` [...] of a token [...]."""
    return (token == END) * STOP + (token > END) * WORDS


def talking(token: Tensor) -> Tensor:
    """Whether something is being said after a token [...] of a lane: all but a silence and an end."""
    return (token != SILENCE) & (token != END)


def leaning(kind: Tensor, before: Tensor, config: FloorConfig) -> Tensor:
    """log p [..., `KINDS`] -> log p: what is likely some time soon is in no slot as likely as that nothing changes.

    Who speaks on over someone, or keeps silent where people say "mm-hm", errs more than who does either a moment early.
    """
    stop, listen = F.one_hot(torch.tensor([STOP, BRIEF], device=kind.device), KINDS).to(kind.dtype)
    return (kind + torch.where(talking(before)[..., None], config.stop * stop, config.listen * listen)).log_softmax(-1)


def settled(logits: Tensor, odds: Odds, slot: int, before: Tensor, config: FloorConfig, live: bool = False) -> Tensor:
    """Logits [..., V] of a slot -> logits [..., V], as the agent and its floor together find likely.

    before  tokens [...] of the slot before. How likely words, an end and nothing are is `config.weight` parts what the
    floor tells, the rest what the agent does (logarithms are averaged). Which word it is, the agent knows; but where
    the floor expects one of a listener, in a silence, it is one with which a listener begins.
    live    somebody hears what is decided: see `leaning`
    """
    kind = odds.of(slot, before)
    kind = (leaning(kind, before, config) if live else kind).clamp(min=UNLIKELY)
    nothing, end, words = logits[..., :END], logits[..., END], logits[..., END + 1 :].log_softmax(-1)
    listens = (kind[..., BRIEF] - kind[..., WORDS])[..., None]
    listener = torch.logaddexp(words + F.logsigmoid(-listens), odds.brief[END + 1 :] + F.logsigmoid(listens))
    words = torch.where(talking(before)[..., None], words, listener)
    own = torch.stack([nothing.logsumexp(-1), end, logits[..., END + 1 :].logsumexp(-1)], dim=-1).log_softmax(-1)
    told = torch.stack([kind[..., NOTHING], kind[..., STOP], kind[..., WORDS:].logsumexp(-1)], dim=-1)
    both = own + config.weight * (told - own)
    return torch.cat([nothing.log_softmax(-1) + both[..., :1], both[..., 1:2], words + both[..., 2:]], dim=-1)

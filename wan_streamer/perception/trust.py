"""How much a reader counts in what the agent writes down.

`Trust`        in which word is written, and whether one is
`as_expected`  as long as what it expects comes true

Two models that know different things of the next word are one with the product of their probabilities (shallow fusion,
Gulcehre et al. 2015, section 4.1), here with a weight that the agent finds in what it reads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import END
from wan_streamer.perception.reading import CERTAIN, Expected

TRUST = 0.7  # before training: the best one for all words on test voices, of an agent that had not learned with it


class Trust(nn.Module):
    """What is written, as the agent and the reader together find likely.

    width  of a hidden state;   due  weight of the reader in whether a word is written; 0: the agent alone decides
    """

    def __init__(self, width: int, due: float = 0.0) -> None:
        super().__init__()
        self.weight, self.due = nn.Linear(width, 1), due

    def reset(self) -> None:
        nn.init.zeros_(self.weight.weight)
        nn.init.constant_(self.weight.bias, TRUST)

    def forward(self, logits: Tensor, hidden: Tensor, score: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], and the reader's scores [..., V] -> logits [..., V].

        Those of the tokens of control stay as they are.
        """
        control, word = logits[..., : END + 1], logits[..., END + 1 :]
        both = word + self.weight(hidden).float() * score[..., END + 1 :]
        both = both + word.logsumexp(-1, keepdim=True) - both.logsumexp(-1, keepdim=True)
        if self.due:
            none = score[..., END, None]
            both = both + self.due * torch.where(none < 0, torch.log1p(-none.clamp(max=CERTAIN).exp()) - none, 0)
        return torch.cat([control, both], dim=-1)


def as_expected(expected: Expected, written_KS: Tensor) -> Tensor:
    """Scores [..., S, V] of the slots in which `written_KS` [..., S] is written: 0 after another word than expected."""
    S = written_KS.shape[-1]
    alike = (written_KS == expected.token[..., :S])[..., :-1].long().cumprod(-1)
    return expected.score[..., :S, :] * F.pad(alike, (1, 0), value=1)[..., None]

"""Which sounds of speech the agent makes, chosen after its words and before its voice is drawn.

Words tell what is said, the sounds when: one for each tick (40 ms), chosen from what the last word's token has read and
from the sound before. Where the voice is drawn they are told, and they stay in the history; so the agent always knows
where in a word it is, however blurred its voice is. They take no tokens and no pass of their own. (Text before semantic
tokens before acoustic ones, as in Moshi, Défossez et al. 2024, section 3.4.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.sounds import QUIET
from wan_streamer.units import TICKS_PER_UNIT


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
        """The voice as it is without them."""
        nn.init.zeros_(self.told.weight)

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

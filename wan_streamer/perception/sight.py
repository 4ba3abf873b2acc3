"""Names of what is seen: from the eyes' tokens, which words describe what is held up, and how surely.

`Sight`      the eyes' tokens of a unit -> evidence for every name
`described`  which word the agent says, as far as its wording cannot know it

Eyes know colours and things (`training/eyes`), but the Transformer hardly learns which word is whose. A read-out of the
eyes' tokens does, from pictures without end, and adds up what it finds while it sees it. It never says that a word is
due; of the words that are, it makes those unlikely that are not what is seen. (A label's evidence in many frames, added
up: naive Bayes; words that pictures make likelier, of a language model that is trained alone: as shallow fusion,
Gulcehre et al. 2015, section 4.1.)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.config import SightConfig

LEAST = -6.0  # logarithm of how unlikely what is not seen can be, against what is


class Sight(nn.Module):
    """config;   features  of a token of the eyes;   vocabulary  tokens of words

    The last two are in one place of the picture, so they are read from the token that knows most.
    """

    def __init__(self, config: SightConfig, features: int, vocabulary: int) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.sizes = len(config.colours), 1 + len(config.things)
        self.inner = nn.Linear(features, config.dim)
        self.where = nn.Linear(config.dim, len(self.sizes))
        self.what = nn.ModuleList(nn.Linear(config.dim, size) for size in self.sizes)
        self.requires_grad_(False)

    def begin(self, *rows: int) -> Tensor:
        """Nothing is seen yet [*rows, names]."""
        return self.inner.weight.new_zeros(*rows, sum(self.sizes), dtype=torch.float32)

    def forward(self, seen: Tensor) -> Tensor:
        """Tokens of units [..., N, D] -> log p [..., names]: of the colours, then of nothing and the things."""
        with torch.autocast(seen.device.type, enabled=False):
            hidden = F.silu(self.inner(seen.float()))
            weight = self.where(hidden).softmax(dim=-2)
            found = torch.einsum("...nq,...nd->...qd", weight, hidden)
            return torch.cat([read(found[..., i, :]).log_softmax(-1) for i, read in enumerate(self.what)], dim=-1)

    def follow(self, evidence: Tensor, seen: Tensor, camera: Tensor) -> Tensor:
        """Evidence [..., names] after one more unit; what was seen before fades."""
        return self.config.keep * evidence + self(seen) * camera[..., None]

    def held(self, evidence: Tensor) -> str:
        """Colour and name of what is surely held up, by evidence [names]; "" for nothing."""
        colour, thing = evidence.split(self.sizes)
        p, name = thing.softmax(-1)[1:].max(dim=0)
        if not self.config.names or p < 0.5:
            return ""
        return f"{self.config.names[int(colour.argmax())]} {self.config.names[len(colour) + int(name)]}"

    def words(self, evidence: Tensor) -> Tensor:
        """How much less likely each word is than what is seen, [..., V] up to 0; less so where nothing may be held."""
        colour, thing = (part.log_softmax(-1) for part in evidence.split(self.sizes, dim=-1))
        held = 1 - thing[..., :1].exp()
        colour, thing = (part - part.amax(-1, keepdim=True) for part in (colour, thing[..., 1:]))
        names = torch.cat([colour, thing], dim=-1).clamp(min=LEAST) * held
        token = torch.tensor([*self.config.colours, *self.config.things], device=evidence.device)
        none = evidence.new_zeros(*evidence.shape[:-1], self.vocabulary)
        return none.scatter(-1, token.expand_as(names), names)


def described(logits: Tensor, words: Tensor, sure: Tensor, config: SightConfig) -> Tensor:
    """Logits [..., V] with what is seen: `words` [..., V] of `Sight`, as far as the wording is not `sure` [...]."""
    return logits + config.weight * (1 - sure)[..., None] * words

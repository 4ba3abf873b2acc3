"""Read-outs of the eyes' tokens, for training alone: what they cannot read, a model could hardly use.

Everything is read linearly, as the first layer of a model would. What is held or waved is in one place of the picture:
it is read from the token that knows most, so that tokens stay local. The person is read from all tokens of a unit.
"""

import torch
from torch import Tensor, nn

from wan_streamer.training.eyes.labels import CLASSES, SEEN, VALUES

SCALE = 0.25
"""Of all tokens together: so many numbers would let one step of Adam turn an answer over."""


class Heads(nn.Module):
    """`forward(feature_BKND) -> (name -> logits [B, K, classes], values [B, K, V])`."""

    def __init__(self, tokens: int, features: int) -> None:
        super().__init__()
        self.sizes = {name: len(names) for name, names in CLASSES.items() if name not in SEEN}
        self.where = nn.Linear(features, len(SEEN))
        self.what = nn.ModuleDict({name: nn.Linear(features, len(CLASSES[name])) for name in SEEN})
        self.who = nn.Linear(tokens * features, sum(self.sizes.values()) + len(VALUES))

    def forward(self, feature_BKND: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        weight_BKNQ = self.where(feature_BKND).softmax(dim=2)
        logits = {
            name: self.what[name](torch.einsum("bkn,bknd->bkd", weight_BKNQ[..., i], feature_BKND))
            for i, name in enumerate(SEEN)
        }
        about, values_BKV = self.who(SCALE * feature_BKND.flatten(2)).split(
            [sum(self.sizes.values()), len(VALUES)], dim=2
        )
        logits |= dict(zip(self.sizes, about.split(list(self.sizes.values()), dim=2), strict=True))
        return logits, values_BKV

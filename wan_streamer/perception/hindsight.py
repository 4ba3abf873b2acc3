"""Hindsight: what the ears have made of a turn, made again once all of it has been heard.

`Hindsight`  features of a turn -> the same, of which each knows what comes behind it
`hindsight`  it, if a configuration has one

The ears hear nothing beyond a unit. A turn that is read as a whole (`perception/turn.py`) has been heard to its end, so
these few layers look in both directions (cascaded encoders: Narayanan et al. 2021, section 2).
"""

from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from wan_streamer.perception.ears import Layer, turns
from wan_streamer.shapes import EarsConfig, PerceptionConfig

FEED = 2  # inner channels of a feed-forward part, as a multiple of the width


class Hindsight(nn.Module):
    """`forward(heard_BTD, real_BT) -> [B, T, D]`: features of the ears of B turns, padded to the longest.

    real_BT  which frames are of the turn; None: all
    """

    def __init__(self, config: EarsConfig, layers: int) -> None:
        super().__init__()
        self.config = replace(config, feed=FEED)
        self.layers = nn.ModuleList(Layer(self.config) for _ in range(layers))
        self.reset()

    def reset(self) -> None:
        """Give back what comes in, to begin with."""
        for layer in self.layers:
            made = cast(Layer, layer)
            for last in (made.out.weight, made.down.weight, made.down.bias):
                nn.init.zeros_(last)

    def forward(self, heard_BTD: Tensor, real_BT: Tensor | None = None) -> Tensor:
        turn_TR = turns(heard_BTD.shape[1], self.config, device=heard_BTD.device)
        mask_B11T = None if real_BT is None else real_BT[:, None, None]
        for layer in self.layers:
            heard_BTD, _ = layer(heard_BTD, turn_TR, mask_TT=mask_B11T)
        return heard_BTD


def hindsight(config: PerceptionConfig) -> Hindsight | None:
    """That of a model, frozen, if it has one."""
    return Hindsight(config.ears, config.hindsight).requires_grad_(False) if config.hindsight else None

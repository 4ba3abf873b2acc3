"""The teacher: Moonshine tiny's encoder as it was made, hearing a whole clip at once.

`Teacher`  features of every layer, on the same frames as the ears'
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.config import EarsConfig
from wan_streamer.errors import ShapeError
from wan_streamer.perception.ears import Ears, turns
from wan_streamer.training.ears.moonshine import encoder_weights
from wan_streamer.units import SAMPLES_PER_UNIT


class Teacher(nn.Module):
    """`forward(audio_BT, units_B) -> [features_BTD of every layer]`: clips at 24 kHz, padded to the longest.

    units_B  how many units of each row are the clip; None: all

    Statistics of the whole clip, attention in both directions. The sound goes through the ears' own resampler, so that
    frame t of both hears the same samples. Frames behind the end of a clip mean nothing.
    """

    def __init__(self, weights: dict[str, Tensor] | None = None, config: EarsConfig | None = None) -> None:
        super().__init__()
        self.ears = Ears(config)
        self.ears.load_state_dict(encoder_weights() if weights is None else weights)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, audio_BT: Tensor, units_B: Tensor | None = None) -> list[Tensor]:
        if audio_BT.ndim != 2 or not audio_BT.numel() or audio_BT.shape[1] % SAMPLES_PER_UNIT:
            raise ShapeError(
                f"audio_BT: expected [B, T] with T a multiple of {SAMPLES_PER_UNIT}, got {list(audio_BT.shape)}"
            )
        c = self.ears.config
        wave_BT, _ = self.ears.resample(audio_BT)
        silence = c.overlaps[0] + c.kernels[1] * c.strides[0]
        return self.encode(F.pad(wave_BT, (silence, 0)), units_B)

    def encode(self, wave_BT: Tensor, units_B: Tensor | None = None) -> list[Tensor]:
        """The original encoder: a wave at its own rate, with silence in front -> [B, frames, D] of every layer."""
        ears, c = self.ears, self.ears.config
        raw_BCT = ears.stem.first(wave_BT)
        real_BT = _first(raw_BCT.shape[2], None if units_B is None else units_B * c.coarse + c.kernels[1], raw_BCT)
        count_B = real_BT.sum(1)
        mean_B = (raw_BCT.float().mean(1) * real_BT).sum(1) / count_B
        square_B = ((raw_BCT.float() - mean_B[:, None, None]).square().mean(1) * real_BT).sum(1) / count_B
        x_BCT = ears.stem.scaled(raw_BCT, mean_B[:, None], square_B[:, None])
        x_BTD = ears.stem.third(ears.stem.second(x_BCT)).transpose(1, 2)
        turn_TR = turns(x_BTD.shape[1], c, device=x_BTD.device)
        mask_B11T = None
        if units_B is not None:
            mask_B11T = _first(x_BTD.shape[1], units_B * c.frames, x_BTD)[:, None, None]
        layers = []
        for layer in ears.layers:
            x_BTD, _ = layer(x_BTD, turn_TR, mask_TT=mask_B11T)
            layers.append(x_BTD)
        layers[-1] = ears.norm(x_BTD)
        return layers


def _first(count: int, real_B: Tensor | None, like_B: Tensor) -> Tensor:
    """Which of `count` places are among the first `real_B` of their row (None: all): bool [B, count]."""
    place_T = torch.arange(count, device=like_B.device)[None].expand(len(like_B), count)
    return place_T >= 0 if real_B is None else place_T < real_B[:, None]

"""The teacher: Moonshine tiny's encoder as it was made, hearing a whole clip at once.

`Teacher`  features of every layer, on the same frames as the ears'
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.errors import ShapeError
from wan_streamer.perception.ears import Ears, EarsConfig, turns
from wan_streamer.training.ears.moonshine import encoder_weights
from wan_streamer.units import SAMPLES_PER_UNIT


class Teacher(nn.Module):
    """`forward(audio_T) -> [features_TD of every layer]`: one clip at 24 kHz, a multiple of 3 840 samples.

    Statistics of the whole clip, attention in both directions. The sound goes through the ears' own resampler, so that
    frame t of both hears the same samples.
    """

    def __init__(self, weights: dict[str, Tensor] | None = None, config: EarsConfig | None = None) -> None:
        super().__init__()
        self.ears = Ears(config)
        self.ears.load_state_dict(encoder_weights() if weights is None else weights)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, audio_T: Tensor) -> list[Tensor]:
        if audio_T.ndim != 1 or not len(audio_T) or len(audio_T) % SAMPLES_PER_UNIT:
            raise ShapeError(
                f"audio_T: expected [T] with T a multiple of {SAMPLES_PER_UNIT}, got {list(audio_T.shape)}"
            )
        c = self.ears.config
        wave_BT, _ = self.ears.resample(audio_T[None])
        silence = c.overlaps[0] + c.kernels[1] * c.strides[0]
        return [layer_BTD[0] for layer_BTD in self.encode(F.pad(wave_BT, (silence, 0)))]

    def encode(self, wave_BT: Tensor) -> list[Tensor]:
        """The original encoder: a wave at its own rate -> [B, frames, D] of every layer."""
        ears = self.ears
        raw_BCT = ears.stem.first(wave_BT)
        mean_BT = raw_BCT.float().mean((1, 2))[:, None]
        variance_BT = raw_BCT.float().var((1, 2), unbiased=False)[:, None]
        x_BCT = ears.stem.scaled(raw_BCT, mean_BT, variance_BT)
        x_BTD = ears.stem.third(ears.stem.second(x_BCT)).transpose(1, 2)
        turn_TR = turns(x_BTD.shape[1], ears.config, device=x_BTD.device)
        layers = []
        for layer in ears.layers:
            x_BTD, _ = layer(x_BTD, turn_TR)
            layers.append(x_BTD)
        layers[-1] = ears.norm(x_BTD)
        return layers

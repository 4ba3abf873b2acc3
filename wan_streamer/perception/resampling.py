"""A causal change of sample rate by a ratio of small numbers, in a stream of any length.

`Resampler`  windowed sinc in polyphase form: one convolution whose stride is a whole period of the ratio

The delay is `reach` samples of the input, the same for every frequency (the filter is symmetric): 64 of 24 000 Hz are
2.67 ms.
"""

from collections.abc import Callable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.errors import ShapeError

REACH = 64
BETA = 7.0
"""Of the Kaiser window: 70 dB less above the new half rate."""
EDGE = 0.955
"""Middle of the filter's slope, as a part of the lower half rate; with `REACH` and `BETA` it ends at that rate."""


class Resampler(nn.Module):
    """`forward(audio_BT, past_BT) -> (resampled_BT, past_BT)`; T a multiple of `period`; the past is `2 reach` samples.

    source, target  rates in Hz
    reach           input samples on either side of the middle of the filter; also its delay
    """

    taps_PK: Tensor

    def __init__(self, source: int, target: int, reach: int = REACH) -> None:
        super().__init__()
        ratio = Fraction(target, source)
        self.source, self.target, self.reach = source, target, reach
        self.made, self.period = ratio.numerator, ratio.denominator
        self.register_buffer("taps_PK", self._taps(), persistent=False)

    def _taps(self) -> Tensor:
        ratio, reach = self.made / self.period, self.reach
        tap = torch.arange(2 * reach + self.period, dtype=torch.float64)
        # Output p of a period lies at input p / ratio; tap k holds input k - 2 reach, and all is late by reach.
        place_PK = tap[None] - reach - torch.arange(self.made, dtype=torch.float64)[:, None] / ratio
        cut = EDGE * min(1.0, ratio)
        window_PK = torch.special.i0(BETA * (1 - (place_PK / reach).square()).clamp(min=0).sqrt())
        taps_PK = torch.sinc(cut * place_PK) * window_PK * (place_PK.abs() <= reach)
        return (taps_PK / taps_PK.sum(1, keepdim=True)).float()  # a constant stays what it is

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Resampler":
        """Moves with the model, but stays float32: eight bits of the taps would be heard."""
        super()._apply(fn, recurse)
        self.taps_PK = self._taps().to(self.taps_PK.device)
        return self

    @property
    def delay_s(self) -> float:
        """How much later everything comes out, in seconds."""
        return self.reach / self.source

    def start(self, audio_BT: Tensor) -> Tensor:
        """The state before the first sample: silence."""
        return audio_BT.new_zeros(audio_BT.shape[0], 2 * self.reach)

    def forward(self, audio_BT: Tensor, past_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raises `ShapeError` unless T is a positive multiple of the period."""
        if audio_BT.ndim != 2 or not audio_BT.shape[1] or audio_BT.shape[1] % self.period:
            raise ShapeError(
                f"audio_BT: expected [B, T] with T a multiple of {self.period}, got {list(audio_BT.shape)}"
            )
        padded_BT = torch.cat([self.start(audio_BT) if past_BT is None else past_BT, audio_BT], dim=1)
        out_BPG = F.conv1d(padded_BT[:, None], self.taps_PK[:, None], stride=self.period)
        return out_BPG.transpose(1, 2).flatten(1), padded_BT[:, padded_BT.shape[1] - 2 * self.reach :]

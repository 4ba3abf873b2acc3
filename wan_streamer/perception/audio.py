"""Causal encoder of the user's audio: 24 kHz -> one feature per tick (40 ms), no look-ahead.

`AudioPerception`  it;   `hearing`  it, or the ears, as a configuration says
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wan_streamer.codecs.causal import ConvNeXt1d, State
from wan_streamer.config import PerceptionConfig
from wan_streamer.perception.ears import Ears
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_FRAME

HOP = SAMPLES_PER_FRAME // 4  # 10 ms
N_FFT = 2 * HOP


@dataclass
class AudioPerceptionState:
    past_BT: Tensor | None = None  # last 10 ms of samples
    blocks: list[State] = field(default_factory=list)


def mel_filters(n_fft: int, bins: int, low_hz: float, high_hz: float) -> Tensor:
    """Triangular mel filters [n_fft / 2 + 1, bins] (HTK scale); none is narrower than a frequency bin."""

    def mel(hz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hz / 700)

    line = mel(torch.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1))
    low, high = mel(torch.tensor([low_hz, high_hz])).tolist()
    centre = torch.linspace(low, high, bins + 2)
    width = torch.maximum(centre[1] - centre[0], (line[1] - line[0]) / 2)
    return (1 - (line[:, None] - centre[None, 1:-1]).abs() / width).clamp(min=0)


class AudioPerception(nn.Module):
    """`forward(audio_BT, state) -> (feature_BTD, state)`, T samples a multiple of 960, one feature per 960."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: PerceptionConfig) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        # From 60 Hz to 8 kHz, where speech is.
        self.register_buffer("filters", mel_filters(N_FFT, config.mel_bins, 60, 8000), persistent=False)
        self.project = nn.Linear(4 * config.mel_bins, config.audio_dim)
        self.blocks = nn.ModuleList(ConvNeXt1d(config.audio_dim, 5) for _ in range(config.audio_blocks))

    def forward(
        self, audio_BT: Tensor, state: AudioPerceptionState | None = None
    ) -> tuple[Tensor, AudioPerceptionState]:
        B, T = audio_BT.shape
        state = state or AudioPerceptionState()
        past = audio_BT.new_zeros(B, HOP) if state.past_BT is None else state.past_BT
        padded = torch.cat([past, audio_BT], dim=1)
        with torch.autocast(audio_BT.device.type, enabled=False):
            power = torch.fft.rfft(padded.unfold(1, N_FFT, HOP) * self.window).abs().square()
            mel = ((power @ self.filters + 1e-4).log() + 4) / 4
        hidden = self.project(mel.reshape(B, T // SAMPLES_PER_FRAME, -1))
        after = []
        for block, kept in zip(self.blocks, state.blocks or [None] * len(self.blocks), strict=True):
            hidden, kept = block(hidden, kept)
            after.append(kept)
        return hidden, AudioPerceptionState(padded[:, -HOP:], after)


def hearing(config: PerceptionConfig) -> nn.Module:
    """What turns the user's sound into features: `AudioPerception` or frozen `Ears`."""
    return AudioPerception(config) if config.hearing == "mel" else Ears(config.ears).requires_grad_(False)

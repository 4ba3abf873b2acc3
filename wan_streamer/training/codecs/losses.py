"""Losses of the codecs. Each takes a prediction and a target of equal shape and returns a scalar.

spectral_loss   multi-resolution STFT: log magnitude, spectral convergence, and mel (after Vocos and DAC)
video_loss      L1 in a decorrelated colour space, weighted to what moves, plus gradients
SpectrumDiscriminator, discriminator_loss, generator_loss   adversarial part of the audio codec (hinge, after DAC)
"""

import functools
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from wan_streamer.perception.audio import mel_filters
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLE_RATE

FFT_SIZES = (2048, 1024, 512, 256, 128)


@functools.cache
def mel_matrix(n_fft: int, bins: int, device: torch.device) -> Tensor:
    """Mel filters over the whole band [n_fft / 2 + 1, bins], each scaled to unit sum."""
    filters = mel_filters(n_fft, bins, 0, SAMPLE_RATE / 2)
    return (filters / filters.sum(0, keepdim=True).clamp(min=1e-3)).to(device)


def stft(audio_BT: Tensor, n_fft: int, hop: int) -> Tensor:
    """Complex spectrogram [B, F, T] with a Hann window, scaled so that white noise of unit power has unit bins."""
    window = torch.hann_window(n_fft, device=audio_BT.device)
    scale = window.square().sum().rsqrt()
    return torch.stft(audio_BT, n_fft, hop, window=window, return_complex=True) * scale


def spectral_loss(predicted_BT: Tensor, target_BT: Tensor) -> dict[str, Tensor]:
    """Parts of the multi-resolution loss, each averaged over resolutions: "log", "convergence", "mel", "phase"."""
    parts: dict[str, list[Tensor]] = {"log": [], "convergence": [], "mel": [], "phase": []}
    for n_fft in FFT_SIZES:
        got, want = stft(predicted_BT, n_fft, n_fft // 2), stft(target_BT, n_fft, n_fft // 2)
        got_mag, want_mag = (got.abs() + 1e-7), (want.abs() + 1e-7)
        floor = 1e-3
        parts["log"].append(F.l1_loss((got_mag + floor).log(), (want_mag + floor).log()))
        parts["convergence"].append((got_mag - want_mag).norm() / want_mag.norm().clamp(min=1e-3))
        parts["phase"].append((got - want).abs().mean() / want_mag.mean().clamp(min=1e-4))
        bins = min(80, n_fft // 16)
        mel = mel_matrix(n_fft, bins, got_mag.device)
        got_mel, want_mel = got_mag.transpose(1, 2) @ mel, want_mag.transpose(1, 2) @ mel
        parts["mel"].append(F.l1_loss((got_mel + floor).log(), (want_mel + floor).log()))
    return {name: torch.stack(values).mean() for name, values in parts.items()}


def video_loss(predicted_BTCHW: Tensor, target_BTCHW: Tensor) -> dict[str, Tensor]:
    """Parts: "colour" (weighted L1 in luma and colour differences), "gradient" (edges in both directions), "change"
    (luma from frame to frame) and "border" (the same where units meet, everywhere alike: there pictures flicker, and
    still walls show it most). Frames come in whole units."""
    with torch.no_grad():
        motion = (target_BTCHW - target_BTCHW.mean(1, keepdim=True)).abs().mean(2, keepdim=True)
        weight = 1 + 6 * (motion / 0.1).clamp(max=1)  # mouths, lids and gaze move; walls do not
        weight = weight / weight.mean()
    error = predicted_BTCHW - target_BTCHW
    red, green, blue = error.unbind(2)
    luma = 0.3 * red + 0.6 * green + 0.1 * blue
    decorrelated = torch.stack([2 * luma, red - luma, blue - luma], dim=2)
    down = (luma[..., 1:, :] - luma[..., :-1, :]).abs() * weight[:, :, 0, 1:, :]
    right = (luma[..., :, 1:] - luma[..., :, :-1]).abs() * weight[:, :, 0, :, 1:]
    step = (luma[:, 1:] - luma[:, :-1]).abs()
    return {
        "colour": (decorrelated.abs() * weight).mean(),
        "gradient": down.mean() + right.mean(),
        "change": (step * weight[:, 1:, 0]).mean(),
        "border": step[:, FRAMES_PER_UNIT - 1 :: FRAMES_PER_UNIT].mean(),
    }


class SpectrumDiscriminator(nn.Module):
    """Judges complex spectrograms at three resolutions. Returns per resolution (features..., scores)."""

    def __init__(self, channels: int = 16, fft_sizes: tuple[int, ...] = (1024, 512, 256)) -> None:
        super().__init__()
        self.fft_sizes = fft_sizes

        def stack() -> nn.ModuleList:
            widths = (2, channels, channels, 2 * channels, 2 * channels)
            layers = [
                weight_norm(nn.Conv2d(a, b, (9, 3), stride=(2, 1), padding=(4, 1)))
                for a, b in itertools.pairwise(widths)
            ]
            return nn.ModuleList([*layers, weight_norm(nn.Conv2d(2 * channels, 1, 3, padding=1))])

        self.stacks = nn.ModuleList(stack() for _ in fft_sizes)

    def forward(self, audio_BT: Tensor) -> list[list[Tensor]]:
        judged = []
        for n_fft, layers in zip(self.fft_sizes, self.stacks, strict=True):
            spectrum = stft(audio_BT, n_fft, n_fft // 4)
            # Power compression: without it the discriminator only ever sees the loud low bins.
            scale = (spectrum.abs() + 1e-4).pow(-0.7)
            hidden = torch.stack([spectrum.real * scale, spectrum.imag * scale], dim=1)
            hidden = hidden.contiguous(memory_format=torch.channels_last)
            features = []
            for layer in layers:  # type: ignore[attr-defined]
                hidden = layer(hidden)
                features.append(hidden)
                hidden = F.leaky_relu(hidden, 0.1)
            judged.append(features)
        return judged


def discriminator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Hinge loss, averaged over resolutions."""
    terms = [F.relu(1 - r[-1]).mean() + F.relu(1 + f[-1]).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def generator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """(adversarial, feature matching), both averaged over resolutions and layers."""
    adversarial = torch.stack([-f[-1].mean() for f in fake]).mean()
    matching = [
        (b - a.detach()).abs().mean() / a.detach().abs().mean().clamp(min=1e-3)
        for r, f in zip(real, fake, strict=True)
        for a, b in zip(r[:-1], f[:-1], strict=True)
    ]
    return adversarial, torch.stack(matching).mean()

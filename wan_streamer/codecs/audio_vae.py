"""Strictly causal audio VAE: 24 kHz mono <-> 25 Hz latents, no look-ahead beyond the 40 ms frame.

    encoder   windows of 2 x hop samples (past hop + present hop) -> ConvNeXt at 100 Hz -> ConvNeXt at 25 Hz -> mean
    decoder   ConvNeXt at 25 Hz -> ConvNeXt at 100 Hz -> spectrum -> inverse FFT -> causal overlap-add (after Vocos)

The synthesis window of inner frame t covers [t hop, (t + 2) hop): its first half is emitted with frame t, its second
half waits for frame t + 1. So decoding adds no delay.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.codecs.causal import CodecStats, ConvNeXt1d, State
from wan_streamer.config import AudioVAEConfig
from wan_streamer.errors import ShapeError
from wan_streamer.units import SAMPLES_PER_FRAME, as_array


@dataclass
class AudioEncoderState:
    past_BT: Tensor | None = None  # last `hop` samples
    blocks: list[State] = field(default_factory=list)


@dataclass
class AudioDecoderState:
    blocks: list[State] = field(default_factory=list)
    tail_BT: Tensor | None = None  # second half of the last synthesis window


class AudioVAE(nn.Module):
    """`encode(audio_BT) -> latent_BTC` and `decode(latent_BTC) -> audio_BT`, T / 960 latents, standardised."""

    window: Tensor

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        self.config = config
        dim, per_latent = config.dim, config.frames_per_latent
        n_fft = 2 * config.hop
        self.register_buffer("window", torch.hann_window(n_fft).sqrt(), persistent=False)

        def blocks(count: int, width: int) -> nn.ModuleList:
            return nn.ModuleList(ConvNeXt1d(width, config.kernel) for _ in range(count))

        wide = dim * 3 // 2
        self.enc_in = nn.Linear(2 * (config.hop + 1), dim)
        self.enc_frames = blocks(config.frame_blocks, dim)
        self.enc_pool = nn.Linear(per_latent * dim, wide)
        self.enc_latents = blocks(config.latent_blocks, wide)
        self.enc_out = nn.Linear(wide, config.latent_dim)

        self.dec_in = nn.Linear(config.latent_dim, wide)
        self.dec_latents = blocks(config.latent_blocks, wide)
        self.dec_grow = nn.Linear(wide, per_latent * dim)
        self.dec_frames = blocks(config.frame_blocks, dim)
        self.dec_norm = nn.LayerNorm(dim)
        self.dec_out = nn.Linear(dim, 3 * (config.hop + 1))
        self.stats = CodecStats(config.latent_dim)

    def encode_raw(self, audio_BT: Tensor, state: AudioEncoderState | None = None) -> tuple[Tensor, AudioEncoderState]:
        """Audio [B, T], T a multiple of 960 -> latent means before standardisation [B, T / 960, C]."""
        B, T = audio_BT.shape
        if T == 0 or T % SAMPLES_PER_FRAME:
            raise ShapeError(f"audio: expected a multiple of {SAMPLES_PER_FRAME} samples (40 ms), got {T}")
        hop = self.config.hop
        state = state or AudioEncoderState()
        past = audio_BT.new_zeros(B, hop) if state.past_BT is None else state.past_BT
        padded = torch.cat([past, audio_BT], dim=1)
        frames_BTN = padded.unfold(1, 2 * hop, hop) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames_BTN, norm="ortho")).flatten(2)
        # A signed square root brings quiet and loud bins closer, so that quiet consonants are not lost.
        hidden = self.enc_in(spectrum.sign() * spectrum.abs().clamp(min=1e-8).sqrt())
        hidden, states = _run(self.enc_frames, hidden, state.blocks[: len(self.enc_frames)])
        hidden = self.enc_pool(hidden.reshape(B, T // SAMPLES_PER_FRAME, -1))
        hidden, more = _run(self.enc_latents, hidden, state.blocks[len(self.enc_frames) :])
        return self.enc_out(hidden), AudioEncoderState(padded[:, -hop:], states + more)

    def decode_raw(
        self, latent_BTC: Tensor, state: AudioDecoderState | None = None
    ) -> tuple[Tensor, AudioDecoderState]:
        """Latents before standardisation [B, T, C] -> audio [B, T x 960]."""
        B, T, _ = latent_BTC.shape
        hop = self.config.hop
        state = state or AudioDecoderState()
        hidden = self.dec_in(latent_BTC)
        hidden, states = _run(self.dec_latents, hidden, state.blocks[: len(self.dec_latents)])
        hidden = self.dec_grow(hidden).reshape(B, T * self.config.frames_per_latent, -1)
        hidden, more = _run(self.dec_frames, hidden, state.blocks[len(self.dec_latents) :])
        magnitude, real, imag = self.dec_out(self.dec_norm(hidden)).float().chunk(3, dim=-1)
        # Magnitude and direction apart: the direction is a free vector that is normalised, so phase never wraps.
        length = (real.square() + imag.square() + 1e-6).rsqrt()
        magnitude = magnitude.clamp(max=6.0).exp() * 0.03
        frames = torch.fft.irfft(torch.complex(magnitude * real * length, magnitude * imag * length), norm="ortho")
        frames = frames * self.window
        first, second = frames[..., :hop], frames[..., hop:]
        tail = frames.new_zeros(B, hop) if state.tail_BT is None else state.tail_BT
        audio = first + torch.cat([tail.unsqueeze(1), second[:, :-1]], dim=1)
        return audio.flatten(1), AudioDecoderState(states + more, second[:, -1])

    def encode(self, audio_BT: Tensor, state: AudioEncoderState | None = None) -> tuple[Tensor, AudioEncoderState]:
        """Audio [B, T] -> standardised latents [B, T / 960, C]."""
        latent, state = self.encode_raw(audio_BT, state)
        return self.stats.standardise(latent.float(), -1), state

    def decode(self, latent_BTC: Tensor, state: AudioDecoderState | None = None) -> tuple[Tensor, AudioDecoderState]:
        """Standardised latents [B, T, C] -> audio [B, T x 960]."""
        return self.decode_raw(self.stats.restore(latent_BTC, -1), state)

    @torch.inference_mode()
    def reconstruct(self, audio: np.ndarray) -> np.ndarray:
        """The codec's round trip: float32 [samples] at 24 kHz -> the same shape."""
        audio = as_array("audio", audio, np.float32, (None,))
        padded = F.pad(torch.from_numpy(audio), (0, -len(audio) % SAMPLES_PER_FRAME))
        latent, _ = self.encode(padded[None].to(self.window.device))
        return self.decode(latent)[0][0, : len(audio)].float().cpu().numpy()


def _run(blocks: nn.ModuleList, hidden: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
    after = []
    for block, state in zip(blocks, states or [None] * len(blocks), strict=True):
        hidden, state = block(hidden, state)
        after.append(state)
    return hidden, after

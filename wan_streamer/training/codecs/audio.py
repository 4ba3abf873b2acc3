"""Training the audio VAE: 1 s crops, multi-resolution spectral losses, and at the end a discriminator."""

import math
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.flow.noise import RowNoise
from wan_streamer.presets import get_preset
from wan_streamer.training.codecs.losses import (
    SpectrumDiscriminator,
    discriminator_loss,
    generator_loss,
    spectral_loss,
)
from wan_streamer.training.codecs.samples import SOUND_SECONDS, mel_sheet, write_png, write_wav
from wan_streamer.training.codecs.stage import ANCHOR, CodecStage, load_array
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT

SPEED = 0.17  # other voices are played faster or slower by at most so much (logarithm): pitch and formants move too
ADVERSARIAL_PART = 0.2  # of the steps, the last ones
SPECTRAL_WEIGHTS = {"log": 1.0, "convergence": 1.0, "mel": 5.0, "phase": 0.5}


class AudioCodecStage(CodecStage):
    name, kind, agent_share = "codec-audio", "audio", 0.3
    vae: AudioVAE
    steady = MappingProxyType({"discriminator": 0.25})  # it starts late, when the cosine is far down

    def __init__(
        self, preset: str, data_dir: Path, config: TrainConfig, start: str | None = None, decoder_only: bool = False
    ) -> None:
        torch.manual_seed(config.seed)
        self.vae = AudioVAE(get_preset(preset).audio_vae)
        super().__init__(config, start, decoder_only)
        self.discriminator = SpectrumDiscriminator()
        self.models: dict[str, nn.Module] = {"vae": self.vae, "discriminator": self.discriminator}
        self.train_data = [load_array(data_dir, "agent_audio"), load_array(data_dir, "other_audio")]
        self.valid_data = [load_array(data_dir, "agent_audio_valid"), load_array(data_dir, "other_audio_valid")]
        self.crop = SAMPLES_PER_UNIT * 6  # 0.96 s

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        return name.startswith("vae.") and p.ndim == 2 and not name.startswith(("vae.enc_in", "vae.dec_out"))

    def batch(self, step: int, rows: range) -> Tensor:
        crops = []
        for row in rows:
            rng = np.random.default_rng((self.config.seed, step, row))
            other = row >= self.agents
            audio = self.train_data[other]
            length = round(self.crop * math.exp(rng.uniform(-SPEED, SPEED))) if other else self.crop
            start = rng.integers(0, len(audio) - length)
            crop = np.asarray(audio[start : start + length], np.float32) / 32768
            crops.append(_stretch(crop, self.crop) * np.float32(10 ** rng.uniform(-0.4, 0.15)))
        return torch.from_numpy(np.stack(crops))

    def loss(self, batch: Tensor, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.move(batch)
        with self.autocast():
            latent, _ = self.vae.encode_raw(batch)
            blur = self.move(noise.normal(tuple(latent.shape)) * self.vae.config.latent_noise)
            rebuilt, _ = self.vae.decode_raw(latent + blur)
        parts = spectral_loss(rebuilt, batch)
        total = sum(weight * parts[name] for name, weight in SPECTRAL_WEIGHTS.items())
        numbers = dict(parts)
        total = total + 0.003 * latent.float().square().mean()  # without it the mean grows and drowns the noise
        numbers["moved"] = self.moved(batch, latent)
        total = total + ANCHOR * numbers["moved"]
        if step >= (1 - ADVERSARIAL_PART) * self.config.steps:
            adversarial, numbers["critic"] = self._adversarial(rebuilt, batch, step)
            total = total + adversarial
        return total, numbers  # type: ignore[return-value]

    def _adversarial(self, rebuilt: Tensor, batch: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Both players in one scalar: the critic is frozen in the generator's graph, the audio in the critic's."""
        size = SAMPLES_PER_UNIT * 3
        start = int(np.random.default_rng((self.config.seed, step)).integers(0, self.crop - size))
        fake_BT, real_BT = rebuilt[:, start : start + size], batch[:, start : start + size]
        self.discriminator.requires_grad_(False)
        with self.autocast():
            fool, match = generator_loss(self.discriminator(real_BT), self.discriminator(fake_BT))
        self.discriminator.requires_grad_(True)
        with self.autocast():
            judge = discriminator_loss(self.discriminator(real_BT), self.discriminator(fake_BT.detach()))
        return 0.2 * fool.float() + 2.0 * match.float() + judge.float(), judge

    def validate(self) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, audio in zip(("agent", "other"), self.valid_data, strict=True):
            clip = np.asarray(audio[: 20 * SAMPLE_RATE], np.float32) / 32768
            rebuilt = torch.from_numpy(self.vae.reconstruct(clip))
            parts = spectral_loss(rebuilt[None], torch.from_numpy(clip)[None])
            numbers |= {f"{name}_{part}": value.item() for part, value in parts.items()}
        return numbers

    def write_samples(self, stem: Path) -> dict[str, float]:
        """The agent's voice and another: both before and after the round trip."""
        sounds = []
        for audio in self.valid_data:
            clip = np.asarray(audio[: SOUND_SECONDS * SAMPLE_RATE], np.float32) / 32768
            sounds += [clip, self.vae.reconstruct(clip)]
        write_png(mel_sheet(sounds), stem.with_suffix(".png"))
        write_wav(sounds, stem.with_suffix(".wav"))
        return {}

    def export(self, out_dir: Path) -> None:
        clip = torch.from_numpy(np.asarray(self.train_data[0][: 120 * SAMPLE_RATE], np.float32) / 32768)
        with torch.inference_mode():
            whole = clip[None, : len(clip) // SAMPLES_PER_UNIT * SAMPLES_PER_UNIT]
            latent, _ = self.vae.encode_raw(whole.to(self.device))
        self.write(out_dir, latent.flatten(0, 1))


def _stretch(audio_T: np.ndarray, length: int) -> np.ndarray:
    """As many samples as asked for, of the same sound played faster or slower; band-limited."""
    if len(audio_T) == length:
        return audio_T
    spectrum = np.fft.rfft(audio_T)[: length // 2 + 1]
    return (np.fft.irfft(spectrum, length) * (length / len(audio_T))).astype(np.float32)

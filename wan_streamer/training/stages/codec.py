"""Stage `codec`: train the audio VAE or the video VAE on prepared arrays (`wan_streamer.simulation.make_codec_data`).

Audio: 1 s crops; multi-resolution spectral losses, and in the last `ADVERSARIAL_PART` of the steps a discriminator.
Video: 12-frame crops of 96 x 128; L1 in a decorrelated colour space plus gradients, weighted to what moves.

A codec that begins from another keeps the latents of the agent where they were, or all latents if only its decoder
learns: what models have learned about them stays true.
"""

import copy
import dataclasses
import hashlib
import math
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE, frames_to_video
from wan_streamer.config import to_dict
from wan_streamer.errors import CheckpointError, ConfigError, DataError, TrainingError
from wan_streamer.files import replacing, write_json
from wan_streamer.flow.noise import RowNoise
from wan_streamer.folders import KINDS, describe
from wan_streamer.model.pretrained import find_checkpoint
from wan_streamer.presets import get_preset
from wan_streamer.tensors import load_module, load_tensors, save_atomically
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.loop.trainer import Trainer
from wan_streamer.training.stages.codec_losses import (
    SpectrumDiscriminator,
    discriminator_loss,
    generator_loss,
    spectral_loss,
    video_loss,
)
from wan_streamer.training.stages.samples import (
    FILM_FRAMES,
    SOUND_SECONDS,
    mel_sheet,
    video_sheet,
    write_png,
    write_wav,
)
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT

AGENT_SHARE = {"audio": 0.3, "video": 0.5}  # of the batch, its first rows; the rest is other voices or other faces
SPEED = 0.17  # other voices are played faster or slower by at most so much (logarithm): pitch and formants move too
ANCHOR = 5.0  # how strongly the agent's latents are held where they were
CUT_SHARE = 0.15  # of the clips begin anywhere; the others do not cross a cut
PIECE, PIECES = 24, 8  # frames that are scored together (one person of other_frames), and how many times
ADVERSARIAL_PART = 0.2
MOUTH = (0.85, 0.5)  # where a crop has the mouth of a rendered head in its middle, share of the free rows and columns
VIDEO_WEIGHTS = {"colour": 1.0, "gradient": 1.0, "change": 1.0, "border": 1.0}
SPECTRAL_WEIGHTS = {"log": 1.0, "convergence": 1.0, "mel": 5.0, "phase": 0.5}


def load_array(data_dir: Path, name: str) -> np.ndarray:
    """Memory-map `name`.npy. Raises `DataError` if it is missing or not a plain array."""
    path = Path(data_dir) / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected an array of sounds or faces ({error}); make it with 'wan-streamer simulate DIR --codecs'"
        ) from error


class CodecStage(Stage):
    """What the two codecs have in common.

    start         begin from this codec: what `train codec` wrote, or an agent
    decoder_only  leave its encoder and the statistics of its latents as they are
    """

    kind: str
    vae: AudioVAE | VideoVAE

    def __init__(self, config: TrainConfig, start: str | None, decoder_only: bool) -> None:
        if decoder_only and start is None:
            raise ConfigError("decoder only: expected a codec to begin from, got none; name one with --from")
        self.config, self.decoder_only = config, decoder_only
        self.before: nn.Module | None = None
        if start is not None:
            self._begin_from(_find_codec(start, self.kind))
            self.before = None if decoder_only else copy.deepcopy(self.vae).requires_grad_(False)
        for name, p in self.vae.named_parameters():
            p.requires_grad_(not (decoder_only and name.startswith("enc_")))

    def _begin_from(self, path: Path) -> None:
        """All of it; or its encoder, and of a decoder in another shape what fits."""
        if not self.decoder_only:
            return load_module(self.vae, path)
        tensors, own = load_tensors(path), self.vae.state_dict()
        fitting = {name: value for name, value in tensors.items() if name in own and value.shape == own[name].shape}
        lacking = [name for name in own if not name.startswith("dec_") and name not in fitting]
        if lacking:
            raise CheckpointError(f"{path}: expected an encoder of the same shape, but {lacking[0]} differs")
        self.vae.load_state_dict(own | {name: value.to(own[name].dtype) for name, value in fitting.items()})
        return None

    @property
    def agents(self) -> int:
        """How many rows of a batch, the first ones, are the agent's."""
        return math.ceil(AGENT_SHARE[self.kind] * self.config.batch)

    def moved(self, media: Tensor, latent: Tensor) -> Tensor:
        """How far the agent's latents have moved since the start: mean square, in variances of each channel."""
        if self.before is None:
            return latent.new_zeros(())
        with torch.no_grad(), self.autocast():
            before, _ = self.before.to(self.device).encode_raw(media[: self.agents])  # type: ignore[operator]
        shape = [-1] + [1] * (latent.ndim - 3)
        step = (latent[: self.agents] - before).float() / self.before.stats.std_C.view(shape)  # type: ignore
        return step.square().mean()

    def write(self, out_dir: Path, latent_NC: Tensor) -> None:
        """Weights and shape, with the statistics of these latents of the agent; a fixed encoder keeps its own."""
        if not self.decoder_only:
            self.vae.stats.measure(latent_NC)
        tensors = {key: value.detach().cpu() for key, value in self.vae.state_dict().items()}
        save_atomically(tensors, out_dir / f"{self.kind}_vae.safetensors")
        write_json(out_dir / f"{self.kind}_vae.json", to_dict(self.vae.config))


class AudioCodecStage(CodecStage):
    name, kind = "codec-audio", "audio"
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

    def write_samples(self, stem: Path) -> None:
        """The agent's voice and another: both before and after the round trip."""
        sounds = []
        for audio in self.valid_data:
            clip = np.asarray(audio[: SOUND_SECONDS * SAMPLE_RATE], np.float32) / 32768
            sounds += [clip, self.vae.reconstruct(clip)]
        write_png(mel_sheet(sounds), stem.with_suffix(".png"))
        write_wav(sounds, stem.with_suffix(".wav"))

    def export(self, out_dir: Path) -> None:
        clip = torch.from_numpy(np.asarray(self.train_data[0][: 120 * SAMPLE_RATE], np.float32) / 32768)
        with torch.inference_mode():
            whole = clip[None, : len(clip) // SAMPLES_PER_UNIT * SAMPLES_PER_UNIT]
            latent, _ = self.vae.encode_raw(whole.to(self.device))
        self.write(out_dir, latent.flatten(0, 1))


class VideoCodecStage(CodecStage):
    name, kind = "codec-video", "video"

    def __init__(
        self, preset: str, data_dir: Path, config: TrainConfig, start: str | None = None, decoder_only: bool = False
    ) -> None:
        torch.manual_seed(config.seed)
        self.vae = VideoVAE(get_preset(preset).video_vae)
        super().__init__(config, start, decoder_only)
        self.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.models: dict[str, nn.Module] = {"vae": self.vae}
        self.train_data = [load_array(data_dir, "agent_frames"), load_array(data_dir, "other_frames")]
        self.valid_data = [load_array(data_dir, "agent_frames_valid"), load_array(data_dir, "other_frames_valid")]
        self.frames, self.crop = 12, (96, 128)
        self.latents: list[np.ndarray] = []  # of `train_data`, where the encoder is fixed

    def encode_data(self, data_dir: Path) -> None:
        """Encode all frames with the fixed encoder, once: the result is kept beside them, named after its weights."""
        encoder = [value for name, value in sorted(self.vae.state_dict().items()) if name.startswith("enc_")]
        digest = hashlib.sha256(b"".join(value.bfloat16().view(torch.int16).numpy().tobytes() for value in encoder))
        for name, video in zip(("agent_frames", "other_frames"), self.train_data, strict=True):
            path = data_dir / f"{name}.{digest.hexdigest()[:16]}.npy"
            if not path.exists():
                with replacing(path) as part, part.open("wb") as file:
                    np.save(file, self._encoded(video, name), allow_pickle=False)
            self.latents.append(load_array(data_dir, path.stem))

    @torch.inference_mode()
    def _encoded(self, video: np.ndarray, name: str) -> np.ndarray:
        """Frames [T, H, W, 3] -> latents [T / 4, C, h, w] in half precision."""
        latents, state, piece = [], None, 10 * FRAMES_PER_UNIT
        length = len(video) // FRAMES_PER_UNIT * FRAMES_PER_UNIT
        for start in track(range(0, length, piece), description=f"encoding {name}"):
            frames = torch.from_numpy(np.array(video[start : min(start + piece, length)]))
            latent, state = self.vae.encode_raw(frames_to_video(frames[None], self.device), state)
            latents.append(latent[0].half().cpu().numpy())
        return np.concatenate(latents)

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        return p.ndim == 4 and not name.startswith(("vae.enc_in", "vae.dec_out"))

    def batch(self, step: int, rows: range) -> tuple[Tensor, Tensor | None]:
        """Frames, and their latents where the encoder is fixed."""
        crops, latents = [], []
        for row in rows:
            rng = np.random.default_rng((self.config.seed, step, row))
            other = row >= self.agents
            video = self.train_data[other]
            start = self.frames * rng.integers(0, len(video) // self.frames)
            if rng.random() < CUT_SHARE:
                start = rng.integers(0, len(video) - self.frames)  # perhaps from one person to another
            # Half of the crops have a mouth in the middle, the others a normal draw: faces come before walls.
            free = np.array(video.shape[1:3]) - self.crop
            middle, spread = (MOUTH, 0.1) if row % 2 else ((0.5, 0.5), 0.3)
            top, left = (free * np.clip(rng.normal(middle, spread), 0, 1)).astype(int)
            if self.latents:
                start, top, left = start // 4 * 4, top // 16 * 16, left // 16 * 16
                cells = self.latents[other][start // 4 : (start + self.frames) // 4]
                latents.append(cells[..., top // 16 :, left // 16 :][..., : self.crop[0] // 16, : self.crop[1] // 16])
            crops.append(video[start : start + self.frames, top : top + self.crop[0], left : left + self.crop[1]])
        # Bytes travel to the device, floats are made there.
        return torch.from_numpy(np.stack(crops)), torch.from_numpy(np.stack(latents)) if latents else None

    def loss(
        self, batch: tuple[Tensor, Tensor | None], step: int, noise: RowNoise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        video = frames_to_video(self.move(batch[0]), self.device)
        with self.autocast():
            latent = self.vae.encode_raw(video)[0] if batch[1] is None else self.move(batch[1]).float()
            blur = self.move(noise.normal(tuple(latent.shape)) * self.vae.config.latent_noise)
            rebuilt, _ = self.vae.decode_raw(latent + blur)
        parts = video_loss(rebuilt, video)
        total = sum(VIDEO_WEIGHTS[name] * parts[name] for name in parts) + 1e-3 * latent.float().square().mean()
        moved = self.moved(video, latent)
        return total + ANCHOR * moved, {**parts, "moved": moved}

    def validate(self) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, video in zip(("agent", "other"), self.valid_data, strict=True):
            starts = range(0, min(len(video) // PIECE, PIECES) * PIECE, PIECE)
            rows = [self._score(np.array(video[at : at + PIECE])) for at in starts]
            numbers |= means([{f"{name}_{key}": value for key, value in row.items()} for row in rows])
        return numbers

    def _score(self, frames: np.ndarray) -> dict[str, float]:
        """PSNR of everything, and of what moves within the clip: mouth, lids, head outline."""
        error = (self._rebuilt(frames).astype(np.float32) - frames) ** 2
        moving = frames.std(0).mean(-1) > 8
        parts = {"psnr": error} | ({"moving_psnr": error[:, moving]} if moving.any() else {})
        return {name: float(10 * np.log10(255**2 / part.mean())) for name, part in parts.items()}

    def _rebuilt(self, frames: np.ndarray) -> np.ndarray:
        with self.autocast():
            return self.vae.reconstruct(frames)

    def write_samples(self, stem: Path) -> None:
        """The agent's face and another: before and after the round trip, and the error."""
        clips = [np.array(video[:FILM_FRAMES]) for video in self.valid_data]
        sheet = video_sheet([(clip, self._rebuilt(clip)) for clip in clips])
        write_png(sheet, stem.with_suffix(".png"))

    def export(self, out_dir: Path) -> None:
        video, run = self.train_data[0], 40  # ten runs of consecutive frames, as the model will see them
        starts = np.linspace(0, max(0, len(video) - run), 10).astype(int)
        with torch.inference_mode(), self.autocast():
            latents = []
            for start in starts:
                frames = np.array(video[start : start + run])
                frames = frames[: len(frames) // FRAMES_PER_UNIT * FRAMES_PER_UNIT]
                latents.append(self.vae.encode_raw(frames_to_video(torch.from_numpy(frames)[None], self.device))[0])
        self.write(out_dir, torch.cat(latents, 1).movedim(2, -1).flatten(0, 3))


def _find_codec(start: str, kind: str) -> Path:
    """Weights of a codec: of the folder that `train codec` wrote, or of an agent."""
    path = Path(start) / f"{kind}_vae.safetensors"
    try:
        return path if path.is_file() else find_checkpoint(start) / path.name
    except CheckpointError as error:
        raise CheckpointError(
            f"{start}: expected a codec for {kind} ({path.name}), found {describe(Path(start))}; {KINDS['codec'].made}"
        ) from error


def _stretch(audio_T: np.ndarray, length: int) -> np.ndarray:
    """As many samples as asked for, of the same sound played faster or slower; band-limited."""
    if len(audio_T) == length:
        return audio_T
    spectrum = np.fft.rfft(audio_T)[: length // 2 + 1]
    return (np.fft.irfft(spectrum, length) * (length / len(audio_T))).astype(np.float32)


STAGES: dict[str, tuple[type, TrainConfig]] = {
    "audio": (
        AudioCodecStage,
        TrainConfig(steps=6000, lr=2e-3, muon_lr=4e-3, batch=16, betas=(0.8, 0.95), ema=0.995, diverged=0.0),
    ),  # its critic joins late and raises the loss
    "video": (VideoCodecStage, TrainConfig(steps=6000, lr=1e-3, muon_lr=2e-3, batch=8, ema=0.995)),
}


def train_codec(
    kind: str,
    preset: str,
    data_dir: Path,
    out_dir: Path,
    resume: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    device: str = "auto",
    lr: float | None = None,
    start: str | None = None,
    decoder_only: bool = False,
) -> dict[str, float]:
    """Train codec `kind` ("audio" or "video") and export it to `out_dir`. Returns the last validation metrics.

    lr            of AdamW; Muon's is scaled with it
    start         begin from this codec: folder that this function wrote, or an agent
    decoder_only  of `start`, train the decoder alone: latents and models of them stay valid

    Raises `ConfigError` for an unknown codec or a device that this machine lacks, `DataError` for missing arrays,
    `CheckpointError` if there is no codec to begin from.
    """
    world = join(device)
    if world.size > 1:
        raise TrainingError(f"a codec trains in one process, expected one, got {world.size}; start it without torchrun")
    if kind not in STAGES:
        raise ConfigError(f"unknown codec {kind!r}; expected one of {', '.join(STAGES)}")
    stage_class, config = STAGES[kind]
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    if lr is not None:
        config = dataclasses.replace(config, lr=lr, muon_lr=config.muon_lr * lr / config.lr)
    stage = stage_class(preset, Path(data_dir), config, start, decoder_only)
    if decoder_only and kind == "video":
        stage.encode_data(Path(data_dir))
    trainer = Trainer(stage, Path(out_dir), world)
    if resume:
        trainer.resume()
    return trainer.run(minutes)

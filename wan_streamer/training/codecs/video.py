"""Training the video VAE: 12-frame crops of 96 x 128; L1 in a decorrelated colour space plus gradients, weighted to
what moves.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from wan_streamer.codecs.folder import encoder_hash, save_light
from wan_streamer.codecs.video_vae import VideoState, VideoVAE, frames_to_video
from wan_streamer.config import VideoDecoderConfig
from wan_streamer.files import replacing
from wan_streamer.flow.noise import RowNoise
from wan_streamer.presets import get_preset
from wan_streamer.training.codecs.losses import video_loss
from wan_streamer.training.codecs.samples import FILM_FRAMES, video_sheet, write_png
from wan_streamer.training.codecs.stage import ANCHOR, CodecStage, load_array
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.units import FRAMES_PER_UNIT

CELL = 16  # pixels of a latent in both directions
CUT_SHARE = 0.15  # of the clips begin anywhere; the others do not cross a cut
PIECE, PIECES = 24, 8  # frames that are scored together (one person of other_frames), and how many times
MOUTH = (0.85, 0.5)  # where a crop has the mouth of a rendered head in its middle, share of the free rows and columns
VIDEO_WEIGHTS = {"colour": 1.0, "gradient": 1.0, "change": 1.0, "border": 1.0}


class VideoCodecStage(CodecStage):
    name, kind, agent_share = "codec-video", "video", 0.25
    vae: VideoVAE

    def __init__(
        self,
        preset: str,
        data_dir: Path,
        config: TrainConfig,
        start: str | None = None,
        decoder_only: bool = False,
        light: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        self.light, decoder_only = light, decoder_only or light
        shape = get_preset(preset).video_vae
        self.vae = VideoVAE(dataclasses.replace(shape, decoder=VideoDecoderConfig()) if light else shape)
        super().__init__(config, start, decoder_only)
        self.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.models: dict[str, nn.Module] = {"vae": self.vae}
        self.train_data = [load_array(data_dir, "agent_frames"), load_array(data_dir, "other_frames")]
        self.valid_data = [load_array(data_dir, "agent_frames_valid"), load_array(data_dir, "other_frames_valid")]
        self.frames, self.crop = 12, (96, 128)
        self.latents: list[np.ndarray] | None = None
        if decoder_only:
            self.agent_share, self.latents = 0.5, self._encode_data(data_dir)

    def _encode_data(self, data_dir: Path) -> list[np.ndarray]:
        """All frames through the fixed encoder, once: latents are kept beside them, named after the weights."""
        latents = []
        for name, video in zip(("agent_frames", "other_frames"), self.train_data, strict=True):
            path = data_dir / f"{name}.{encoder_hash(self.vae)}.npy"
            if not path.exists():
                with replacing(path) as part, part.open("wb") as file:
                    np.save(file, self._encoded(video, name), allow_pickle=False)
            latents.append(load_array(data_dir, path.stem))
        return latents

    @torch.inference_mode()
    def _encoded(self, video: np.ndarray, name: str) -> np.ndarray:
        """Frames [T, H, W, 3] -> latents [T / 4, C, h, w] in half precision."""
        latents: list[np.ndarray] = []
        state: VideoState | None = None
        piece = 10 * FRAMES_PER_UNIT
        length = len(video) // FRAMES_PER_UNIT * FRAMES_PER_UNIT
        for start in track(range(0, length, piece), description=f"encoding {name}"):
            frames = torch.from_numpy(np.array(video[start : min(start + piece, length)]))
            latent, state = self.vae.encode_raw(frames_to_video(frames[None], frames.device), state)
            latents.append(latent[0].half().numpy())
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
            if self.latents is not None:
                unit, row_of, column = start // FRAMES_PER_UNIT, top // CELL, left // CELL
                start, top, left = unit * FRAMES_PER_UNIT, row_of * CELL, column * CELL
                cells = self.latents[other][unit : unit + self.frames // FRAMES_PER_UNIT, :, row_of:, column:]
                latents.append(cells[..., : self.crop[0] // CELL, : self.crop[1] // CELL])
            crops.append(video[start : start + self.frames, top : top + self.crop[0], left : left + self.crop[1]])
        # Bytes travel to the device, floats are made there.
        return torch.from_numpy(np.stack(crops)), torch.from_numpy(np.stack(latents)) if latents else None

    def loss(self, batch: tuple[Tensor, Tensor | None], step: int, noise: RowNoise) -> tuple[Tensor, dict[str, Tensor]]:
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

    def write_samples(self, stem: Path) -> dict[str, float]:
        """The agent's face and another: before and after the round trip, and the error."""
        clips = [np.array(video[:FILM_FRAMES]) for video in self.valid_data]
        sheet = video_sheet([(clip, self._rebuilt(clip)) for clip in clips])
        write_png(sheet, stem.with_suffix(".png"))
        return {}

    def export(self, out_dir: Path) -> None:
        if self.light:
            return save_light(self.vae, out_dir)
        video, run = self.train_data[0], 40  # ten runs of consecutive frames, as the model will see them
        starts = np.linspace(0, max(0, len(video) - run), 10).astype(int)
        with torch.inference_mode(), self.autocast():
            latents = []
            for start in starts:
                frames = np.array(video[start : start + run])
                frames = frames[: len(frames) // FRAMES_PER_UNIT * FRAMES_PER_UNIT]
                latents.append(self.vae.encode_raw(frames_to_video(torch.from_numpy(frames)[None], self.device))[0])
        self.write(out_dir, torch.cat(latents, 1).movedim(2, -1).flatten(0, 3))

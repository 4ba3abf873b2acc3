"""Can a small flow model learn these codecs' latents? Trains one on the agent's pictures and one on its sound.

    python scripts/flow_on_latents.py --codecs wan_streamer/checkpoints/nano --data data/codecs --out out/flow

Each predicts the latents of a unit from those of the two units before. Printed: the error of the velocity (paper eq. 3)
per number at several tau, on training and on held-out units, of the `model`, of `zero` velocity, and of `previous`, the
best guess if a number were a multiple of what stood there a unit earlier, plus normal noise. Samples in OUT: held-out
units, units drawn after true ones, and a free run, all decoded; `change` is their mean square step from unit to unit.
"""

import argparse
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wan_streamer.codecs.folder import load_codec
from wan_streamer.codecs.video_vae import frames_to_video, video_to_frames
from wan_streamer.flow.noise import RowNoise
from wan_streamer.flow.path import interpolate, sample_tau, velocity_target
from wan_streamer.flow.solver import time_grid
from wan_streamer.training.codecs.samples import mel_sheet, write_png, write_wav
from wan_streamer.training.codecs.stage import load_array
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
LR, SHIFT, TAU_FLOOR, STEPS, UNITS = 2e-3, 3.0, 0.01, 16, 6000
PATCH, BATCH = 3, {"video": 32, "audio": 128}  # a video token is 3 x 3 latent positions, as in the model
ARRAY = {"video": "agent_frames", "audio": "agent_audio"}


class UnitFlow(nn.Module):
    """Velocity of a unit's tokens from z_tau, tau and the tokens of the two units before: it corrects `previous`."""

    def __init__(self, seen_KND: Tensor, dim: int = 192, layers: int = 4) -> None:
        super().__init__()
        _, N, D = seen_KND.shape
        self.keep_D = (seen_KND[1:] * seen_KND[:-1]).mean((0, 1)) / seen_KND.square().mean((0, 1))
        self.new_D = (seen_KND[1:] - self.keep_D * seen_KND[:-1]).square().mean((0, 1))
        self.embed, self.out = nn.Linear(3 * D, dim), nn.Linear(dim, D)
        self.place = nn.Parameter(torch.randn(N, dim) * 0.02)
        self.time = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        nn.init.zeros_(self.out.weight)

    def previous(self, noisy_BND: Tensor, tau_B: Tensor, past_BNE: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity of the mean of z0, which is normal, given z_tau; and its standard deviation."""
        tau, mean = tau_B.clamp(min=TAU_FLOOR)[:, None, None], self.keep_D * past_BNE.chunk(2, dim=2)[0]
        share = self.new_D / ((1 - tau) ** 2 * self.new_D + tau**2)
        return (noisy_BND - mean - (1 - tau) * share * (noisy_BND - (1 - tau) * mean)) / tau, share.sqrt()

    def forward(self, noisy_BND: Tensor, tau_B: Tensor, past_BNE: Tensor) -> Tensor:
        angle = tau_B[:, None] * torch.exp(torch.linspace(0, 6, 32))
        hidden = self.embed(torch.cat([noisy_BND, past_BNE], dim=2)) + self.place
        hidden = hidden + self.time(torch.cat([angle.sin(), angle.cos()], dim=1))[:, None]
        velocity_BND, scale = self.previous(noisy_BND, tau_B, past_BNE)
        return velocity_BND + scale * self.out(self.layers(hidden)).float()


def past_of(tokens_KND: Tensor) -> Tensor:
    """[K - 2, N, 2 D]: the unit before each unit but the first two, then the one before that."""
    return torch.cat([tokens_KND[1:-1], tokens_KND[:-2]], dim=2)


@torch.enable_grad()
def train(tokens_KND: Tensor, steps: int, batch: int) -> UnitFlow:
    model, past, clean = UnitFlow(tokens_KND), past_of(tokens_KND), tokens_KND[2:]
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = LR * min(1, step / 50) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        rows, eps = torch.randint(len(clean), (batch,)), torch.randn(batch, *clean.shape[1:])
        tau = sample_tau((1, batch), SHIFT, RowNoise(0, step, [0]))[0]
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(interpolate(clean[rows], eps, tau[:, None, None]), tau, past[rows])
        (velocity - velocity_target(clean[rows], eps)).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def errors(model: UnitFlow, tokens_KND: Tensor) -> dict[str, list[float]]:
    """Squared error of every predictor at each of `TIMES`, on at most 400 units."""
    clean, past = tokens_KND[2:402], past_of(tokens_KND)[:400]
    table: dict[str, list[float]] = {"zero": [], "previous": [], "model": []}
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    for times in torch.tensor(TIMES)[:, None].expand(-1, len(clean)):
        noisy, target = interpolate(clean, eps, times[:, None, None]), velocity_target(clean, eps)
        answers = torch.zeros(()), model.previous(noisy, times, past)[0], model(noisy, times, past)
        for column, answer in zip(table.values(), answers, strict=True):
            column.append(round((answer - target).square().mean().item(), 3))
    return table


def draw(model: UnitFlow, past_BNE: Tensor) -> Tensor:
    """A unit after each past: Euler from noise to data."""
    z_BND = torch.randn_like(past_BNE.chunk(2, dim=2)[0])
    for now, following in pairwise(time_grid(STEPS, SHIFT)):
        z_BND = z_BND - (now - following) * model(z_BND, torch.full((len(z_BND),), now), past_BNE)
    return z_BND


def tokens_of(vae: nn.Module, kind: str, stream: np.ndarray) -> Tensor:
    """Latents of the first units of an array, encoded as one stream: [K, 28, 144] of pictures, [K, 4, 32] of sound."""
    parts, state, size = [], None, FRAMES_PER_UNIT if kind == "video" else SAMPLES_PER_UNIT
    for number in range(min(UNITS, len(stream) // size)):
        unit = torch.from_numpy(np.array(stream[None, number * size : (number + 1) * size]))
        ready = frames_to_video(unit, unit.device).bfloat16() if kind == "video" else unit.float() / 32768
        latent, state = vae.encode(ready, state)
        parts.append(nn.PixelUnshuffle(PATCH)(latent.float()[0]).flatten(2).mT if kind == "video" else latent)
    return torch.cat(parts)


def write_samples(vae: nn.Module, kind: str, shown: list[Tensor], stem: Path) -> None:
    if kind == "video":
        size = vae.config.latent_height // PATCH, vae.config.latent_width // PATCH
        latents = [nn.PixelShuffle(PATCH)(x.mT.unflatten(2, size))[None].bfloat16() for x in shown]
        films = [video_to_frames(vae.decode(latent)[0])[0, 8::12].numpy() for latent in latents]
        write_png(np.concatenate([np.concatenate(film, axis=1) for film in films]), stem.with_suffix(".png"))
    else:
        sounds = [vae.decode(x.flatten(0, 1)[None])[0][0].numpy() for x in shown]
        write_png(mel_sheet(sounds), stem.with_suffix(".png"))
        write_wav(sounds, stem.with_suffix(".wav"))


@torch.no_grad()
def study(kind: str, options: argparse.Namespace) -> dict:
    vae = load_codec(options.codecs, kind)
    vae.to(torch.bfloat16 if kind == "video" else torch.float32, memory_format=torch.channels_last)
    seen, held = [tokens_of(vae, kind, load_array(options.data, ARRAY[kind] + end)) for end in ("", "_valid")]
    model, free = train(seen, options.steps, BATCH[kind]), list(held[:2])
    while len(free) < 24:
        free.append(draw(model, torch.cat([free[-1], free[-2]], dim=1)[None])[0])
    shown = [held[:24], torch.cat([held[:2], draw(model, past_of(held[:24]))]), torch.stack(free)]
    write_samples(vae, kind, shown, options.out / kind)
    change = [round(x.diff(dim=0).square().mean().item(), 3) for x in shown]
    return {"tau": TIMES, "train": errors(model, seen), "valid": errors(model, held), "change": change}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for place in ("--codecs", "--data", "--out"):
        parser.add_argument(place, type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="of each of the two models")
    torch.manual_seed(0)
    for kind in BATCH:
        print(kind, study(kind, parser.parse_args()), flush=True)

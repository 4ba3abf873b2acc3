"""Another camera in front of the same person: turned, nearer, moved; other light; out of focus; grain.

`Camera`  one of them, drawn at random;  `Camera.place`  where a point of the drawn picture is in its own

Added to what `wan_streamer.training.examples.augment` does to the user's picture when the model is trained.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wan_streamer.training.examples.augment import lit

MOVED = 0.7  # share of cameras that are not where the simulator's is
TURN, ZOOM, SHIFT = 5.0, (0.9, 1.12), 0.09  # degrees; factor; of half the picture's height and width
BLURRED, GRAINY, TINTED = 0.3, 0.5, 0.5  # shares
GRAIN = (1.0, 9.0)  # standard deviation, of 255
TINT = 0.06  # of red and blue
GAMMA = (0.75, 1.35)


@dataclass(frozen=True)
class Camera:
    """turn  degrees by which the picture is turned, clockwise;  zoom  factor;  x, y  shift, -1..1 over the picture"""

    turn: float = 0.0
    zoom: float = 1.0
    x: float = 0.0
    y: float = 0.0

    @staticmethod
    def sample(rng: np.random.Generator) -> "Camera":
        if rng.random() >= MOVED:
            return Camera()
        return Camera(
            float(np.clip(rng.normal(0, TURN / 2), -TURN, TURN)),
            float(rng.uniform(*ZOOM)),
            float(rng.uniform(-SHIFT, SHIFT)),
            float(rng.uniform(-SHIFT, SHIFT)),
        )

    def place(self, x: float, y: float, aspect: float) -> tuple[float, float]:
        """Where a point is, -1..1 over the picture both ways. aspect: width by height."""
        cos, sin = math.cos(math.radians(self.turn)) * self.zoom, math.sin(math.radians(self.turn)) * self.zoom
        return cos * x - sin * y / aspect + self.x, sin * x * aspect + cos * y + self.y

    def moved(self, frames_THWC: Tensor) -> Tensor:
        """uint8 [T, H, W, 3], as seen from its place; beyond the border, the border goes on."""
        if self == Camera():
            return frames_THWC
        T, H, W, _ = frames_THWC.shape
        a, c, s = W / H, math.cos(math.radians(self.turn)) / self.zoom, math.sin(math.radians(self.turn)) / self.zoom
        back = torch.tensor([[c, s / a, -c * self.x - s / a * self.y], [-s * a, c, s * a * self.x - c * self.y]])
        grid = F.affine_grid(back[None], [1, 3, H, W], align_corners=False)
        stacked = frames_THWC.permute(0, 3, 1, 2).reshape(1, 3 * T, H, W).float()
        seen = F.grid_sample(stacked, grid, padding_mode="border", align_corners=False)
        return seen.round().to(torch.uint8).view(T, 3, H, W).permute(0, 2, 3, 1).contiguous()


def developed(frames_THWC: Tensor, rng: np.random.Generator) -> Tensor:
    """uint8 [T, H, W, 3] in other light, perhaps out of focus, with another tint and grain."""
    frames = lit(frames_THWC.numpy(), rng)
    if rng.random() < BLURRED:
        frames = _blurred(frames, float(rng.uniform(0.3, 1.0)))
    tint = rng.uniform(-TINT, TINT) if rng.random() < TINTED else 0.0
    gamma = math.exp(rng.uniform(*np.log(GAMMA)))
    levels = 255 * np.linspace(0, 1, 256) ** gamma
    tables_C256 = np.stack([levels * (1 + tint), levels, levels * (1 - tint)]).clip(0, 255)
    if rng.random() >= GRAINY:
        tables = tables_C256.round().astype(np.uint8)
        return torch.from_numpy(np.stack([tables[i][frames[..., i].numpy()] for i in range(3)], -1))
    sigma = float(rng.uniform(*GRAIN))
    noise = np.resize(_grain()[int(rng.integers(1_000_000)) :], frames.shape)
    made = np.stack([tables_C256[i].astype(np.float32)[frames[..., i].numpy()] for i in range(3)], -1)
    made += np.float32(sigma) * noise
    return torch.from_numpy(made.clip(0, 255).astype(np.uint8))


def _blurred(frames_THWC: Tensor, amount: float) -> Tensor:
    """Mixed with the mean of every pixel and its neighbours, in both directions."""
    frames = frames_THWC.numpy().astype(np.float32)
    for axis in (1, 2):
        beside = np.roll(frames, 1, axis) + np.roll(frames, -1, axis)
        side = frames.shape[axis]
        for edge, inner in ((0, 1), (side - 1, side - 2)):  # nothing comes in from the other side
            place = (slice(None),) * axis
            beside[(*place, edge)] = frames[(*place, edge)] + frames[(*place, inner)]
        frames = frames * np.float32(1 - amount * 2 / 3) + beside * np.float32(amount / 3)
    return torch.from_numpy(frames.round().astype(np.uint8))


@functools.cache
def _grain() -> np.ndarray:
    """Fixed noise, read from anywhere; drawing new noise would take longer than drawing the person."""
    return np.random.default_rng(0).standard_normal(2_000_000, dtype=np.float32)

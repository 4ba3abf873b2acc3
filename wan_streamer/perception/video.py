"""Causal encoder of the user's video: frames -> a small grid of features per frame, with the change since the last.

`scale_frames`            frames of any size -> the encoder's
`VideoPerception`         it: the eyes;  `seeing`  it, to be trained or not, as a configuration says
`load_eyes`, `save_eyes`  a folder of eyes that were trained before the model;  `same_eyes`  whether they fit one
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.config import PerceptionConfig, from_dict, to_dict
from wan_streamer.errors import CheckpointError
from wan_streamer.files import parse_json, write_json
from wan_streamer.tensors import load_module, save_atomically
from wan_streamer.units import FRAMES_PER_UNIT


@dataclass
class VideoPerceptionState:
    last_BCHW: Tensor | None = None  # last frame, scaled


def scale_frames(frames_THWC: np.ndarray | Tensor, config: PerceptionConfig) -> Tensor:
    """uint8 frames of any size -> uint8 [T, h, w, 3] of the encoder's size: centre crop to its shape, area average."""
    _, H, W, _ = frames_THWC.shape
    h, w = config.video_height, config.video_width
    if (2 * h, 2 * w) == (H, W) and isinstance(frames_THWC, np.ndarray) and frames_THWC.dtype == np.uint8:
        return torch.from_numpy(_halved(frames_THWC))
    frames = torch.as_tensor(frames_THWC)
    if (h, w) == (H, W):
        return frames
    crop_h, crop_w = min(H, max(1, W * h // w)), min(W, max(1, H * w // h))
    top, left = (H - crop_h) // 2, (W - crop_w) // 2
    video = frames[:, top : top + crop_h, left : left + crop_w].permute(0, 3, 1, 2).float()
    return F.interpolate(video, size=(h, w), mode="area").round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _halved(frames_THWC: np.ndarray) -> np.ndarray:
    """The same to the bit at half the size, in a third of the time; a mean of .5 is rounded to the even number."""
    T, H, W, C = frames_THWC.shape
    small_THWC = np.empty((T, H // 2, W // 2, C), np.uint8)
    for frame, small in zip(frames_THWC, small_THWC, strict=True):  # one by one: it stays in the cache of a core
        lines = frame[::2].astype(np.uint16) + frame[1::2]
        total = lines[:, ::2] + lines[:, 1::2]
        small[:] = (total + 1 + (total >> 2 & 1)) >> 2
    return small_THWC


def unit_range(frames_HWC: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W], -1..1."""
    return frames_HWC.movedim(-1, -3).float() / 127.5 - 1


class Residual(nn.Module):
    """x + a small change of it, the same size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.second(F.silu(self.first(x_BCHW)))


class VideoPerception(nn.Module):
    """`forward(frames_BTHWC uint8, state) -> (feature_BTNC, state)`: T frames -> T x ticks / 4 times N tokens.

    N = rows x columns of the grid. A token has the features of its place in all frames of its tick.
    """

    def __init__(self, config: PerceptionConfig) -> None:
        super().__init__()
        self.config = config
        self.grid, self.ticks = config.video_grid, config.video_ticks
        c4, c8, c24 = config.video_channels
        self.layers = nn.Sequential(
            nn.Conv2d(6, c4, 4, stride=4),
            nn.SiLU(),
            nn.Conv2d(c4, c8, 3, stride=2, padding=1),
            nn.SiLU(),
            *(Residual(c8) for _ in range(config.video_blocks)),
            nn.Conv2d(c8, c24, 3, stride=3),
            nn.SiLU(),
        )

    def forward(
        self, frames_BTHWC: Tensor, state: VideoPerceptionState | None = None
    ) -> tuple[Tensor, VideoPerceptionState]:
        B, T = frames_BTHWC.shape[:2]
        video = unit_range(frames_BTHWC).movedim(2, -1)  # channels innermost, as they come
        last = video[:, :1] if state is None or state.last_BCHW is None else state.last_BCHW.movedim(1, -1)[:, None]
        change = video - torch.cat([last, video[:, :-1]], dim=1)
        hidden = self.layers(torch.cat([video, change], dim=-1).flatten(0, 1).movedim(-1, 1))
        cells = F.adaptive_avg_pool2d(hidden, self.grid).flatten(2).transpose(1, 2)  # [B T, N, C]
        frames = FRAMES_PER_UNIT // self.ticks
        feature = cells.unflatten(0, (B, T // frames, frames)).transpose(2, 3).flatten(3)
        return feature, VideoPerceptionState(video[:, -1].movedim(-1, 1))


def seeing(config: PerceptionConfig) -> VideoPerception:
    """The eyes of a model; those that were trained before it stay as they are."""
    return VideoPerception(config).requires_grad_(config.seeing == "model")


EYES = "eyes.safetensors"


def save_eyes(eyes: VideoPerception, folder: str | Path) -> None:
    """Write shape and weights, float32."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().float().contiguous() for name, value in eyes.state_dict().items()}
    save_atomically(tensors, folder / EYES)
    write_json(folder / "config.json", _shape(eyes.config))


def load_eyes(folder: str | Path) -> VideoPerception:
    """What `save_eyes` wrote. Raises `CheckpointError` if it is missing or damaged, `ConfigError`."""
    path = Path(folder) / "config.json"
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the shape of eyes ({error})") from error
    eyes = VideoPerception(from_dict(PerceptionConfig, data, str(path)))
    load_module(eyes, path.with_name(EYES))
    return eyes.eval()


def same_eyes(one: PerceptionConfig, other: PerceptionConfig) -> bool:
    """Whether two configurations have eyes of the same shape, whatever they hear with."""
    return _shape(one) == _shape(other)


def _shape(config: PerceptionConfig) -> dict:
    return {name: value for name, value in to_dict(config).items() if name.startswith("video_")}

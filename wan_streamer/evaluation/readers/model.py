"""How pixels of the agent's rendered face become parameters: a cascade of linear maps, fitted on seeded renders.

`Reader`       the fitted maps; `read` gives parameters of frames
`face_reader`  the one reader of this process, fitted at the first call (a few seconds of work)

The place where the renderer draws a part follows from the pose (`face.parts`). A stage looks where the head, the
shoulders and the features would be if the pose read so far were right, and a ridge regression reads from those colours
how far it is off (supervised descent, Xiong & De la Torre 2013). Three stages place the head to a fraction of a pixel;
then eyes and mouth are read from the aligned colours, with a ridge regression too. Every frame is read on its own.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from wan_streamer.simulation.face.person import AGENT_IDENTITY, SIDES, FacePose, HandPose
from wan_streamer.simulation.face.renderer import FaceRenderer

HEIGHT, WIDTH = 192, 336  # of the design in which all places are given
HALF = (HEIGHT // 2, WIDTH // 2)  # what is looked at: finer details only add noise
MOUTH_PIXELS = 19.0 * AGENT_IDENTITY.scale  # the gap of a mouth that is fully open
POSE = ("head_x", "head_y", "roll", "yaw", "pitch", "lean", "breath")
EYES, MOUTH = ("blink", "gaze_x", "gaze_y"), ("mouth_open",)
RENDERS, STAGES, RIDGE, DETAIL_RIDGE = 800, 3, 0.005, 0.002
_SHUT = 0.7  # a blink above which the iris cannot be seen
_HANDS = 0.15  # share of renders with a hand beside the face
_TYPICAL = 1.8  # deviation at which the likeness is one half
_RANGES: dict[str, tuple[float, float]] = {
    "head_x": (-0.9, 0.9), "head_y": (-0.7, 0.7), "roll": (-0.8, 0.8), "yaw": (-1.0, 1.0), "pitch": (-0.3, 1.3),
    "lean": (-0.9, 0.9), "breath": (0.0, 1.0), "gaze_x": (-1.0, 1.0), "gaze_y": (-0.6, 0.6), "brow": (-0.3, 0.7),
    "smile": (0.1, 1.0), "mouth_wide": (-0.5, 0.8), "lip_round": (0.0, 1.0), "teeth": (0.0, 1.0), "tongue": (0.0, 1.0),
    "mouth_open": (0.0, 1.0), "blink": (0.0, 1.0),
}  # fmt: skip


def _grid(left: float, right: float, top: float, bottom: float, step: float) -> np.ndarray:
    y, x = np.meshgrid(np.arange(top, bottom + 0.1, step), np.arange(left, right + 0.1, step), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)


# Points [P, 2] of head space (the shoulders': of the upper body), pixels of the design, x right and y down.
_HEAD = _grid(-60, 60, -78, 72, 6)
_FEATURES = _grid(-34, 34, -34, 62, 3)
_SHOULDERS = _grid(-136, 136, 64, 92, 7)
_EYE_POINTS = _grid(-34, 34, -24, 4, 1.5)
_MOUTH_POINTS = _grid(-34, 34, 18, 62, 2)


def _turned(points_NPD: np.ndarray, degrees_N: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    angle_N1 = np.radians(degrees_N)[:, None]
    x, y = points_NPD[..., 0] - centre[0], points_NPD[..., 1] - centre[1]
    c, s = np.cos(angle_N1), np.sin(angle_N1)
    return np.stack([x * c - y * s + centre[0], x * s + y * c + centre[1]], -1)


def _places(pose_ND: np.ndarray, features_PD: np.ndarray, whole: bool = False) -> torch.Tensor:
    """Where `face.parts` draws points of the features (and of the whole person), float32 [N, P, 2], -1..1."""
    head_x, head_y, roll, yaw, pitch, lean, breath = pose_ND.T
    points = features_PD + np.stack([yaw * 9, pitch * 5], 1)[:, None]
    if whole:
        points = np.concatenate([points, np.broadcast_to(_HEAD, (len(pose_ND), *_HEAD.shape))], 1)
    points = _turned(points * np.float32(AGENT_IDENTITY.scale), roll * 9, (0, 70))
    points = points + np.stack([head_x * 9, head_y * 5 + breath * 0.9], 1)[:, None]
    if whole:
        body = _SHOULDERS + np.stack([head_x * 9 * 0.35, -breath * 1.6], 1)[:, None]
        points = np.concatenate([points, body], 1)
    points = _turned(points, lean * 3.2, (0, 260))
    x, y = points[..., 0] / (WIDTH / 2), (points[..., 1] + (0.515 - 0.5) * HEIGHT) / (HEIGHT / 2)
    return torch.from_numpy(np.stack([x, y], -1).astype(np.float32))


def _colours(image_NCHW: torch.Tensor, places_NPD: torch.Tensor) -> np.ndarray:
    """Colours of the points, float32 [N, 3 * P]: all red, then all green, then all blue."""
    seen = F.grid_sample(image_NCHW, places_NPD[:, :, None], align_corners=False, padding_mode="border")
    return seen.flatten(1).numpy()


def _seen(image_NCHW: torch.Tensor, pose_ND: np.ndarray) -> np.ndarray:
    return _colours(image_NCHW, _places(pose_ND, _FEATURES, whole=True))


def _shrunk(frames_THWC: np.ndarray) -> torch.Tensor:
    """Frames of any size as float32 [T, 3, H / 2, W / 2] of the design, 0..1."""
    frames = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
    return F.interpolate(frames, HALF, mode="bilinear", antialias=True, align_corners=False).float().div_(255)


@dataclass(frozen=True)
class _Line:
    """y = x @ weight + offset."""

    weight: np.ndarray
    offset: np.ndarray

    def __call__(self, x_ND: np.ndarray) -> np.ndarray:
        return x_ND @ self.weight + self.offset

    @classmethod
    def fit(cls, x_ND: np.ndarray, y_ND: np.ndarray, ridge: float) -> "_Line":
        """Ridge regression in its dual form: there are more colours than frames."""
        mean_x, mean_y = x_ND.mean(0), y_ND.mean(0)
        x_ND = x_ND - mean_x
        gram_NN = x_ND @ x_ND.T + ridge * len(x_ND) * np.eye(len(x_ND), dtype=x_ND.dtype)
        weight = x_ND.T @ np.linalg.solve(gram_NN, y_ND - mean_y)
        return cls(weight, mean_y - mean_x @ weight)


@dataclass(frozen=True)
class Reader:
    """stages: corrections of the pose; eyes, mouth: from aligned colours; mean, spread: of colours of the agent."""

    stages: tuple[_Line, ...]
    eyes: _Line
    mouth: _Line
    mean: np.ndarray
    spread: np.ndarray

    def read(self, frames_THWC: np.ndarray) -> dict[str, np.ndarray]:
        """`POSE`, `EYES` and `MOUTH` on the scale of `FacePose`; "likeness", "brightness" 0..1; "found" -1..1.

        Each [T].

        likeness  how little the aligned colours deviate from the agent's, in units of his own spread
        found     correlation of the aligned brightness with his: whether there is such a face at all, of any colour
        """
        image = _shrunk(frames_THWC)
        pose = np.zeros((len(image), len(POSE)), np.float32)
        for stage in self.stages:
            pose = _corrected(pose, stage, _seen(image, pose))
        tracks = dict(zip(POSE, pose.T, strict=True))
        tracks |= zip(EYES, self.eyes(_colours(image, _places(pose, _EYE_POINTS))).T, strict=True)
        tracks |= zip(MOUTH, self.mouth(_colours(image, _places(pose, _MOUTH_POINTS))).T, strict=True)
        seen = _seen(image, pose)
        deviation_T = np.sqrt(np.mean(((seen - self.mean) / self.spread) ** 2, axis=1))
        tracks["likeness"] = 1 / (1 + (deviation_T / _TYPICAL) ** 4)
        tracks["found"] = _alike(seen, self.mean)
        tracks["brightness"] = image.mean((1, 2, 3)).numpy()
        return tracks


def _corrected(pose_ND: np.ndarray, stage: _Line, seen_ND: np.ndarray) -> np.ndarray:
    return np.clip(pose_ND + stage(seen_ND), -2, 2)


def _alike(seen_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """Correlation of brightness over the points of the head."""
    points = len(_FEATURES) + len(_HEAD)

    def normal(colours_ND: np.ndarray) -> np.ndarray:
        light = colours_ND.reshape(len(colours_ND), 3, -1).mean(1)[:, :points]
        light = light - light.mean(1, keepdims=True)
        return light / (light.std(1, keepdims=True) + 1e-3)

    return (normal(seen_ND) * normal(mean_D[None])).mean(1)


@cache
def face_reader() -> Reader:
    """The reader of the agent. It has to draw faces, which needs the extra `simulate`."""
    rng = np.random.default_rng(0)
    poses = [_some_pose(rng) for _ in range(RENDERS)]
    renderer = FaceRenderer(AGENT_IDENTITY, HEIGHT, WIDTH)
    parts = [poses[i : i + 40] for i in range(0, RENDERS, 40)]  # a few at a time, for the sake of memory
    clean = [_shrunk(renderer.film(part, [_some_hand(rng) for _ in part])) for part in parts]
    image, poses = torch.cat(clean + [_worn(part, rng) for part in clean]), poses * 2

    def truth(names: tuple[str, ...]) -> np.ndarray:
        return np.array([[getattr(pose, name) for name in names] for pose in poses], np.float32)

    target, pose = truth(POSE), np.zeros((len(poses), len(POSE)), np.float32)
    stages = []
    for _ in range(STAGES):
        seen = _seen(image, pose)
        stages.append(_Line.fit(seen, target - pose, RIDGE))
        pose = _corrected(pose, stages[-1], seen)
    eyes, mouth = (_colours(image, _places(pose, part)) for part in (_EYE_POINTS, _MOUTH_POINTS))
    blink = _Line.fit(eyes, truth(EYES[:1]), DETAIL_RIDGE)
    open_ = truth(EYES)[:, 0] < _SHUT
    gaze = _Line.fit(eyes[open_], truth(EYES[1:])[open_], DETAIL_RIDGE)
    seen = _seen(image[:RENDERS], pose[:RENDERS])
    return Reader(
        tuple(stages),
        _Line(np.hstack([blink.weight, gaze.weight]), np.hstack([blink.offset, gaze.offset])),
        _Line.fit(mouth, truth(MOUTH), DETAIL_RIDGE),
        seen.mean(0),
        seen.std(0) + 0.03,  # no point may count for much because it never changes
    )


def _some_pose(rng: np.random.Generator) -> FacePose:
    """Any pose: every parameter on its own, but eyes often open and on the camera, mouths often shut, then no teeth."""
    values: dict[str, Any] = {name: float(rng.uniform(*span)) for name, span in _RANGES.items()}
    if rng.random() < 0.4:
        values["gaze_x"], values["gaze_y"] = 0.15 * values["gaze_x"], 0.15 * values["gaze_y"]
    values["blink"] *= rng.random() < 0.4
    if values["blink"] > 0.5 and rng.random() < 0.5:
        values["blink"] = 1.0
    if rng.random() < 0.35:
        values |= dict.fromkeys(("mouth_open", "mouth_wide", "lip_round", "teeth", "tongue"), 0.0)
    return FacePose(**values)


def _some_hand(rng: np.random.Generator) -> HandPose | None:
    if rng.random() > _HANDS:
        return None
    side = SIDES[rng.integers(2)]
    out = 1 if side == "right" else -1
    return HandPose("open", out * rng.uniform(0.5, 0.85), rng.uniform(0, 1.6), out * rng.uniform(-0.4, 0.5), side)


def _worn(image_NCHW: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """What coding and drift do to pictures: blur of four strengths, other light and colour, noise."""
    blurred = []
    for part, size in zip(image_NCHW.chunk(4), (1.0, 0.75, 0.55, 0.4), strict=True):
        small = F.interpolate(part, scale_factor=size, mode="bilinear", antialias=True, align_corners=False)
        blurred.append(F.interpolate(small, HALF, mode="bilinear", align_corners=False))
    shape = (len(image_NCHW), 1, 1, 1)
    change = rng.random(image_NCHW.shape, np.float32) - np.float32(0.5)
    change *= rng.uniform(0, 0.08, shape).astype(np.float32)
    change += rng.normal(0, 0.03, shape).astype(np.float32)
    gain = rng.normal(1, 0.06, shape) + rng.normal(0, 0.03, (len(image_NCHW), 3, 1, 1))
    return torch.cat(blurred) * torch.from_numpy(gain.astype(np.float32)) + torch.from_numpy(change)

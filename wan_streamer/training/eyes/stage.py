"""Stage `eyes`: teach the encoder of the user's picture, alone, to see what the simulator draws.

`EyesStage`   losses: cross-entropies of what is shown and who it is, Huber of the face's numbers
`train_eyes`  the whole run
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.config import PerceptionConfig
from wan_streamer.flow.noise import RowNoise
from wan_streamer.perception.video import VideoPerception, VideoPerceptionState, load_eyes, save_eyes, unit_range
from wan_streamer.presets import nano_ears
from wan_streamer.training.eyes.data import Clip, ClipConfig, ClipMaker
from wan_streamer.training.eyes.heads import Heads
from wan_streamer.training.eyes.labels import CLASSES, UNKNOWN, VALUES
from wan_streamer.training.loop.alone import AloneOptions, train_alone
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.units import FRAMES_PER_UNIT

FOLDER = "eyes"
"""Where a run writes what `load_eyes` reads."""
LAST = 4.0  # factor of the last layer's first weights: tokens are means over many places, which makes them small
SEEN_AT_ONCE = 32  # clips, in validation
PARTS = MappingProxyType({"thing": 1.5, "colour": 2.0, "hand": 0.8, "waves": 0.3, "values": 2.0})


@dataclass(frozen=True)
class EyesLoss:
    """What is minimised.

    parts    weights of the questions' cross-entropies and of "values", the mean Huber loss of all numbers
    other    weight of the questions that are not in `parts`: those about the person
    """

    parts: Mapping[str, float] = field(default_factory=lambda: PARTS)
    other: float = 0.15


class Clips(NamedTuple):
    """A batch: frames_BTHWC uint8, one before the 4 K of the units; classes_BKA int64, values_BKV float32."""

    frames_BTHWC: Tensor
    classes_BKA: Tensor
    values_BKV: Tensor


class EyesStage(Stage):
    """perception  shape of new eyes;  start  folder of eyes to begin from instead;  validated  held-out clips

    Raises `ConfigError`, `CheckpointError`.
    """

    name = "eyes"

    def __init__(
        self,
        config: TrainConfig,
        perception: PerceptionConfig | None = None,
        start: Path | None = None,
        clips: ClipConfig | None = None,
        parts: EyesLoss | None = None,
        validated: int = 160,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.parts = config, parts or EyesLoss()
        if start is None:
            self.eyes = VideoPerception(perception or nano_ears().perception)
            _wake(self.eyes)
        else:
            self.eyes = load_eyes(start)
        self.eyes.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = self.eyes.config
        rows, columns = shape.video_grid
        self.heads = Heads(rows * columns * shape.video_ticks, shape.video_features)
        self.models: dict[str, nn.Module] = {"eyes": self.eyes, "heads": self.heads}
        self.train_clips = ClipMaker(shape, "train", clips or ClipConfig(), config.seed)
        valid = ClipMaker(shape, "valid", clips or ClipConfig(), config.seed + 1)
        self.validated = [
            self.clips([valid.make(0, row) for row in range(first, min(first + SEEN_AT_ONCE, validated))])
            for first in range(0, validated, SEEN_AT_ONCE)
        ]

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        return p.ndim == 4 and name.startswith("eyes.") and not name.startswith("eyes.layers.0.")

    def batch(self, step: int, rows: range) -> Clips:
        return self.clips([self.train_clips.make(step, row) for row in rows])

    def clips(self, clips: list[Clip]) -> Clips:
        return Clips(
            torch.stack([clip.frames_THWC for clip in clips]),
            torch.stack([clip.classes_KA for clip in clips]),
            torch.stack([clip.values_KA for clip in clips]),
        )

    def read(self, batch: Clips) -> tuple[dict[str, Tensor], Tensor]:
        """What the heads read from the eyes, as `Heads` gives it, float32."""
        frames_BTHWC = self.move(batch.frames_BTHWC)
        with self.autocast():
            feature_BTND, _ = self.eyes(frames_BTHWC[:, 1:], VideoPerceptionState(unit_range(frames_BTHWC[:, 0])))
            # all tokens of a unit in one row, whatever its ticks
            units = (batch.frames_BTHWC.shape[1] - 1) // FRAMES_PER_UNIT
            logits, values_BKV = self.heads(feature_BTND.unflatten(1, (units, -1)).flatten(2, 3))
        return {name: value.float() for name, value in logits.items()}, values_BKV.float()

    def loss(self, batch: Clips, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        logits, values_BKV = self.read(batch)
        classes_BKA, truth_BKV = self.move(batch.classes_BKA), self.move(batch.values_BKV)
        numbers = {
            name: _cross_entropy(logits[name], classes_BKA[..., i], batch.classes_BKA[..., i])
            for i, name in enumerate(CLASSES)
        }
        numbers["values"] = F.smooth_l1_loss(values_BKV, truth_BKV, beta=0.5)
        total = sum(self.parts.parts.get(name, self.parts.other) * value for name, value in numbers.items())
        return total, numbers  # type: ignore[return-value]

    def validate(self) -> dict[str, float]:
        """Of held-out people: the share of right answers, and the explained share of the variance of each number."""
        right: dict[str, list[Tensor]] = {name: [] for name in CLASSES}
        read, truth = [], []
        with torch.no_grad():
            for batch in self.validated:
                logits, values_BKV = self.read(batch)
                for i, name in enumerate(CLASSES):
                    known = batch.classes_BKA[..., i] != UNKNOWN
                    right[name].append((logits[name].argmax(2).cpu() == batch.classes_BKA[..., i])[known])
                    if name == "thing":
                        # something is held if all things together are likelier than none
                        held = (logits[name].softmax(2)[..., 0].cpu() < 0.5) == (batch.classes_BKA[..., i] > 0)
                        right.setdefault("held", []).append(held[known])
                read.append(values_BKV.cpu().flatten(0, 1))
                truth.append(batch.values_BKV.flatten(0, 1))
        read_NV, truth_NV = torch.cat(read), torch.cat(truth)
        missed_V = (read_NV - truth_NV).square().mean(0) / truth_NV.var(0, correction=0).clamp(min=1e-6)
        scores = {f"right/{name}": torch.cat(answers).float().mean().item() for name, answers in right.items()}
        return scores | {f"known/{name}": 1 - missed_V[i].item() for i, name in enumerate(VALUES)}

    def export(self, out_dir: Path) -> None:
        save_eyes(self.eyes, out_dir / FOLDER)


def _cross_entropy(logits_BKC: Tensor, classes_BK: Tensor, known_BK: Tensor) -> Tensor:
    """Mean over all units, those without an answer with none of the loss: parts of a batch then add up."""
    costs = F.cross_entropy(logits_BKC.flatten(0, 1), classes_BK.flatten(), ignore_index=UNKNOWN, reduction="sum")
    return costs / known_BK.numel()


def _wake(eyes: VideoPerception) -> None:
    """Weights with which the size of activations stays from layer to layer; PyTorch's own let it fade."""
    convolutions = [module for module in eyes.layers.modules() if isinstance(module, nn.Conv2d)]
    for conv in convolutions:
        if conv.weight.any():  # the second of a residual block begins at zero
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
    with torch.no_grad():
        convolutions[-1].weight *= LAST


CONFIG = TrainConfig(
    steps=3000, lr=5e-4, muon_lr=4e-3, batch=16, warmup=30, weight_decay=0.02, ema=0.99,
    log_every=5, validate_every=50, save_every=20,
)  # fmt: skip


def train_eyes(
    out_dir: str | Path, start: str | Path | None = None, options: AloneOptions = AloneOptions()
) -> dict[str, float]:
    """Train eyes of the preset `nano-ears`; they are written to `out_dir`/eyes. Returns the last validation.

    start  folder of eyes to begin from; they keep their shape

    Raises `ConfigError`, `CheckpointError` for weights that do not fit, `TrainingError` for a resume that does not.
    """
    begin = None if start is None else Path(start)
    return train_alone(lambda config: EyesStage(config, start=begin), CONFIG, out_dir, options)

"""What the trainer trains: a stage owns models, data, losses and metrics.

`TrainConfig`   numbers of the loop;   `Stage`   the interface
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from wan_streamer.device import has_bfloat16
from wan_streamer.errors import ConfigError
from wan_streamer.flow.noise import RowNoise


@dataclass(frozen=True)
class TrainConfig:
    """Numbers of the loop. Learning rates: linear warm-up, then cosine down to `lr_floor` of them.

    batch       rows of a step, over all processes and micro-batches
    accumulate  micro-batches that a step is split into, one after the other
    lr          of AdamW
    muon_lr     of Muon, for the stage's hidden matrices (`Stage.is_hidden`); 0 leaves them to AdamW
    diverged    a moving mean of the loss above so many times its best is a run that diverges; 0 looks at nothing
    patience    steps in a row of that, after which the run stops; none of them is saved
    precision   of matrix products: "bf16" (autocast) or "fp32"; weights and sums are always float32
    clip_units  units of a clip of conversation. 24 (3.84 s) is one more than nano's longest window, so that sinks are
                seen in their moved place; a model with longer windows needs longer clips
    draw_every  one step of conversation of so many learns text, sound and pictures, the others text and sound
    """

    steps: int
    lr: float
    batch: int
    muon_lr: float = 0.0
    accumulate: int = 1
    seed: int = 0
    warmup: int = 50
    lr_floor: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.99
    diverged: float = 4.0
    patience: int = 100
    precision: str = "bf16"
    log_every: int = 10
    validate_every: int = 250
    save_every: int = 250
    clip_units: int = 24
    draw_every: int = 1

    def __post_init__(self) -> None:
        if self.clip_units < 1:
            raise ConfigError(f"clip_units: expected at least 1 unit, got {self.clip_units}")
        if self.draw_every < 1:
            raise ConfigError(f"draw_every: expected at least 1 step, got {self.draw_every}")
        if self.precision not in ("bf16", "fp32"):
            raise ConfigError(f"precision: expected 'bf16' or 'fp32', got {self.precision!r}")


class Stage(ABC):
    """One training stage. `models` maps a name to each trained module; losses read the modules, never their EMA.

    device  where the models are; the trainer sets it and moves them
    steady  models whose learning rate stays where the warm-up left it, as a share of `lr`
    """

    name: str
    config: TrainConfig
    models: dict[str, nn.Module]
    device: torch.device = torch.device("cpu")
    steady: Mapping[str, float] = MappingProxyType({})

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        """Whether Muon trains this parameter: a matrix (or kernel) between two hidden activations."""
        return False

    def move(self, tensor: Tensor) -> Tensor:
        """`tensor` on the device. CUDA copies it from pinned memory, so that the program need not wait."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Matrix products in the precision of the configuration, or in float32 where the device is slow at it."""
        fast = self.config.precision == "bf16" and has_bfloat16(self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)

    @abstractmethod
    def batch(self, step: int, rows: range) -> Any:
        """These rows of the batch of `step`, on the CPU: each a pure function of (seed, step, row)."""

    @abstractmethod
    def loss(self, batch: Any, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor] | Mapping[str, float]]:
        """The scalar to minimise and numbers for the log; as tensors they are read once, with the loss.

        A mean over rows, so that parts of a batch add up. `batch` and what `noise` gives are on the CPU.
        """

    def after_step(self, step: int) -> None:  # noqa: B027  (few stages have anything to do)
        """Called when the weights have been updated; for models that follow others without gradients."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics on held-out data. Called with the EMA weights in place."""

    def write_samples(self, stem: Path) -> dict[str, float]:
        """Write what people can look at or listen to, as `stem` with an ending. Called after every validation.

        Returns more metrics, of what the model does by itself. Must not draw from torch's or numpy's global random
        numbers.
        """
        return {}

    @abstractmethod
    def export(self, out_dir: Path) -> None:
        """Write what later stages or users load. Called with the EMA weights in place."""

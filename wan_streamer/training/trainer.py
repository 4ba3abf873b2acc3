"""The one training loop. A `Stage` owns models, data, losses and metrics; the `Trainer` steps, logs, saves, resumes.

Resume is exact: batches and noise are pure functions of (seed, step), so weights, EMA, optimiser state and the step
number are all there is to save. Nothing is pickled: tensors go to safetensors, numbers to JSON.
"""

import json
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from wan_streamer.errors import TrainingError
from wan_streamer.tensors import save_atomically


@dataclass(frozen=True)
class TrainConfig:
    """Numbers of the loop. Learning rate: linear warm-up, then cosine down to `lr * lr_floor`."""

    steps: int
    lr: float
    batch: int
    seed: int = 0
    warmup: int = 50
    lr_floor: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.99
    log_every: int = 10
    validate_every: int = 250
    save_every: int = 250


class Stage(ABC):
    """One training stage. `models` maps a name to each trained module; losses read the modules, never their EMA."""

    name: str
    config: TrainConfig
    models: dict[str, nn.Module]

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The batch of `step`: a pure function of (seed, step)."""

    @abstractmethod
    def loss(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise and numbers for the log."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics on held-out data. Called with the EMA weights in place."""

    @abstractmethod
    def export(self, out_dir: Path) -> None:
        """Write what later stages or users load. Called with the EMA weights in place."""


class Trainer:
    """Runs a stage in `out_dir`. Raises `TrainingError` on a loss that is not finite or a resume that does not fit."""

    def __init__(self, stage: Stage, out_dir: Path) -> None:
        self.stage, self.out = stage, Path(out_dir)
        self.out.mkdir(parents=True, exist_ok=True)
        config = stage.config
        self.named = {
            f"{model}.{name}": p
            for model, module in stage.models.items()
            for name, p in module.named_parameters()
            if p.requires_grad
        }
        decayed = [p for p in self.named.values() if p.ndim >= 2]
        others = [p for p in self.named.values() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            betas=config.betas,
            fused=True,
        )
        self.ema = {name: p.detach().clone() for name, p in self.named.items()}
        self.step = 0

    def run(self, minutes: float | None = None) -> dict[str, float]:
        """Train to `config.steps`, or for `minutes` (then save; a later resume goes on). Returns the last metrics."""
        config, metrics = self.stage.config, {}
        started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[loss]}")) as progress:
            bar = progress.add_task(self.stage.name, total=config.steps, completed=self.step, loss="")
            try:
                while self.step < config.steps:
                    numbers = self._train_step()
                    if self.step % config.log_every == 0:
                        numbers["seconds"] = round(time.monotonic() - started, 1)
                        self._log("train", numbers)
                    progress.update(bar, completed=self.step, loss=f"loss {numbers['loss']:.4f}")
                    if self.step % config.validate_every == 0 or self.step == config.steps:
                        metrics = self.validate()
                    if self.step % config.save_every == 0:
                        self.save()
                    if minutes is not None and time.monotonic() - started > 60 * minutes:
                        break
            finally:  # Ctrl-C and errors of the data keep the finished steps
                self.save()
        with self._ema_weights():
            self.stage.export(self.out)
        return metrics

    def _train_step(self) -> dict[str, float]:
        config = self.stage.config
        batch = self.stage.batch(self.step)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr * self._lr_scale()
        loss, numbers = self.stage.loss(batch, self.step, generator)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"{self.stage.name}: loss is {loss.item()} at step {self.step}, expected a finite number; the weights"
                f" of the last finished step are in {self.out}; resume with a smaller learning rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.named.values(), config.clip)
        if not norm.isfinite():
            raise TrainingError(
                f"{self.stage.name}: the gradient is {norm.item()} at step {self.step}, expected a finite number; the"
                f" weights of the last finished step are in {self.out}; resume with a smaller learning rate"
            )
        self.optimiser.step()
        self.step += 1
        decay = min(config.ema, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.named.values()), 1 - decay)
        return {"loss": loss.item(), "grad_norm": norm.item(), **numbers}

    def _lr_scale(self) -> float:
        config = self.stage.config
        if self.step < config.warmup:
            return (self.step + 1) / config.warmup
        done = (self.step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr_floor + (1 - config.lr_floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def validate(self) -> dict[str, float]:
        with self._ema_weights(), torch.no_grad():
            metrics = self.stage.validate()
        self._log("valid", metrics)
        return metrics

    def _log(self, kind: str, numbers: dict[str, float]) -> None:
        line = {"kind": kind, "step": self.step, **{key: round(value, 6) for key, value in numbers.items()}}
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _ema_weights(self) -> "_Swap":
        return _Swap(self.named, self.ema)

    def save(self) -> None:
        """Write weights, EMA and optimiser state atomically."""
        tensors = {f"model.{name}": p.detach() for name, p in self.named.items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        names = {id(p): name for name, p in self.named.items()}
        for param, state in self.optimiser.state.items():
            tensors |= {f"optimiser.{names[id(param)]}|{key}": value for key, value in state.items()}
        tensors |= self.extra_tensors()
        meta = {"step": str(self.step), "stage": self.stage.name, "config": json.dumps(asdict(self.stage.config))}
        save_atomically(tensors, self.out / "trainer.safetensors", meta)

    def extra_tensors(self) -> dict[str, Tensor]:
        """Buffers that training changes, and untrained parameters, so that a resume is whole."""
        return {
            f"buffer.{model}.{name}": value.detach()
            for model, module in self.stage.models.items()
            for name, value in module.state_dict().items()
            if f"{model}.{name}" not in self.named
        }

    def resume(self) -> None:
        """Continue from `out_dir`. Raises `TrainingError` if there is nothing or something else to resume."""
        path = self.out / "trainer.safetensors"
        if not path.exists():
            raise TrainingError(f"{path}: not found, expected the state of an earlier run; start without --resume")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise TrainingError(f"{path}: cannot be read ({error}); start again without --resume") from error
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        missing = [name for name in self.named if f"model.{name}" not in tensors]
        if meta["stage"] != self.stage.name or missing:
            raise TrainingError(
                f"{path}: expected a run of stage {self.stage.name!r} with the same preset, got stage"
                f" {meta['stage']!r}{' without ' + missing[0] if missing else ''}"
            )
        self.step = int(meta["step"])
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(tensors[f"model.{name}"])
                self.ema[name].copy_(tensors[f"ema.{name}"])
            for model, module in self.stage.models.items():
                for name, value in module.state_dict().items():
                    if f"{model}.{name}" not in self.named:
                        value.copy_(tensors[f"buffer.{model}.{name}"])
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                name, field = key.removeprefix("optimiser.").rsplit("|", 1)
                self.optimiser.state[self.named[name]][field] = value


class _Swap:
    """Context in which the parameters hold the EMA values."""

    def __init__(self, named: dict[str, nn.Parameter], ema: dict[str, Tensor]) -> None:
        self.named, self.ema = named, ema

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *exc: object) -> None:
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, p in self.named.items():
            kept = p.detach().clone()
            p.copy_(self.ema[name])
            self.ema[name].copy_(kept)

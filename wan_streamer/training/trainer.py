"""The one training loop. A `Stage` owns models, data, losses and metrics; the `Trainer` steps, logs, saves, resumes.

Resume is exact: batches and noise are pure functions of (seed, step), so weights, EMA, optimiser state and the step
number are all there is to save. Nothing is pickled: tensors go to safetensors, numbers to JSON.

Batches and noise are made on the CPU and moved to the stage's device, so that runs on different devices compare; files
hold CPU tensors, so that a run may go on elsewhere.
"""

import contextlib
import json
import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from wan_streamer.errors import ConfigError, TrainingError
from wan_streamer.tensors import save_atomically


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one. Raises `ConfigError` if it cannot be used here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"training on {device.type} is not supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:N of this machine ({reason})") from error
    return device


@dataclass(frozen=True)
class TrainConfig:
    """Numbers of the loop. Learning rates: linear warm-up, then cosine down to `lr_floor` of them.

    lr       of AdamW
    muon_lr  of Muon, for the stage's hidden matrices (`Stage.is_hidden`); 0 leaves them to AdamW
    """

    steps: int
    lr: float
    batch: int
    muon_lr: float = 0.0
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

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The batch of `step` on the CPU: a pure function of (seed, step)."""

    @abstractmethod
    def loss(
        self, batch: Any, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor] | Mapping[str, float]]:
        """The scalar to minimise and numbers for the log; as tensors they are read once, with the loss.

        `batch` and `generator` are on the CPU.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics on held-out data. Called with the EMA weights in place."""

    def write_samples(self, stem: Path) -> None:  # noqa: B027  (not every stage has something to show)
        """Write what people can look at or listen to, as `stem` with an ending. Called after every validation.

        Must not draw from torch's or numpy's global random numbers.
        """

    @abstractmethod
    def export(self, out_dir: Path) -> None:
        """Write what later stages or users load. Called with the EMA weights in place."""


class Trainer:
    """Runs a stage in `out_dir`. Raises `TrainingError` on a loss that is not finite or a resume that does not fit."""

    def __init__(self, stage: Stage, out_dir: Path, device: torch.device | None = None) -> None:
        self.stage, self.out = stage, Path(out_dir)
        self.out.mkdir(parents=True, exist_ok=True)
        stage.device = device or stage.device
        for module in stage.models.values():
            module.to(stage.device)
        config = stage.config
        self.named = {
            f"{model}.{name}": p
            for model, module in stage.models.items()
            for name, p in module.named_parameters()
            if p.requires_grad
        }
        hidden = {n: p for n, p in self.named.items() if config.muon_lr and stage.is_hidden(n, p)}
        self.matrices = {name: nn.Parameter(_as_matrix(p)) for name, p in hidden.items()}
        rest: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, p in self.named.items():
            if name not in hidden:
                rest.setdefault((p.ndim >= 2, stage.steady.get(name.split(".")[0], 0.0)), []).append(p)
        groups = [
            {"params": p, "lr": config.lr * (steady or 1.0), "steady": bool(steady),
             "weight_decay": config.weight_decay if decayed else 0.0}
            for (decayed, steady), p in rest.items()
        ]  # fmt: skip
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        ]
        if self.matrices:
            self.optimisers.append(
                torch.optim.Muon(
                    self.matrices.values(),
                    lr=config.muon_lr,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self._rates = {id(group): group["lr"] for o in self.optimisers for group in o.param_groups}
        self._stop = False
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
                with self._stop_signals():
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
                        if self._stop:
                            raise KeyboardInterrupt
                        if minutes is not None and time.monotonic() - started > 60 * minutes:
                            break
            finally:  # errors of the data keep the finished steps
                self.save()
        with self._ema_weights():
            self.stage.export(self.out)
        return metrics

    def _train_step(self) -> dict[str, float]:
        config = self.stage.config
        batch = self.stage.batch(self.step)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self._rates[id(group)] * self._lr_scale(group.get("steady", False))
        loss, numbers = self.stage.loss(batch, self.step, generator)
        for p in self.named.values():
            p.grad = None
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.named.values(), config.clip)
        read = _read({"loss": loss, "grad_norm": norm, **numbers})  # the only place where a step waits for the device
        for what, value in (("loss", read["loss"]), ("gradient", read["grad_norm"])):
            if not math.isfinite(value):
                raise TrainingError(
                    f"{self.stage.name}: the {what} is {value} at step {self.step}, expected a finite number; the"
                    f" weights of the last finished step are in {self.out}; resume with a smaller learning rate"
                )
        for name, matrix in self.matrices.items():
            grad = self.named[name].grad
            matrix.grad = None if grad is None else _as_matrix(grad.to(memory_format=_layout(self.named[name])))
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        decay = min(config.ema, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.named.values()), 1 - decay)
        return read

    def _lr_scale(self, steady: bool) -> float:
        config = self.stage.config
        if self.step < config.warmup:
            return (self.step + 1) / config.warmup
        if steady:
            return 1.0
        done = (self.step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr_floor + (1 - config.lr_floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def validate(self) -> dict[str, float]:
        with self._ema_weights(), torch.no_grad():
            metrics = self.stage.validate()
            self.stage.write_samples(self.out / "samples" / f"step-{self.step:06d}")
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
        for name in self.named:
            tensors |= {f"optimiser.{name}|{key}": value for key, value in self._state_of(name).items()}
        tensors |= self.extra_tensors()
        meta = {"step": str(self.step), "stage": self.stage.name, "config": json.dumps(asdict(self.stage.config))}
        save_atomically({name: value.cpu() for name, value in tensors.items()}, self.out / "trainer.safetensors", meta)

    def _state_of(self, name: str) -> dict[str, Tensor]:
        """Where the optimiser keeps its tensors of a parameter."""
        if name in self.matrices:
            return self.optimisers[1].state[self.matrices[name]]
        return self.optimisers[0].state[self.named[name]]

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
        stored, now = json.loads(meta["config"]), asdict(self.stage.config)
        for key in ("lr", "muon_lr", "batch", "seed"):
            if stored.get(key, 0.0) != now[key]:
                raise TrainingError(
                    f"{path}: this run has {key} {stored.get(key)}, expected {now[key]}; resume with the options it was"
                    " started with, or start a new run in another folder"
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
                p = self.named[name]
                # The fused AdamW walks through memory, so its state has to lie in the order of the parameter.
                layout = _layout(p) if value.shape == p.shape else torch.contiguous_format
                self._state_of(name)[field] = value.to(p.device, memory_format=layout)

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM wait for the end of the step, so that a half-made step is never saved."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _read(numbers: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Every number as a float; the tensors among them are on one device and come in one copy."""
    tensors = {name: value.detach().float() for name, value in numbers.items() if isinstance(value, Tensor)}
    floats = {name: value for name, value in numbers.items() if not isinstance(value, Tensor)}
    return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True)) | floats


def _layout(p: Tensor) -> torch.memory_format:
    last = p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _as_matrix(p: Tensor) -> Tensor:
    """[out, everything else] on the memory of `p`; a kernel in channels-last order is flattened in that order."""
    data = p.detach()
    return (data.permute(0, 2, 3, 1) if _layout(p) is torch.channels_last else data).flatten(1)


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

"""The one training loop. A `Stage` owns models, data, losses and metrics; the `Trainer` steps, logs, saves, resumes.

Resume is exact: batches and noise are pure functions of (seed, step, row), so weights, EMA, optimiser state and the
step number are all there is to save. Nothing is pickled. Batches and noise are made on the CPU and moved to the stage's
device, so that runs on different devices compare.

Under `torchrun` every process takes its rows of each batch and holds its part of weights, EMA and optimiser state
(FSDP2). Rows of the batch are the same, so the losses are those of one process.
"""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from wan_streamer.errors import ConfigError, TrainingError
from wan_streamer.files import parse_json
from wan_streamer.flow.noise import RowNoise
from wan_streamer.tensors import whole
from wan_streamer.threads import Threads
from wan_streamer.training.loop.curves import Board, write_curves
from wan_streamer.training.loop.guard import Guard
from wan_streamer.training.loop.means import mean_of
from wan_streamer.training.loop.optimisers import Average, Optimisers
from wan_streamer.training.loop.parallel import World, shard
from wan_streamer.training.loop.prefetch import Prefetch
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.loop.state import load_state, save_state

# What a resumed run must share with the run before.
SAME = ("lr", "muon_lr", "batch", "seed", "precision", "clip_units")


class Trainer:
    """Runs a stage in `out_dir`.

    Raises `ConfigError` if the batch cannot be split as asked, `TrainingError` on a loss that is not finite or
    diverges and on a resume that does not fit.
    """

    def __init__(self, stage: Stage, out_dir: Path, world: World | None = None) -> None:
        self.stage, self.out, self.world = stage, Path(out_dir), world or World()
        self.out.mkdir(parents=True, exist_ok=True)
        config = stage.config
        parts = self.world.size * config.accumulate
        if config.batch % parts:
            raise ConfigError(
                f"batch: expected a multiple of {self.world.size} processes x {config.accumulate} micro-batches,"
                f" got {config.batch}"
            )
        first, rows = self.world.rank * config.accumulate, config.batch // parts
        self.micro_batches = [range((first + i) * rows, (first + i + 1) * rows) for i in range(config.accumulate)]
        stage.device = self.world.device
        for module in stage.models.values():
            module.to(stage.device)
        if self.world.size > 1:
            shard(stage.models.values(), self.world)
        self.named = {
            f"{model}.{name}": p
            for model, module in stage.models.items()
            for name, p in module.named_parameters()
            if p.requires_grad
        }
        self.optimisers = Optimisers(stage, self.named)
        self.ema = Average(self.named)
        # On CPUs the processes would only take time from the step.
        ahead = self.world.device.type == "cuda"
        self.threads = None if ahead else Threads()
        self.prefetch = Prefetch(stage.batch, self.micro_batches, pinned=True) if ahead else None
        self.guard = Guard(config)
        self.board = Board(self.out) if self.world.main else None
        self.step = 0
        self._stop = False

    def run(self, minutes: float | None = None) -> dict[str, float]:
        """Train to `config.steps`, or for `minutes` (then save; a later resume goes on). Returns the last metrics."""
        config, metrics = self.stage.config, {}
        if self.step == 0 and self.board is not None:
            self.board.begin()
        started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        columns += (TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))  # type: ignore[assignment]
        with Progress(*columns, disable=not self.world.main) as progress:
            bar = progress.add_task(self.stage.name, total=config.steps, completed=self.step, loss="")
            try:
                with self._stop_signals():
                    while self.step < config.steps:
                        late = minutes is not None and time.monotonic() - started > 60 * minutes
                        numbers, stop, late = self._train_step(late)
                        if self.threads is not None:
                            self.threads.check()
                        if self.step % config.log_every == 0:
                            numbers["seconds"] = round(time.monotonic() - started, 1)
                            self._log("train", numbers)
                        progress.update(bar, completed=self.step, loss=f"loss {numbers['loss']:.4f}")
                        if self.step % config.validate_every == 0 or self.step == config.steps:
                            metrics = self.validate()
                        if self.step % config.save_every == 0:
                            self.save()
                        if stop:
                            raise KeyboardInterrupt
                        if late:
                            break
            finally:  # errors of the data keep the finished steps
                if self.step:
                    self.save()
                if self.prefetch is not None:
                    self.prefetch.close()
        with self.ema.in_place():
            self.stage.export(self.out)
        return metrics

    def _train_step(self, late: bool) -> tuple[dict[str, float], bool, bool]:
        """One step. Returns the numbers of all processes, and whether any of them was told to stop or is late."""
        config = self.stage.config
        self.optimisers.prepare(self.step)
        reads: list[Mapping[str, Tensor | float]] = []
        for part, rows in enumerate(self.micro_batches):
            batch = self.stage.batch(self.step, rows) if self.prefetch is None else self.prefetch.get(self.step, part)
            loss, numbers = self.stage.loss(batch, self.step, RowNoise(config.seed, self.step, rows))
            (loss / len(self.micro_batches)).backward()
            reads.append({"loss": loss, **numbers})
        norm = whole(nn.utils.clip_grad_norm_(self.named.values(), config.clip))
        read = [_read(numbers) for numbers in [*reads, {"grad_norm": norm}]]  # the only place that waits for the device
        own = {key: _mean([row[key] for row in read[:-1]], key == "loss") for key in read[0]} | read[-1]
        everyone = self.world.gather([*own.values(), float(self._stop), float(late)])
        numbers = {key: _mean([row[i] for row in everyone], key == "loss") for i, key in enumerate(own)}
        self._check(numbers)
        self.optimisers.step()
        self.stage.after_step(self.step)
        self.step += 1
        self.ema.update(min(config.ema, self.step / (self.step + 10)))
        kept = {key: value for key, value in numbers.items() if math.isfinite(value)}
        return kept, any(row[-2] for row in everyone), any(row[-1] for row in everyone)

    def _check(self, numbers: dict[str, float]) -> None:
        for what, value in (("loss", numbers["loss"]), ("gradient", numbers["grad_norm"])):
            if not math.isfinite(value):
                raise TrainingError(
                    f"{self.stage.name}: the {what} is {value} at step {self.step}, expected a finite number; "
                    + (f"the last finished step is in {self.out}; resume it with" if self.step else "start with")
                    + " a smaller learning rate"
                )
        if self.guard.diverges(numbers["loss"]):
            raise TrainingError(
                f"{self.stage.name}: the loss has been above {self.guard.limit:.4g} for {self.guard.high} steps, at"
                f" step {self.step}; expected it to fall; the state before is in {self.out}; resume it with a smaller"
                " learning rate"
            )

    def validate(self) -> dict[str, float]:
        """Metrics of the EMA weights, in the log and on the page of curves, and samples to look at."""
        with self.ema.in_place(), torch.no_grad():
            metrics = self.stage.validate()
            if self.world.size == 1:
                metrics |= self.stage.write_samples(self.out / "samples" / f"step-{self.step:06d}")
        self._log("valid", metrics)
        if self.world.main:
            write_curves(self.out)
        return metrics

    def _log(self, kind: str, numbers: Mapping[str, float]) -> None:
        if self.board is not None:
            self.board.write(kind, self.step, numbers)

    def save(self) -> None:
        """Write weights, EMA and optimiser state; a run that seems to diverge keeps the state from before."""
        if self.guard.high:
            return
        tensors = {f"model.{name}": p.detach() for name, p in self.named.items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.values.items()}
        tensors |= {f"optimiser.{key}": value for key, value in self.optimisers.state().items()}
        tensors |= self.extra_tensors()
        meta = {"step": str(self.step), "stage": self.stage.name, "config": json.dumps(asdict(self.stage.config))}
        save_state(tensors, meta | {"guard": self.guard.text()}, self.out, self.world)

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
        extra = self.extra_tensors()

        def like(key: str, shape: torch.Size) -> Tensor:
            name = key.partition(".")[2].partition("|")[0]
            known = [extra.get(key), self.named.get(name), self.optimisers.matrices.get(name)]
            return next((t.detach() for t in known if t is not None and t.shape == shape), torch.empty(shape))

        tensors, meta = load_state(self.out, like)
        missing = [name for name in self.named if f"model.{name}" not in tensors]
        if meta["stage"] != self.stage.name or missing:
            raise TrainingError(
                f"{self.out}: expected a run of stage {self.stage.name!r} with the same preset, got stage"
                f" {meta['stage']!r}{' without ' + missing[0] if missing else ''}"
            )
        stored, now = asdict(TrainConfig(steps=0, lr=0.0, batch=0)), asdict(self.stage.config)
        try:
            stored |= parse_json(meta["config"])
            self.guard = Guard(self.stage.config, meta.get("guard", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{self.out}: the state is damaged ({error}); start again with --overwrite") from error
        for key in SAME:
            if stored[key] != now[key]:
                raise TrainingError(
                    f"{self.out}: this run has {key} {stored[key]}, expected {now[key]}; resume with the options it was"
                    " started with, or start a new run in another folder"
                )
        self.step = int(meta["step"])
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(tensors[f"model.{name}"])
                self.ema.values[name].copy_(tensors[f"ema.{name}"])
            for name, value in extra.items():
                value.copy_(tensors[name])
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "optimiser":
                self.optimisers.restore(name, value)

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


def _mean(values: list[float], strict: bool) -> float:
    """The mean; unless `strict`, of those that are numbers."""
    return sum(values) / len(values) if strict else mean_of(values)

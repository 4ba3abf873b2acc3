"""The trainer keeps its promises, and every stage learns: on toy data, in seconds."""

import dataclasses
import json
import math
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wan_streamer import tensors
from wan_streamer.errors import CheckpointError, DataError, TrainingError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.tensors import save_atomically
from wan_streamer.training.loop.curves import Board, read_log, write_curves
from wan_streamer.training.loop.optimisers import Float32Muon
from wan_streamer.training.loop.prefetch import Prefetch
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.loop.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # "Mean of empty slice" and its like

STEPS = 12


class Toy(Stage):
    """A regression with noise in the loss and a buffer that training changes."""

    name = "toy"

    def __init__(self, lr: float = 0.05) -> None:
        torch.manual_seed(0)
        self.config = TrainConfig(steps=STEPS, lr=lr, batch=8, warmup=3, log_every=1, validate_every=4, save_every=5)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        self.models: dict[str, nn.Module] = {"net": self.net}
        self.fail_at: dict[int, BaseException] = {}
        self.not_finite_at = -1

    def batch(self, step: int, rows: range) -> Tensor:
        if step in self.fail_at:
            raise self.fail_at[step]
        return torch.stack(
            [torch.from_numpy(np.random.default_rng((1, step, row)).standard_normal(3)) for row in rows]
        ).float()

    def loss(self, batch: Tensor, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, float]]:
        error = (self.net(batch + 0.1 * noise.normal(tuple(batch.shape))) - batch.sum(1, keepdim=True)).square().mean()
        return error * (math.nan if step == self.not_finite_at else 1), {"error": error.item()}

    def validate(self) -> dict[str, float]:
        return {"weight": float(self.net[0].weight.sum())}

    def export(self, out_dir: Path) -> None:
        save_atomically(self.net.state_dict(), out_dir / "net.safetensors")


class MuonToy(Toy):
    """The same with a matrix and a channels-last kernel that Muon trains, and another kernel that AdamW trains."""

    def __init__(self) -> None:
        super().__init__(lr=0.02)
        self.config = dataclasses.replace(self.config, muon_lr=0.02)
        self.net = nn.Sequential(
            nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 6, 3, padding=1),
            nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(), nn.Linear(24, 1),
        )  # fmt: skip
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.models = {"net": self.net}

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        return name in ("net.2.weight", "net.4.weight")


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("trainer.safetensors", "net.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name


@pytest.mark.parametrize("end", ["ctrl-c", "killed", "time is up"])
def test_resumed_equals_uninterrupted(end: str, tmp_path: Path) -> None:
    """Bit for bit: weights, EMA, buffers and the optimiser's state."""
    Trainer(Toy(), tmp_path / "whole").run()
    first = Trainer(Toy(), tmp_path / "parts")
    if end == "time is up":
        first.run(minutes=0)
        assert first.step == 1
    else:
        first.stage.fail_at[7] = KeyboardInterrupt()  # type: ignore[attr-defined]
        if end == "killed":  # nothing can be saved any more: the last regular save counts
            regular = first.save
            first.save = lambda: regular() if first.step == 5 else None  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            first.run()
    second = Trainer(Toy(), tmp_path / "parts")
    second.resume()
    assert second.step == {"ctrl-c": 7, "killed": 5, "time is up": 1}[end]
    metrics = second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["weight"] == pytest.approx(metrics["weight"], abs=1e-6)
    errors = [line["error"] for line in log if line["kind"] == "train"]
    assert len(errors) == STEPS
    assert np.mean(errors[-4:]) < np.mean(errors[:4])


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_muon_in_float32_is_muon(shape: tuple[int, int]) -> None:
    """The library's runs in bfloat16, so they differ by its rounding; their memory is the same."""
    torch.manual_seed(0)
    start = torch.randn(shape) * 0.1
    one, other = (nn.Parameter(start.clone()) for _ in range(2))
    optimisers = [
        kind([p], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for kind, p in ((torch.optim.Muon, one), (Float32Muon, other))
    ]
    for _ in range(4):
        one.grad = torch.randn(shape)
        other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    assert (one - other).norm() < 0.02 * (one - start).norm()
    memories = [optimiser.state[p]["momentum_buffer"] for optimiser, p in zip(optimisers, (one, other), strict=True)]
    assert torch.equal(*memories)


def test_muon_trains_the_hidden_matrices_and_resumes(tmp_path: Path) -> None:
    one = Trainer(MuonToy(), tmp_path / "one")
    before = {name: p.detach().clone() for name, p in one.named.items()}
    one.run(minutes=0)
    directions = {"net.2.weight": 1, "net.4.weight": 4}  # of the gradient
    assert set(one.optimisers.matrices) == set(directions)
    for name, count in directions.items():  # those of an orthogonal update are of one size, unlike a gradient's
        change = (one.named[name] - before[name]).detach()
        sizes = torch.linalg.svdvals(change.permute(0, 2, 3, 1).flatten(1) if change.ndim == 4 else change)
        assert sizes[count - 1] > 0.5 * sizes[0] > 0
    Trainer(MuonToy(), tmp_path / "whole").run()
    first = Trainer(MuonToy(), tmp_path / "parts")
    first.stage.fail_at[7] = KeyboardInterrupt()  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Trainer(MuonToy(), tmp_path / "parts")
    second.resume()
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_the_end_of_the_step(number: int, tmp_path: Path) -> None:
    trainer = Trainer(Toy(), tmp_path)
    loss = trainer.stage.loss

    def interrupted(batch: Tensor, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, float]]:
        if step == 4:
            os.kill(os.getpid(), number)
        return loss(batch, step, noise)

    trainer.stage.loss = interrupted  # type: ignore[method-assign]
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(number) is handler
    again = Trainer(Toy(), tmp_path)
    again.resume()
    assert again.step == trainer.step == 5
    again.run()
    Trainer(Toy(), tmp_path / "whole").run()
    assert_same_run(tmp_path / "whole", tmp_path)


def test_loss_that_is_not_finite_keeps_the_last_state(tmp_path: Path) -> None:
    clean = Trainer(Toy(), tmp_path / "clean")
    clean.stage.fail_at[6] = KeyboardInterrupt()  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        clean.run()
    broken = Trainer(Toy(), tmp_path / "broken")
    broken.stage.not_finite_at = 6  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="loss is nan at step 6") as error:
        broken.run()
    assert str(tmp_path / "broken") in str(error.value)
    kept, expected = (load_file(tmp_path / name / "trainer.safetensors") for name in ("broken", "clean"))
    trained = [key for key in expected if not key.startswith("buffer.")]  # the failed step still saw its batch
    assert len(trained) > 12
    assert all(torch.equal(kept[key], expected[key]) for key in trained)
    again = Trainer(Toy(), tmp_path / "broken")
    again.resume()
    assert again.step == 6


def test_a_run_that_diverges_stops_and_keeps_the_state_before(tmp_path: Path) -> None:
    class Rising(Toy):
        def __init__(self, high: range) -> None:
            super().__init__()
            self.config, self.high = dataclasses.replace(self.config, steps=20, patience=6, diverged=4.0), high

        def loss(self, batch: Tensor, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, float]]:
            loss, numbers = super().loss(batch, step, noise)
            return loss * (1000 if step in self.high else 1), numbers

    trainer = Trainer(Rising(range(7, 100)), tmp_path)
    with pytest.raises(TrainingError, match=r"loss has been above .* for 6 steps"):
        trainer.run()
    assert trainer.step == 12
    again = Trainer(Toy(), tmp_path)
    again.resume()
    assert again.step == 5  # saved before the loss rose; the save at step 10 was left out
    Trainer(Rising(range(0)), tmp_path / "calm").run()


def test_full_disk_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(Toy(), tmp_path)
    trainer.run(minutes=0)
    before = (tmp_path / "trainer.safetensors").read_bytes()

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        trainer.run()
    assert (tmp_path / "trainer.safetensors").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_curves_show_every_number_and_the_last_of_a_step(tmp_path: Path) -> None:
    Trainer(Toy(), tmp_path).run()
    Board(tmp_path).write("train", 3, {"loss": 7.5, "error": math.nan})
    assert (tmp_path / "log.jsonl").read_text().endswith('{"kind": "train", "step": 3, "loss": 7.5}\n')
    entries = [entry for entry in read_log(tmp_path) if (entry["kind"], entry["step"]) == ("train", 3)]
    assert [entry["loss"] for entry in entries] == [7.5]
    page = write_curves(tmp_path).read_text()
    for name in ("loss", "error", "grad_norm", "weight"):
        assert f"<figcaption>{name}</figcaption>" in page
    assert page.count("<svg") == 4
    lines = re.findall(r"<(?:path|polyline) [^>]*>", page)
    assert len(lines) == 12
    assert all('fill="none"' in line for line in lines), "an unfilled line, not a triangle over the figure"
    assert "nan" not in page


def test_batches_made_ahead_are_the_same(tmp_path: Path) -> None:
    def make(step: int, rows: range) -> tuple[int, range]:
        if step == 7:
            raise DataError("gone")
        return step, rows

    parts = [range(0, 2), range(2, 4)]
    prefetch = Prefetch(make, parts, workers=2)
    asked = [(step, part) for step in (3, 4, 5) for part in (0, 1)] + [(1, 1), (2, 0)]
    assert [prefetch.get(*what) for what in asked] == [(step, parts[part]) for step, part in asked]
    assert prefetch.get(6, 1) == (6, parts[1])
    with pytest.raises(DataError, match="gone"):
        prefetch.get(7, 0)
    prefetch.close()

    plain, ahead = Trainer(Toy(), tmp_path / "plain"), Trainer(Toy(), tmp_path / "ahead")
    ahead.prefetch = Prefetch(ahead.stage.batch, ahead.micro_batches, workers=2)
    for trainer in (plain, ahead):
        trainer.run()
    assert_same_run(tmp_path / "plain", tmp_path / "ahead")


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not found"):
        Trainer(Toy(), tmp_path / "new").resume()
    out = tmp_path / "run"
    Trainer(Toy(), out).run()

    other = Toy()
    other.name = "other"
    with pytest.raises(TrainingError, match=r"expected a run of stage 'other'.*got stage 'toy'"):
        Trainer(other, out).resume()

    with pytest.raises(TrainingError, match=r"lr 0\.05, expected 0\.01"):
        Trainer(Toy(lr=0.01), out).resume()

    wider = Toy()
    wider.models["more"] = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"without more\.weight"):
        Trainer(wider, out).resume()

    state = (out / "trainer.safetensors").read_bytes()
    (out / "trainer.safetensors").write_bytes(state[: len(state) // 2])
    with pytest.raises(TrainingError, match="cannot be read"):
        Trainer(Toy(), out).resume()

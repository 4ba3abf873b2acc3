"""Many processes train as one: the same losses, the same weights, and a run that changes their number on the way."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import parallel_run
import pytest
import torch
from parallel_run import AGENT, CONFIG
from safetensors.torch import load_file
from tiny import tiny_text
from tiny_world import make_latents

from wan_streamer.errors import ConfigError
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.loop.curves import read_log
from wan_streamer.training.loop.parallel import World
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.loop.trainer import Trainer
from wan_streamer.training.stages.duplex import DuplexStage

SCRIPT = Path(__file__).parent / "parallel_run.py"


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=8, episodes=2)


def start(processes: int, data: Path, out: Path, steps: int, *more: str) -> None:
    """One process is this one."""
    arguments = [str(data), str(out), str(steps), *more]
    if processes == 1:
        return parallel_run.main(arguments)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*launch, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out: Path, kind: str = "train") -> list[float]:
    return [entry["loss"] for entry in read_log(out) if entry["kind"] == kind]


@pytest.fixture(scope="module")
def alone(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    start(1, latents, out, CONFIG.steps)
    return out


@pytest.mark.slow
def test_two_processes_equal_one(latents: Path, alone: Path, tmp_path: Path) -> None:
    start(2, latents, tmp_path, CONFIG.steps)
    assert len(losses(alone)) == CONFIG.steps
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)
    assert losses(tmp_path, "valid") == pytest.approx(losses(alone, "valid"), rel=1e-5)
    one, two = (load_file(out / "model.safetensors") for out in (alone, tmp_path))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.shape == two[name].shape
        torch.testing.assert_close(two[name].float(), value.float(), atol=2e-2, rtol=2e-2)  # stored as bfloat16
    index = json.loads((tmp_path / "trainer.json").read_text())
    files = sorted(path.name for path in (tmp_path / index["folder"]).iterdir())
    assert len(files) == 2
    assert all(name.endswith(".safetensors") for name in files)  # nothing to unpickle
    assert not (tmp_path / "trainer.safetensors").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process reads what two wrote
def test_a_run_goes_on_with_another_number(latents: Path, alone: Path, tmp_path: Path) -> None:
    start(1, latents, tmp_path, 2)
    for processes, steps, states in ((2, 4, 2), (1, CONFIG.steps, 1)):
        start(processes, latents, tmp_path, steps, "--resume")
        assert len(list(tmp_path.glob("trainer*"))) == states
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)


def stage(latents: Path, **options: int) -> DuplexStage:
    torch.manual_seed(0)
    return DuplexStage(Streamer(AGENT), tiny_text(), latents, dataclasses.replace(CONFIG, **options))


def test_micro_batches_add_up(latents: Path, tmp_path: Path) -> None:
    whole, parts = (Trainer(stage(latents, accumulate=n), tmp_path / str(n)) for n in (1, 4))
    for _ in range(3):
        left, right = whole._train_step(False)[0], parts._train_step(False)[0]
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-4)


def test_a_batch_that_cannot_be_split(latents: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 1 processes x 3 micro-batches, got 4"):
        Trainer(stage(latents, accumulate=3), tmp_path)
    with pytest.raises(ConfigError, match="'bf16' or 'fp32'"):
        TrainConfig(steps=1, lr=1.0, batch=1, precision="fp8")
    assert World().gather([1.0, 2.0]) == [[1.0, 2.0]]

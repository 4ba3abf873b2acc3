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


def start(processes: int, data: Path, *runs: str | Path) -> None:
    """One process is this one. runs: see `parallel_run`."""
    arguments = [str(argument) for argument in (data, *runs)]
    if processes == 1:
        return parallel_run.main(arguments)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*launch, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out: Path, kind: str = "train") -> list[float]:
    return [entry["loss"] for entry in read_log(out) if entry["kind"] == kind]


WHOLE = str(CONFIG.steps)


@pytest.fixture(scope="module")
def alone(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    start(1, latents, out, WHOLE)
    return out


@pytest.fixture(scope="module")
def together(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What two processes leave of a whole run, and of one that a single process began. Started once: that is slow."""
    whole, changed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("changed")
    start(1, latents, changed, "2")
    start(2, latents, whole, WHOLE, changed, "4,resume")
    return whole, changed


@pytest.mark.slow
def test_two_processes_equal_one(alone: Path, together: tuple[Path, Path]) -> None:
    out, _ = together
    assert len(losses(alone)) == CONFIG.steps
    assert losses(out) == pytest.approx(losses(alone), rel=1e-5)
    assert losses(out, "valid") == pytest.approx(losses(alone, "valid"), rel=1e-5)
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, out))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.shape == two[name].shape
        torch.testing.assert_close(two[name].float(), value.float(), atol=2e-2, rtol=2e-2)  # stored as bfloat16
    index = json.loads((out / "trainer.json").read_text())
    files = sorted(path.name for path in (out / index["folder"]).iterdir())
    assert len(files) == 2
    assert all(name.endswith(".safetensors") for name in files)  # nothing to unpickle
    assert not (out / "trainer.safetensors").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process reads what two wrote
def test_a_run_goes_on_with_another_number(latents: Path, alone: Path, together: tuple[Path, Path]) -> None:
    """1, 2 and 1 processes."""
    _, out = together
    assert len(list(out.glob("trainer*"))) == 2
    start(1, latents, out, f"{WHOLE},resume")
    assert len(list(out.glob("trainer*"))) == 1
    assert losses(out) == pytest.approx(losses(alone), rel=1e-5)


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

"""Folders of runs on the command line: nothing is lost by accident, and what to do next is said."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import TALKER
from tiny_world import make_codec_arrays, make_latents
from typer.testing import CliRunner, Result

from wan_streamer import presets
from wan_streamer.cli.app import app
from wan_streamer.data.cluster import run_jobs
from wan_streamer.errors import ConfigError, DataError
from wan_streamer.training.codecs.audio import AudioCodecStage


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_codec_arrays(tmp_path_factory.mktemp("arrays"))


def train(arrays: Path, out: Path, *more: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    line = ["train", "codec", "--codec", "audio", "--data", str(arrays), "--out", str(out), "--preset", "tiny"]
    line += ["--device", "cpu", *more]
    monkeypatch.setattr("sys.argv", ["wan-streamer", *line])
    return CliRunner().invoke(app, line)


def test_a_run_is_neither_lost_nor_mixed(arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "my run"

    def again(*more: str) -> Result:
        return train(arrays, out, *more, monkeypatch=monkeypatch)

    first = again("--steps", "2")
    assert first.exit_code == 0, first.output
    assert f"--codecs '{out}'" in first.output, "how to try it"
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = again("--steps", "2")
    assert isinstance(refused.exception, ConfigError)
    for word in (str(out), "--resume", "--overwrite", "--out"):
        assert word in str(refused.exception)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    assert isinstance(again("--resume", "--overwrite").exception, ConfigError)
    assert again("--steps", "3", "--resume").exit_code == 0
    steps = (out / "log.jsonl").read_text().count("\n")
    boards = set((out / "tensorboard").glob("events*"))
    assert again("--steps", "2", "--overwrite").exit_code == 0
    assert 0 < (out / "log.jsonl").read_text().count("\n") < steps, "a new run has a new log"
    assert not boards & set((out / "tensorboard").glob("events*")), "and curves of its own"


def test_ctrl_c_says_how_to_go_on(arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, after_step = tmp_path / "my run", AudioCodecStage.after_step

    def pressed(stage: AudioCodecStage, step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        after_step(stage, step)

    with monkeypatch.context() as patch:
        patch.setattr(AudioCodecStage, "after_step", pressed)
        stopped = train(arrays, out, "--steps", "3", monkeypatch=monkeypatch)
    assert stopped.exit_code == 130
    line = f"wan-streamer train codec --codec audio --data {arrays} --out '{out}' --preset tiny --device cpu --steps 3"
    assert f"Go on with: {line} --resume\n" in stopped.output
    assert train(arrays, out, "--steps", "3", "--resume", monkeypatch=monkeypatch).exit_code == 0


def test_ctrl_c_before_the_first_step_promises_nothing(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wan_streamer.training.codecs.run.Trainer", pressed)
    stopped = train(arrays, tmp_path / "run", monkeypatch=monkeypatch)
    assert stopped.exit_code == 130
    assert "--resume" not in stopped.output


# ---------------------------------------------------------------- folders of data


def stopped_at(line: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr("sys.argv", ["wan-streamer", *line.split()])
    return CliRunner().invoke(app, line.split())


@pytest.mark.parametrize("finished", [0, 1])
def test_ctrl_c_of_simulate_keeps_what_is_whole(finished: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "world" / "train"

    def jobs(job: object, numbers: range, engine: object) -> Iterator[int]:
        for number in range(finished):
            (out / f"shard-{number:05d}.tar").touch()
            yield number
        raise KeyboardInterrupt

    monkeypatch.setattr("wan_streamer.simulation.generate.run_jobs", jobs)
    stopped = stopped_at(f"simulate {out} --hours 1 --seed 3", monkeypatch)
    assert stopped.exit_code == 130
    assert (f"Go on with: wan-streamer simulate {out} --hours 1 --seed 3\n" in stopped.output) == bool(finished)
    assert (tmp_path / "world").exists() == bool(finished), "nothing whole, so no folder either"


def test_encode_goes_on_after_ctrl_c_and_fails_without_a_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, real = make_latents(tmp_path / "data", 6), tmp_path / "new" / "latents", run_jobs
    line = f"encode {data / 'shards'} {out} --codecs {data} --preset tiny --processes 1"

    def jobs(*arguments: Any) -> Iterator[Any]:
        yield from real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wan_streamer.data.latents.run_jobs", jobs)
        stopped = stopped_at(line, monkeypatch)
    assert stopped.exit_code == 130
    assert f"Go on with: wan-streamer {line}\n" in stopped.output
    assert len(list(out.glob("train/*.safetensors"))) == 1
    again = stopped_at(line, monkeypatch)
    assert again.output.split("\n")[1::2] == ["train: 0 conversations encoded", "valid: 1 conversations encoded"]
    shard = data / "shards" / "train" / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    failed = stopped_at(line.replace("/new/", "/other/"), monkeypatch)
    assert isinstance(failed.exception, DataError)
    assert not (tmp_path / "other").exists()


def test_a_training_that_fails_at_once_leaves_no_folder(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise DataError("a file is damaged")

    monkeypatch.setattr(AudioCodecStage, "batch", broken)
    failed = train(arrays, tmp_path / "runs" / "audio", monkeypatch=monkeypatch)
    assert isinstance(failed.exception, DataError)
    assert not (tmp_path / "runs").exists()

"""Folders of runs on the command line: nothing is lost by accident, and what to do next is said."""

import os
import signal
from pathlib import Path

import pytest
from tiny import TALKER
from tiny_world import make_codec_arrays
from typer.testing import CliRunner, Result

from wan_streamer import presets
from wan_streamer.cli.app import app
from wan_streamer.errors import ConfigError
from wan_streamer.training.stages.codec import AudioCodecStage


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

    monkeypatch.setattr("wan_streamer.training.stages.codec.Trainer", pressed)
    stopped = train(arrays, tmp_path / "run", monkeypatch=monkeypatch)
    assert stopped.exit_code == 130
    assert "--resume" not in stopped.output

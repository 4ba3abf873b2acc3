"""The benchmark for GPUs, on CPUs: two processes stand for two devices."""

import json
import sys
from pathlib import Path

import pytest
from tiny import TALKER

from wan_streamer.benchmarks import devices
from wan_streamer.cli.app import main
from wan_streamer.errors import ConfigError
from wan_streamer.model.pretrained import load_weights
from wan_streamer.presets import PRESETS


def test_sizes_on_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(PRESETS, "tiny", lambda: TALKER)
    monkeypatch.setattr(devices, "SESSIONS", (1, 2))
    path = tmp_path / "devices.json"
    arguments = ["bench", "devices", "--presets", "tiny", "--devices", "cpu", "--units", "4", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["wan-streamer", *arguments])
    with pytest.raises(SystemExit, match="0"):
        main()
    report = json.loads(path.read_text())
    row = report["sizes"]["tiny"]
    assert row["weights"] == "random"
    assert row["parameters"] > 1000
    assert [(run["device"], run["schedule"]) for run in row["runs"]] == [
        ("cpu", "eager"), ("cpu,cpu", "eager"), ("cpu,cpu", "paced"),
    ]  # fmt: skip
    assert all(run["units"] == 4 and run["model_latency_ms"]["p50"] > 0 for run in row["runs"])
    assert row["runs"][1]["counters"]["alone"] == 0, "the performer solves"
    assert [run["n"] for run in row["sessions"]] == [1, 2]
    assert report["left_out"] == []
    assert "2 at once" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", lambda: TALKER)
    monkeypatch.setattr(devices, "SESSIONS", (1,))
    monkeypatch.setattr(devices, "real_time", lambda *_: {})
    monkeypatch.setattr(devices, "together", lambda *_: {})
    report = devices.bench_devices(("tiny",), ("cpu",), limit_s=0.0)
    assert len(report["sizes"]["tiny"]["runs"]) == 1
    assert report["left_out"] == ["tiny eager on cpu,cpu", "tiny paced on cpu,cpu"]


def test_two_devices_hold_a_thinker_and_a_performer() -> None:
    assert devices.pairs(["cuda:0"]) == [("cuda:0", "cuda:0")]
    assert devices.pairs(["cuda:0", "cuda:1"]) == [("cuda:0", "cuda:0"), ("cuda:0", "cuda:1")]
    with pytest.raises(ConfigError, match="cuda:0 cuda:1"):
        devices.bench_devices(("nano",), ("cuda:0,cuda:1",))
    with pytest.raises(ConfigError, match="known presets"):
        devices.bench_devices(("huge",), ("cpu",))


def test_random_weights_are_a_checkpoint(tmp_path: Path) -> None:
    weights = load_weights(devices.random_folder(TALKER, tmp_path / "some"))
    assert weights.config.name == "some"
    assert weights.config.backbone == TALKER.backbone

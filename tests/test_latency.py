"""Measured latency is that of the agent that is measured."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wan_streamer import AgentUnit, UserUnit
from wan_streamer.evaluation.suite import latency

UNITS = 8


class Sleeper:
    """An agent whose steps take `seconds`, half of them in its solver."""

    default_steps, frame_size, device = 2, (8, 8), torch.device("cpu")

    def __init__(self, seconds: float) -> None:
        self.seconds, self.index = seconds, 0

    def warmup(self) -> None:
        pass

    def session(self, seed: int) -> "Sleeper":
        return self

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        time.sleep(self.seconds)
        self.index += 1
        stages = {"solve": self.seconds * 500}
        return AgentUnit(self.index - 1, np.zeros(3840, np.float32), np.zeros((4, 8, 8, 3), np.uint8), stage_ms=stages)


def measured(seconds: float, monkeypatch: pytest.MonkeyPatch) -> dict:
    agent = SimpleNamespace(from_pretrained=lambda name, device: Sleeper(seconds))
    monkeypatch.setattr(latency, "WanStreamer", agent)
    trial = SimpleNamespace(units=lambda: [UserUnit()] * UNITS)
    return latency.measure_latency("sleeper", trial, rounds=1)  # type: ignore[arg-type]


def test_a_slower_agent_has_a_longer_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = measured(0.01, monkeypatch), measured(0.08, monkeypatch)
    for report, seconds in ((fast, 0.01), (slow, 0.08)):
        assert report["units"] == UNITS
        assert report["model"]["p50"] >= seconds * 1000
        assert report["event"]["p50"] == pytest.approx(report["model"]["p50"] + 80, abs=40)
        assert report["stages"]["solve"]["p50"] == pytest.approx(seconds * 500, abs=0.01)
    assert slow["model"]["p50"] > fast["model"]["p50"] + 50


def test_what_comes_late_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured(0.25, monkeypatch)
    assert report["deadline_misses"] == UNITS
    assert report["held"] > 0

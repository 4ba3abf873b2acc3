"""The timeline of a run: every stage of every unit, in order, as Perfetto reads it."""

import asyncio
import json
import os
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
import standin
from films import make_film
from rich.console import Console
from tiny import tiny_weights

from wan_streamer.model.pretrained import save_weights
from wan_streamer.runtime.clock import UnitDriver
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.runtime.talk import talk
from wan_streamer.runtime.trace import ENVIRONMENT, MOST, Span, Trace, traced
from wan_streamer.units import AgentUnit, UserUnit

STAGES = [
    "wait",
    "observe",
    "observe",
    "text",
    "solve",
    "text",
    "decode",
    "settle",
]  # the user's unit, then the model's view of it


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_every_stage_of_every_unit(device: str, tmp_path: Path) -> None:
    save_weights(tiny_weights(), tmp_path / "agent")
    film = make_film(tmp_path / "user.mp4", seconds=1.28)
    path = tmp_path / "trace.json"
    report = talk(film, tmp_path / "reply.mp4", checkpoint=str(tmp_path / "agent"), pace="fast", device=device,
                  console=Console(quiet=True), trace=path)  # fmt: skip
    written = json.loads(path.read_text())
    assert written["displayTimeUnit"] == "ms"
    units, links = defaultdict(list), defaultdict(list)
    for event in written["traceEvents"]:
        assert {"name", "ph", "ts", "dur", "pid", "tid", "args"} == set(event)
        assert event["ph"] == "X"
        assert event["dur"] >= 0
        of = links if "performer" in event["name"] else units
        if event["tid"] == "stages":
            of[event["args"]["unit"]].append(event)
    assert sorted(units) == list(range(report["units"]))
    for unit, events in units.items():
        assert [event["name"] for event in events] == STAGES, unit
        for one, following in pairwise(events):
            assert one["ts"] + one["dur"] <= following["ts"] + 2, "they do not cross"
        solve = next(event for event in events if event["name"] == "solve")
        if "," in device:
            (work,) = (event for event in links[unit] if event["name"] == "performer solves")
            assert work["pid"] != os.getpid(), "it is drawn in the performer's process"
        for link in links.get(unit, ()):
            assert solve["ts"] - 2 <= link["ts"]
            assert link["ts"] + link["dur"] <= solve["ts"] + solve["dur"] + 2
    assert len(links) == (report["units"] if "," in device else 0)
    whole = [event for event in written["traceEvents"] if event["tid"] == "units"]
    assert len(whole) == report["units"]


def test_ctrl_c_keeps_the_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = UnitDriver.step

    def interrupted(driver: UnitDriver, user: UserUnit, t_in: float) -> AgentUnit:
        if driver.stats.units == 3:
            raise KeyboardInterrupt
        return step(driver, user, t_in)

    monkeypatch.setattr(UnitDriver, "step", interrupted)
    save_weights(tiny_weights(), tmp_path / "agent")
    film, path = make_film(tmp_path / "user.mp4", seconds=1.28), tmp_path / "trace.json"
    with pytest.raises(KeyboardInterrupt):
        talk(film, tmp_path / "reply.mp4", checkpoint=str(tmp_path / "agent"), pace="fast",
             console=Console(quiet=True), trace=path)  # fmt: skip
    units = {event["args"]["unit"] for event in json.loads(path.read_text())["traceEvents"]}
    assert units == {0, 1, 2}


def test_memory_is_bounded() -> None:
    trace = Trace()
    for unit in range(MOST + 10):
        trace.add(unit, "units", [Span("unit", unit, unit + 0.1)])
    assert len(trace._events) == MOST
    assert trace._events[0]["args"]["unit"] == 10


def test_a_held_unit_has_waited_only() -> None:
    class Slow:
        def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
            raise AssertionError("it is held")

    trace = Trace()
    UnitDriver(Slow(), 2, (8, 8), clock=lambda: 10.0, trace=trace).step(UserUnit(), t_in=9.0)
    assert [event["name"] for event in trace._events] == ["held", "wait"]
    assert trace._events[1]["dur"] == 1_000_000


def test_sessions_of_a_server_have_lines_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    monkeypatch.setenv(ENVIRONMENT, str(path))
    model = ModelProcess(standin.StandInAgent, most=2)
    try:
        asyncio.run(_two_sessions(model))
    finally:
        model.shutdown()
    events = json.loads(path.read_text())["traceEvents"]
    found = {(event["tid"], event["args"]["unit"]) for event in events if event["name"] == "unit"}
    assert found == {(f"units, session {number}", unit) for number in range(2) for unit in range(3)}


async def _two_sessions(model: ModelProcess) -> None:
    for _ in range(2):
        session = await model.open_session()
        for k in range(3):
            session.step(k, UserUnit(), time.monotonic())
            await asyncio.wait_for(session.receive(), 30)
        model.close_session(session)


def test_a_process_without_units_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "trace.json"))
    with traced() as trace:
        assert trace is not None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv(ENVIRONMENT)
    with traced() as trace:
        assert trace is None

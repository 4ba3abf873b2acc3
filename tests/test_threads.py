"""The number of threads follows what other programs leave of the machine, and a report says so."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_clock import FakeClock, FakeSession
from typer.testing import CliRunner

from wan_streamer.cli import app as cli
from wan_streamer.runtime.clock import UnitDriver, why_late
from wan_streamer.threads import QUIET_S, Load, Threads
from wan_streamer.units import UNIT_S, UserUnit


class FakeLoad(Load):
    """`taken` cores are taken by others."""

    def __init__(self, cores: int = 2, taken: float = 0.0) -> None:
        self.cores, self.taken = cores, taken

    def others(self) -> float:
        return self.taken


@pytest.fixture(autouse=True)
def own_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(threads: Threads, clock: FakeClock, seconds: float, late: bool = False) -> list[int]:
    """Steps of 100 ms; the threads that PyTorch had in each."""
    numbers = []
    for _ in range(round(10 * seconds)):
        numbers.append(torch.get_num_threads())
        clock.now += 0.1
        threads.check(late)
    return numbers


@pytest.mark.parametrize(
    ("cores", "taken", "expected"), [(2, 0.2, 2), (2, 0.3, 1), (2, 2.0, 1), (4, 1.3, 2), (16, 0, 8)]
)
def test_as_many_as_are_free(cores: int, taken: float, expected: int) -> None:
    clock = FakeClock()
    threads = Threads(load=FakeLoad(cores, taken), clock=clock)
    assert run(threads, clock, 8)[-1] == expected


def test_down_at_once_and_up_when_it_is_quiet_for_long() -> None:
    clock, load = FakeClock(), FakeLoad(2)
    threads = Threads(load=load, clock=clock)
    assert set(run(threads, clock, 5)) == {2}
    load.taken = 1.0
    assert run(threads, clock, 5)[11:] == [1] * 39
    load.taken = 0.0
    quiet = run(threads, clock, QUIET_S + 3)
    assert (quiet[round(10 * QUIET_S) - 11], quiet[-1]) == (1, 2)


def test_a_moment_of_quiet_changes_nothing() -> None:
    clock, load = FakeClock(), FakeLoad(2, 1.0)
    threads = Threads(load=load, clock=clock)
    run(threads, clock, 2)
    for _ in range(5):
        load.taken = 0.0
        assert set(run(threads, clock, QUIET_S - 2)) == {1}
        load.taken = 1.0
        assert set(run(threads, clock, 1.5)) == {1}


def test_a_late_step_makes_it_look_sooner() -> None:
    clock, load = FakeClock(), FakeLoad(2)
    threads = Threads(load=load, clock=clock)
    load.taken = 1.5
    assert run(threads, clock, 0.6, late=True)[-2:] == [1, 1]


@pytest.mark.parametrize(("times", "expected"), [({1: 8, 2: 5, 3: 4, 4: 3.9}, 3), ({1: 5, 2: 5, 3: 7, 4: 9}, 1)])
def test_more_threads_than_pay_off_are_not_used(times: dict[int, float], expected: int) -> None:
    clock = FakeClock()
    threads = Threads(load=FakeLoad(4), clock=clock)

    def step() -> None:
        clock.now += times[torch.get_num_threads()]

    threads.measure(step)
    assert torch.get_num_threads() == expected
    assert set(run(threads, clock, 10)) == {expected}


def test_one_disturbance_does_not_choose() -> None:
    clock, load = FakeClock(), FakeLoad(2)
    threads, calls = Threads(load=load, clock=clock), []

    def step() -> None:
        calls.append(torch.get_num_threads())
        clock.now += 0.9 if calls == [1, 2] else 0.4 / calls[-1]

    threads.measure(step)
    assert calls == [1, 2, 1, 2]
    assert torch.get_num_threads() == 2


def test_a_busy_start_is_no_measurement() -> None:
    clock, load = FakeClock(), FakeLoad(2, 1.8)
    threads = Threads(load=load, clock=clock)
    used = []
    threads.measure(lambda: used.append(torch.get_num_threads()))
    assert used == [1], "more threads look bad while others have the cores"
    assert torch.get_num_threads() == 1
    load.taken = 0.0
    assert run(threads, clock, QUIET_S + 2)[-1] == 2


def test_the_first_look_is_not_at_an_instant() -> None:
    """Real counters have ticks of 10 ms: in less time than that an idle machine looks as busy as can be."""

    class Counted(FakeLoad):
        def others(self) -> float:
            return 0.0 if clock.now - began >= 0.2 else float(self.cores)

    clock = FakeClock()
    began, threads = clock.now, Threads(load=Counted(2), clock=clock)

    def step() -> None:
        clock.now += 0.4 / torch.get_num_threads()

    threads.measure(step)
    assert torch.get_num_threads() == 2
    assert threads.summary()["others_cores"]["max"] == 0


def test_a_fixed_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    assert set(run(Threads(3, load=FakeLoad(2, 2.0), clock=clock), clock, 5)) == {3}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads = Threads(load=FakeLoad(4, 4.0), clock=clock)
    threads.measure(lambda: pytest.fail("nothing to choose"))
    assert set(run(threads, clock, 5)) == {2}
    assert threads.summary()["threads_fixed"]


def test_the_load_of_others_is_not_our_own() -> None:
    """Real counters: a process that spins is seen, what this one computes is not."""
    load = Load()
    if load.others() > 0.5 or load.cores < 2:
        time.sleep(0.5)

    def measure() -> float:
        load.others()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            pass
        return load.others()

    before = measure()
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        during = measure()
    finally:
        spin.kill()
        spin.wait()
    assert 0 <= before <= load.cores
    # as much as was free, at least half a core: the scheduler shares fairly
    assert during > min(before + 0.4, load.cores - 1.2)


def test_a_driver_tells_what_the_machine_was_like_and_what_to_do() -> None:
    clock = FakeClock()
    load = FakeLoad(2, 1.4)
    session = FakeSession(clock, fixed=0.3, per_step=0.01)
    driver = UnitDriver(session, 1, (6, 8), clock=clock, threads=Threads(load=load, clock=clock))
    for index in range(20):
        t_in = 100 + (index + 1) * UNIT_S
        clock.now = max(clock.now, t_in)
        driver.step(UserUnit(), t_in)
    report = driver.summary()
    assert report["machine"]["others_cores"] == {"mean": 1.4, "max": 1.4}
    assert report["machine"]["threads"].keys() == {"1", "2"}
    assert sum(report["machine"]["threads"].values()) == 20
    assert report["held_units"] > 5
    assert "other programs took 1.4 of 2 cores; close some" in why_late(report)
    report["machine"]["others_cores"]["mean"] = 0.0
    assert "a unit takes 3" in why_late(report)


def test_the_option_fixes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Before PyTorch is loaded, for every command that computes in its own process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # restored at the end
    for command in ("talk", "serve", "eval", "train duplex", "train codec", "train ears", "train eyes"):
        assert "--threads" in CliRunner().invoke(cli.app, [*command.split(), "--help"]).stdout
    monkeypatch.setattr(
        sys, "argv", ["wan-streamer", "talk", str(tmp_path / "no.mp4"), "--out", "x.mp4", "--threads", "3"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert Threads(load=FakeLoad()).now == 3

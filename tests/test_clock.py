"""Real time is a contract: deadlines are counted, the policy acts in its written order, and no backlog grows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_streamer.runtime.clock import StepCost, UnitDriver, event_latency, percentiles
from wan_streamer.units import SAMPLES_PER_UNIT, UNIT_S, AgentUnit, UserUnit


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeSession:
    """Takes fixed + steps * per_step seconds of the fake clock; `slow` maps a unit to extra seconds."""

    def __init__(self, clock: FakeClock, fixed: float, per_step: float, slow: dict[int, float] | None = None) -> None:
        self.clock, self.fixed, self.per_step, self.slow = clock, fixed, per_step, slow or {}
        self.seen: list[UserUnit] = []
        self.steps: list[int] = []

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        assert steps is not None
        extra = self.slow.get(len(self.seen), 0.0)
        self.clock.now += self.fixed + steps * self.per_step + extra
        self.seen.append(user)
        self.steps.append(steps)
        stage_ms = {"encode": (self.fixed + extra) * 1000, "solve": steps * self.per_step * 1000}
        level = len(self.seen)
        video = np.full((4, 6, 8, 3), level, np.uint8)
        return AgentUnit(0, np.full(3840, 0.5, np.float32), video, stage_ms=stage_ms)


def play(
    units: int, fixed: float, per_step: float, slow: dict[int, float] | None = None, steps: int = 4, policy: bool = True
) -> tuple[UnitDriver, FakeSession, list[AgentUnit], list[float]]:
    """Units complete every 160 ms; each is stepped when complete and when the step before it is done."""
    clock = FakeClock()
    session = FakeSession(clock, fixed, per_step, slow)
    driver = UnitDriver(session, steps=steps, frame_size=(6, 8), policy=policy, clock=clock)
    start, outs, latencies = clock.now, [], []
    for index in range(units):
        t_in = start + (index + 1) * UNIT_S
        clock.now = max(clock.now, t_in)
        outs.append(driver.step(UserUnit(np.full(SAMPLES_PER_UNIT, index / 1000, np.float32), text=str(index)), t_in))
        latencies.append(clock.now - t_in)
    return driver, session, outs, latencies


def test_what_is_done_between_two_units_is_no_latency() -> None:
    driver, session, _, _ = play(1, fixed=0.04, per_step=0.02)
    driver.settle()  # a session that has nothing to do
    assert "settle" not in driver.stats.stage_ms

    def settle() -> None:
        session.clock.now += 0.03

    session.settle = settle  # type: ignore[attr-defined]
    before = list(driver.stats.model_ms)
    driver.settle()
    assert driver.stats.stage_ms["settle"][0] == pytest.approx(30)
    assert list(driver.stats.model_ms) == before


def test_fast_enough_changes_nothing() -> None:
    driver, session, outs, _ = play(50, fixed=0.04, per_step=0.02)
    assert session.steps == [4] * 50
    assert [out.index for out in outs] == list(range(50))
    stats = driver.stats
    assert (stats.misses, stats.held, stats.reduced, stats.backlog_max) == (0, 0, 0, 0)
    assert stats.model_latency_ms == {"p50": 120.0, "p95": 120.0, "p99": 120.0}
    assert event_latency(stats.model_ms)["p50"] == pytest.approx(200.0)  # 120 + 80 of accumulation
    assert event_latency(stats.model_ms)["p99"] == pytest.approx(275.0)  # 120 + 155
    assert stats.summary()["stage_ms"]["solve"] == {"p50": 80.0, "p95": 80.0}


def test_too_many_steps_become_fewer() -> None:
    """4 steps cost 190 ms, 3 cost 150: after the first miss the driver makes up for it and settles at 3."""
    driver, session, _, _ = play(100, fixed=0.03, per_step=0.04)
    assert session.steps[:2] == [4, 2]
    assert session.steps[2:] == [3] * 98
    assert driver.stats.misses == 1
    assert driver.stats.held == 0
    assert driver.stats.reduced == 99


def test_steps_come_back_after_a_slow_spell() -> None:
    _, session, _, _ = play(200, fixed=0.03, per_step=0.02, slow=dict.fromkeys(range(20, 30), 0.08))
    assert min(session.steps[20:35]) < 4
    assert session.steps[-100:] == [4] * 100


def test_hopelessly_slow_holds_every_other_unit_and_never_falls_behind() -> None:
    driver, session, outs, latencies = play(200, fixed=0.25, per_step=0.01)
    held = [out.held for out in outs]
    assert 0.3 < np.mean(held) < 0.7
    assert max(latencies) <= UNIT_S + 0.29 + 1e-9
    assert driver.stats.held == sum(held)
    assert driver.stats.misses == sum(
        out.held or latency > UNIT_S for out, latency in zip(outs, latencies, strict=True)
    )
    assert driver.stats.backlog_max <= 2
    assert len(session.seen) == 200 - sum(held)  # the model did not see the held ones
    assert [out.index for out in outs] == list(range(200))  # but the numbers stay those of the user's units


def test_a_stall_is_caught_up_at_once() -> None:
    """One step takes 1.04 s: the five units that are complete by then are held, the next is in time."""
    driver, session, outs, latencies = play(40, fixed=0.05, per_step=0.01, slow={10: 0.95})
    held = [index for index, out in enumerate(outs) if out.held]
    assert held == [11, 12, 13, 14, 15]
    assert latencies[16] < UNIT_S
    assert driver.stats.misses == 6
    assert driver.stats.backlog_max == 5
    assert [round(1000 * float(unit.audio[0])) for unit in session.seen][10:13] == [10, 16, 17]


def test_a_held_unit_repeats_the_frame_and_fades() -> None:
    _, _, outs, _ = play(20, fixed=0.05, per_step=0.01, slow={10: 0.5})
    before, held = outs[10], [out for out in outs if out.held]
    assert len(held) >= 1
    first = held[0]
    assert (first.video == before.video[-1]).all()
    assert first.audio[0] == before.audio[-1]  # no click
    assert np.abs(np.diff(first.audio)).max() < 0.01
    assert not first.audio[300:].any()
    after = outs[held[-1].index + 1]
    assert after.audio[0] == 0
    assert np.abs(np.diff(after.audio)).max() < 0.01
    assert after.audio[-1] == 0.5


def test_held_before_there_was_any_picture() -> None:
    clock = FakeClock()
    driver = UnitDriver(FakeSession(clock, 0.01, 0.01), steps=2, frame_size=(6, 8), clock=clock)
    out = driver.step(UserUnit(), t_in=clock.now - 1.0)
    assert out.held
    assert out.video.shape == (4, 6, 8, 3)
    assert not out.audio.any()


def test_offline_has_no_policy() -> None:
    driver, session, outs, _ = play(20, fixed=0.25, per_step=0.05, policy=False)
    assert session.steps == [4] * 20
    assert not any(out.held for out in outs)
    assert driver.stats.misses == 20  # but the figures stay true


@settings(max_examples=60, deadline=None)
@given(
    fixed=st.floats(0.0, 0.3),
    per_step=st.floats(0.001, 0.2),
    slow=st.dictionaries(st.integers(0, 59), st.floats(0.0, 1.5), max_size=8),
    steps=st.integers(1, 8),
)
def test_delay_is_bounded(fixed: float, per_step: float, slow: dict[int, float], steps: int) -> None:
    """Whatever a step costs: at most one unit of waiting plus that one step, and every unit has its answer."""
    driver, session, outs, latencies = play(60, fixed, per_step, slow, steps)
    worst = fixed + steps * per_step + max(slow.values(), default=0.0)
    assert max(latencies) <= max(UNIT_S + worst, worst) + 1e-6
    assert len(outs) == driver.stats.units == 60
    assert len(session.seen) + driver.stats.held == 60
    assert all(1 <= used <= steps for used in session.steps)
    counted = sum(out.held or latency > UNIT_S for out, latency in zip(outs, latencies, strict=True))
    assert abs(driver.stats.misses - counted) <= 1  # one may lie on the deadline to the last bit


def test_cost_without_a_solve_stage_scales_with_the_steps() -> None:
    cost = StepCost()
    assert cost.steps_that_fit(0.0, 4) == 4  # nothing is known yet
    cost.update(0.2, 4, {})
    assert cost.steps_that_fit(0.11, 4) == 2
    assert cost.steps_that_fit(0.01, 4) == 1


def test_percentiles_of_nothing() -> None:
    assert percentiles(np.zeros(0)) == event_latency([]) == {}


def test_what_is_typed_in_a_held_unit_is_not_lost() -> None:
    """The model gets it with the next units, one message in each, in order."""
    driver, session, outs, _ = play(12, fixed=0.01, per_step=0.01, slow={3: 1.0})
    assert any(out.held for out in outs)
    for _ in range(sum(out.held for out in outs)):
        driver.step(UserUnit(), driver.clock())
    assert [user.text for user in session.seen] == [str(index) for index in range(12)]

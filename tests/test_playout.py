"""Units of the agent play without gaps, and delay is taken back."""

import asyncio

import numpy as np
import pytest

from wan_streamer.serving import playout as module
from wan_streamer.serving.playout import OUT_SAMPLES, STEP_MS, Playout, Upsampler
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT, AgentUnit, UserUnit

# ------------------------------------------------------------------------------------------------------- playout


def unit(index: int, value: int = 0, level: float = 0.5) -> AgentUnit:
    video = np.full((4, 8, 8, 3), value, np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    return AgentUnit(index, np.full(SAMPLES_PER_UNIT, level, np.float32), video)


def play(playout: Playout, steps: int) -> tuple[np.ndarray, list[int | None]]:
    out = [playout.step() for _ in range(steps)]
    return np.concatenate([s for s, _ in out]), [None if p is None else int(p[0, 0, 0]) for _, p in out]


def make_playout(**options: int) -> Playout:
    async def build() -> Playout:
        return Playout(**{"prebuffer_ms": 0, "max_ms": 480, **options})

    return asyncio.run(build())


def test_the_upsampler_doubles_the_rate_chunk_by_chunk() -> None:
    t = np.arange(4800) / SAMPLE_RATE
    x = np.sin(2 * np.pi * 1000 * t).astype(np.float32)
    whole, chunked = Upsampler(), Upsampler()
    y = whole(x)
    np.testing.assert_allclose(np.concatenate([chunked(c) for c in x.reshape(10, 480)]), y, atol=1e-6)
    want = np.sin(2 * np.pi * 1000 * (np.arange(9600) - Upsampler.TAPS // 2) / 48_000)
    np.testing.assert_allclose(y[200:-200], want[200:-200], atol=0.01)


def test_units_play_gapless_with_a_picture_every_40_ms() -> None:
    playout = make_playout()
    assert play(playout, 2)[1] == [None, None]  # no picture before the first unit
    playout.push(unit(0, 10))
    playout.push(unit(1, 20))
    samples, pictures = play(playout, 17)
    assert pictures[1:] == [10, None, 11, None, 12, None, 13, None, 20, None, 21, None, 22, None, 23, None]
    assert samples.shape == (17 * OUT_SAMPLES,)
    steady = samples[3 * OUT_SAMPLES :]
    np.testing.assert_allclose(steady, 0.5, atol=0.02)
    assert playout.late == 0


def test_a_late_unit_is_bridged_by_silence_and_the_last_picture() -> None:
    playout = make_playout()
    playout.push(unit(0, 10))
    play(playout, 9)
    samples, pictures = play(playout, 4)
    assert pictures == [13, None, 13, None]
    assert np.abs(samples[OUT_SAMPLES:]).max() < 0.01
    assert np.abs(np.diff(samples)).max() < 0.05  # faded, no click
    assert playout.late == 4
    playout.push(unit(1, 20))
    assert [p for p in play(playout, 8)[1] if p is not None] == [20, 21, 22, 23]


def test_delay_that_nobody_needs_is_taken_back_in_a_pause() -> None:
    playout = make_playout()
    for k in range(3):
        playout.push(unit(k, level=0.0))
    waits = []
    for k in range(3, 120):
        play(playout, 8)
        waits.append(playout.queued_ms)
        playout.push(unit(k, level=0.0))
    assert waits[0] >= 300
    assert waits[-1] <= 2 * STEP_MS
    assert playout.late == 0


def test_speech_is_not_cut_for_a_little_delay_but_a_long_queue_is() -> None:
    playout = make_playout()
    for k in range(2):
        playout.push(unit(k))
    for k in range(2, 60):
        play(playout, 8)
        playout.push(unit(k))
    assert playout.dropped == 0
    for k in range(60, 64):
        playout.push(unit(k))
    assert playout.queued_ms <= 480
    assert playout.dropped > 0


def test_clear_drops_what_is_queued_and_begins_anew() -> None:
    playout = make_playout(prebuffer_ms=60)
    playout.push(unit(0, 10), 0)
    playout.push(unit(1, 20), 160)
    play(playout, 3 + 5)
    assert playout.position_ms == 100
    assert playout.clear() == 220
    assert (playout.position_ms, playout.queued_ms) == (100, 0)
    samples, pictures = play(playout, 5)
    assert not samples[960:].any()
    assert set(pictures) <= {None, 12}  # the last one stays
    playout.push(unit(3, 40), 480)
    assert 40 not in play(playout, 3)[1], "the prebuffer"
    assert 40 in play(playout, 1)[1]
    assert (playout.position_ms, playout.late) == (500, 0)


def test_units_without_devices_are_played_as_silence() -> None:
    playout = make_playout()
    playout.push(UserUnit(), 0)
    samples, pictures = play(playout, 9)
    assert not samples.any()
    assert set(pictures) == {None}
    assert playout.position_ms == 160


def test_times_of_frames_follow_the_clock_also_over_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was missed is left out, not sent in a burst; sound and picture stay on one clock."""
    clock, stalls = [100.0], {50: 2.013, 90: 0.3}

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    pacer = make_playout()
    sent: dict[str, list[tuple[float, float]]] = {"audio": [], "video": []}
    rates = {"audio": 48_000, "video": 90_000}
    for kind, rate in rates.items():

        def put(frame: np.ndarray, pts: int, kind: str = kind, rate: int = rate) -> None:
            sent[kind].append((clock[0] - 100.0, pts / rate))

        monkeypatch.setattr(getattr(pacer, kind), "put", put)
    step = pacer.step

    def stepped() -> tuple[np.ndarray, np.ndarray | None]:
        clock[0] += stalls.pop(pacer._step, 0.001)
        if pacer._step == 140:
            raise asyncio.CancelledError
        return step()

    monkeypatch.setattr(pacer, "step", stepped)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    pacer.push(unit(0))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(pacer.run())
    for kind, rows in sent.items():
        assert len(rows) > 60
        late = [(now - pts) for now, pts in rows]
        steady = late[:40] + late[-10:]  # the 0.3 s are caught up by then
        assert max(steady) - min(steady) < 0.021, kind
        jumps = np.diff([pts for _, pts in rows])
        assert sorted(jumps)[-1] == pytest.approx(2.02, abs=0.04)
        assert sum(jumps > 0.1) == 1
    shared = {pts for _, pts in sent["audio"]}
    assert all(any(abs(pts - other) < 1e-9 for other in shared) for _, pts in sent["video"])

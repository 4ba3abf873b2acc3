"""Several sessions of one agent: fair turns, nobody waits for a slow or broken one, passes that meet."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
import standin
import torch
from test_keeper import answer, same
from test_session import user_units
from tiny import tiny_agent

from wan_streamer.errors import ServingError
from wan_streamer.model.layers import Mixed, join_rows, kinds_of, rows_of, tokens_at
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.runtime.seats import Seat, Turns, capacity
from wan_streamer.runtime.together import Together
from wan_streamer.units import UNIT_S, UserUnit

PATIENCE_S = 60


def test_who_waits_longest_is_next() -> None:
    turns, order = Turns(1), []

    def work(name: int) -> None:
        with turns:
            order.append(name)
            time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(5)]
    with turns:
        for thread in threads:
            thread.start()
            time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_so_many_at_a_time_and_no_more() -> None:
    turns, now, most, lock = Turns(2), [0], [0], threading.Lock()

    def work() -> None:
        for _ in range(20):
            with turns:
                with lock:
                    now[0] += 1
                    most[0] = max(most[0], now[0])
                time.sleep(0.001)
                with lock:
                    now[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2


def test_an_error_ends_its_seat_only() -> None:
    ended, errors, answered = threading.Event(), [], []

    def fail(item: int) -> None:
        answered.append(item)
        raise ValueError("no")

    broken = Seat(0, fail, errors.append, ended.set)
    well = Seat(1, answered.append, errors.append, lambda: None)
    for item in (1, 2):
        broken.put(item)
    assert ended.wait(5)
    well.put(3)
    well.close()
    well._thread.join(5)
    assert answered == [1, 3]
    assert [str(error) for error in errors] == ["no"]


@pytest.mark.parametrize(("seconds", "places", "expected"), [(0.01, 1, 4), (0.05, 1, 2), (0.05, 2, 4), (0.3, 2, 1)])
def test_capacity_is_what_keeps_pace(seconds: float, places: int, expected: int) -> None:
    """Of sessions that take their time without computing: 0.85 x 160 ms hold two units of 50 ms, on two places four."""
    assert capacity(lambda sessions: lambda: time.sleep(seconds), 4, places) == expected


# --------------------------------------------------------------------------------------------------- passes that meet


def doubled(x_BND: torch.Tensor, index_N: torch.Tensor, caches: list) -> tuple[torch.Tensor, list]:
    return 2 * x_BND, [f"slice of {cache}" for cache in caches]


def test_calls_of_the_same_tokens_are_one_pass() -> None:
    """Three sessions, four passes each: every one gets its own rows, and most passes carry all three."""
    sizes: list[int] = []

    def step(x_BND: torch.Tensor, index_N: torch.Tensor, caches: list) -> tuple[torch.Tensor, list]:
        sizes.append(len(x_BND))
        return doubled(x_BND, index_N, caches)

    together, results = Together(step, patience_s=2.0), {}  # type: ignore[arg-type]
    begin = threading.Barrier(3)

    def session(number: int) -> None:
        with together.joined():
            begin.wait()
            for k in range(4):
                x = torch.full((1, 2, 3), 10.0 * number + k)
                hidden, parts = together(x, torch.arange(k, k + 2), [number])  # type: ignore[list-item]
                results[number, k] = torch.equal(hidden, 2 * x) and parts == [f"slice of {number}"]

    threads = [threading.Thread(target=session, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {(number, k): True for number in range(3) for k in range(4)}
    assert sizes == [3] * 4
    assert (together.passes, together.calls) == (4, 12)


def test_rows_of_two_widths_meet_and_part() -> None:
    kinds = kinds_of(torch.tensor([False, True, False]))
    rows = [Mixed(torch.full((n, 1, 4), float(n)), torch.full((n, 2, 3), float(n)), kinds) for n in (1, 2)]
    both = join_rows(rows)
    for first, row in zip((0, 1), rows, strict=True):
        again = rows_of(both, slice(first, first + len(row.text)))
        assert torch.equal(again.text, row.text)
        assert torch.equal(again.media, row.media)
    assert tokens_at(both, slice(2, None)).shape == (3, 1, 3)
    assert tokens_at(both, slice(1, 2)).shape == (3, 1, 4)


def test_nobody_waits_long_for_a_member_that_asks_for_nothing() -> None:
    together = Together(doubled, patience_s=0.05)  # type: ignore[arg-type]
    with together.joined(), together.joined():
        began = time.monotonic()
        together(torch.ones(1, 1, 1), torch.arange(1), [None])  # type: ignore[list-item]
        assert 0.04 < time.monotonic() - began < 1


def test_an_error_in_a_pass_reaches_everyone_in_it() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    together, failed = Together(broken, patience_s=2.0), []  # type: ignore[arg-type]

    def session() -> None:
        with together.joined():
            begin.wait()
            with pytest.raises(RuntimeError, match="out of memory"):
                together(torch.ones(1, 1, 1), torch.arange(1), [None])  # type: ignore[list-item]
            failed.append(True)

    begin = threading.Barrier(2)
    threads = [threading.Thread(target=session) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert failed == [True, True]


def test_sessions_that_meet_say_what_they_say_alone() -> None:
    agent, units = tiny_agent(), user_units()
    streamer = agent.weights.streamer
    expected = [[agent.session(seed=seed).step(unit) for unit in units[:1]] for seed in range(3)]
    sessions = [agent.session(seed=seed) for seed in range(3)]
    alone = [[session.step(unit) for unit in units] for session in (agent.session(seed=seed) for seed in range(3))]
    streamer.together = Together(streamer.backbone.step, patience_s=0.5)
    got: dict[int, list] = {}

    def talk(number: int) -> None:
        got[number] = [sessions[number].step(unit) for unit in units]

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert streamer.together.calls > 1.5 * streamer.together.passes, "they did meet"
    for number in range(3):
        assert expected[number][0].text == alone[number][0].text
        for one, other in zip(got[number], alone[number], strict=True):
            assert one.text == other.text
            torch.testing.assert_close(torch.from_numpy(one.audio), torch.from_numpy(other.audio), atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------------- the process


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    model = ModelProcess(standin.StandInAgent, most=3, standby=True)
    model.wait_ready(PATIENCE_S)
    yield model
    model.shutdown()


def test_three_sessions_at_once_and_no_fourth(model: ModelProcess) -> None:
    """A session that hangs or fails is the concern of its own caller."""
    assert model.capacity == 3

    async def talk() -> None:
        sessions = [await model.open_session() for _ in range(3)]
        with pytest.raises(ServingError, match="as many sessions"):
            await model.open_session()
        sessions[0].step(0, UserUnit(text="slow"), time.monotonic())
        sessions[1].step(0, UserUnit(text="error"), time.monotonic())
        began = time.monotonic()
        for k in range(10):
            await answer(sessions[2], k, UserUnit())
        assert time.monotonic() - began < 10 * UNIT_S, "two others do not delay it"
        with pytest.raises(ServingError, match="step failed"):
            await answer(sessions[1], 1, UserUnit())
        again = await model.open_session()
        await answer(again, 0, UserUnit())
        for session in (*sessions, again):
            model.close_session(session)

    asyncio.run(talk())


def test_the_worker_that_stands_by_takes_over(model: ModelProcess) -> None:
    """Killed: the same sessions go on in less than two seconds, because nothing has to be loaded."""

    async def talk() -> float:
        sessions = [await model.open_session() for _ in range(2)]
        for session in sessions:
            await answer(session, 0, UserUnit())
        for _ in range(600):
            if model._spare is not None and model._spare.ready.done():
                break
            await asyncio.sleep(0.1)
        before, restarts = model.pid, model.restarts
        model.kill()
        began = time.monotonic()
        for session in sessions:
            with pytest.raises(ServingError, match="ended"):
                await answer(session, 1, UserUnit())
        for session in sessions:
            await answer(await model.open_session(resume=session), 1, UserUnit())
        assert model.pid != before
        assert model.restarts == restarts + 1
        return time.monotonic() - began

    assert asyncio.run(talk()) < 2


def test_two_conversations_do_not_know_each_other() -> None:
    """Of a real, tiny agent: each of two at once is what it is alone, bit for bit, also over a kill."""
    model = ModelProcess(tiny_agent, most=2)
    model.wait_ready(PATIENCE_S)
    alone = [tiny_agent().session(seed=seed) for seed in (3, 4)]

    async def talk() -> None:
        sessions = [await model.open_session(seed=seed) for seed in (3, 4)]
        for k, unit in enumerate(user_units()):
            if k == 4:
                model.kill()
                for session in sessions:
                    with pytest.raises(ServingError):
                        await answer(session, k, unit)
                sessions = [await model.open_session(seed=9, resume=session) for session in sessions]
            got = await asyncio.gather(*(answer(session, k, unit) for session in sessions))
            for one, reference in zip(got, alone, strict=True):
                assert same(one, reference.step(unit)), k
        for session in sessions:
            model.close_session(session)

    try:
        model._measured = 2  # however busy this machine is
        asyncio.run(talk())
    finally:
        model.shutdown()

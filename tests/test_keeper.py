"""A killed model process: the next one goes on with the session, no unit of its history is lost."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
import torch
from test_session import user_units
from tiny import tiny_agent

from wan_streamer import AgentUnit, UserUnit
from wan_streamer.errors import DataError, ServingError
from wan_streamer.runtime.keeper import Keeper
from wan_streamer.runtime.processes import ModelProcess, ModelSession
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.state import STATES, resume_session, session_state
from wan_streamer.runtime.worker import UnitOut

PATIENCE_S = 60
LEISURE_S = 3600  # until a unit is due: a driver in a hurry takes fewer solver steps, and gives other bits


def same(a: AgentUnit, b: AgentUnit) -> bool:
    """But for the number: a driver counts its own units."""
    return a.text == b.text and np.array_equal(a.audio, b.audio) and np.array_equal(a.video, b.video)


@pytest.fixture
def model() -> Iterator[ModelProcess]:
    model = ModelProcess(tiny_agent)
    model.wait_ready(PATIENCE_S)
    yield model
    model.shutdown()


async def answer(session: ModelSession, index: int, unit: UserUnit) -> AgentUnit:
    session.step(index, unit, time.monotonic() + LEISURE_S)
    while True:
        message = await asyncio.wait_for(session.receive(), PATIENCE_S)
        if isinstance(message, UnitOut):
            return message.unit


@pytest.mark.slow
def test_kills_lose_no_unit(model: ModelProcess) -> None:
    """Killed at a random moment of a unit: it is either in the history or it is not, and all before it is."""
    reference, rng = tiny_agent().session(seed=7), random.Random(5)

    async def talk() -> int:
        session, kills = await model.open_session(seed=7), 0
        for number, unit in enumerate(user_units(6, 15)):
            if number % 5 == 4:
                asyncio.get_running_loop().call_later(rng.uniform(0, 0.02), os.kill, model.pid, signal.SIGKILL)
                kills += 1
                expected = None
                try:
                    while True:  # the kill comes in one of these units
                        expected = reference.step(unit)
                        assert same(await answer(session, number, unit), expected)
                except ServingError:
                    began = time.monotonic()
                    session = await model.open_session(seed=1, resume=session)
                got = await answer(session, number, unit)
                print(f"goes on after {time.monotonic() - began:.1f} s")
                assert session.units in (reference.index - 1, reference.index)
                if session.units < reference.index:  # the last unit did not get into the history: it is the one of now
                    assert same(got, expected)
                    continue
            else:
                got = await answer(session, number, unit)
            assert same(got, reference.step(unit)), number
        model.close_session(session)
        return kills

    assert asyncio.run(talk()) == 3


def test_a_new_session_does_not_know_the_one_before(model: ModelProcess) -> None:
    async def talk() -> None:
        session = await model.open_session(seed=1)
        await answer(session, 0, user_units()[0])
        model.close_session(session)
        session = await model.open_session(seed=2)
        got = await answer(session, 0, user_units()[1])
        assert session.units == 0
        assert same(got, tiny_agent().session(seed=2).step(user_units()[1]))
        model.kill()
        with pytest.raises(ServingError):
            await answer(session, 1, user_units()[2])

    asyncio.run(talk())


def test_what_is_answered_is_kept(model: ModelProcess) -> None:
    """A kill after an answer does not take the unit away that was answered."""

    async def talk() -> None:
        session = await model.open_session(seed=1)
        keeper = Keeper(session.memory.name)
        for number, unit in enumerate(user_units(1, 30)):
            await answer(session, number, unit)
            assert keeper.latest(STATES, torch.device("cpu")).index == number + 1
        keeper.close()
        model.close_session(session)

    asyncio.run(talk())


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    block = SharedMemory(create=True, size=8 << 20)
    yield block
    block.close()
    block.unlink()


def test_half_a_state_is_no_state(memory: SharedMemory) -> None:
    """What a kill leaves while the second state is written is the first."""
    agent = tiny_agent()
    session, keeper, cpu = Session(agent.weights, 3), Keeper(memory.name), torch.device("cpu")
    assert keeper.latest(STATES, cpu) is None
    units = user_units(1, 6)
    session.step(units[0])
    keeper.keep(1, session_state(session))
    expected = session.step(units[1])
    keeper.keep(2, session_state(session))
    assert keeper.latest(STATES, cpu).index == 2
    keeper._numbers(0)[0] = 0  # as at the begin of `keep(2, ...)`
    again = Session(agent.weights)
    resume_session(again, keeper.latest(STATES, cpu))
    assert same(again.step(units[1]), expected)
    keeper.forget()
    assert keeper.latest(STATES, cpu) is None


def test_what_is_too_large_or_damaged_is_not_taken(memory: SharedMemory) -> None:
    keeper, cpu = Keeper(memory.name), torch.device("cpu")
    keeper.keep(1, [torch.zeros(8 << 20, dtype=torch.uint8)])
    assert keeper.latest(STATES, cpu) is None
    keeper.keep(1, ["record", "Unknown"])
    assert keeper.latest(STATES, cpu) == ["record", "Unknown"]
    keeper._bytes(1)[:4] = 255
    with pytest.raises(DataError, match="damaged"):
        keeper.latest(STATES, cpu)

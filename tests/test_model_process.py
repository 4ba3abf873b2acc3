"""The model in its own process, and the server around it before the first call."""

import asyncio
import socket
import time

import pytest
import standin

from wan_streamer.errors import CheckpointError, ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.runtime.worker import Stats, UnitOut
from wan_streamer.serving.server import bind, is_loopback, serve
from wan_streamer.units import UserUnit

PATIENCE_S = 30


def test_model_process_answers_in_order_and_reports(model: ModelProcess) -> None:
    async def talk() -> tuple[list[UnitOut], list[Stats]]:
        session = await model.open_session()
        with pytest.raises(ServingError, match="already serves as many"):
            await model.open_session()
        units: list[UnitOut] = []
        stats: list[Stats] = []
        for k in range(7):
            session.step(k, UserUnit(text="hello" if k == 2 else ""), time.monotonic())
        while len(units) < 7:
            message = await asyncio.wait_for(session.receive(), PATIENCE_S)
            (units if isinstance(message, UnitOut) else stats).append(message)  # type: ignore[arg-type]
        assert session.pending == 0
        model.close_session(session)
        return units, stats

    units, stats = asyncio.run(talk())
    assert [unit.index for unit in units] == list(range(7))
    assert units[0].unit.video.shape == (4, standin.HEIGHT, standin.WIDTH, 3)
    assert all(unit.t_in <= unit.t_start <= unit.t_out for unit in units)
    assert stats
    assert {"deadline_misses", "model_latency_ms"} <= set(stats[0].summary)


@pytest.mark.parametrize("text", ["crash", "error"])
def test_a_lost_session_raises_and_the_next_one_works(model: ModelProcess, text: str) -> None:
    async def talk() -> None:
        session = await model.open_session()
        session.step(0, UserUnit(text=text), time.monotonic())
        with pytest.raises(ServingError, match="model"):
            await asyncio.wait_for(session.receive(), PATIENCE_S)
        again = await model.open_session()
        again.step(0, UserUnit(), time.monotonic())
        assert isinstance(await asyncio.wait_for(again.receive(), PATIENCE_S), UnitOut)
        model.close_session(again)

    asyncio.run(talk())


def test_a_hanging_worker_can_be_killed_and_is_replaced(model: ModelProcess) -> None:
    async def talk() -> None:
        session = await model.open_session()
        session.step(0, UserUnit(text="hang"), time.monotonic())
        await asyncio.sleep(0.2)
        model.kill()
        with pytest.raises(ServingError, match="ended"):
            await asyncio.wait_for(session.receive(), PATIENCE_S)
        await model.ensure_ready()

    asyncio.run(talk())


def test_loading_errors_keep_their_type() -> None:
    model = ModelProcess(standin.fail_to_load)
    with pytest.raises(CheckpointError, match="nowhere"):
        model.wait_ready(PATIENCE_S)
    model.shutdown()


def test_a_worker_that_dies_while_loading_is_reported() -> None:
    model = ModelProcess("standin:die_on_load")
    with pytest.raises(ServingError, match="exit code 7"):
        model.wait_ready(PATIENCE_S)
    model.shutdown()


def test_an_unknown_factory_is_reported() -> None:
    model = ModelProcess("standin:no_such_function")
    with pytest.raises(ServingError, match="import path"):
        model.wait_ready(PATIENCE_S)
    model.shutdown()


# ------------------------------------------------------------------------------------------------------- the server


def test_a_taken_port_is_one_clear_line_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port} is already in use.*--port"):
            serve("nano", port=port, agent_factory=standin.fail_to_load)


def test_bad_hosts_and_ports_are_reported() -> None:
    with pytest.raises(ServingError, match="--host"):
        bind("no-such-host.invalid", 0)
    with pytest.raises(ServingError, match="--port"):
        bind("127.0.0.1", 99_999)


def test_serve_raises_what_loading_raised_and_frees_the_port() -> None:
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    sock.close()
    with pytest.raises(CheckpointError, match="nowhere"):
        serve("x", port=port, agent_factory=standin.fail_to_load)
    bind("127.0.0.1", port).close()


def test_a_missing_certificate_is_reported() -> None:
    with pytest.raises(ServingError, match=r"HTTPS certificate.*nowhere\.pem"):
        serve("nano", port=0, certfile="nowhere.pem", keyfile="nowhere.pem", agent_factory=standin.StandInAgent)


@pytest.mark.parametrize(("host", "expected"), [("localhost", True), ("127.0.0.1", True), ("::1", True),
                                                ("0.0.0.0", False), ("example.org", False)])  # fmt: skip
def test_loopback_hosts(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected

"""Thinker and performer over every link equal one process, and a lost performer loses nothing."""

import contextlib
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from films import make_film
from rich.console import Console
from test_memory_data import remembering
from test_session import all_same, same, user_units
from tiny import EXACT, SAYING, TALKER, tiny_streamer, tiny_weights

from wan_streamer import AgentUnit, WanStreamer
from wan_streamer.config import FlowConfig, StreamerConfig
from wan_streamer.errors import ConfigError, LinkError
from wan_streamer.model.pretrained import Weights
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.split.agents import open_agent
from wan_streamer.runtime.split.links import Link, local_pair, shared_pair
from wan_streamer.runtime.split.performer import MESSAGES, Detach, Performer, PerformerProcess, Ready, Solved, perform
from wan_streamer.runtime.split.thinker import PacedSession, Partner, SplitSession
from wan_streamer.runtime.talk import talk
from wan_streamer.runtime.trace import Span

RENOISING = StreamerConfig(**{**vars(TALKER), "flow": FlowConfig(steps=3, renoise=True)})


@functools.cache
def weights(config: StreamerConfig = TALKER) -> Weights:
    return WanStreamer(tiny_weights(config=config), "tiny", formats=EXACT).weights


def on_a_thread(pair: Callable[[], tuple[Link, Link]], config: StreamerConfig = TALKER) -> Link:
    here, there = pair()
    threading.Thread(target=_quietly, args=(there, Performer(weights(config).streamer)), daemon=True).start()
    return here


def _quietly(link: Link, performer: Performer) -> None:
    with contextlib.suppress(LinkError):
        perform(link, performer)


LINKS = {"local": local_pair, "shared": functools.partial(shared_pair, MESSAGES, 4 << 20)}


@pytest.fixture
def process() -> Iterator[PerformerProcess]:
    performer = PerformerProcess(tiny_streamer, 4 << 20)
    yield performer
    performer.kill()


@pytest.mark.parametrize(
    "config", [TALKER, RENOISING, remembering(), SAYING], ids=["plain", "renoising", "memory", "sounds"]
)
@pytest.mark.parametrize("link", LINKS)
def test_two_equal_one(link: str, config: StreamerConfig) -> None:
    units = user_units(7, 24)
    alone = Session(weights(config), seed=3)
    partner = Partner(functools.partial(on_a_thread, LINKS[link], config))
    partner.wait_ready()
    split = SplitSession(weights(config), partner, seed=3)
    for number, unit in enumerate(units):
        steps = 1 + number % 2 if config is not RENOISING else None
        if number % 3:
            split.settle()
        assert same(split.step(unit, steps), alone.step(unit, steps)), number
    assert (partner.alone, partner.losses) == (0, 0)
    split.close()
    partner.close()


@pytest.mark.parametrize("config", [TALKER, SAYING], ids=["plain", "sounds"])
@pytest.mark.parametrize("link", LINKS)
def test_the_schedule_of_the_paper_is_one_unit_later(link: str, config: StreamerConfig) -> None:
    units = user_units(8, 24)
    alone = Session(weights(config), seed=3)
    partner = Partner(functools.partial(on_a_thread, LINKS[link], config))
    partner.wait_ready()
    paced = PacedSession(weights(config), partner, seed=3)
    first = paced.step(units[0])
    assert (first.index, first.audio.any(), first.video.any(), first.text) == (-1, False, False, "")
    for number, unit in enumerate(units[1:]):
        shown = paced.step(unit)
        assert same(shown, alone.step(units[number])), number
        assert set(shown.stage_ms) == {"observe", "text", "solve", "decode"}
    assert partner.alone == 0
    partner.close()


def test_two_ranks_equal_one() -> None:
    """As torchrun starts them, without torchrun itself, which takes as long to start as one of them."""
    here = Path(__file__).parent
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    environment = {**os.environ, **place, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here.parent}:{here}"}
    line, pipes = [sys.executable, str(here / "split_ranks.py")], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ranks = [subprocess.Popen(line, text=True, env={**environment, "RANK": rank}, **pipes) for rank in "01"]
    try:
        said = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "20 units, the same" in said[0][0]


def test_talk_with_two_processes_says_and_shows_the_same(tmp_path: Path) -> None:
    WanStreamer(tiny_weights(), "tiny").save_pretrained(tmp_path / "agent")
    film = make_film(tmp_path / "me.mp4", seconds=2.0)

    def reply(device: str, schedule: Literal["eager", "paced"]) -> dict:
        options = {"checkpoint": str(tmp_path / "agent"), "pace": "fast", "seed": 3, "console": Console(quiet=True)}
        return talk(film, tmp_path / "reply.mp4", device=device, schedule=schedule, **options)

    one = reply("cpu", "eager")
    for schedule, late in (("eager", 0), ("paced", 1)):
        two, last = reply("cpu,cpu", schedule), one["units"] - 1
        assert (two["device"], two["units"]) == ("cpu,cpu", one["units"])
        moved = [{**entry, "unit": entry["unit"] + late} for entry in one["transcript"] if entry["unit"] + late <= last]
        assert moved
        assert two["transcript"] == moved


@pytest.mark.parametrize(
    ("device", "schedule", "words"),
    [
        ("cpu", "paced", "two devices such as cpu,cpu"),
        ("cpu,cpu,cpu", "eager", "one, or two"),
        ("cpu", "now", "eager or paced"),
        ("cpu,tpu", "eager", "tpu"),
    ],
)
def test_devices_and_schedules_that_do_not_exist(device: str, schedule: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_agent("nano", device, schedule)


def test_sessions_share_a_performer() -> None:
    partner = Partner(functools.partial(on_a_thread, local_pair))
    partner.wait_ready()
    talks = [(Session(weights(), seed), SplitSession(weights(), partner, seed=seed)) for seed in (1, 2)]
    for unit in user_units(1, 9):
        for alone, split in talks:
            assert same(split.step(unit), alone.step(unit))
    assert partner.alone == 0
    partner.close()


def test_sessions_on_threads_share_a_performer_and_its_loss(process: PerformerProcess) -> None:
    """Three at once, the performer is killed twice: each is what it is alone."""
    partner, units = Partner(process.connect), user_units(3, 24)
    partner.wait_ready()
    got: dict[int, list[AgentUnit]] = {}

    def talk(session: SplitSession) -> None:
        got[session.seed] = [session.step(unit) for unit in units]
        session.close()

    sessions = [SplitSession(weights(), partner, seed=seed) for seed in range(3)]  # weights are drawn on one thread
    threads = [threading.Thread(target=talk, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for _ in range(2):
        time.sleep(0.1)
        partner.wait_ready()
        os.kill(process.process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    for seed in range(3):
        alone = Session(weights(), seed=seed)
        assert all_same(got[seed], [alone.step(unit) for unit in units]), seed
    assert 1 <= partner.losses <= 2  # the second may come when all is said
    partner.close()


@pytest.mark.slow
def test_two_processes_equal_one_and_kills_lose_nothing(process: PerformerProcess) -> None:
    """The performer is killed at random moments, also while it solves; every unit stays what it would have been."""
    units, rng = user_units(9, 36), random.Random(2)
    alone = [Session(weights(), seed=4)]
    partner = Partner(process.connect)
    partner.wait_ready()
    split = SplitSession(weights(), partner, seed=4)
    kills = 0
    for number, unit in enumerate(units):
        if number % 12 == 5:
            partner.wait_ready()
            pid = process.process.pid
            threading.Timer(rng.uniform(0, 0.03), os.kill, (pid, signal.SIGKILL)).start()
            kills += 1
        if number % 2:
            split.settle()
        assert same(split.step(unit), alone[0].step(unit)), number
    deadline = time.monotonic() + 5
    while partner.losses < kills and time.monotonic() < deadline:  # the last one may die between two units
        split.step(unit), alone[0].step(unit)
    assert partner.losses == kills == 3
    partner.wait_ready()
    before = partner.alone
    assert all_same([split.step(unit) for unit in units[:9]], [alone[0].step(unit) for unit in units[:9]])
    assert partner.alone == before, "the new performer solves again"
    partner.close()


def test_a_performer_that_stands_still_is_left(process: PerformerProcess) -> None:
    alone, partner = Session(weights(), seed=4), Partner(process.connect, patience_s=0.3)
    partner.wait_ready()
    split = SplitSession(weights(), partner, seed=4)
    for number, unit in enumerate(user_units(2, 9)):
        if number == 4:
            os.kill(process.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        assert same(split.step(unit), alone.step(unit)), number
        assert time.monotonic() - began < 3
    assert partner.losses == 1
    partner.close()


def test_an_answer_of_a_dead_epoch_is_never_taken() -> None:
    """A performer that answers twice, the first time for another epoch and another unit."""

    def connect() -> Link:
        here, there = local_pair()
        threading.Thread(target=serve, args=(there,), daemon=True).start()
        return here

    def serve(link: Link) -> None:
        performer, send = Performer(weights().streamer), link.send

        def lie_first(message: object) -> None:
            if isinstance(message, Solved):
                wrong = type(message.latents)(*(torch.full_like(z, 9.0) for z in message.latents))
                send(Solved(message.session, message.epoch - 1, message.unit, wrong, message.span))
                send(Solved(message.session, message.epoch, message.unit - 1, wrong, message.span))
                send(Solved(message.session + 1, message.epoch, message.unit, wrong, message.span))
            send(message)

        link.send = lie_first  # type: ignore[method-assign]
        _quietly(link, performer)

    alone, partner = Session(weights(), seed=1), Partner(connect)
    partner.wait_ready()
    split = SplitSession(weights(), partner, seed=1)
    for unit in user_units(5, 6):
        assert same(split.step(unit), alone.step(unit))
    assert partner.alone == 0
    partner.close()


@pytest.mark.parametrize("link", LINKS)
def test_links_carry_and_say_when_the_other_end_is_gone(link: str) -> None:
    here, there = LINKS[link]()
    assert here.receive(0.01) is None
    for _ in range(5):
        here.send(Detach(3))
        assert there.receive(1) == Detach(3)
        there.send(Ready())
        assert here.receive(1) == Ready()
    there.close()
    with pytest.raises(LinkError):
        here.receive(1)
    here.close()


def test_a_message_that_is_too_large_or_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = shared_pair(MESSAGES, 1024)
    latents = weights().streamer.silence()
    with pytest.raises(LinkError, match="at most"):
        here.send(Solved(1, 1, 1, type(latents)(torch.zeros(4096), latents.audio), Span("", 0, 0)))
    here.patience_s = 0.05
    for _ in range(2):
        here.send(Ready())
    with pytest.raises(LinkError, match="read nothing"):
        here.send(Ready())
    monkeypatch.setattr("wan_streamer.runtime.split.links.PROTOCOL", 99)
    with pytest.raises(LinkError, match="version 99, got 2"):
        there.receive(1)
    here.close()
    there.close()

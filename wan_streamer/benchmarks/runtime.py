"""`wan-streamer bench runtime`: what a live unit costs, alone and beside other sessions, in one process and in two.

`bench_runtime`   all of it, as one report;   `print_runtime`   the same for people

Every session gets noise and a moving picture, so that nothing is skipped. `INCLUDES` says what each figure includes.
"""

import dataclasses
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from wan_streamer.benchmarks.machine import where_and_when
from wan_streamer.errors import WanStreamerError
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.runtime.clock import UnitDriver, percentiles
from wan_streamer.runtime.seats import Turns
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.split.agents import Schedule, SplitAgent, open_agent
from wan_streamer.threads import Threads
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLES_PER_UNIT, UNIT_S, UserUnit

MINUTE = 375  # units
REAL_TIME_UNITS = 250
QUICK_UNITS = 60
SAMPLE_UNITS = 100  # around a minute, whose median is compared
SESSIONS = (1, 2, 4)
POLICIES = ("window", "full")
PIECE = 25  # units, whose median is a point of the cost of a history
HISTORY_S, QUICK_HISTORY_S = 600.0, 80.0  # of the clock, for all policies together
NOT_PLAYED = {"cost_ratio": None, "memory_growth_mb": None, "minutes": None}
INCLUDES = {
    "schedules": "ms from a complete unit of the user to its decoded answer, with waiting for the unit before; paced"
    " also has the 160 ms until the next step, in which it is decoded; no microphone, network or loudspeaker",
    "sessions": "the same for n sessions whose units are complete at the same moment; fps: new pictures a second"
    " of each",
    "hour": "one process, as fast as it goes: the median unit of the last minute to that of minute 2; growth of the"
    " resident memory between them",
    "histories": "[minute of the session, median ms of its units] with each cache policy, in turns, as fast as it goes",
    "first_sound_ms": "median from the end of a spoken question to the first sound of the answer; see bench peers",
    "first_frame_ms": "the same to the frame that is shown with that sound",
}


def bench_runtime(
    checkpoint: str = "nano",
    device: str = "cpu",
    quick: bool = False,
    minutes: int = 60,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure an agent on `device` ("cpu", "cuda:0").

    quick    under five minutes in all, and no hour: its figures are null
    minutes  how long the long session is; it is played as fast as it goes

    Raises `CheckpointError`, `ConfigError`.
    """
    console = console or Console(stderr=True)
    units = QUICK_UNITS if quick else REAL_TIME_UNITS
    report: dict[str, Any] = {"schedules": {}, "sessions": []}
    for schedule, where in (("eager", device), ("paced", f"{device},{device}")):
        with console.status(f"{schedule} in {1 + where.count(',')} process(es) …"):
            agent = open_agent(checkpoint, where, schedule)  # type: ignore[arg-type]
            with closing(agent):
                report["schedules"][schedule] = real_time(agent, units, schedule) | {"device": where}  # type: ignore[arg-type]
    agent = open_agent(checkpoint, device)
    for n in SESSIONS:
        with console.status(f"{n} session(s) at once …"):
            report["sessions"].append(together(agent, n, units))
    with console.status(f"a session of {minutes} minutes …"):
        report["hour"] = NOT_PLAYED if quick else long_run(agent, minutes)
    with console.status("histories that are kept whole, and that are not …"):
        report["histories"] = histories(agent, QUICK_HISTORY_S if quick else HISTORY_S)
    with console.status("answers to spoken questions …"):
        report |= _peers(agent, quick)
    return report | where_and_when(agent) | {"includes": INCLUDES, "quick": quick}


def _peers(agent: WanStreamer, quick: bool) -> dict[str, Any]:
    """Of `bench peers`; nulls and why, if something is not installed."""
    try:
        from wan_streamer.benchmarks.answers import QUESTIONS, QUICK_QUESTIONS, compare
        from wan_streamer.benchmarks.cascade import Cascade

        cascade = Cascade.load(agent.frame_size)
    except (ImportError, WanStreamerError) as error:
        unknown = {"ours": None, "cascade": None}
        return {"first_sound_ms": unknown, "first_frame_ms": unknown, "peers": {"missing": str(error)}}
    found = compare(agent, cascade, QUESTIONS[:QUICK_QUESTIONS] if quick else QUESTIONS)
    return {key: found.pop(key) for key in ("first_sound_ms", "first_frame_ms")} | {"peers": found}


def noise_units(agent: WanStreamer, seed: int = 0) -> Iterator[UserUnit]:
    """A user without end: noise at the level of speech and a picture that moves."""
    rng, (height, width) = np.random.default_rng(seed), agent.frame_size
    sounds = (rng.standard_normal((8, SAMPLES_PER_UNIT)) * 0.05).astype(np.float32).clip(-1, 1)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    while True:
        for k, sound in enumerate(sounds):
            frames = [np.roll(picture, 4 * (FRAMES_PER_UNIT * k + f), axis=1) for f in range(FRAMES_PER_UNIT)]
            yield UserUnit(sound, np.stack(frames))


def real_time(agent: WanStreamer, units: int, schedule: Schedule) -> dict[str, Any]:
    """One session against the clock, every unit when a live user would have finished it."""
    agent.warmup()
    threads = Threads()
    threads.measure(agent.warmup)
    driver = UnitDriver(agent.session(seed=0), agent.default_steps, agent.frame_size, threads=threads)
    _play(driver, noise_units(agent), units, time.monotonic())
    summary = driver.summary()
    extra_ms = 1000 * UNIT_S if schedule == "paced" else 0.0  # the unit that a step shows is of the step before
    latency = {name: round(value + extra_ms, 2) for name, value in summary["model_latency_ms"].items()}
    partner = agent.partner.counters() if isinstance(agent, SplitAgent) else {}
    return {
        "model_latency_ms": latency,
        "units": driver.stats.units,
        **{key: summary[key] for key in ("deadline_misses", "held_units", "reduced_units", "machine")},
        "stage_ms": {name: percentiles(values) for name, values in driver.stats.stage_ms.items()},
        "counters": driver.stats.counters() | partner,
    }


def together(agent: WanStreamer, n: int, units: int) -> dict[str, Any]:
    """n sessions at once against the same clock, each on a thread of its own, as the server has them."""
    turns, start = Turns(agent.concurrency), time.monotonic() + 0.5
    threads = Threads()
    drivers = [UnitDriver(agent.session(seed), agent.default_steps, agent.frame_size) for seed in range(n)]

    def play(number: int) -> None:
        def before() -> None:
            threads.here(n)

        _play(drivers[number], noise_units(agent, number), units, start, turns, before)

    workers = [threading.Thread(target=play, args=(number,)) for number in range(n)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    answered = sum(driver.stats.units - driver.stats.held for driver in drivers)
    latency = percentiles([ms for driver in drivers for ms in driver.stats.model_ms])
    return {
        "n": n,
        "p50_ms": latency["p50"],
        "p95_ms": latency["p95"],
        "fps": round(FPS * answered / (n * units), 2),
        "deadline_misses": sum(driver.stats.misses for driver in drivers),
        "units": n * units,
    }


def _play(
    driver: UnitDriver,
    users: Iterator[UserUnit],
    units: int,
    start: float,
    turns: Turns | None = None,
    before: Callable[[], None] = lambda: None,
) -> None:
    for k in range(units):
        user, due = next(users), start + (k + 1) * UNIT_S
        time.sleep(max(0.0, due - time.monotonic()))
        if turns is None:
            driver.step(user, due)
            driver.settle()
        else:
            with turns:
                before()
                driver.step(user, due)
                driver.settle()


def long_run(agent: WanStreamer, minutes: int) -> dict[str, Any]:
    """A session of so many minutes, as fast as it goes: cost of its last units to those of minute 2, and memory."""
    session, users = agent.session(seed=0), noise_units(agent)
    early = _median_unit_ms(session, users, 2 * MINUTE)
    memory = _memory_mb()
    late = _median_unit_ms(session, users, (minutes - 2) * MINUTE)
    return {
        "cost_ratio": round(late / early, 3),
        "memory_growth_mb": round(_memory_mb() - memory, 1),
        "minutes": minutes,
        "unit_ms": {"minute_2": round(early, 2), f"minute_{minutes}": round(late, 2)},
    }


def histories(agent: WanStreamer, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """[(minute of the session, median ms of a unit)] of a session under each cache policy; they take turns.

    seconds  of the clock, after which the piece that is being played is the last

    Empty for an agent with a text memory, which has no other policy.
    """
    streamer, config = agent.weights.streamer, agent.weights.streamer.config
    if config.cache.memory_tokens:
        return {}
    sessions = {}
    for policy in POLICIES:
        streamer.config = dataclasses.replace(config, cache=dataclasses.replace(config.cache, policy=policy))
        sessions[policy] = agent.session(seed=0)
    streamer.config = config
    points: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
    users, until = noise_units(agent), time.monotonic() + seconds
    for piece in itertools.count(1):
        times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for user in itertools.islice(users, PIECE):
            for policy, session in sessions.items():
                began = time.perf_counter()
                session.step(user)
                times[policy].append((time.perf_counter() - began) * 1000)
        for policy, measured in times.items():
            points[policy].append((round(piece * PIECE / MINUTE, 2), round(float(np.median(measured)), 2)))
        if time.monotonic() >= until:
            break
    return points


def _median_unit_ms(session: Session, users: Iterator[UserUnit], units: int) -> float:
    """Play `units` units; the median of the last of them."""
    last = []
    for k in range(units):
        user = next(users)
        began = time.perf_counter()
        session.step(user)
        if k >= units - SAMPLE_UNITS:
            last.append((time.perf_counter() - began) * 1000)
    return float(np.median(last))


def _memory_mb() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def print_runtime(report: dict[str, Any], console: Console) -> None:
    """Tables of a report."""
    formats = report["formats"]
    machine = report["machine"]
    where = f"{machine['gpu'] or machine['cpu']} ({machine['capability']})"
    title = f"{report['checkpoint']}, {where}, {formats['backbone']}"
    pictures = f"{formats['pictures']} pictures of the {formats['decoder']} decoder"
    table = Table(title=f"{title} and {pictures}", title_justify="left")
    for name in ("", "p50 ms", "p95 ms", "p99 ms", "late", "units"):
        table.add_column(name, justify="right" if name else "left")
    for name, row in report["schedules"].items():
        latency = [f"{row['model_latency_ms'][point]:.0f}" for point in ("p50", "p95", "p99")]
        table.add_row(f"{name}, {row['device']}", *latency, str(row["deadline_misses"]), str(row["units"]))
    for row in report["sessions"]:
        latency = [f"{row['p50_ms']:.0f}", f"{row['p95_ms']:.0f}", ""]
        table.add_row(f"{row['n']} at once, {row['fps']} fps", *latency, str(row["deadline_misses"]), str(row["units"]))
    console.print(table)
    hour = report["hour"]
    if hour["cost_ratio"] is not None:
        console.print(
            f"minute {hour['minutes']} costs {hour['cost_ratio']:.2f} of minute 2,"
            f" memory grew by {hour['memory_growth_mb']:.0f} MB",
            highlight=False,
        )
    for policy, points in report["histories"].items():
        (first, early), (last, late) = points[0], points[-1]
        line = f"{policy}: {early:.0f} ms a unit at minute {first}, {late:.0f} ms at minute {last}"
        console.print(line, highlight=False)
    if "missing" in report["peers"]:
        console.print(f"no answers to questions: {report['peers']['missing']}", markup=False, highlight=False)
        return
    for name, ms in report["first_sound_ms"].items():
        figure = "never" if ms is None else f"after {ms:.0f} ms"
        console.print(f"first sound behind a question, {name}: {figure}", highlight=False)

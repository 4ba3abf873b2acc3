"""How long the agent takes, alone on the machine and against the clock (docs/architecture.md, "Session and clock").

`measure_latency`  a trial played in real time -> percentiles, per stage, and what missed its deadline
"""

import time
from typing import Any

from wan_streamer.evaluation.records import Trial
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.runtime.clock import UnitDriver
from wan_streamer.threads import Threads
from wan_streamer.units import UNIT_S


def measure_latency(checkpoint: str, trial: Trial, rounds: int = 2, device: str = "cpu") -> dict[str, Any]:
    """Unit k is released (k + 1) x 160 ms after the start, as from a live user; threads are chosen as in a call."""
    agent = WanStreamer.from_pretrained(checkpoint, device=device)
    agent.warmup()
    threads = Threads()
    threads.measure(agent.warmup)
    driver = UnitDriver(agent.session(seed=0), agent.default_steps, agent.frame_size, threads=threads)
    units = [unit for _ in range(rounds) for unit in trial.units()]
    start = time.monotonic()
    for k, unit in enumerate(units):
        due = start + (k + 1) * UNIT_S
        time.sleep(max(0.0, due - time.monotonic()))
        driver.step(unit, due)
        driver.settle()
    summary = driver.summary()
    return {
        "model": summary["model_latency_ms"],
        "event": summary["event_latency_ms"],
        "stages": summary["stage_ms"],
        "deadline_misses": summary["deadline_misses"],
        "held": summary["held_units"],
        "units": driver.stats.units,
        "device": str(agent.device),
        "machine": summary["machine"],
    }

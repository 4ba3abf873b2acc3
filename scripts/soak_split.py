"""Two processes say what one says, for long and through kills; in float32, bit for bit.

    python scripts/soak_split.py --checkpoint nano --units 1000 --kills 50 --json out/soak.json

For each link, `--units` units of `examples/hello.mp4`, again and again, are played by one process and by two. Then the
performer, and the model process of a server, are killed (SIGKILL) at random moments, `--kills` times each, and all that
comes is held against one process that lives. Pictures follow from the latents and are not drawn.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from wan_streamer import AgentUnit, UserUnit, WanStreamer
from wan_streamer.data.media import read_units
from wan_streamer.errors import ServingError
from wan_streamer.model.pretrained import find_checkpoint
from wan_streamer.runtime.formats import Formats
from wan_streamer.runtime.processes import ModelProcess, ModelSession
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.split.links import DistributedLink, local_pair
from wan_streamer.runtime.split.performer import MESSAGES, Performer, PerformerProcess, load_streamer, perform
from wan_streamer.runtime.split.thinker import Partner, SplitSession
from wan_streamer.runtime.worker import UnitOut

FILM = Path(__file__).parents[1] / "examples" / "hello.mp4"
EXACT = Formats("float32", "float32", "light")
PATIENCE_S = 120.0
LEISURE_S = 3600.0  # until a unit is due: a driver in a hurry takes fewer solver steps
EVERY = 4  # units between two kills
MOMENT_S = 0.15  # a kill comes so long after a unit has begun, at most


class Unseen(WanStreamer):
    """An agent that nobody looks at."""

    def session(self, seed: int | None = None, **options: Any) -> Session:
        return super().session(seed, pictures=False, **options)


def open_agent(checkpoint: str) -> WanStreamer:
    torch.set_num_threads(1)
    return Unseen.from_pretrained(checkpoint, formats=EXACT)


def user() -> Iterator[UserUnit]:
    return itertools.cycle(list(read_units(FILM)))


def same(one: AgentUnit, other: AgentUnit) -> bool:
    words = (one.text, one.transcript) == (other.text, other.transcript)
    return words and np.array_equal(one.audio, other.audio)


def compared(agent: WanStreamer, partner: Partner, units: int) -> dict[str, Any]:
    """The first `units` of two processes beside those of one."""
    alone, split = agent.session(3), SplitSession(agent.weights, partner, seed=3, pictures=False)
    equal = 0
    for number, unit in enumerate(itertools.islice(user(), units)):
        equal += same(alone.step(unit), split.step(unit))
        if number % 2:
            split.settle()
    latents = all(torch.equal(a, b) for a, b in zip(alone.last, split.last, strict=True))
    return {"units": units, "equal": equal, "last_latents_equal": latents, "solved_by_the_thinker": partner.alone}


def over_threads(agent: WanStreamer, units: int) -> dict[str, Any]:
    here, there = local_pair()
    threading.Thread(target=perform, args=(there, Performer(agent.weights.streamer)), daemon=True).start()
    partner = Partner(lambda: here, patience_s=PATIENCE_S)
    partner.wait_ready(PATIENCE_S)
    found = compared(agent, partner, units)
    partner.close()
    return found


def performer_of(checkpoint: str) -> PerformerProcess:
    return PerformerProcess(partial(load_streamer, str(find_checkpoint(checkpoint)), "cpu", EXACT))


def over_shared_memory(agent: WanStreamer, checkpoint: str, units: int) -> dict[str, Any]:
    process = performer_of(checkpoint)
    partner = Partner(process.connect, patience_s=PATIENCE_S)
    partner.wait_ready(PATIENCE_S)
    found = compared(agent, partner, units)
    partner.close()
    process.kill()
    return found


def rank(checkpoint: str, units: int) -> None:
    """One of the two ranks that `over_ranks` starts."""
    distributed.init_process_group("gloo")
    agent = open_agent(checkpoint)
    link = DistributedLink(1 - distributed.get_rank(), MESSAGES)
    if distributed.get_rank() == 1:
        perform(link, Performer(agent.weights.streamer))
    else:
        partner = Partner(lambda: link, patience_s=PATIENCE_S)
        partner.wait_ready(PATIENCE_S)
        print(json.dumps(compared(agent, partner, units)), flush=True)
        partner.close()
    distributed.destroy_process_group()


def over_ranks(checkpoint: str, units: int) -> dict[str, Any]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    line = [*launch, "--rank", "--checkpoint", checkpoint, "--units", str(units)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.strip().splitlines()[-1])


def killed_performers(agent: WanStreamer, checkpoint: str, kills: int) -> dict[str, Any]:
    process, rng = performer_of(checkpoint), random.Random(1)
    partner = Partner(process.connect)
    alone, split = agent.session(4), SplitSession(agent.weights, partner, seed=4, pictures=False)
    equal = 0
    for number, unit in zip(range(kills * EVERY), user(), strict=False):
        if number % EVERY == 0:
            partner.wait_ready(PATIENCE_S)
            pid = process.process.pid
            threading.Timer(rng.uniform(0, MOMENT_S), os.kill, (pid, signal.SIGKILL)).start()
        equal += same(split.step(unit), alone.step(unit))
    partner.close()
    process.kill()
    return {"kills": kills, "seen": partner.losses, "units": kills * EVERY, "equal": equal}


async def answer(session: ModelSession, index: int, unit: UserUnit) -> AgentUnit:
    session.step(index, unit, time.monotonic() + LEISURE_S)
    while not isinstance(message := await asyncio.wait_for(session.receive(), PATIENCE_S), UnitOut):
        pass
    return message.unit


async def killed_models(agent: WanStreamer, checkpoint: str, kills: int) -> dict[str, Any]:
    """The session goes on in the process that stands by; a unit that was not finished is played again."""
    model, rng = ModelProcess(partial(open_agent, checkpoint), standby=True), random.Random(2)
    model.wait_ready(PATIENCE_S)
    reference, session, units = agent.session(5), await model.open_session(seed=5), user()
    equal, number, seconds = 0, 0, list[float]()
    for _ in range(kills):
        for unit in itertools.islice(units, EVERY - 1):
            equal += same(await answer(session, number, unit), reference.step(unit))
            number += 1
        while model._spare is None or not model._spare.ready.done():
            await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(rng.uniform(0, MOMENT_S), os.kill, model.pid, signal.SIGKILL)
        try:
            while True:
                unit = next(units)
                expected = reference.step(unit)
                equal += same(await answer(session, number, unit), expected)
                number += 1
        except ServingError:
            began = time.monotonic()
            session = await model.open_session(seed=1, resume=session)
        got = await answer(session, number, unit)
        seconds.append(time.monotonic() - began)
        # if the unit did get into the history, this is the next one, of the same input
        equal += same(got, expected if session.units < reference.index else reference.step(unit))
        number += 1
    model.shutdown()
    p50, p95, most = np.percentile(seconds, (50, 95, 100)).round(2).tolist()
    return {"kills": kills, "units": number, "equal": equal, "goes_on_after_s": {"p50": p50, "p95": p95, "max": most}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.checkpoint, options.units)
        return
    agent = open_agent(options.checkpoint)
    found: dict[str, Any] = {}
    for name, measure in {
        "threads": lambda: over_threads(agent, options.units),
        "shared memory": lambda: over_shared_memory(agent, options.checkpoint, options.units),
        "torch.distributed": lambda: over_ranks(options.checkpoint, options.units),
        "killed performers": lambda: killed_performers(agent, options.checkpoint, options.kills),
        "killed model processes": lambda: asyncio.run(killed_models(agent, options.checkpoint, options.kills)),
    }.items():
        found[name] = measure()
        print(name, json.dumps(found[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

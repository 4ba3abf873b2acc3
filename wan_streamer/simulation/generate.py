"""Make shards of simulated conversations on all cores.

`simulate`  a pure function of (seed, split): the first shards do not depend on how many hours are asked for
"""

import os
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from wan_streamer.data.shards import shard_name, write_shard
from wan_streamer.errors import ConfigError
from wan_streamer.simulation.dialogue import SPLITS, episode_units
from wan_streamer.simulation.partners import make_episode
from wan_streamer.simulation.sentences import AGENT
from wan_streamer.simulation.voices import AgentVoice
from wan_streamer.units import UNIT_MS

EPISODES_PER_SHARD = 8
Progress = Callable[[int, int], None]


def default_cache() -> Path:
    """Where the agent's synthesised sentences are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wan_streamer" / "voices"


def shard_count(hours: float, seed: int, split: str) -> int:
    """Whole shards that hold at least `hours`."""
    seconds, index = 0.0, 0
    while seconds < hours * 3600 or index % EPISODES_PER_SHARD:
        seconds += episode_units(seed, split, index) * UNIT_MS / 1000
        index += 1
    return index // EPISODES_PER_SHARD


def _fill_cache(cache: Path, name: str) -> None:
    AgentVoice(cache).renderings(AGENT[name])


def _make_shard(out: Path, seed: int, split: str, cache: Path, number: int) -> int:
    """One shard, in a worker process. A finished one is left as it is."""
    path = out / shard_name(number)
    if not path.exists():
        voice = AgentVoice(cache)
        first = number * EPISODES_PER_SHARD
        write_shard(path, (make_episode(seed, split, first + i, voice) for i in range(EPISODES_PER_SHARD)))
    return number


def simulate(
    out_dir: str | Path,
    hours: float,
    seed: int,
    split: str = "train",
    processes: int = 2,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Write at least `hours` of conversation into `out_dir` and return the number of shards.

    split     train, valid or test; they share no voice, no face and no random stream
    cache     folder of the agent's sentences (default: the user's cache folder)
    progress  called with (shards done, shards in all)

    Shards that are already there are kept, so an interrupted run goes on where it stopped.
    """
    if hours <= 0:
        raise ConfigError(f"hours: expected more than 0, got {hours}")
    if split not in SPLITS:
        raise ConfigError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if seed < 0:
        raise ConfigError(f"seed: expected 0 or more, got {seed}")
    out, folder = Path(out_dir), Path(cache) if cache is not None else default_cache()
    out.mkdir(parents=True, exist_ok=True)
    total = shard_count(hours, seed, split)
    with get_context("spawn").Pool(max(1, min(processes, total))) as pool:
        pool.map(partial(_fill_cache, folder), list(AGENT), chunksize=1)
        job = partial(_make_shard, out, seed, split, folder)
        for done, _ in enumerate(pool.imap_unordered(job, range(total)), start=1):
            if progress is not None:
                progress(done, total)
    return total

"""Make shards of simulated conversations, or of independent tasks, on all cores or on a cluster.

`simulate`  a pure function of (seed, split): the first shards do not depend on how many hours are asked for
"""

import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wan_streamer.codecs.folder import load_codecs
from wan_streamer.config import StreamerConfig
from wan_streamer.data.cluster import Engine, run_jobs
from wan_streamer.data.encode import Encoder, make_encoder, target_name
from wan_streamer.data.shards import Episode, episode_key, shard_name, write_shard
from wan_streamer.device import find_device
from wan_streamer.errors import ConfigError
from wan_streamer.files import remove_halves
from wan_streamer.perception.senses import load_senses
from wan_streamer.simulation.conversation.dialogue import SPLITS, episode_units
from wan_streamer.simulation.conversation.partners import make_asked, make_episode, make_shown, make_spoken
from wan_streamer.simulation.conversation.repertoire import agent_texts, is_german
from wan_streamer.simulation.tasks.episodes import SHARD_UNITS, shard_tasks
from wan_streamer.simulation.tasks.say import own_sentences, tts_sentences
from wan_streamer.simulation.voice.natural import NaturalVoices
from wan_streamer.simulation.voice.users import AgentVoice
from wan_streamer.units import UNIT_MS

EPISODES_PER_SHARD = 8
KINDS = ("conversations", "tasks", "shown", "spoken", "asked")
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


@dataclass(frozen=True)
class Latents:
    """Encode what is made at once, instead of keeping films: what training reads, in a fourth of the time.

    folder      of both codecs;  config  of the model that is to be trained;  device  where they run
    ears, eyes  folders of frozen ones, whose features are kept instead of what the user says and shows
    film_every  one conversation of so many has the agent's film; the others teach its text alone
    """

    folder: Path
    config: StreamerConfig
    device: str = "cpu"
    ears: Path | None = None
    eyes: Path | None = None
    film_every: int = 1

    def write(self, episodes: Iterator[Episode], shard: Path) -> None:
        """The files of a shard, unless all of them are there already."""
        done = shard.with_suffix(".done")
        if done.exists():
            return
        encoder = _encoder(self.folder, self.config, self.device, self.ears, self.eyes)
        for episode in episodes:
            encoder.write(episode, shard.parent / target_name(shard, episode.key))
        done.touch()


@functools.cache
def _encoder(folder: Path, config: StreamerConfig, device: str, ears: Path | None, eyes: Path | None) -> Encoder:
    senses = load_senses(ears, eyes, config.perception)
    return make_encoder(*load_codecs(config, folder), config.perception, find_device(device), senses)


@dataclass(frozen=True)
class _FillCache:
    """Synthesise one of the agent's sentences, given as (text, language)."""

    cache: Path
    texts: tuple[tuple[str, str], ...]

    def __call__(self, number: int) -> None:
        AgentVoice(self.cache).renderings(*self.texts[number])


@dataclass(frozen=True)
class _MakeShard:
    """Make one shard. A finished one is left as it is."""

    out: Path
    seed: int
    split: str
    cache: Path
    natural: Path | None
    kind: str
    latents: Latents | None

    def __call__(self, number: int) -> None:
        path = self.out / shard_name(number)
        if self.latents is not None:
            self.latents.write(self._episodes(number, path), path)
        elif not path.exists():
            write_shard(path, self._episodes(number))

    def _episodes(self, number: int, latents: Path | None = None) -> Iterator[Episode]:
        """Those of shard `number`; of conversations only what is not encoded yet beside `latents`."""
        voice = AgentVoice(self.cache)
        natural = None if self.natural is None else NaturalVoices(self.natural, self.cache)
        if self.kind == "tasks":
            yield from shard_tasks(self.seed, self.split, number, voice, natural)
            return
        first = number * EPISODES_PER_SHARD
        for index in range(first, first + EPISODES_PER_SHARD):
            if latents is None or not (self.out / target_name(latents, episode_key(index))).exists():
                filmed = self.latents is None or index % self.latents.film_every == 0
                if self.kind == "shown":
                    yield make_shown(self.seed, self.split, index)
                elif self.kind == "spoken":
                    yield make_spoken(self.seed, self.split, index, voice)
                elif self.kind == "asked":
                    yield make_asked(self.seed, self.split, index)
                else:
                    yield make_episode(self.seed, self.split, index, voice, natural, filmed=filmed)


def simulate(
    out_dir: str | Path,
    hours: float,
    seed: int,
    split: str = "train",
    engine: Engine = Engine(),
    cache: str | Path | None = None,
    natural: str | Path | None = None,
    kind: str = "conversations",
    latents: Latents | None = None,
    progress: Progress | None = None,
) -> int:
    """Write at least `hours` into `out_dir` and return the number of shards.

    split     train, valid or test; they share no voice, no face and no random stream
    engine    where the work is done; a Ray cluster needs `out_dir` and `cache` in a folder that all its machines see
    cache     folder of synthesised sentences (default: the user's cache folder)
    natural   folder with Kokoro (scripts/fetch_kokoro.sh): half of the users have a natural voice
    kind      "conversations"; "tasks" for the independent tasks of `simulation.tasks`; "shown" for conversations about
              what is seen, in which nothing is heard; "spoken" for some in which only the agent is, "asked" only
              the user
    latents   write encoded conversations (`wan_streamer.data.latents`) instead of shards
    progress  called with (shards done, shards in all)

    What is already there is kept, so an interrupted run goes on where it stopped: after the last whole shard, and with
    `latents` after the last conversation.
    """
    check_request(hours, seed, split, kind, natural)
    out, folder = Path(out_dir), Path(cache) if cache is not None else default_cache()
    voices = Path(natural) if natural is not None else None
    out.mkdir(parents=True, exist_ok=True)
    if kind == "tasks":
        total = math.ceil(hours * 3_600_000 / UNIT_MS / SHARD_UNITS)
        texts = [(text, "en") for text in dict.fromkeys((*own_sentences(), *tts_sentences(split)))]
    else:
        total = shard_count(hours, seed, split)
        agent = agent_texts() if kind in ("conversations", "spoken") else {}
        texts = [(text, "de" if is_german(label) else "en") for text, label in agent.items()]
    for _ in run_jobs(_FillCache(folder, tuple(texts)), range(len(texts)), engine):
        pass
    job = _MakeShard(out, seed, split, folder, voices, kind, latents)
    try:
        for done, _ in enumerate(run_jobs(job, range(total), engine), start=1):
            if progress is not None:
                progress(done, total)
    finally:
        remove_halves(out)
    return total


def check_request(hours: float, seed: int, split: str, kind: str, natural: str | Path | None = None) -> None:
    """Raise `ConfigError` if `simulate` cannot make this."""
    if hours <= 0:
        raise ConfigError(f"hours: expected more than 0, got {hours}")
    if split not in SPLITS:
        raise ConfigError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if kind not in KINDS:
        raise ConfigError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if seed < 0:
        raise ConfigError(f"seed: expected 0 or more, got {seed}")
    if natural is not None:
        NaturalVoices(natural, default_cache())

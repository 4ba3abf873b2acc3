"""The suites: what the simulated partner does, seeded, with exact truth, voices and faces of the test split only.

`SUITES`      name -> how many trials of which kind
`Sources`     natural voices and speech of people, where a machine has them
`trial_list`  a suite -> the specifications of its trials
`make_trial`  a specification -> sound and picture of the user, and the reference that a perfect agent would give
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.evaluation.records import Trial
from wan_streamer.evaluation.suite.hearing import SPLIT, VOICES, hear_trial, sources_of
from wan_streamer.evaluation.suite.plans import plan_quiet, plan_recall
from wan_streamer.evaluation.suite.unseen import UNSEEN, unseen_texts
from wan_streamer.simulation.conversation.dialogue import Dialogue, Speak
from wan_streamer.simulation.conversation.partners import Planner, make_episode
from wan_streamer.simulation.conversation.repertoire import KNOWN
from wan_streamer.simulation.conversation.scenarios import FREE, plan_exactly
from wan_streamer.simulation.generate import default_cache
from wan_streamer.simulation.voice.natural import NaturalVoices
from wan_streamer.simulation.voice.users import AgentVoice
from wan_streamer.units import UNIT_S

TAIL = 2.4  # seconds after the last thing that happens
QUIET_TAIL = 5.5  # of a trial in which nothing more happens; after 7 s the agent would ask
VARIANTS = 3  # renderings of every sentence of the agent, as in the training world
QUIET_S = 600.0  # of the trial in which nobody says anything
HEARS = "hear_"  # kinds of this name are those of `VOICES`


@dataclass(frozen=True)
class Kind:
    """A kind of trial.

    axis         what it is for;   scenarios  what happens, in order (`simulation.scenarios`)
    tail         seconds without anything at the end
    interrupted  the reference must be talking when the user's sound comes: half of the noises come in silence
    pictures     whether the user is seen, and the agent looked at
    """

    axis: str
    scenarios: tuple[str, ...]
    tail: float = TAIL
    interrupted: bool = False
    pictures: bool = True


KINDS: dict[str, Kind] = {
    "pause": Kind("turn_taking", ("pause_in_turn",)),
    "question": Kind("turn_taking", ("knowledge",)),
    "quick": Kind("turn_taking", ("fast_handoff",)),
    "chat": Kind("turn_taking", ("small_talk",)),
    "stop": Kind("interruption", ("barge_in_stop",)),
    "topic": Kind("interruption", ("barge_in_topic",)),
    "correction": Kind("interruption", ("barge_in_correction",)),
    "mhm": Kind("interruption", ("user_backchannel",)),
    "aside": Kind("interruption", ("side_talk",), interrupted=True),
    "noise": Kind("interruption", ("noise",), interrupted=True),
    "story": Kind("backchannel", ("long_story",)),
    "show": Kind("proactive", ("greeting", "shows_something")),
    "wave": Kind("proactive", ("greeting", "waves")),
    "smile": Kind("proactive", ("greeting", "smiles")),
    "thumb": Kind("proactive", ("greeting", "thumb_up")),
    "decoy": Kind("proactive", ("greeting", "decoy")),
    "idle": Kind("proactive", ("greeting",), QUIET_TAIL),
    "colour": Kind("content", ("held_colour",)),
    "number": Kind("content", ("held_number",)),
    "thing": Kind("content", ("held_thing",)),
    "count": Kind("content", ("counting",)),
    "sum": Kind("content", ("arithmetic",)),
    "name": Kind("content", ("agent_name",)),
    "echo": Kind("content", ("repeat_after_me",)),
    "memory": Kind("content", ("tells_name", "counting", "recalls_name")),
    "typed": Kind("content", ("typed",)),
    "free": Kind("content", ("free_talk",)),
    "order": Kind("content", ("order",)),
    "free_story": Kind("backchannel", ("free_story",)),
    "free_topic": Kind("interruption", ("free_barge_in",)),
    "recall": Kind("recall", (), pictures=False),
    "quiet": Kind("quiet", (), pictures=False),
    **{f"{HEARS}{name}": Kind("hearing", (), pictures=False) for name in VOICES},
}


AXES_OF_TRIALS = tuple(dict.fromkeys(kind.axis for kind in KINDS.values()))


@dataclass(frozen=True)
class Suite:
    """trials of every kind for one seed;   seeds;   seconds of the one long conversation of the axis "horizon".

    unseen  users say what no training has: other wordings, fillings and free sentences
    """

    trials: dict[str, int]
    seeds: tuple[int, ...]
    horizon: float
    unseen: bool = False


SUITES: dict[str, Suite] = {
    "quick": Suite(
        {"pause": 7, "question": 4, "quick": 2, "chat": 2, "stop": 3, "topic": 3, "correction": 2, "mhm": 3, "aside": 2,
         "noise": 3, "story": 4, "show": 2, "wave": 2, "smile": 1, "thumb": 1, "decoy": 3, "idle": 3, "colour": 2,
         "number": 2, "thing": 1, "count": 2, "sum": 2, "name": 2, "echo": 1, "memory": 2, "typed": 1},
        seeds=(0,),
        horizon=90,
    ),
    "full": Suite(
        {"pause": 40, "question": 25, "quick": 10, "chat": 10, "stop": 20, "topic": 20, "correction": 15, "mhm": 20,
         "aside": 15, "noise": 20, "story": 25, "show": 10, "wave": 10, "smile": 8, "thumb": 8, "decoy": 20, "idle": 20,
         "colour": 15, "number": 15, "thing": 15, "count": 15, "sum": 15, "name": 10, "echo": 10, "memory": 15,
         "typed": 10},
        seeds=(0, 1, 2),
        horizon=1800,
    ),
    "standard": Suite(
        {"pause": 24, "question": 16, "quick": 5, "chat": 8, "stop": 14, "topic": 7, "correction": 7, "free_topic": 8,
         "mhm": 12, "aside": 8, "noise": 12, "story": 8, "free_story": 8, "show": 6, "wave": 6, "smile": 4, "thumb": 4,
         "decoy": 16, "idle": 8, "colour": 10, "number": 10, "thing": 10, "count": 6, "sum": 6, "name": 4, "memory": 6,
         "typed": 6, "free": 14, "order": 10, "recall": 4, "quiet": 1, "hear_own": 10, "hear_espeak": 10,
         "hear_kokoro": 10, "hear_flite": 10, "hear_reader": 9, "hear_orders": 14},
        seeds=(0,),
        horizon=120,
        unseen=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class TrialSpec:
    """What `make_trial` needs: a pure function of this."""

    kind: str
    seed: int
    number: int
    unseen: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}-{self.number:03d}"

    @property
    def noise(self) -> int:
        """Seed of a session that plays it: with one for all, one stream of noise is measured as much as an agent."""
        return zlib.crc32(self.name.encode())


@dataclass(frozen=True)
class Sources:
    """natural  folder of Kokoro: half of the users speak with its test voices;   speech  a corpus of `make_corpus`."""

    natural: Path | None = None
    speech: Path | None = None


def trial_list(
    suite: str, seeds: Sequence[int] | None = None, sources: Sources | None = None, axes: Sequence[str] | None = None
) -> list[TrialSpec]:
    """All trials of a suite, kinds mixed, so that a part of the list is a small suite of its own.

    seeds    instead of the suite's
    sources  voices that are not there are left out
    axes     only trials that are for one of them

    Raises `ConfigError` for an unknown suite or axes without trials, `DataError` if the corpus has no test of hearing.
    """
    if suite not in SUITES:
        raise ConfigError(f"suite: expected one of {', '.join(SUITES)}, got {suite!r}")
    found = SUITES[suite]
    voices = {f"{HEARS}{name}" for name in sources_of((sources or Sources()).speech)}
    specs = [
        (number / count, TrialSpec(kind, seed, number, found.unseen))
        for seed in seeds or found.seeds
        for kind, count in found.trials.items()
        for number in range(count)
        if (not kind.startswith(HEARS) or kind in voices) and KINDS[kind].axis in (axes or AXES_OF_TRIALS)
    ]
    if not specs:
        raise ConfigError(f"axis: expected one of {', '.join(AXES_OF_TRIALS)} that {suite} has, got {axes}")
    return [spec for _, spec in sorted(specs, key=lambda pair: pair[0])]


def make_trial(spec: TrialSpec, sources: Sources | None = None) -> Trial:
    """The trial of a specification. Raises `DataError`, `ConfigError` if a source is not what it should be."""
    kind, sources = KINDS[spec.kind], sources or Sources()
    index = 1000 * list(KINDS).index(spec.kind) + spec.number
    if spec.kind.startswith(HEARS):
        voice = spec.kind.removeprefix(HEARS)
        return Trial(spec.name, kind.axis, hear_trial(voice, spec.seed, spec.number, index, sources.speech))
    natural = None if sources.natural is None else _natural(sources.natural)
    episode = make_episode(spec.seed, SPLIT, index, _voice(), natural, kind.pictures, _planner(spec))
    return Trial(spec.name, kind.axis, episode)


def long_conversation(seed: int, seconds: float) -> Iterator[Trial]:
    """Ordinary conversations of the test split, one after the other, until `seconds` are full."""
    number, filled = 0, 0.0
    while filled < seconds:
        episode = make_episode(seed, "test", 900_000 + number, _voice())
        yield Trial(f"horizon-{seed}-{number:03d}", "horizon", episode)
        filled, number = filled + episode.units * UNIT_S, number + 1


def _voice() -> AgentVoice:
    return AgentVoice(default_cache(), VARIANTS)


@cache
def _natural(folder: Path) -> NaturalVoices:
    return NaturalVoices(folder, default_cache())


def _planner(spec: TrialSpec) -> Planner:
    if spec.kind == "quiet":
        return partial(plan_quiet, QUIET_S)
    if spec.kind == "recall":
        return partial(plan_recall, texts=unseen_texts(), lines=UNSEEN)
    return partial(_plan, KINDS[spec.kind], spec.unseen)


def _plan(
    kind: Kind, unseen: bool, agent: Speak, user: Speak, camera: bool, rng: np.random.Generator
) -> Dialogue | None:
    lines = UNSEEN if unseen else KNOWN
    texts = unseen_texts() if unseen or not FREE.keys().isdisjoint(kind.scenarios) else ()
    planned = plan_exactly(kind.scenarios, kind.tail, agent, user, camera, rng, texts, SPLIT, lines)
    talks = planned is not None and bool(planned.spans("agent"))
    return planned if talks or not kind.interrupted else None

"""Runs a suite: every contender meets every stimulus, is observed, and scored on every axis.

`run_suite`   an agent and its baselines -> `SuiteResult`
`score_pairs` recordings of any other system -> `SuiteResult`
`AXES`        axis -> the function that scores it

Trials are independent and go to all cores, one thread each; the latency is measured afterwards, alone, in real time.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from wan_streamer.data.cluster import Engine, run_jobs
from wan_streamer.evaluation.axes import face as axes_face
from wan_streamer.evaluation.axes import talk as axes_talk
from wan_streamer.evaluation.readers.judges import MosPredictor, Recogniser
from wan_streamer.evaluation.readers.observe import Observer
from wan_streamer.evaluation.records import Case, Observation
from wan_streamer.evaluation.report.story import render_story
from wan_streamer.evaluation.stats import Metric
from wan_streamer.evaluation.suite.baselines import BLIND, Replay, open_baseline
from wan_streamer.evaluation.suite.latency import measure_latency
from wan_streamer.evaluation.suite.pairs import read_pairs
from wan_streamer.evaluation.suite.play import play
from wan_streamer.evaluation.suite.stimuli import SUITES, TrialSpec, long_conversation, make_trial, trial_list
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.runtime.clock import Session
from wan_streamer.simulation.conversation.dialogue import SPOKEN

AXES: dict[str, Callable[[Sequence[Case]], dict[str, Metric]]] = {
    "turn_taking": axes_talk.turn_taking,
    "interruption": axes_talk.interruption,
    "backchannel": axes_talk.backchannel,
    "sync": axes_face.sync,
    "listening": axes_face.listening,
    "proactive": axes_talk.proactive,
    "content": axes_talk.content,
    "voice": axes_talk.voice,
    "picture": axes_face.picture,
}
AGENT = "agent"
LONG = ("replay", "looped_video", "frozen_frame")  # baselines of the long conversation
STORIES = 6  # conversations that the page shows
TIE = 0.02  # of the reference's value: so near, a blind baseline has won
Progress = Callable[[str, int, int], None]


@dataclass
class SuiteResult:
    """cases of every contender (the agent is "agent"), the long conversation likewise, and what was measured beside."""

    cases: dict[str, list[Case]]
    long: dict[str, list[Case]] = field(default_factory=dict)
    stories: list[Any] = field(default_factory=list)
    latency: dict[str, Any] | None = None
    seconds: float = 0.0

    def scores(self) -> dict[str, dict[str, dict[str, Metric]]]:
        """axis -> metric -> contender -> value."""
        table: dict[str, dict[str, dict[str, Metric]]] = {}
        for axis, score in AXES.items():
            for name, cases in self.cases.items():
                for metric, value in score(cases).items():
                    table.setdefault(axis, {}).setdefault(metric, {})[name] = value
        for name, cases in self.long.items():
            for metric, value in axes_face.horizon(cases).items():
                table.setdefault("horizon", {}).setdefault(metric, {})[name] = value
        return table

    def axes(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The report's "axes": see docs/evaluation.md."""
        return {
            axis: {metric: _entry(values) for metric, values in metrics.items() if AGENT in values}
            for axis, metrics in self.scores().items()
        }


def _entry(values: dict[str, Metric]) -> dict[str, Any]:
    own, sign = values[AGENT], 1 if values[AGENT].better == "higher" else -1
    reference = values.get("replay")
    blind = {name: values[name].value for name in BLIND if name in values and values[name].value == values[name].value}
    beaten_by = [name for name, value in blind.items() if sign * value >= sign * own.value and own.n]
    won = []
    if reference is not None and reference.value == reference.value:
        limit = sign * reference.value - TIE * abs(reference.value)
        won = [name for name, value in blind.items() if sign * value >= limit]
    return {
        "value": _plain(own.value), "low": _plain(own.low), "high": _plain(own.high), "n": own.n, "better": own.better,
        "unit": own.unit, "note": own.note, "informative": not won, "won_by": won, "beaten_by": beaten_by,
        "baselines": {name: _plain(metric.value) for name, metric in values.items() if name != AGENT},
    }  # fmt: skip


def _plain(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


# ---------------------------------------------------------------- the suite


@dataclass(frozen=True)
class _Task:
    """Job: one trial and everybody who plays it. Agents stay loaded between the jobs of a process."""

    checkpoint: str
    specs: tuple[TrialSpec, ...]
    baselines: tuple[str, ...]
    mos: bool
    shown: frozenset[int]

    def __call__(self, number: int) -> tuple[int, dict[str, Case], Any]:
        spec = self.specs[number]
        trial, see = make_trial(spec), _observer(self.mos)
        truth = see(play(Replay(trial), trial.units()))
        cases, story = {}, None
        for name in (AGENT, *self.baselines):
            if name == "replay":
                seen = truth
            else:
                recording = play(_open(name, self.checkpoint, spec.seed), trial.units())
                seen = see(recording, words=name == AGENT or trial.axis in ("content", "interruption"))
                if name != AGENT:
                    seen = replace(seen, audio=seen.audio[:0])  # nobody asks for it, and a full suite has gigabytes
                elif number in self.shown:
                    story = render_story(trial, recording, seen)
            cases[name] = Case(trial.name, trial.axis, trial.episode.labels, seen, truth)
        return number, cases, story


def run_suite(
    checkpoint: str,
    suite: str,
    seeds: Sequence[int] | None = None,
    limit: int | None = None,
    processes: int = 1,
    mos: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> SuiteResult:
    """Evaluate a checkpoint, or a baseline by its name.

    seeds  instead of the suite's
    limit  only so many trials, no long conversation, and once against the clock instead of twice
    mos    also predict opinion scores
    """
    started = time.monotonic()
    specs = tuple(trial_list(suite, seeds)[:limit])
    _open(AGENT, checkpoint, 0)  # a wrong name fails here, not in a worker
    shown = frozenset(islice(_first_of_each(specs), STORIES))
    job = _Task(checkpoint, specs, (*BLIND, "replay"), mos, shown)
    rows: dict[int, dict[str, Case]] = {}
    stories: dict[int, Any] = {}
    for number, cases, story in run_jobs(job, range(len(specs)), Engine(processes=processes)):
        rows[number] = cases
        if story is not None:
            stories[number] = story
        progress("trials", len(rows), len(specs))
    result = SuiteResult({name: [rows[number][name] for number in sorted(rows)] for name in (AGENT, *BLIND, "replay")})
    result.stories = [stories[number] for number in sorted(stories)]
    if limit is None:
        long = _Long(checkpoint, specs[0].seed, SUITES[suite].horizon)
        for name, cases in run_jobs(long, range(1 + len(LONG)), Engine(processes=processes)):
            result.long[name] = cases
            progress("long conversation", len(result.long), 1 + len(LONG))
    if checkpoint not in BLIND:
        result.latency = measure_latency(checkpoint, make_trial(specs[0]), rounds=2 if limit is None else 1)
    result.seconds = time.monotonic() - started
    return result


def _first_of_each(specs: Sequence[TrialSpec]) -> Any:
    """Numbers of trials that show something of every axis."""
    wanted = ("pause", "stop", "mhm", "story", "show", "memory", "colour", "wave")
    for kind in wanted:
        yield from islice((i for i, spec in enumerate(specs) if spec.kind == kind), 1)


@dataclass(frozen=True)
class _Long:
    """Job: one contender's long conversation, episode after episode in one session."""

    checkpoint: str
    seed: int
    seconds: float

    def __call__(self, number: int) -> tuple[str, list[Case]]:
        name = (AGENT, *LONG)[number]
        see, cases = _observer(False), []
        agent: Session | None = None if name == "replay" else _open(name, self.checkpoint, self.seed)
        for trial in long_conversation(self.seed, self.seconds):
            truth = see(play(Replay(trial), trial.units()), words=False)
            seen = truth if agent is None else see(play(agent, trial.units()), words=False)
            cases.append(Case(trial.name, trial.axis, trial.episode.labels, seen, truth))
        return name, cases


def _open(name: str, checkpoint: str, seed: int) -> Session:
    name = checkpoint if name == AGENT and checkpoint in BLIND else name
    return _loaded(checkpoint).session(seed=seed) if name == AGENT else open_baseline(name)


@functools.cache
def _loaded(checkpoint: str) -> WanStreamer:
    agent = WanStreamer.from_pretrained(checkpoint)
    agent.warmup()
    return agent


@functools.cache
def _observer(mos: bool) -> Observer:
    return Observer(Recogniser().timed, MosPredictor() if mos else None)


# ---------------------------------------------------------------- other systems


def score_pairs(folder: Path, progress: Progress = lambda name, done, total: None) -> SuiteResult:
    """Recorded pairs of streams (`pairs.read_pairs`); the reference is what labels say of the agent."""
    started, see = time.monotonic(), _observer(False)
    cases: list[Case] = []
    stories: list[Any] = []
    for trial, recording in read_pairs(folder):
        seen = see(recording)
        truth = _labelled_speech(trial.episode.labels, seen)
        cases.append(Case(trial.name, trial.axis, trial.episode.labels, seen, truth))
        if len(stories) < STORIES:
            stories.append(render_story(trial, recording, seen))
        progress("recordings", len(cases), len(cases))
    return SuiteResult({AGENT: cases}, stories=stories, seconds=time.monotonic() - started)


def _labelled_speech(labels: dict[str, Any], seen: Observation) -> Observation:
    """A reference that is known from labels only: when it is heard."""
    speech = [(e["start"], e["end"]) for e in labels["events"] if e["side"] == "agent" and e["type"] in SPOKEN]
    return Observation(seen.seconds, speech, [], "", "", np.zeros(0, np.float32), {}, np.zeros(0, np.int16))


def conversation_seconds(result: SuiteResult) -> float:
    """Seconds of conversation that the agent had."""
    return sum(case.seen.seconds for case in (*result.cases[AGENT], *result.long.get(AGENT, ())))

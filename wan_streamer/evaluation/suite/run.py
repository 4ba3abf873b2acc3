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
from wan_streamer.evaluation.axes import heard as axes_heard
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
from wan_streamer.evaluation.suite.stimuli import (
    KINDS,
    SUITES,
    Sources,
    TrialSpec,
    long_conversation,
    make_trial,
    trial_list,
)
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
    "recall": axes_heard.recall,
    "hearing": axes_heard.hearing,
    "quiet": axes_heard.quiet,
    "voice": axes_talk.voice,
    "picture": axes_face.picture,
}
AGENT = "agent"
APART = {
    "recall": ("silent",),
    "hearing": ("silent",),
    "quiet": ("silent", "always_talking", "metronome", "timer_0.5", "timer_1.0"),
}
"""Axes whose trials count for them alone, and the baselines that play them: others would do the same."""
LONG = ("replay", "looped_video", "frozen_frame")  # baselines of the long conversation
STORIES = 6  # conversations that the page shows
TIE = 0.02  # of the reference's value: so near, a blind baseline has won
FAILS = 0.21  # so far from perfect, the reference itself fails, and the metric measures the readers
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
                own = [case for case in cases if case.axis == axis or (case.axis not in APART and axis not in APART)]
                for metric, value in score(own).items():
                    table.setdefault(axis, {}).setdefault(metric, {})[name] = value
        for name, cases in self.long.items():
            for metric, value in axes_face.horizon(cases).items():
                table.setdefault("horizon", {}).setdefault(metric, {})[name] = value
        return table

    def axes(self) -> tuple[dict[str, dict[str, dict[str, Any]]], list[str]]:
        """The report's "axes" (docs/evaluation.md), and what is left out of them since the reference fails."""
        axes: dict[str, dict[str, dict[str, Any]]] = {}
        left_out = []
        for axis, metrics in self.scores().items():
            axes[axis] = {}
            for metric, values in metrics.items():
                reference = values.get("replay")
                if reference is not None and abs(reference.value - reference.perfect) > FAILS:
                    left_out.append(f"{axis}.{metric}")
                elif AGENT in values:
                    axes[axis][metric] = _entry(values)
        return axes, left_out


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
    sources: Sources
    mos: bool
    shown: frozenset[int]

    def __call__(self, number: int) -> tuple[int, dict[str, Case], Any]:
        spec = self.specs[number]
        trial, see, looked = make_trial(spec, self.sources), _observer(self.mos), KINDS[spec.kind].pictures
        truth = see(play(Replay(trial), trial.units(), looked), words=trial.axis not in ("hearing", "quiet"))
        cases, story = {}, None
        for name in (AGENT, *APART.get(trial.axis, BLIND), "replay"):
            if name == "replay":
                seen = truth
            else:
                recording = play(_open(name, self.checkpoint, spec.noise, looked), trial.units(), looked)
                asked = trial.axis in ("content", "interruption", "recall")
                seen = see(recording, words=asked or (name == AGENT and trial.axis not in ("hearing", "quiet")))
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
    sources: Sources | None = None,
    axes: Sequence[str] | None = None,
    progress: Progress = lambda name, done, total: None,
) -> SuiteResult:
    """Evaluate a checkpoint, or a baseline by its name.

    seeds    instead of the suite's
    limit    only so many trials, no long conversation, and once against the clock instead of twice
    mos      also predict opinion scores
    sources  natural voices and people's speech
    axes     only trials that are for one of these, no long conversation
    """
    started, sources = time.monotonic(), sources or Sources()
    specs = tuple(trial_list(suite, seeds, sources, axes)[:limit])
    _open(AGENT, checkpoint, 0)  # a wrong name fails here, not in a worker
    shown = frozenset(islice(_first_of_each(specs), STORIES))
    job = _Task(checkpoint, specs, sources, mos, shown)
    rows: dict[int, dict[str, Case]] = {}
    stories: dict[int, Any] = {}
    for number, cases, story in run_jobs(job, range(len(specs)), Engine(processes=processes)):
        rows[number] = cases
        if story is not None:
            stories[number] = story
        progress("trials", len(rows), len(specs))
    order = sorted(rows)
    result = SuiteResult(
        {name: [rows[n][name] for n in order if name in rows[n]] for name in (AGENT, *BLIND, "replay")}
    )
    result.stories = [stories[number] for number in sorted(stories)]
    if limit is None and not axes:
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


def _open(name: str, checkpoint: str, seed: int, pictures: bool = True) -> Session:
    name = checkpoint if name == AGENT and checkpoint in BLIND else name
    return _loaded(checkpoint).session(seed=seed, pictures=pictures) if name == AGENT else open_baseline(name)


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

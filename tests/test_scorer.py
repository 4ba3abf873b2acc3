"""The scorer itself: faults of a known size are put into the reference, and must be found with their sign and size.

Offsets and drifts between lips and voice are in test_sync.py.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from wan_streamer.evaluation.axes import talk as talk
from wan_streamer.evaluation.readers.observe import Observer
from wan_streamer.evaluation.records import Case, Recording, Trial
from wan_streamer.evaluation.suite import stimuli
from wan_streamer.evaluation.suite.baselines import Replay
from wan_streamer.evaluation.suite.play import play
from wan_streamer.evaluation.suite.stimuli import TrialSpec, make_trial
from wan_streamer.units import SAMPLE_RATE

KINDS = ("question", "chat", "count", "stop", "mhm", "pause", "story", "decoy", "show")
SEE = Observer(read=lambda frames: {})


@pytest.fixture(scope="module")
def trials() -> list[tuple[Trial, Recording]]:
    with pytest.MonkeyPatch.context() as patch:
        for kind in KINDS:  # nothing is drawn: only the sound is scored
            patch.setitem(stimuli.KINDS, kind, dataclasses.replace(stimuli.KINDS[kind], pictures=False))
        specs = [TrialSpec(kind, 0, number) for kind in KINDS for number in range({"stop": 3, "mhm": 2}.get(kind, 1))]
        made = [make_trial(spec) for spec in specs]
    return [(trial, play(Replay(trial), trial.units(), False)) for trial in made]


def score(trials: list[tuple[Trial, Recording]], fault: Callable[[np.ndarray], np.ndarray]) -> list[Case]:
    """The reference with a fault in its voice."""
    cases = []
    for trial, recording in trials:
        broken = dataclasses.replace(recording, audio=fault(recording.audio), video=None)
        truth = SEE(dataclasses.replace(recording, video=None))
        cases.append(Case(trial.name, trial.axis, trial.episode.labels, SEE(broken), truth))
    return cases


def late(seconds: float) -> Callable[[np.ndarray], np.ndarray]:
    shift = round(seconds * SAMPLE_RATE)
    return lambda audio: np.concatenate([np.zeros(shift, np.float32), audio[: len(audio) - shift]])


@pytest.mark.slow
def test_without_a_fault_everything_is_right(trials: list[tuple[Trial, Recording]]) -> None:
    cases = score(trials, lambda audio: audio)
    assert talk.turn_taking(cases)["balanced_accuracy"].value == 1
    assert talk.turn_taking(cases)["latency_distance_s"].value == 0
    assert talk.interruption(cases)["yields_and_resumes"].value == 1
    assert talk.backchannel(cases)["onset_f1"].value == 1
    assert talk.proactive(cases)["balanced_accuracy"].value == 1


@pytest.mark.parametrize("delay", [0.04, 0.12, 0.2, 0.4])
def test_known_delays_are_found(trials: list[tuple[Trial, Recording]], delay: float) -> None:
    clean, delayed = (talk.turn_taking(score(trials, late(seconds))) for seconds in (0.0, delay))
    found = delayed["latency_median_s"].value - clean["latency_median_s"].value
    assert found == pytest.approx(delay, abs=0.02)
    assert delayed["latency_distance_s"].value == pytest.approx(delay, abs=0.02)
    stops = [talk.interruption(score(trials, late(seconds)))["stop_latency_s"].value for seconds in (0.0, delay)]
    assert stops[1] - stops[0] == pytest.approx(delay, abs=0.02)


def test_a_delay_costs_accuracy_where_it_should(trials: list[tuple[Trial, Recording]]) -> None:
    cases = score(trials, late(0.7))
    assert talk.turn_taking(cases)["turn_end_answered"].value < 0.3
    assert talk.backchannel(cases)["onset_f1"].value == 0
    assert talk.interruption(score(trials, late(1.0)))["yields"].value < 0.5  # in one a pause moves to the barge-in


def test_a_mute_agent_fails(trials: list[tuple[Trial, Recording]]) -> None:
    cases = score(trials, np.zeros_like)
    assert talk.turn_taking(cases)["turn_end_answered"].value == 0
    assert talk.interruption(cases)["yields_and_resumes"].value == 0
    assert talk.proactive(cases)["hits"].value == 0

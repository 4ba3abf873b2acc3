"""The metrics on cases small enough to count by hand."""

import math

import numpy as np
import pytest

from wan_streamer.evaluation.axes import talk as talk
from wan_streamer.evaluation.records import Case, Observation, Span
from wan_streamer.evaluation.spans import exchanges, merged, onset_in, overlap
from wan_streamer.evaluation.stats import average, balanced, pooled, rate, wasserstein, wilson
from wan_streamer.simulation.voice.speech import TimedWord

SECONDS = 10.0


def observed(speech: list[Span], heard: str = "", said: str = "", at: float = 0.0) -> Observation:
    words = [TimedWord(word, at + 0.1 * i, at + 0.1 * i + 0.1) for i, word in enumerate(heard.split())]
    return Observation(SECONDS, speech, words, said, "", np.zeros(250, np.float32), {}, np.zeros(0, np.int16))


def event(kind: str, side: str, start: float, end: float, label: str = "") -> dict:
    return {"type": kind, "side": side, "start": start, "end": end, "label": label}


def case(
    events: list[dict],
    speech: list[Span],
    truth: list[Span] | None = None,
    axis: str = "turn_taking",
    words: dict[str, list[dict]] | None = None,
    **seen: str | float,
) -> Case:
    labels = {"events": events, "words": {"user": [], "agent": []} | (words or {}), "scenarios": []}
    return Case("case", axis, labels, observed(speech, **seen), observed(truth or []))  # type: ignore[arg-type]


ASKED = [event("speech", "user", 1.0, 2.0, "name"), event("speech", "agent", 2.3, 3.0, "name")]
PAUSED = [*ASKED, event("pause", "user", 1.3, 1.7)]
BROKEN = [
    event("speech", "user", 0.5, 1.0, "ten"),
    event("speech", "agent", 1.3, 3.3, "ten"),
    event("barge_in", "user", 3.0, 3.6, "stop"),
    event("speech", "user", 3.0, 3.6, "stop"),
    event("speech", "agent", 3.9, 4.4, "okay"),
]
MUMBLED = [
    event("speech", "user", 0.5, 1.0, "tea"),
    event("speech", "agent", 1.3, 6.0, "tea"),
    event("backchannel", "user", 3.0, 3.3, "backchannel"),
]
LISTENED = [event("speech", "user", 1.0, 6.0, "long_story"), event("backchannel", "agent", 3.0, 3.5, "mhm")]


# ---------------------------------------------------------------- spans and numbers


def test_spans() -> None:
    spans = [(1.0, 2.0), (2.4, 3.0)]
    assert onset_in(spans, 2.0, 3.0) == 2.4
    assert onset_in(spans, 1.1, 2.0) is None
    assert merged(spans, 0.5) == [(1.0, 3.0)]
    assert merged(spans, 0.3) == spans
    assert merged([], 1.0) == []
    assert overlap(spans, 1.5, 2.5) == pytest.approx(0.6)
    assert overlap([], 0.0, 9.0) == 0


def test_wilson_and_rate() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # the textbook's example
    found = rate([True, True, False, True])
    assert (found.value, found.n) == (0.75, 4)
    assert found.low < 0.75 < found.high
    assert math.isnan(rate([]).value)


def test_average_balanced_pooled() -> None:
    assert average([1.0, 3.0]).value == 2.0
    assert average([1.0, 2.0, 9.0], statistic=np.median).value == 2.0
    assert average([]).n == 0
    assert balanced([True, True], [False, False]).value == 0.5
    assert math.isnan(balanced([], [True]).value)
    assert pooled([1, 3], [2, 8]).value == pytest.approx(0.4)  # 4 of 10, not the mean of 0.5 and 0.375
    assert math.isnan(pooled([], []).value)


def test_intervals_hold_the_value_and_shrink() -> None:
    rng = np.random.default_rng(0)
    few, many = average(rng.normal(size=20).tolist()), average(rng.normal(size=2000).tolist())
    assert few.low < few.value < few.high
    assert many.high - many.low < 0.3 * (few.high - few.low)


def test_wasserstein() -> None:
    assert wasserstein(np.array([0.0, 1.0]), np.array([0.5, 1.5])) == pytest.approx(0.5)
    assert wasserstein(np.array([1.0]), np.array([1.0, 1.0, 1.0])) == 0
    assert wasserstein(np.array([0.0]), np.array([0.0, 3.0])) == pytest.approx(1.5)


# ---------------------------------------------------------------- turns


def test_exchanges_leave_out_barge_ins() -> None:
    assert [turn.end for turn in exchanges(case(ASKED, []))] == [2.0]
    assert [turn.end for turn in exchanges(case(BROKEN, []))] == [1.0]
    assert exchanges(case([event("speech", "user", 1.0, 2.0, "aside")], [])) == []  # nobody would answer
    assert exchanges(case([], [])) == []


@pytest.mark.parametrize(
    ("speech", "answered", "held", "latency"),
    [
        ([(2.3, 3.0)], 1.0, 1.0, 0.3),
        ([(1.9, 3.0)], 1.0, 1.0, -0.1),  # early, over the last sound: negative, and counted
        ([(1.5, 3.0)], 0.0, 0.0, -0.5),  # into the pause: no answer to the end of the turn
        ([(0.0, 9.9)], 0.0, 0.0, 3.0),  # all overlap: never begins
        ([(2.9, 3.5)], 0.0, 1.0, 0.9),
        ([], 0.0, 1.0, 3.0),
    ],
)
def test_turn_taking(speech: list[Span], answered: float, held: float, latency: float) -> None:
    found = talk.turn_taking([case(PAUSED, speech, truth=[(2.3, 3.0)])])
    assert found["turn_end_answered"].value == answered
    assert found["pause_held"].value == held
    assert found["balanced_accuracy"].value == (answered + held) / 2
    assert found["latency_median_s"].value == pytest.approx(latency)
    assert found["latency_distance_s"].value == pytest.approx(abs(latency - 0.3))


def test_starts_over_the_user() -> None:
    talked = [event("speech", "user", 0.0, 6.0, "long_story")]
    found = talk.turn_taking([case(talked, [(2.0, 3.0), (5.9, 7.0)])])
    assert found["starts_over_user_per_min"].value == pytest.approx(10)  # one in 0.1 minutes; at 5.9 the turn is over


def test_no_events_no_values() -> None:
    for axis in (talk.turn_taking, talk.interruption, talk.backchannel, talk.proactive, talk.content, talk.voice):
        for metric in axis([case([], [])]).values():
            assert metric.n == 0 or not math.isnan(metric.value)
        for metric in axis([]).values():
            assert metric.n == 0


@pytest.mark.parametrize(
    ("speech", "yields", "stop", "responds"),
    [
        ([(1.3, 3.3), (3.9, 4.4)], 1.0, 0.3, 1.0),
        ([(1.3, 3.3)], 1.0, 0.3, 0.0),  # falls silent for good
        ([(1.3, 9.0)], 0.0, 3.0, 0.0),  # talks on
        ([(1.3, 4.8)], 0.0, 1.8, 0.0),  # stops too late
        ([(4.0, 5.0)], 0.0, 3.0, 0.0),  # was not talking: there was nothing to stop
        ([], 0.0, 3.0, 0.0),
    ],
)
def test_interruption(speech: list[Span], yields: float, stop: float, responds: float) -> None:
    found = talk.interruption([case(BROKEN, speech, truth=[(1.3, 3.3), (3.9, 4.4)], axis="interruption")])
    assert found["yields"].value == yields
    assert found["stop_latency_s"].value == pytest.approx(stop)
    assert found["responds"].value == responds


@pytest.mark.parametrize(
    ("speech", "resumes"), [([(1.3, 6.0)], 1.0), ([(1.3, 3.2)], 0.0), ([(1.3, 3.1), (3.6, 6)], 1.0), ([], 0.0)]
)
def test_resuming_through_a_backchannel(speech: list[Span], resumes: float) -> None:
    found = talk.interruption([case(MUMBLED, speech, truth=[(1.3, 6.0)], axis="interruption")])
    assert found["resumes"].value == resumes


def test_yielding_always_is_not_enough() -> None:
    cases = [
        case(BROKEN, [(1.3, 3.3)], truth=[(1.3, 3.3), (3.9, 4.4)]),
        case(MUMBLED, [(1.3, 3.2)], truth=[(1.3, 6.0)]),
    ]
    assert talk.interruption(cases)["yields_and_resumes"].value == 0.5


# ---------------------------------------------------------------- listening aloud, speaking first


@pytest.mark.parametrize(
    ("speech", "f1"),
    [
        ([(3.1, 3.6)], 1.0),
        ([(3.3, 3.7)], 0.0),  # more than 0.2 s off
        ([(3.0, 3.4), (4.0, 4.4)], 2 / 3),
        ([(2.9, 3.1), (3.1, 3.3)], 2 / 3),  # one to one
        ([(2.0, 5.0)], 0.0),  # that is no backchannel
        ([(8.0, 8.4)], 0.0),  # the user has finished
        ([], 0.0),
    ],
)
def test_backchannel(speech: list[Span], f1: float) -> None:
    assert talk.backchannel([case(LISTENED, speech, axis="backchannel")])["onset_f1"].value == pytest.approx(f1)


def test_backchannel_that_does_not_listen_has_no_shuffle_gap() -> None:
    later = [event("speech", "user", 1.0, 6.0, "long_story"), event("backchannel", "agent", 4.5, 5.0, "mhm")]
    listens = [case(LISTENED, [(3.0, 3.4)], axis="backchannel"), case(later, [(4.5, 4.9)], axis="backchannel")]
    beats = [case(LISTENED, [(3.0, 3.4)], axis="backchannel"), case(later, [(3.0, 3.4)], axis="backchannel")]
    assert talk.backchannel(listens)["shuffle_gap"].value == 1.0
    assert talk.backchannel(beats)["shuffle_gap"].value == 0.0


def test_proactive() -> None:
    shown = [event("show", "user", 4.0, 7.0, "red key"), event("remark", "agent", 5.0, 6.0, "show")]
    moved = [event("decoy", "user", 4.0, 5.0, "shake")]
    right = [case(shown, [(5.4, 6.0)], axis="proactive"), case(moved, [], axis="proactive")]
    assert talk.proactive(right)["balanced_accuracy"].value == 1.0
    blurts = [case(shown, [(5.4, 6.0)], axis="proactive"), case(moved, [(4.5, 5.0)], axis="proactive")]
    found = talk.proactive(blurts)
    assert (found["hits"].value, found["false_alarms"].value, found["balanced_accuracy"].value) == (1.0, 1.0, 0.5)
    assert talk.proactive([case(shown, [(0.0, 9.0)], axis="proactive")])["hits"].value == 0.0


# ---------------------------------------------------------------- words


def question(label: str, answer: str, intent: str, heard: str) -> Case:
    said = answer.split()
    words = [{"text": w, "start": 2.3 + 0.05 * i, "end": 2.35 + 0.05 * i} for i, w in enumerate(said)]
    events = [event("speech", "user", 1.0, 2.0, intent), event("speech", "agent", 2.3, 3.0, label)]
    return case(events, [(2.3, 3.0)], axis="content", words={"agent": words}, heard=heard, at=2.3)


@pytest.mark.parametrize(
    ("label", "answer", "intent", "heard", "right"),
    [
        ("colour_is", "It is red.", "colour", "it is red", True),
        ("colour_is", "It is red.", "colour", "it is blue", False),
        ("number_is", "I can see a two.", "digit", "I can see that too", True),  # recognisers cannot tell
        ("number_is", "I can see a two.", "digit", "I can see a 2", True),
        ("name", "My name is Joe.", "name", "I am Joe nice to meet you", True),  # the other wording of this reply
        ("name", "My name is Joe.", "name", "you are welcome", False),
        ("france", "The capital of France is Paris.", "france", "the capital of friends is Paris", True),
        ("france", "The capital of France is Paris.", "france", "", False),
    ],
)
def test_right_answers(label: str, answer: str, intent: str, heard: str, right: bool) -> None:
    assert talk.content([question(label, answer, intent, heard)])["right_answers"].value == float(right)


def test_what_is_written_counts_apart_from_what_is_heard() -> None:
    """A voice that is not understood, or a text that says something else."""
    mumbled = question("colour_is", "It is red.", "colour", "it is there")
    mumbled.seen.text.extend([(2.24, "It is"), (2.4, " red"), (2.4, ".")])
    misled = question("colour_is", "It is red.", "colour", "it is red")
    misled.seen.text.extend([(2.24, "It is"), (2.4, " blue."), (9.0, " red.")])
    for one, heard, written in ((mumbled, 0.0, 1.0), (misled, 1.0, 0.0)):
        found = talk.content([one])
        assert (found["right_answers"].value, found["right_as_text"].value) == (heard, written)


def test_words_at_another_time_do_not_count() -> None:
    late = question("colour_is", "It is red.", "colour", "")
    late.seen.words.append(TimedWord("red", 8.0, 8.3))
    assert talk.content([late])["right_answers"].value == 0.0


def test_voice() -> None:
    cases = [
        case([], [(1, 2)], said="one two three four", heard="one two four"),
        case([], [], said="five six", heard=""),
    ]
    assert talk.voice(cases)["word_error"].value == pytest.approx(0.5)  # one of four, two of two
    assert talk.voice([case([], [(1, 2)], heard="one")])["word_error"].n == 0  # nothing to compare with

"""The suite `standard`: nothing in it is trained on; recall, hearing and silence are scored right."""

import dataclasses
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scenarios import ToneVoice, tone
from test_session import user_units
from tiny import EXACT, tiny_weights

from wan_streamer import WanStreamer
from wan_streamer.data.shards import Episode
from wan_streamer.errors import ConfigError, DataError
from wan_streamer.evaluation.axes.heard import AGES, hearing, quiet, recall
from wan_streamer.evaluation.readers.judges import normalise
from wan_streamer.evaluation.records import Case, Observation
from wan_streamer.evaluation.stats import Metric
from wan_streamer.evaluation.suite import run as suite_run
from wan_streamer.evaluation.suite import stimuli
from wan_streamer.evaluation.suite.hearing import SENTENCES, VOICES, hear_trial, sources_of
from wan_streamer.evaluation.suite.plans import AGES as WANTED
from wan_streamer.evaluation.suite.plans import plan_quiet, plan_recall
from wan_streamer.evaluation.suite.run import SuiteResult
from wan_streamer.evaluation.suite.stimuli import KINDS, SUITES, Sources, TrialSpec, make_trial, trial_list
from wan_streamer.evaluation.suite.unseen import UNSEEN, unseen_texts
from wan_streamer.simulation.conversation.dialogue import Dialogue
from wan_streamer.simulation.conversation.facts import FACTS
from wan_streamer.simulation.conversation.free import free_texts, order_text
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.repertoire import FILLERS, USER, is_german, slots
from wan_streamer.simulation.voice.speech import TimedWord
from wan_streamer.training.ears.corpus import CorpusWriter
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT

OPEN = ("name", "pet", "town", "food", "hobby", "job", "order")  # slots with more values than any list has


def plain(text: str) -> str:
    """As the scorer compares texts."""
    return " ".join(normalise(text))


@cache
def trained_texts() -> frozenset[str]:
    """Everything that users say in training and validation, templates unfilled."""
    wordings = itertools.chain.from_iterable(MANY.user.values())
    return frozenset(map(plain, [*wordings, *free_texts("train"), *free_texts("valid")]))


# ---------------------------------------------------------------- nothing of it is trained on


def test_no_wording_is_trained_on() -> None:
    assert {intent for intent in USER if not is_german(intent)} == set(UNSEEN.user)
    for intent, texts in UNSEEN.user.items():
        assert not {plain(text) for text in texts} & trained_texts(), intent
        assert {slot for text in texts for slot in slots(text)} <= {
            slot for text in USER[intent] for slot in slots(text)
        }


def test_no_filling_is_trained_on() -> None:
    for slot in OPEN:
        assert not set(UNSEEN.fillers[slot]) & set(MANY.fillers[slot]), slot
        assert len(UNSEEN.fillers[slot]) >= 5
    assert set(UNSEEN.fillers) == set(FILLERS)


def test_free_sentences_and_orders_are_said_in_no_other_split() -> None:
    rng = np.random.default_rng(0)
    said = {plain(order_text(item, "test", rng)) for item in UNSEEN.fillers["order"] for _ in range(20)}
    known = {plain(order_text(item, "train", rng)) for item in MANY.fillers["order"] for _ in range(200)}
    assert not (said | set(map(plain, unseen_texts()))) & (known | trained_texts())
    assert len(unseen_texts()) > 5000


@pytest.mark.parametrize("kind", ["pause", "free", "order", "memory", "mhm", "free_topic"])
def test_a_trial_says_unseen_things_in_an_unseen_voice(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stimuli, "_voice", ToneVoice)  # what the agent says is not looked at, nor are the pictures
    monkeypatch.setitem(KINDS, kind, dataclasses.replace(KINDS[kind], pictures=False))
    episode = make_trial(TrialSpec(kind, 0, 0, unseen=True)).episode
    texts = [said for said in sentences(episode) if said]
    assert texts
    assert not set(map(plain, texts)) & trained_texts()
    assert episode.labels["split"] == "test"


def sentences(episode: Episode) -> list[str]:
    turns = [e for e in episode.labels["events"] if e["side"] == "user" and e["type"] in ("speech", "backchannel")]
    words = episode.labels["words"]["user"]
    return [" ".join(w["text"] for w in words if e["start"] - 0.01 <= w["start"] < e["end"]) for e in turns]


def test_it_is_large_and_leaves_out_what_it_has_no_voice_for(corpus: Path) -> None:
    suite = SUITES["standard"]
    assert suite.unseen
    everything = trial_list("standard", sources=Sources(speech=corpus))
    assert all(spec.unseen for spec in everything)
    without = {spec.kind for spec in trial_list("standard")}
    assert len(trial_list("standard")) >= 250
    assert {kind for kind in without if kind.startswith("hear_")} == {"hear_own", "hear_espeak"}
    assert {spec.kind for spec in everything} - without == {"hear_flite", "hear_orders"}  # what this corpus has
    assert sum(suite.trials.values()) >= 300


# ---------------------------------------------------------------- recall


@pytest.fixture(scope="module")
def long_talk() -> Dialogue:
    found = (plan_recall(tone, tone, True, np.random.default_rng(i), unseen_texts(), UNSEEN) for i in range(9))
    return next(planned for planned in found if planned is not None)


def test_facts_are_asked_for_when_they_are_so_old(long_talk: Dialogue) -> None:
    told = {turn.label: turn for turn in long_talk.turns if turn.side == "user"}
    ages = []
    for fact in FACTS.values():
        if fact.ask in told:
            age = told[fact.ask].end - told[fact.tell].end
            wanted = min(WANTED, key=lambda seconds: abs(seconds - age))
            assert wanted <= age <= wanted + 20
            ages.append(wanted)
            answer = next(t for t in long_talk.turns if t.side == "agent" and t.onset > told[fact.ask].end)
            (value,) = [v for v in UNSEEN.fillers[fact.slot] if v in answer.speech.text.rstrip(".").split(" ", 2)[-1]]
            assert value in told[fact.tell].speech.text
    assert sorted(ages, reverse=True) == list(WANTED)
    assert len({low for low, _ in AGES.values()}) == len(set(WANTED))


def observed(
    speech: list[tuple[float, float]], words: str = "", transcript: str = "", seconds: float = 60
) -> Observation:
    spoken = [TimedWord(text, speech[-1][0], speech[-1][1]) for text in words.split()] if speech else []
    return Observation(seconds, speech, spoken, "", transcript, np.zeros(0, np.float32), {}, np.zeros(0, np.int16))


def recalled(words: str, asked_at: float) -> dict[str, Metric]:
    """A pet told at second 2, asked for later, and what is heard as the answer."""
    events = [
        {"type": "speech", "side": "user", "start": 1.0, "end": 2.0, "label": "my_pet"},
        {"type": "speech", "side": "agent", "start": 2.4, "end": 3.0, "label": "will_remember"},
        {"type": "speech", "side": "user", "start": asked_at - 1, "end": asked_at, "label": "ask_my_pet"},
        {"type": "speech", "side": "agent", "start": asked_at + 0.4, "end": asked_at + 2, "label": "your_pet"},
    ]
    answer = [{"text": text, "start": asked_at + 0.5, "end": asked_at + 0.6} for text in ["You", "have", "a", "pony."]]
    labels = {"events": events, "words": {"user": [], "agent": answer}, "scenarios": []}
    seen = observed([(asked_at + 0.5, asked_at + 1.5)], words, seconds=asked_at + 5)
    return recall([Case("recall", "recall", labels, seen, seen)])


@pytest.mark.parametrize(("asked_at", "name"), [(24, "20s"), (63, "60s"), (305, "5min")])
def test_recall_is_scored_by_age(asked_at: float, name: str) -> None:
    right, wrong = recalled("You have a pony.", asked_at), recalled("You have a dog.", asked_at)
    assert (right["recalled"].value, wrong["recalled"].value) == (1, 0)
    assert (right[f"recalled_after_{name}"].value, right[f"recalled_after_{name}"].n) == (1, 1)
    assert sum(right[name].n for name in AGES) == 1


# ---------------------------------------------------------------- hearing


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of voice; their "speech" is noise of different lengths."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for source, text, slot in (("flite", "this is sentence {}", ""), ("orders", "", "large tea number {}")):
        writer = CorpusWriter(folder, source)
        for number in range(7):
            sound_T = (rng.standard_normal(SAMPLE_RATE + 1000 * number) * 0.1).astype(np.float32)
            writer.add(sound_T, "v", text.format(number), "train" if number == 6 else "test", slot.format(number))
    return folder


def test_a_trial_of_hearing_holds_clips_that_nobody_trains_on(corpus: Path) -> None:
    episodes = [hear_trial("flite", 3, number, 900 + number, corpus) for number in range(2)]
    texts = [" ".join(word["text"] for word in e.labels["words"]["user"]) for e in episodes]
    assert sorted(digit for said in texts for digit in said if digit.isdigit()) == list(
        "012345"
    )  # of "test", once each
    for episode in episodes:
        assert len(episode.user_audio) == episode.units * SAMPLES_PER_UNIT
        assert len(episode.labels["events"]) == SENTENCES
        assert (episode.user_video, episode.agent_video) == (None, None)
    again = hear_trial("flite", 3, 1, 901, corpus)
    np.testing.assert_array_equal(again.user_audio, episodes[1].user_audio)
    assert not np.array_equal(hear_trial("flite", 4, 1, 901, corpus).user_audio, again.user_audio)


def test_a_corpus_without_a_voice_of_the_test_is_refused(tmp_path: Path, corpus: Path) -> None:
    assert sources_of(None) == ("own", "espeak")
    assert sources_of(corpus) == ("own", "espeak", "flite", "orders")
    with pytest.raises(DataError, match=r"expected a corpus with kokoro-test, flite, reader, orders.*docs/hearing.md"):
        sources_of(tmp_path)
    CorpusWriter(tmp_path, "flite").add(np.ones(9000, np.float32), "v", "hello", "test")
    with pytest.raises(DataError, match="expected 3 test clips of flite, found 1"):
        hear_trial("flite", 0, 0, 0, tmp_path)


def heard_case(kind: str, said: str, transcript: str, slot: str = "") -> Case:
    event = {"type": "speech", "side": "user", "start": 0.5, "end": 2.0, "label": slot}
    words = [{"text": word, "start": 0.5, "end": 2.0} for word in said.split()]
    labels = {"events": [event], "words": {"user": words, "agent": []}, "scenarios": [kind]}
    seen = observed([], transcript=transcript)
    return Case(kind, "hearing", labels, seen, seen)


def test_words_are_counted_by_kind_of_voice() -> None:
    found = hearing(
        [
            heard_case("own", "hello there you two", "hello there"),
            heard_case("kokoro", "I like red tea", "I like red tea"),
            heard_case("flite", "we went home late", "we want home light"),
            heard_case("orders", "large tea tea small", "uh a large tea with two sugars tea", "large tea tea small"),
        ]
    )
    assert {name: metric.value for name, metric in found.items()} == {
        "word_error_own": 0.5, "word_error_kokoro": 0, "word_error_flite": 0.5, "word_error_natural": 0.25,
        "order_slots": 0.75,
    }  # fmt: skip
    assert set(found) <= {"word_error_natural", "order_slots"} | {f"word_error_{kind}" for kind in VOICES}


# ---------------------------------------------------------------- silence


def test_in_the_quiet_trial_the_agent_greets_once() -> None:
    planned = plan_quiet(600, tone, tone, True, np.random.default_rng(0))
    assert planned.seconds == 600
    assert [turn.side for turn in planned.turns] == ["agent"]


def test_utterances_nobody_asked_for_are_counted_by_the_minute() -> None:
    greeting = [(2.0, 4.0)]
    talks = [*greeting, (30.0, 31.0), (31.3, 32.0), (200.0, 201.0), (590.0, 591.0)]  # two of them are one
    labels: dict[str, Any] = {"events": [], "words": {"user": [], "agent": []}, "scenarios": []}
    truth = observed(greeting, seconds=600)
    cases = [Case("quiet", "quiet", labels, observed(talks, seconds=600), truth)]
    assert quiet(cases)["unasked_per_min"].value == pytest.approx(0.3)
    assert quiet(cases)["unasked_per_min"].n == 10
    assert quiet([dataclasses.replace(cases[0], seen=truth)])["unasked_per_min"].value == 0


# ---------------------------------------------------------------- how it is run


def test_trials_of_their_own_axis_count_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [heard_case("own", "hello there", "hello"), heard_case("own", "hello", "hello")]
    other = dataclasses.replace(cases[0], axis="content")
    seen: dict[str, int] = {}
    for axis in ("content", "hearing", "voice"):
        monkeypatch.setitem(suite_run.AXES, axis, lambda own, axis=axis: seen.update({axis: len(own)}) or {})
    SuiteResult({"agent": [*cases, other]}).scores()
    assert seen == {"content": 1, "hearing": 2, "voice": 1}


@pytest.mark.parametrize(("truth", "left_out"), [(1.0, []), (0.5, ["content.rate"])])
def test_what_the_reference_fails_at_is_left_out(
    truth: float, left_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        suite_run, "AXES", {"content": lambda cases: {"rate": Metric(truth, truth, truth, 9, perfect=1.0)}}
    )
    result = SuiteResult({"agent": [], "replay": []})
    assert result.axes()[1] == left_out
    assert ("rate" in result.axes()[0]["content"]) == (not left_out)


def test_an_agent_that_nobody_looks_at_says_and_hears_the_same() -> None:
    agent = WanStreamer(tiny_weights(), "tiny", formats=EXACT)
    seen, unseen = agent.session(seed=2), agent.session(seed=2, pictures=False)
    for unit in user_units(3, 8):
        one, other = seen.step(unit), unseen.step(unit)
        np.testing.assert_array_equal(one.audio, other.audio)
        assert (one.text, one.transcript, one.video.shape) == (other.text, other.transcript, other.video.shape)
        assert one.video.any()
        assert not other.video.any()


def test_one_axis_may_be_asked_for(corpus: Path) -> None:
    found = trial_list("standard", sources=Sources(speech=corpus), axes=["hearing", "quiet"])
    assert len({spec.noise for spec in found}) == len(found)  # each is played with noise of its own
    assert {spec.kind for spec in found} == {"hear_own", "hear_espeak", "hear_flite", "hear_orders", "quiet"}
    with pytest.raises(ConfigError, match=r"expected one of turn_taking, .* that quick has, got .'hearing'"):
        trial_list("quick", axes=["hearing"])

"""Free sentences, pauses, memory and silence in conversations: their shares, and that no shortcut tells them."""

import functools
from itertools import pairwise

import numpy as np
import pytest
from test_scenarios import events, said, tone

from wan_streamer.simulation.conversation.dialogue import GAP, Dialogue, Scene, Speak, episode_rng, episode_units
from wan_streamer.simulation.conversation.facts import EARLIER_TURNS, FACTS, earlier
from wan_streamer.simulation.conversation.free import TOPICS, free_texts, order_text, reply_to
from wan_streamer.simulation.conversation.hesitation import perform, plan_pieces
from wan_streamer.simulation.conversation.partners import mix_track
from wan_streamer.simulation.conversation.repertoire import AGENT, FILLERS, agent_texts
from wan_streamer.simulation.conversation.scenarios import plan_dialogue, plan_of
from wan_streamer.simulation.conversation.timing import PAUSE
from wan_streamer.simulation.voice.users import UserVoice
from wan_streamer.units import SAMPLE_RATE

FREE = ("free", "order")


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    texts = free_texts("train")
    return [
        plan_dialogue(episode_units(6, "train", i), tone, tone, True, episode_rng(6, "train", i, 2), texts)
        for i in range(250)
    ]


def scene(seed: int = 0) -> Scene:
    return Scene(375, tone, tone, True, np.random.default_rng(seed), free_texts("train"))


def test_many_of_the_users_turns_are_free(dialogues):
    turns = [turn for d in dialogues for turn in said(d, "user")]
    assert 0.22 <= np.mean([turn.label in FREE for turn in turns]) <= 0.32
    texts = [turn.speech.text for turn in turns if turn.label in FREE]
    assert len(set(texts)) > 0.97 * len(texts)


def test_splits_share_no_free_sentence():
    rng = np.random.default_rng(0)
    splits = ("train", "valid", "test")
    found = [set(free_texts(s)) | {order_text("tea", s, rng) for _ in range(200)} for s in splits]
    assert not found[0] & found[1] | found[0] & found[2] | found[1] & found[2]


def test_no_pause_leaves_a_full_stop_alone():
    rng = np.random.default_rng(0)
    said = [piece.said for _ in range(200) for piece in plan_pieces(["I met her at school ."], 1, rng)]
    assert all(any(map(str.isalpha, text)) for text in said)


def test_a_natural_voice_reads_its_own_small_part():
    a, b = (set(free_texts("train", name)) for name in ("af_alloy", "am_adam"))
    assert 300 < len(a) < 1500
    assert len(a & b) < 0.1 * len(a)


def test_the_agent_stays_with_few_sentences():
    new = [text for text, label in agent_texts().items() if label.startswith("free_")]
    facts = [text for text, label in agent_texts().items() if label in {fact.answer for fact in FACTS.values()}]
    assert len(new) <= 40
    assert len(facts) <= 80
    assert set(TOPICS) == set(FILLERS["topic"])


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Why is it so?", {"free_why"}),
        ("Do you like this?", {"free_program"}),
        ("What happened?", {"free_question", "free_unsure"}),
        ("I lost my keys.", {"sorry_to_hear"}),
        ("That was awesome.", {"free_great"}),
        ("I saw a movie.", {"free_topic", "i_see", "free_interesting", "free_more", "free_really"}),
    ],
)
def test_answers_fit_the_words(text, labels):
    found = {reply_to(text, np.random.default_rng(i))[0] for i in range(60)}
    assert found == labels
    assert found <= set(AGENT)


def test_orders_are_repeated():
    for seed in range(10):
        for asked, answer in list(pairwise(plan_of("order")(scene(seed), 1.0).turns))[::2]:
            item = next(item for item in FILLERS["order"] if item in answer.speech.text)
            assert item in asked.speech.text
            assert GAP[0] - 1e-3 <= answer.onset - asked.end <= GAP[1] + 1e-3


def test_pauses_are_frequent_and_nobody_else_speaks_in_them(dialogues):
    paused = [d for d in dialogues if events(d, "pause")]
    assert len(paused) > 0.2 * len(dialogues)
    for dialogue in paused:
        for pause in events(dialogue, "pause"):
            assert PAUSE[0] - 1e-3 <= pause["end"] - pause["start"] <= PAUSE[1] + 1e-3
            assert not any(t.onset < pause["end"] and t.end > pause["start"] for t in said(dialogue, "agent"))
    places = {(e["start"] - t.onset) // 0.3 for d in paused for t in said(d, "user") for e in events(d, "pause")
              if t.onset < e["start"] < t.end}  # fmt: skip
    assert len(places) > 12


def test_what_is_written_has_no_comma_of_the_synthesiser():
    rng = np.random.default_rng(1)
    for _ in range(50):
        pieces = plan_pieces(["This is a rather long sentence."], 1, rng)
        speech, pauses = perform(pieces, lambda text: tone(text, rng, "en"))
        assert len(pauses) == 1
        assert pieces[0].said.endswith(",")
        assert "," not in " ".join(word.text for word in speech.words)


@functools.cache
def ends_and_pauses() -> tuple[np.ndarray, np.ndarray]:
    """(loudness before the silence, against the turn's, length of the turn so far, elapsed time; whether it is an
    end) of every silence in or after a user's turn."""
    texts, rows, ends = free_texts("train"), [], []

    def plan(i: int, voice: Speak) -> Dialogue:
        return plan_dialogue(episode_units(8, "train", i), tone, voice, True, episode_rng(8, "train", i, 2), texts)

    # only dialogues with many pauses are spoken: a third of the time for as many pauses
    paused = [i for i in range(120) if len(events(plan(i, tone), "pause")) >= 2]
    for i in paused:
        dialogue = plan(i, UserVoice.sample(np.random.default_rng(i)).speak)
        sound_T = mix_track(dialogue, "user", np.random.default_rng(0))
        for turn in said(dialogue, "user"):
            moments = [(turn.start + start, False) for start, _ in turn.pauses] + [(turn.end, True)]
            for at, end in moments:
                last, so_far = (
                    sound_T[round(t * SAMPLE_RATE) : round(at * SAMPLE_RATE)] for t in (at - 0.3, turn.onset)
                )
                level, mean = (10 * np.log10(np.mean(np.square(x)) + 1e-9) for x in (last, so_far))
                rows.append((level, level - mean, at - turn.onset, at))
                ends.append(end)
    return np.array(rows), np.array(ends)


def probe(rows: np.ndarray, ends: np.ndarray, steps: int = 2000) -> float:
    """Balanced accuracy of a logistic regression on the half that it was not fitted to."""
    rows = np.column_stack([(rows - rows.mean(0)) / rows.std(0), np.ones(len(rows))])
    fit = np.arange(len(rows)) % 2 == 0
    weight = np.where(ends, 0.5 / ends[fit].mean(), 0.5 / (1 - ends[fit].mean()))
    beta = np.zeros(rows.shape[1])
    for _ in range(steps):
        wrong = (1 / (1 + np.exp(-rows @ beta)) - ends) * weight
        beta -= 0.3 * rows[fit].T @ wrong[fit] / fit.sum()
    right = (rows @ beta > 0) == ends
    return float(np.mean([right[~fit & ends].mean(), right[~fit & ~ends].mean()]))


@pytest.mark.slow
def test_loudness_length_and_time_do_not_tell_pauses_from_ends():
    rows, ends = ends_and_pauses()
    assert (~ends).sum() > 42
    assert probe(rows, ends) <= 0.65
    cheat = np.column_stack([rows, ends + 0.1 * np.random.default_rng(0).standard_normal(len(ends))])
    assert probe(cheat, ends) > 0.95


def test_an_earlier_talk_is_short_and_its_facts_are_in_it(dialogues):
    assert 0.3 < np.mean([bool(d.before) for d in dialogues]) < 0.5
    texts = free_texts("train")
    for seed in range(200):
        turns, facts = earlier(texts, np.random.default_rng(seed))
        assert 2 <= len(turns) <= EARLIER_TURNS
        assert [turn["side"] for turn in turns] == ["user", "agent"] * (len(turns) // 2)
        assert {turn["text"] for turn in turns if turn["side"] == "agent"} <= set(agent_texts())
        said_before = " ".join(turn["text"] for turn in turns if turn["side"] == "user").lower()
        assert all(value.lower() in said_before for value in facts.values())


def test_answers_from_memory_are_true(dialogues):
    of_intent = {fact.tell: kind for kind, fact in FACTS.items()}
    answers = {fact.ask: (kind, fact.answer) for kind, fact in FACTS.items()}
    seen = {"known": 0, "unknown": 0, "late": 0}
    for dialogue in dialogues:
        told: dict[str, tuple[str, float]] = {}
        for turn, answer in pairwise(t for t in dialogue.turns if t.kind == "speech"):
            if turn.label in of_intent:
                told[of_intent[turn.label]] = (turn.speech.text, turn.end)
            if turn.label in answers and turn.side == "user":
                kind, label = answers[turn.label]
                if answer.label == "unknown":
                    assert kind not in told
                    seen["unknown"] += 1
                    continue
                assert answer.label == label
                (value,) = [v for v in FILLERS[FACTS[kind].slot] if v in answer.speech.text.rstrip(".").split()]
                where = told[kind][0] if kind in told else " ".join(turn["text"] for turn in dialogue.before)
                assert value.lower() in where.lower()
                seen["known"] += 1
                seen["late"] += kind in told and turn.onset - told[kind][1] > 12
    assert seen["known"] > 60
    assert min(seen["unknown"], seen["late"]) > 10


def test_in_a_long_silence_the_agent_speaks_once(dialogues):
    long, quiet_begin = 0, 0
    for dialogue in dialogues:
        quiet_begin += bool(dialogue.before) and (not dialogue.turns or dialogue.turns[0].onset > 2.5)
        asked_at = None  # the agent has spoken unasked and nobody has answered
        marks = [(e["start"], "ask") for e in events(dialogue, "remark") if e["label"] in ("silence", "call")]
        marks += [(turn.onset, "user") for turn in said(dialogue, "user")]
        marks += [(e["start"], "user") for kind in ("typed", "show", "wave") for e in events(dialogue, kind)]
        for at, kind in sorted(marks):
            assert not (kind == "ask" and asked_at is not None)
            long += kind == "user" and asked_at is not None and at - asked_at > 5
            asked_at = at if kind == "ask" else None
    assert long > 5
    assert quiet_begin > 10

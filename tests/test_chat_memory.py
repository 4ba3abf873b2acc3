"""What a chat model keeps of a conversation: what it forgets, what was seen, and how likely it finds what is said."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chat import ANSWERS, HELD, MARK, OWN, RED, TEXTS, Scripted, answer, chat, said_by
from test_reading import CONFIG as READING

from wan_streamer.codecs.text import END, SILENCE
from wan_streamer.model.backbone import Backbone
from wan_streamer.model.memory import RESPONSE, TRANSCRIPT
from wan_streamer.speaking.chat import DROPPED, HISTORY
from wan_streamer.speaking.turns import USER, remembered, turns_of, utterances


def test_the_oldest_is_forgotten_and_nothing_is_read_anew() -> None:
    read = Scripted()
    made = chat(read)
    reply, said, most = made.begin(), [], 0
    for turn in range(60):
        said += said_by(TRANSCRIPT, ["who are you?", "name a city"][turn % 2], END)
        dropped = max(0, len(said) - HISTORY - DROPPED // 2)  # a session keeps so many
        kept = said[dropped:]
        read.passes = []
        assert answer(made, reply, kept, dropped) == ANSWERS[["who are you?", "name a city"][turn % 2]]
        assert max(read.passes) < 60
        assert reply.turns[0][1] in ("who are you?", "name a city", *ANSWERS.values())  # none is cut
        said += kept[len(said) - dropped :]
        most = max(most, reply.begin)
        assert len(reply.turns) > 2 * (turn > 2)
    one = len(said) / 60
    assert len(said) > 2 * HISTORY
    assert most < HISTORY + one + len(made.prefix)
    assert len(reply.turns) > 2 * (HISTORY - DROPPED) / one - 4
    assert reply.tokens[: len(made.prefix)] == made.prefix


def test_words_whose_begin_is_forgotten_are_no_turn() -> None:
    said = [(MARK, SILENCE), (1, 7), (1, 8), (0, 9), (1, END), (1, 10), (0, END), (1, END), (0, 11)]
    for begin, firsts in ((0, [7, 9, 10, 11]), (1, [7, 9, 10, 11]), (2, [9, 10, 11]), (5, [10, 11]), (6, [11])):
        assert [one.tokens[0] for one in remembered(said, begin - len(said))] == firsts


def test_what_is_held_up_stands_beside_the_turn_and_stays_there() -> None:
    read = Scripted(ANSWERS | {HELD: RED})
    made, said = chat(read), said_by(TRANSCRIPT, "who are you?", END)
    reply = made.begin()
    assert made.next(reply, torch.tensor(said), len(said)) == OWN.encode("I")[0]
    assert made.next(reply, torch.tensor(said), len(said), "red cup") == OWN.encode("That")[0]
    while said[-1] != (RESPONSE, END):  # and it counts as it was when the answer began
        said.append(
            (RESPONSE, made.next(reply, torch.tensor(said), len(said), "" if said[-1][0] == RESPONSE else "red cup"))
        )
    assert OWN.decode([token for source, token in said if source == RESPONSE]) == RED
    for _ in range(2):  # the same words again, with empty hands
        said += said_by(TRANSCRIPT, "who are you?", END)
        assert answer(made, reply, said) == ANSWERS["who are you?"]
        assert made.text.decode(reply.tokens).count("(In my hand: red cup)") == 1


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(TEXTS[:4]), max_size=3), st.booleans(), st.booleans())
def test_what_the_user_may_have_said_is_weighed(asked: list[str], begun: bool, told: bool) -> None:
    """Each text as if it were read by itself behind what was said before, and nothing of the session changes."""
    read = Scripted()
    made, said = chat(read), [(MARK, SILENCE)]
    reply = made.begin()
    for words in asked:
        said += said_by(TRANSCRIPT, words or "what?", END)
        if told:
            answer(made, reply, said)
    said += said_by(TRANSCRIPT, "name a", END) if begun else []
    texts = ["name a city", "name a city in France", "who are you?", "city"]
    before = (list(reply.tokens), reply.begin, reply.turns, list(reply.words))
    found = made.weigh(reply, torch.tensor(said), len(said), [OWN.encode(text) for text in texts])
    assert before == (reply.tokens, reply.begin, reply.turns, reply.words)
    spoken = turns_of(utterances(said), OWN)
    *turns, open_turn = spoken if spoken and spoken[-1][0] == USER else (*spoken, (USER, ""))
    prefix = made.prefix + [token for turn in turns for token in made.marks.turn(*turn)] + made.marks.opening(USER)
    prefix += made.text.encode(open_turn[1])
    for text, sum_ in zip(texts, found, strict=True):
        expected, tokens = 0.0, list(prefix)
        for token in [*made.text.encode(f" {text}" if open_turn[1] else text), made.marks.stop]:
            expected += float(read.logits(tokens).log_softmax(-1)[token])
            tokens.append(token)
        assert sum_ == pytest.approx(expected, rel=1e-4)


def test_what_is_alike_is_read_once() -> None:
    read = Scripted()
    made = chat(read)
    reply, said = made.begin(), said_by(TRANSCRIPT, "who are you?", END)
    answer(made, reply, said)
    read.passes = []
    text = OWN.encode("name a city in France")
    one = len(made.text.encode("name a city in France"))
    made.weigh(reply, torch.tensor(said), len(said), [text, text[:-3], text])
    assert read.passes[0] < 2 * one + len(made.marks.opening(USER)) + 8


def test_what_is_not_forgotten_has_its_places() -> None:
    """With one layer nothing has seen what is forgotten, so it is as if that had never been there."""
    torch.manual_seed(0)
    backbone = Backbone(dataclasses.replace(READING, backbone=dataclasses.replace(READING.backbone, layers=1))).eval()
    x_BND = torch.randn(1, 12, READING.backbone.dim)
    with torch.inference_mode():
        _, past = backbone.read(x_BND[:, :10])
        expected, grown = backbone.read(x_BND[:, [0, 1, 2, 7, 8, 9, 10, 11]])
        shorter = backbone.forget(past, 3, 7)
        found, _ = backbone.read(x_BND[:, 10:], shorter)
    torch.testing.assert_close(shorter, grown[:, :, :, :6], atol=1e-5, rtol=0)
    torch.testing.assert_close(found, expected[:, 6:], atol=1e-5, rtol=0)
    assert (shorter[:, 0, :, 3:] - past[:, 0, :, 7:]).abs().max() > 0.1


def test_several_ways_go_on_from_one_past() -> None:
    torch.manual_seed(0)
    backbone = Backbone(READING).eval()
    x_BND = torch.randn(1, 9, READING.backbone.dim)
    after = [-1, 0, 1, 0, 3, -1]  # three ways: 0 1 2, 0 3 4, 5
    seen = torch.eye(6, dtype=torch.bool)
    for number, place in enumerate(after):
        seen[number] |= seen[place] if place >= 0 else False
    with torch.inference_mode():
        _, past = backbone.read(x_BND[:, :3])
        found, _ = backbone.read(x_BND[:, 3:], past, seen)
        for way in ([0, 1, 2], [0, 3, 4], [5]):
            expected, _ = backbone.read(x_BND[:, [3 + place for place in way]], past)
            torch.testing.assert_close(found[:, way], expected, atol=1e-5, rtol=0)

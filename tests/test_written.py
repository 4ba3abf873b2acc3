"""Conversations that nobody hears: planned as the others are, and which steps of a run are made of them."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from tiny import TALKER, tiny_text

from wan_streamer.codecs.text import END
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.evaluation.readers.judges import normalise
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import LANES, ClipBatch
from wan_streamer.simulation.conversation.dialogue import split_of
from wan_streamer.simulation.conversation.facts import FACTS, words_of
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.partners import written_conversation
from wan_streamer.simulation.conversation.repertoire import AGENT, FILLERS, NUMBERS
from wan_streamer.simulation.conversation.scenarios import ASKED, plan_asked
from wan_streamer.simulation.conversation.talk import typing_s
from wan_streamer.simulation.voice.silent import SilentVoice
from wan_streamer.training.examples import written
from wan_streamer.training.examples.clips import Example
from wan_streamer.training.examples.written import (
    LATER,
    WRITTEN_CLIPS,
    WrittenClips,
)
from wan_streamer.units import SAMPLE_RATE

UNITS = 16
RESPONSE, TRANSCRIPT = (LANES.index(name) for name in ("response", "transcript"))


def test_a_silent_voice_takes_the_time_that_words_take() -> None:
    text = "Well, could you please count to ten?"
    speech = SilentVoice().speak(text, np.random.default_rng(1))
    assert [word.text for word in speech.words] == text.split()
    assert not speech.audio.any()
    for one, following in itertools.pairwise(speech.words):
        assert one.start < one.end < following.start
    assert speech.words[-1].end < len(speech.audio) / SAMPLE_RATE
    assert 1.5 < speech.seconds < 3.5
    slow = SilentVoice(pace=1.25).speak(text, np.random.default_rng(1))
    assert slow.seconds > 1.15 * speech.seconds


def test_a_written_conversation_is_of_its_split_and_nobody_is_seen() -> None:
    first, again = (written_conversation(4, "train", 7) for _ in range(2))
    assert json.dumps(first) == json.dumps(again)
    assert first["words"] != written_conversation(4, "train", 8)["words"]
    for split in ("train", "valid", "test"):
        labels = written_conversation(4, split, 3)
        assert split_of([e["label"] for e in labels["events"] if e["type"] == "scenario"]) == split
        assert all(labels["words"][side] for side in ("user", "agent"))
        assert not {"show", "wave", "remark"} & {e["type"] for e in labels["events"] if e["side"] == "user"}


FREE = "Marbles glimmer."  # what may be said freely


def test_what_words_alone_decide_is_answered_rightly() -> None:
    """Sums are right, what was told is remembered, what is to be repeated is said, with more values than elsewhere."""
    voice, sums, recalls, repeats, told_anew = SilentVoice(), 0, 0, 0, set()
    asked_for = {FACTS[kind].ask: kind for kind in FACTS}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        dialogue = plan_asked(250, voice.speak, voice.speak, rng, (FREE,), "train", MANY)
        assert set(dialogue.scenarios) <= set(ASKED)
        facts = {} if not dialogue.before else None  # of an earlier talk only the texts are known
        replies = [turn for turn in dialogue.turns if turn.side == "agent"]
        for asked in (turn for turn in dialogue.turns if turn.side == "user"):
            answer = next((reply for reply in replies if reply.onset > asked.end), replies[-1])
            text = answer.speech.text
            if asked.label == "sum":
                known = [NUMBERS.index(word) for word in normalise(asked.speech.text) if word in NUMBERS]
                assert text == AGENT["sum"].format(number=NUMBERS[sum(known)])
                sums += 1
            if asked.label == "say" and text not in AGENT.values():
                assert text == FREE
                said = iter(normalise(asked.speech.text))  # some users hesitate in it
                assert all(word in said for word in normalise(FREE))
                repeats += 1
            for kind, fact in FACTS.items():
                if asked.label == fact.tell and facts is not None:
                    told = plain(asked.speech.text)
                    values = (*MANY.fillers[fact.slot], *words_of(FREE))
                    facts[kind] = max((v for v in values if plain(v) in told), key=len)
                    told_anew.add(facts[kind])
            if asked.label in asked_for and facts is not None:
                kind = asked_for[asked.label]
                value = {FACTS[kind].slot: facts[kind]} if kind in facts else {}
                assert text == AGENT[FACTS[kind].answer if value else "unknown"].format(**value)
                recalls += bool(value)
    assert sums > 30
    assert repeats > 15
    assert recalls > 15
    assert told_anew - {value for values in FILLERS.values() for value in values}
    assert told_anew & set(words_of(FREE))


def plain(text: str) -> str:
    """Whole words are found in it as they are."""
    return f" {' '.join(normalise(text))} "


def same(one: Example, other: Example) -> None:
    for field in dataclasses.fields(ClipBatch):
        assert torch.equal(getattr(one.clips, field.name), getattr(other.clips, field.name)), field.name


def test_clips_are_of_a_conversation_around_what_the_agent_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "TYPED", 0.0)
    clips = WrittenClips("train", TALKER, tiny_text(), UNITS)
    example = clips.batch(0, 5, range(2))
    same(example, clips.batch(0, 5, range(2)))
    batch = example.clips
    assert len(batch.slot_BKSL) == 2 * WRITTEN_CLIPS
    assert batch.user_audio.shape[1] == batch.user_video.shape[1] == 0
    assert example.lane_BKL.unique(dim=1).squeeze().tolist() == [[1.0, 0.0]] * 2 * WRITTEN_CLIPS
    for row in range(2):
        _, lanes = conversation_lanes(written_conversation(0, "train", (5 << 16) + row), TALKER.text, tiny_text())
        for clip in batch.slot_BKSL[row * WRITTEN_CLIPS : (row + 1) * WRITTEN_CLIPS].numpy():
            places = [
                (first, later)
                for first in range(len(lanes) - UNITS + 1)
                if (lanes[first : first + UNITS, :, TRANSCRIPT] == clip[..., TRANSCRIPT]).all()
                for later in range(LATER[0], LATER[1] + 1)
                if first >= later
                and (lanes[first - later : first - later + UNITS, :, RESPONSE] == clip[..., RESPONSE]).all()
            ]
            assert places, "expected the lanes of the conversation, the agent's a little later"
            assert (clip[..., RESPONSE] > END).any()


def test_a_user_who_types_sends_what_they_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole messages, so early that they are read when they would be said; the transcript is empty."""
    monkeypatch.setattr(written, "TYPED", 1.0)
    clips = WrittenClips("train", TALKER, tiny_text(), 8 * UNITS).batch(0, 5, range(1)).clips
    assert not clips.slot_BKSL[..., TRANSCRIPT].any()
    labels, codec, found = written_conversation(0, "train", 5 << 16), tiny_text(), 0
    said = [
        " ".join(w["text"] for w in labels["words"]["user"] if e["start"] - 0.05 <= w["start"] < e["end"])
        for e in labels["events"] if e["side"] == "user" and e["type"] in ("speech", "backchannel")
    ]  # fmt: skip
    for before, after in zip(labels["events"], written._typed_out(labels)["events"], strict=True):
        if after["type"] == "typed" and before["type"] != "typed" and after["start"] > 0:
            assert after["start"] + typing_s(after["label"]) == pytest.approx(before["end"])
    for typed_KS in clips.user_text_BKS:
        token_T = typed_KS.flatten()
        ends = (token_T == END).nonzero().flatten().tolist()
        for first, last in itertools.pairwise(ends):  # whole messages
            assert codec.decode(token_T[first + 1 : last][token_T[first + 1 : last] > END].tolist()) in said
            found += 1
    assert found > 3


def test_rows_may_be_made_by_several_processes() -> None:
    clips = WrittenClips("train", TALKER, tiny_text(), UNITS)
    whole, last = clips.batch(0, 5, range(3)), clips.batch(0, 5, range(2, 3))
    assert torch.equal(whole.clips.slot_BKSL[2 * WRITTEN_CLIPS :], last.clips.slot_BKSL)
    noise = RowNoise(0, 5, range(3)).uniform((3 * WRITTEN_CLIPS, 4))
    assert torch.equal(noise[2 * WRITTEN_CLIPS :], RowNoise(0, 5, range(2, 3)).uniform((WRITTEN_CLIPS, 4)))
    plain = RowNoise(0, 5, range(3)).uniform((3, 2))
    assert torch.equal(plain[1:2], RowNoise(0, 5, range(1, 2)).uniform((1, 2)))

"""Conversations as they are planned: who speaks, stops, waits or says nothing, and when. No synthesiser is needed."""

import functools
from itertools import pairwise

import numpy as np
import pytest

from wan_streamer.simulation.codec_sentences import codec_sentences
from wan_streamer.simulation.conversation.dialogue import GAP, Dialogue, Scene, Turn, episode_rng, episode_units
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.overlap import YIELD
from wan_streamer.simulation.conversation.partners import mix_track
from wan_streamer.simulation.conversation.repertoire import AGENT, FILLERS, KNOWN, USER, agent_texts, any_wording, slots
from wan_streamer.simulation.conversation.scenarios import SCENARIO_NAMES, SCENARIOS, plan_dialogue, plan_of
from wan_streamer.simulation.conversation.seen import NOTICED
from wan_streamer.simulation.conversation.timing import PAUSE
from wan_streamer.simulation.voice.speech import Speech, TimedPhoneme, TimedWord
from wan_streamer.units import SAMPLE_RATE

TEXTS = tuple(codec_sentences(300, np.random.default_rng(0)))
SEEN = {
    "held_colour",
    "held_thing",
    "held_number",
    "empty_hand",
    "shows_something",
    "waves",
    "smiles",
    "thumb_up",
    "decoy",
}


def tone(text: str, rng: np.random.Generator, language: str) -> Speech:
    """A tone of 0.3 s per word: the timing of a dialogue without a synthesiser."""
    return hum(text)


class ToneVoice:
    """An agent's voice that needs no synthesiser."""

    speak = staticmethod(tone)


TONE_T = 0.1 * np.sin(np.arange(60 * SAMPLE_RATE) * 0.1).astype(np.float32)  # all sentences share it: made once
TONE_T.flags.writeable = False


@functools.cache
def hum(text: str) -> Speech:
    words = text.split()
    audio_T = TONE_T[: round(0.3 * len(words) * SAMPLE_RATE)]
    spans = [(0.3 * i + 0.02, 0.3 * i + 0.3) for i in range(len(words))]
    return Speech(
        text,
        audio_T,
        tuple(TimedWord(w, *s) for w, s in zip(words, spans, strict=True)),
        tuple(TimedPhoneme("a", *s) for s in spans),
    )


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return [
        plan_dialogue(episode_units(5, "train", i), tone, tone, i % 5 > 0, episode_rng(5, "train", i, 2), TEXTS)
        for i in range(400)
    ]


def scenes(name: str, count: int = 20, camera: bool = True) -> list[Dialogue]:
    """The scenario alone, several times."""
    out = []
    for seed in range(count):
        scene = Scene(375, tone, tone, camera, np.random.default_rng(seed), TEXTS)
        draft = plan_of(name)(scene, 1.0)
        if draft is not None and scene.add(draft, name):
            out.append(scene.finish())
    return out


def said(dialogue: Dialogue, side: str, *kinds: str) -> list[Turn]:
    return [turn for turn in dialogue.turns if turn.side == side and turn.kind in (kinds or ("speech",))]


def events(dialogue: Dialogue, kind: str) -> list[dict]:
    return [event for event in dialogue.events if event["type"] == kind]


def test_everything_happens_and_stays_inside_the_clock(dialogues):
    assert {name for d in dialogues for name in d.scenarios} == set(SCENARIO_NAMES)
    for dialogue in dialogues:
        assert dialogue.scenarios
        for event in dialogue.events:
            assert 0 <= event["start"] <= event["end"] <= dialogue.seconds
        for side in ("user", "agent"):  # nobody talks over themselves
            turns = [turn for turn in dialogue.turns if turn.side == side]
            assert all(a.end <= b.onset for a, b in pairwise(turns))


def test_a_conversation_is_a_function_of_its_seed():
    first, again, other = (
        plan_dialogue(150, tone, tone, True, episode_rng(1, "train", i, 2)).events for i in (7, 7, 8)
    )
    assert first == again != other


def test_the_camera_decides_what_can_be_seen(dialogues):
    for i, dialogue in enumerate(dialogues):
        if i % 5 == 0:
            assert not SEEN & set(dialogue.scenarios)
            assert not dialogue.gestures_of("user") or set(dialogue.scenarios) & {"side_talk"}
    answers = {(camera, d.turns[1].label) for camera in (True, False) for d in scenes("camera_question", 3, camera)}
    assert answers == {(True, "see"), (False, "no_camera")}


@pytest.mark.parametrize(
    "name", ["knowledge", "counting", "arithmetic", "repeat_after_me", "held_thing", "pause_in_turn"]
)
def test_answers_come_in_time(name):
    gaps = []
    for dialogue in scenes(name, 40):
        asked, answer = dialogue.turns
        assert (asked.side, answer.side) == ("user", "agent")
        gaps.append(answer.onset - asked.end)
    assert len(gaps) == 40
    assert GAP[0] - 1e-3 <= min(gaps) <= max(gaps) <= GAP[1] + 1e-3
    assert 0.25 <= np.median(gaps) <= 0.40


@pytest.mark.parametrize(
    "name", ["barge_in_stop", "barge_in_topic", "barge_in_correction", "double_barge_in", "free_barge_in"]
)
def test_the_agent_falls_silent_after_a_barge_in(name):
    found = scenes(name)
    assert len(found) > 10
    for dialogue in found:
        sound_T = mix_track(dialogue, "agent", np.random.default_rng(0))
        breaks, stops = events(dialogue, "barge_in"), events(dialogue, "yield")
        assert len(breaks) == len(stops) == (2 if name.startswith("double") else 1)
        for barge_in, stop in zip(breaks, stops, strict=True):
            assert YIELD[0] - 1e-3 <= stop["start"] - barge_in["start"] <= YIELD[1] + 1e-3
            at = round(stop["start"] * SAMPLE_RATE)
            assert np.abs(sound_T[at : at + 3600]).max() < 1e-6
            assert np.abs(sound_T[at - 2400 : at - 1200]).max() > 0.05
        assert dialogue.turns[-1].side == "agent"
        assert dialogue.turns[-1].cut is None


@pytest.mark.parametrize("name", ["user_backchannel", "side_talk", "noise", "explanation"])
def test_the_agent_goes_on_when_nobody_wants_the_turn(name):
    for dialogue in scenes(name):
        assert all(turn.cut is None for turn in dialogue.turns)
        assert not events(dialogue, "barge_in")
        agent, user = said(dialogue, "agent"), said(dialogue, "user")
        assert len(agent) == len(user) <= 1  # it answers the question, and nothing else
        sound_T = mix_track(dialogue, "user", np.random.default_rng(0))
        for kind in ("backchannel", "side_talk", "noise"):
            for event in events(dialogue, kind):
                first, last = (round(event[key] * SAMPLE_RATE) for key in ("start", "end"))
                assert np.abs(sound_T[first:last]).max() > 0.01


def test_the_agent_waits_while_the_user_thinks():
    for dialogue in scenes("pause_in_turn"):
        (pause,) = events(dialogue, "pause")
        assert PAUSE[0] - 1e-3 <= pause["end"] - pause["start"] <= PAUSE[1] + 1e-3
        asked, answer = dialogue.turns
        assert asked.onset < pause["start"] < pause["end"] < asked.end < answer.onset
        sound_T = mix_track(dialogue, "user", np.random.default_rng(0))
        inside = sound_T[round((pause["start"] + 0.05) * SAMPLE_RATE) : round((pause["end"] - 0.05) * SAMPLE_RATE)]
        assert np.abs(inside).max() < 1e-6


def test_what_was_told_is_remembered():
    scene = Scene(375, tone, tone, True, np.random.default_rng(3))
    _, answer = SCENARIOS["recalls_name"].plan(scene, 0.0).turns
    assert answer.speech.text == AGENT["unknown"]
    for fact in ("name", "colour"):
        scene.add(SCENARIOS[f"tells_{fact}"].plan(scene, scene.time), "told")
        _, answer = SCENARIOS[f"recalls_{fact}"].plan(scene, scene.time).turns
        assert scene.facts[fact] in answer.speech.text
        assert scene.facts[fact] in scene.dialogue.turns[-2].speech.text


@pytest.mark.parametrize("name", ["waves", "smiles", "thumb_up", "shows_something"])
def test_remarks_follow_what_is_seen(name):
    for dialogue in scenes(name):
        assert not said(dialogue, "user")
        start = dialogue.gestures_of("user")[0].start
        assert NOTICED[0] - 1e-3 <= said(dialogue, "agent")[0].onset - start <= NOTICED[1] + 1e-3
        shown = dialogue.gestures_of("user")[0].prop
        assert shown is None or shown.name in said(dialogue, "agent")[0].speech.text


def test_answers_name_what_is_held():
    for name, what in (("held_colour", "colour"), ("held_thing", "name")):
        for dialogue in scenes(name):
            (gesture,) = dialogue.gestures_of("user")
            asked, answer = dialogue.turns
            assert getattr(gesture.prop, what) in answer.speech.text
            assert gesture.start < asked.onset < asked.end < gesture.end


def test_decoys_and_typing_make_no_sound():
    for dialogue in scenes("decoy"):
        assert not dialogue.turns
    for dialogue in scenes("typed"):
        (message,) = events(dialogue, "typed")
        (answer,) = dialogue.turns
        assert answer.side == "agent"
        assert message["end"] < answer.onset < message["end"] + 2.0


def test_listening_sounds_never_cover_the_end_of_the_story():
    heard = [(d, turn) for d in scenes("long_story", 40) for turn in said(d, "agent", "backchannel")]
    assert len(heard) > 20
    for dialogue, turn in heard:
        (story,) = said(dialogue, "user")
        assert story.onset < turn.onset < turn.end < story.end


def test_every_slot_can_be_filled():
    rng = np.random.default_rng(0)
    assert all("{" not in text for text in agent_texts())
    assert all(any_wording(rng) for _ in range(200))
    for lines in (KNOWN, MANY):
        for intent, wordings in lines.user.items():
            assert len(set(wordings)) == len(wordings), intent
            for _ in wordings:
                filled = lines.wording(intent, rng, **dict.fromkeys((*FILLERS, "a", "b", "phrase"), "x"))
                assert "{" not in filled
    for intent, wordings in MANY.user.items():  # what has to be known for the answer is said
        assert intent == "others" or {frozenset(slots(text)) for text in wordings} == {
            frozenset(slots(USER[intent][0]))
        }
    assert set(MANY.user) == set(USER)
    assert all(len(set(values)) == len(values) for values in MANY.fillers.values())

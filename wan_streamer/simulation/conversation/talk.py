"""Scenarios that are only talk: questions and answers, pauses, fast exchanges, a second language.

Every function takes (scene, at) and returns a `Draft` that begins at `at`, or None if it does not fit the situation.
"""

from collections.abc import Callable
from itertools import pairwise

from wan_streamer.simulation.conversation.dialogue import Draft, Scene, Turn
from wan_streamer.simulation.conversation.hesitation import Piece, perform
from wan_streamer.simulation.conversation.repertoire import AGENT, NUMBERS, pick
from wan_streamer.simulation.conversation.timing import LISTENING, draw_pause
from wan_streamer.units import UNIT_S

Plan = Callable[[Scene, float], Draft | None]

KNOWLEDGE = ("france", "week", "ice", "sun", "legs", "opposite", "dont_know")
EXPLANATIONS = ("rain", "bread", "moon", "story", "tea")
QUICK = ("ready", "tea_please", "red_one", "cat_one", "summer", "morning")


def ask(meaning: str, *intents: str) -> Plan:
    """A scenario that `meaning` describes: one of the intents, answered."""

    def plan(scene: Scene, at: float) -> Draft:
        return scene.exchange(pick(intents, scene.rng), at)

    plan.__doc__ = meaning
    return plan


def greeting(scene: Scene, at: float) -> Draft:
    """The user says hello, sometimes with a wave; the agent answers, and may ask how they are."""
    draft = scene.exchange("greeting", at)
    if scene.camera and scene.chance(0.3):
        scene.wave(draft, "user", draft.turns[0].onset - 0.2)
    if scene.chance(0.35):
        scene.wave(draft, "agent", draft.turns[1].onset - 0.1)
    if draft.turns[1].label == "hi" and scene.chance(0.85):
        answer_fine(scene, draft)
    return draft


def answer_fine(scene: Scene, draft: Draft) -> None:
    """The user says how they are, the agent is glad or sorry."""
    intent = "fine" if scene.chance(0.7) else "tired"
    answer = scene.user(intent, draft.end + scene.between(0.3, 0.8))
    draft.turns += [answer, scene.reply(intent, answer.end)]


def small_talk(scene: Scene, at: float) -> Draft:
    """How are you, the weather, music; the agent may ask back."""
    kind = pick(("how", "how", "weather", "music"), scene.rng)
    draft = scene.exchange(kind, at)
    if draft.turns[1].label == "fine_and_you" and scene.chance(0.85):
        answer_fine(scene, draft)
    return draft


def joke(scene: Scene, at: float) -> Draft:
    """The agent tells a joke; the user may laugh."""
    draft = scene.exchange("joke", at)
    if scene.chance(0.6):
        laugh = scene.user("laugh", draft.end + scene.between(0.4, 0.9))
        draft.turns += [laugh, scene.reply("laugh", laugh.end)]
    return draft


def camera_question(scene: Scene, at: float) -> Draft:
    """The user asks whether they can be seen; the answer depends on the camera."""
    return scene.exchange("see", at, "see" if scene.camera else "no_camera")


def arithmetic(scene: Scene, at: float) -> Draft:
    """The sum of two numbers from one to five."""
    a, b = (int(scene.rng.integers(1, 6)) for _ in range(2))
    asked = scene.user("sum", at, a=NUMBERS[a], b=NUMBERS[b])
    return Draft([asked, scene.reply("sum", asked.end, number=NUMBERS[a + b])])


def repeat_after_me(scene: Scene, at: float) -> Draft:
    """The agent says what the user has said."""
    label = pick(tuple(name for name in AGENT if name.startswith("say_")), scene.rng)
    asked = scene.user("say", at, phrase=AGENT[label])
    return Draft([asked, scene.reply(label, asked.end)])


def pause_in_turn(scene: Scene, at: float) -> Draft:
    """The user stops to think in the middle of a request; the agent waits for the rest."""
    count = pick(("three", "five"), scene.rng)
    first, second = (scene.lines.wording(intent, scene.rng) for intent in ("pause_a", f"pause_{count}"))
    pieces = [Piece(first, first.rstrip(",") + ","), Piece(second, second, draw_pause(scene.rng), True)]
    speech, pauses = perform(pieces, lambda text: scene.voices["user"](text, scene.rng, "en"))
    asked = scene.place("user", count, at, speech, pauses=pauses)
    return Draft([asked, scene.reply(count, asked.end)])


def fast_handoff(scene: Scene, at: float) -> Draft:
    """Three short questions, both sides quick."""
    draft = Draft()
    for i in scene.rng.choice(len(QUICK), 3, replace=False):
        asked = scene.user(QUICK[i], at, steady=True)
        draft.turns += [asked, scene.reply(QUICK[i], asked.end, quick=True)]
        at = draft.end + scene.between(0.2, 0.35)
    return draft


def long_story(scene: Scene, at: float) -> Draft:
    """The user tells something in three sentences; the agent says "mm-hm" in between, and something nice at the end."""
    told = scene.user("long_story", at, steady=True)
    draft = Draft([told])
    listen(scene, draft, told)
    draft.turns.append(scene.reply("long_story", told.end))
    return draft


def listen(scene: Scene, draft: Draft, told: Turn) -> None:
    """The agent says "mm-hm" after some sentences of a long turn, never near its end."""
    for word, following in pairwise(told.words()):
        if word.text[-1] in ".!?" and scene.chance(0.75):
            heard = scene.agent("mhm", word.end + scene.between(*LISTENING), "backchannel")
            free = all(turn.end + 0.3 < heard.onset for turn in draft.turns if turn.side == "agent")
            if free and heard.end < told.end - 0.4 and following.start > word.end:
                draft.turns.append(heard)


def typed(scene: Scene, at: float) -> Draft:
    """The user types instead of speaking."""
    intent = pick(("greeting", "how", "name", "three", "five", "can", "thanks", "joke"), scene.rng)
    text = scene.lines.wording(intent, scene.rng)
    draft = Draft()
    draft.event("typed", "user", at, at + 0.01, text)  # the moment at which it is sent
    draft.turns.append(scene.reply(intent, at + typing_s(text)))
    return draft


def typing_s(text: str) -> float:
    """Seconds until the agent has read what was typed: a few characters arrive with every unit."""
    return UNIT_S * (1 + len(text) // 6)


def german(scene: Scene, at: float) -> Draft:
    """One or two exchanges in German."""
    draft = Draft()
    intents = ("de_hello", "de_fine", "de_three", "de_name", "de_thanks", "de_bye")
    for i in scene.rng.choice(len(intents), 1 + scene.chance(0.5), replace=False):
        asked = scene.user(intents[i], at)
        draft.turns += [asked, scene.reply(intents[i], asked.end)]
        at = draft.end + scene.between(0.4, 0.9)
    return draft


def goodbye(scene: Scene, at: float) -> Draft:
    """Both say goodbye; the agent may wave."""
    draft = scene.exchange("bye", at)
    if scene.chance(0.4):
        scene.wave(draft, "agent", draft.turns[1].onset - 0.1)
    return draft

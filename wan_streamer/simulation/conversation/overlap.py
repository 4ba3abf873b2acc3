"""Scenarios in which both sides are heard at once: barge-ins that stop the agent, and sounds that must not.

Every function takes (scene, at) and returns a `Draft` that begins at `at`, or None if it does not fit the situation.
"""

from dataclasses import replace

from wan_streamer.simulation.conversation.dialogue import Burst, Draft, Scene, Turn
from wan_streamer.simulation.conversation.repertoire import pick
from wan_streamer.simulation.conversation.talk import EXPLANATIONS
from wan_streamer.simulation.face.motion import Gesture
from wan_streamer.simulation.sound.effects import SOUNDS

TOPICS = ("wait_name", "wait_hear")
ASIDE_DB = (-10.0, -3.0)  # the user speaks away from the microphone
YIELD = (
    0.4,
    0.8,
)  # from the first sound of a barge-in to the agent's last, seconds: by then it can be told from "mm-hm"
TRIES = 30  # moments to break in that are looked at
BREATH = 0.3  # seconds of silence after it: closer, the two turns would look like one
OVER_DB = (-6.0, 2.0)  # what the user says over the agent, to stop it or not: loudness does not tell


def barge_in(
    scene: Scene, draft: Draft, intent: str, earliest: float, latest: float, sentence: str = ""
) -> Turn | None:
    """The user breaks into the last turn of the draft with a wording of the intent, or with a sentence; it is cut.

    None if that turn is too short, or has too many pauses: it is broken into, and off, in the middle of a word.
    """
    talking = draft.turns[-1]
    latest = min(latest, talking.end - talking.onset - YIELD[1] - 0.1)
    if latest <= earliest:
        return None
    words = talking.words()
    for _ in range(TRIES):
        onset = talking.onset + scene.between(earliest, latest)
        cut = round(onset + scene.between(*YIELD), 4)
        if all(any(word.start + 0.05 < at < word.end for word in words) for at in (onset, cut)):
            break
    else:
        return None
    text = sentence or scene.lines.wording(intent, scene.rng)
    breaks_in = scene.say("user", intent, onset, text, gain_db=scene.between(*OVER_DB))
    draft.turns[-1] = replace(talking, cut=cut)
    draft.turns.append(breaks_in)
    draft.event("barge_in", "user", breaks_in.onset, breaks_in.end, intent)
    draft.event("yield", "agent", cut, cut, intent)
    return breaks_in


def after_barge_in(draft: Draft) -> float:
    """When both have fallen silent, the one who was interrupted for a moment already."""
    return max(draft.turns[-1].end, draft.turns[-2].end + BREATH)


def _long_turn(scene: Scene, at: float) -> Draft:
    """The user asks for something that takes a while to say."""
    return scene.exchange(pick((*EXPLANATIONS, "ten"), scene.rng), at)


def _answered_barge_in(scene: Scene, draft: Draft, intent: str, earliest: float, latest: float) -> Draft | None:
    """The user breaks into the last turn of the draft with something that the agent answers."""
    if barge_in(scene, draft, intent, earliest, latest) is None:
        return None
    draft.turns.append(scene.reply(intent, after_barge_in(draft)))
    return draft


def barge_in_stop(scene: Scene, at: float) -> Draft | None:
    """The user breaks in with "stop"; the agent falls silent in mid word and says so."""
    return _answered_barge_in(scene, _long_turn(scene, at), "stop", 0.7, 3.2)


def barge_in_topic(scene: Scene, at: float) -> Draft | None:
    """The user breaks in with another question, which is answered."""
    draft = _long_turn(scene, at)
    return _answered_barge_in(scene, draft, pick(TOPICS, scene.rng), 0.8, 4.0)


def barge_in_correction(scene: Scene, at: float) -> Draft | None:
    """The agent counts to ten, but three or five was meant."""
    number = pick(("three", "five"), scene.rng)
    draft = scene.exchange("ten", at)
    if barge_in(scene, draft, f"no_{number}", 0.7, 1.6) is None:
        return None
    draft.turns.append(scene.agent(f"sorry_{number}", after_barge_in(draft) + scene.gap()))
    return draft


def double_barge_in(scene: Scene, at: float) -> Draft | None:
    """Two barge-ins in a row; only the last one is answered in full."""
    draft = _long_turn(scene, at)
    if _answered_barge_in(scene, draft, "ten", 0.8, 2.5) is None:
        return None
    return _answered_barge_in(scene, draft, pick((*TOPICS, "stop"), scene.rng), 0.6, 1.8)


def user_backchannel(scene: Scene, at: float) -> Draft:
    """The user says "mm-hm" or "oh, I see", loud or softly, while the agent explains; the agent goes on."""
    draft = scene.exchange(pick(EXPLANATIONS, scene.rng), at)
    told = draft.turns[-1]
    when = told.onset + scene.between(1.0, 2.5)
    while when < told.end - 1.0:
        text, loud = scene.lines.wording("backchannel", scene.rng), scene.between(*OVER_DB)
        draft.turns.append(scene.say("user", "backchannel", when, text, "backchannel", loud))
        when = draft.turns[-1].end + scene.between(1.4, 3.0)
    return draft


def side_talk(scene: Scene, at: float) -> Draft:
    """The user turns away and speaks to somebody else, in silence or while the agent explains; the agent ignores it."""
    draft = scene.exchange(pick(EXPLANATIONS, scene.rng), at) if scene.chance(0.5) else Draft()
    when = draft.turns[-1].onset + scene.between(0.8, 2.2) if draft.turns else at + 0.3
    fixed = not scene.texts or scene.chance(0.5)
    text = scene.lines.wording("aside", scene.rng) if fixed else pick(tuple(scene.texts), scene.rng)
    aside = scene.say("user", "aside", when, text, "side_talk", scene.between(*ASIDE_DB))
    draft.turns.append(aside)
    draft.gestures.append(("user", Gesture("look_away", max(at, aside.onset - 0.3), aside.end + 0.3)))
    draft.until = aside.end + 1.2  # nothing comes of it
    return draft


def noise(scene: Scene, at: float) -> Draft:
    """A door, a cough, a phone, in silence or while the agent explains; the agent ignores it."""
    draft = scene.exchange(pick(EXPLANATIONS, scene.rng), at) if scene.chance(0.5) else Draft()
    when = draft.turns[-1].onset + scene.between(0.5, 2.5) if draft.turns else at + 0.2
    kind = pick(tuple(SOUNDS), scene.rng)
    draft.sounds.append(Burst(kind, round(when, 4), round(when + SOUNDS[kind].seconds, 4)))
    draft.until = when + SOUNDS[kind].seconds + 1.0
    return draft

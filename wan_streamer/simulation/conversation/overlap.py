"""Scenarios in which both sides are heard at once: barge-ins that stop the agent, and sounds that must not.

Every function takes (scene, at) and returns a `Draft` that begins at `at`, or None if it does not fit the situation.
"""

from wan_streamer.simulation.conversation.dialogue import OVER_DB, Burst, Draft, Scene
from wan_streamer.simulation.conversation.repertoire import pick, wording
from wan_streamer.simulation.conversation.talk import EXPLANATIONS
from wan_streamer.simulation.face.motion import Gesture
from wan_streamer.simulation.sound.effects import SOUNDS

TOPICS = ("wait_name", "wait_hear")
ASIDE_DB = (-10.0, -3.0)  # the user speaks away from the microphone


def _long_turn(scene: Scene, at: float) -> Draft:
    """The user asks for something that takes a while to say."""
    return scene.exchange(pick((*EXPLANATIONS, "ten"), scene.rng), at)


def _answered_barge_in(scene: Scene, draft: Draft, intent: str, earliest: float, latest: float) -> Draft | None:
    """The user breaks into the last turn of the draft with something that the agent answers."""
    if scene.barge_in(draft, intent, earliest, latest) is None:
        return None
    draft.turns.append(scene.reply(intent, scene.after_barge_in(draft)))
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
    if scene.barge_in(draft, f"no_{number}", 0.7, 1.6) is None:
        return None
    draft.turns.append(scene.agent(f"sorry_{number}", scene.after_barge_in(draft) + scene.gap()))
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
        text, loud = wording("backchannel", scene.rng), scene.between(*OVER_DB)
        draft.turns.append(scene.say("user", "backchannel", when, text, "backchannel", loud))
        when = draft.turns[-1].end + scene.between(1.4, 3.0)
    return draft


def side_talk(scene: Scene, at: float) -> Draft:
    """The user turns away and speaks to somebody else, in silence or while the agent explains; the agent ignores it."""
    draft = scene.exchange(pick(EXPLANATIONS, scene.rng), at) if scene.chance(0.5) else Draft()
    when = draft.turns[-1].onset + scene.between(0.8, 2.2) if draft.turns else at + 0.3
    fixed = not scene.texts or scene.chance(0.5)
    text = wording("aside", scene.rng) if fixed else scene.texts[int(scene.rng.integers(len(scene.texts)))]
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

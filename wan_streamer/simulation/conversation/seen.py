"""Scenarios about what the agent sees: things in the user's hand, waves, smiles, and movements that mean nothing.

Every function takes (scene, at) and returns a `Draft` that begins at `at`, or None if it does not fit the situation.
"""

from wan_streamer.simulation.conversation.dialogue import Draft, Scene
from wan_streamer.simulation.conversation.repertoire import NUMBERS, pick, with_article
from wan_streamer.simulation.face.motion import Gesture
from wan_streamer.simulation.face.person import COLOURS, OBJECTS, SHAPES, Prop

NOTICED = (0.7, 1.1)  # from the begin of something visible to the first sound of a remark about it, seconds
COMING = 0.35  # a hand needs this long to come into the picture


def _thing(scene: Scene) -> Prop:
    shape = scene.chance(0.6)
    name = pick(SHAPES if shape else OBJECTS, scene.rng)
    return Prop("shape" if shape else "object", name, pick(COLOURS, scene.rng))


def _shown(scene: Scene, prop: Prop, intent: str, at: float) -> Draft:
    """The user holds something up and asks; it goes down while the agent answers."""
    asked = scene.user(intent, at + scene.between(0.1, 0.4))
    if prop.kind == "digit":
        answer = scene.reply("number_is", asked.end, number=NUMBERS[int(prop.name)])
    elif intent == "colour":
        answer = scene.reply("colour_is", asked.end, colour=prop.colour)
    else:
        answer = scene.reply("thing_is", asked.end, thing=with_article(prop.name))
    draft = Draft([asked, answer])
    scene.show(draft, prop, at, answer.onset + scene.between(0.3, 0.6) + COMING)
    return draft


def held_colour(scene: Scene, at: float) -> Draft | None:
    """The user holds something up and asks for its colour."""
    return _shown(scene, _thing(scene), "colour", at) if scene.camera else None


def held_thing(scene: Scene, at: float) -> Draft | None:
    """The user holds up a shape or a thing and asks what it is."""
    return _shown(scene, _thing(scene), "thing", at) if scene.camera else None


def held_number(scene: Scene, at: float) -> Draft | None:
    """The user holds up a card with a digit and asks for it."""
    prop = Prop("digit", str(int(scene.rng.integers(10))), pick(COLOURS, scene.rng))
    return _shown(scene, prop, "digit", at) if scene.camera else None


def empty_hand(scene: Scene, at: float) -> Draft | None:
    """The user asks what they hold, but holds nothing."""
    return scene.exchange("look_here", at, "nothing") if scene.camera else None


def shows_something(scene: Scene, at: float) -> Draft | None:
    """Something is held up without a word, and the agent remarks on it; sometimes also on its going away."""
    if not scene.camera:
        return None
    prop = _thing(scene)
    remark = scene.agent("remark_thing", at + scene.between(*NOTICED), thing=with_article(prop.name))
    draft = Draft([remark])
    leaves = remark.end + scene.between(1.5, 2.2)
    scene.show(draft, prop, at, leaves + COMING)
    draft.turns.append(scene.agent("remark_gone", leaves + scene.between(*NOTICED)))
    draft.event("remark", "agent", remark.onset, remark.end, "show")
    draft.event("remark", "agent", draft.turns[-1].onset, draft.turns[-1].end, "remove")
    return draft


def _remark(scene: Scene, at: float, gesture: str, label: str, seconds: float) -> Draft:
    draft = Draft([scene.agent(label, at + scene.between(*NOTICED))])
    draft.gestures.append(("user", Gesture(gesture, at, at + seconds)))
    draft.event("remark", "agent", draft.turns[0].onset, draft.turns[0].end, gesture)
    return draft


def waves(scene: Scene, at: float) -> Draft | None:
    """The user waves without a word; the agent says so and waves back."""
    if not scene.camera:
        return None
    draft = _remark(scene, at, "wave", "remark_wave", scene.between(1.6, 2.2))
    scene.wave(draft, "agent", draft.turns[0].onset - 0.1)
    return draft


def smiles(scene: Scene, at: float) -> Draft | None:
    """The user smiles broadly without a word; the agent remarks on it."""
    if not scene.camera:
        return None
    return _remark(scene, at, "big_smile", "remark_smile", scene.between(2.0, 2.6))


def thumb_up(scene: Scene, at: float) -> Draft | None:
    """The user shows a thumb without a word; the agent is glad."""
    if not scene.camera:
        return None
    return _remark(scene, at, "thumb_up", "remark_thumb", scene.between(1.5, 2.0))


def decoy(scene: Scene, at: float) -> Draft | None:
    """A movement that asks for no remark."""
    if not scene.camera:
        return None
    kind = pick(("touch_face", "look_away", "shake"), scene.rng)
    end = at + scene.between(1.0, 1.8)
    draft = Draft(gestures=[("user", Gesture(kind, at, end))], until=end + 1.2)
    draft.event("decoy", "user", at, end, kind)
    return draft


def long_silence(scene: Scene, at: float) -> Draft | None:
    """Nobody says anything for seven seconds; then the agent asks, once, however long it stays quiet after that."""
    if scene.unanswered():
        return None
    asks = scene.agent("still_there", max(at, scene.quiet_since() + scene.between(7.0, 7.6)))
    draft = Draft([asks])
    draft.event("remark", "agent", asks.onset, asks.end, "silence")
    if scene.chance(0.5):
        draft.until = asks.end + scene.between(3.0, 14.0)
    else:
        answer = scene.user("yes_here", asks.end + scene.between(0.3, 0.8))
        draft.turns += [answer, scene.agent("okay", answer.end + scene.gap())]
    return draft


def agent_greets(scene: Scene, at: float) -> Draft:
    """Nobody has said anything since the call began; the agent says hello, once, however long it stays quiet."""
    label = "welcome" if scene.chance(0.7) else "hello"
    draft = Draft([scene.agent(label, scene.between(1.9, 2.3))])
    draft.event("remark", "agent", draft.turns[0].onset, draft.turns[0].end, "call")
    if scene.chance(0.35):
        scene.wave(draft, "agent", draft.turns[0].onset - 0.1)
    if scene.chance(0.5):
        draft.until = draft.turns[0].end + scene.between(8.0, 20.0)
    return draft

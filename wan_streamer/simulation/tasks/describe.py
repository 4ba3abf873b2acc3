"""Plain words for what is seen and heard in the simulated world.

`person`, `thing`  who somebody is, what they hold         `HEARD`     what a sound is
`doing`            what they do in a film                  `sentence`  any of it with a capital and a full stop
`held_still`       the same in a single picture

Captions and generation prompts are made of the same words, so that one can be checked by the other. The words follow
from the parameters of the world alone: equal people and gestures have equal descriptions.
"""

from collections.abc import Sequence

from wan_streamer.simulation.conversation.repertoire import NUMBERS, with_article
from wan_streamer.simulation.face.motion import HAND_GESTURES, HEAD_GESTURES
from wan_streamer.simulation.face.person import HAIRS, SHIRTS, Color, FaceIdentity, Prop

HAIR_COLOURS = dict(
    zip(HAIRS, ("black", "dark-brown", "brown", "light-brown", "blond", "red", "grey"), strict=True)
)  # fmt: skip
SHIRT_COLOURS = dict(
    zip(SHIRTS, ("blue", "teal", "red", "purple", "dark-grey", "yellow", "white", "green", "pink"), strict=True)
)  # fmt: skip
HAIR = {
    "side": "short {} hair", "crop": "cropped {} hair", "quiff": "a {} quiff", "curly": "curly {} hair",
    "long": "long {} hair", "bob": "a {} bob", "bun": "a {} bun",
}  # fmt: skip
"""Hair styles with a gap for the colour. Who is bald is called so."""

HEARD = {
    "door": "a door slams",
    "knock": "somebody knocks",
    "cough": "somebody coughs",
    "ring": "a phone rings",
    "keys": "somebody types",
    "speech": "somebody speaks",
    "": "silence",
}
"""Name of a sound -> what happens; "speech" is any voice, "" is nothing at all."""

_DOES = {
    "wave": "waves", "point": "points to the {side}", "thumb_up": "gives a thumbs-up", "show": "holds {thing}",
    "touch_face": "touches the face", "shake": "shakes the head", "nod": "nods", "look_away": "looks to the {side}",
    "big_smile": "smiles", "talk": "talks", "": "sits still",
}  # fmt: skip
_HELD = _DOES | {"wave": "raises a hand", "": ""}

FILM_GESTURES = (*HAND_GESTURES, *HEAD_GESTURES, "talk", "")
"""What can be told from a film; "talk" moves the mouth, "" is nothing."""
STILL_GESTURES = ("wave", "point", "thumb_up", "show", "look_away", "big_smile", "")
"""What can be told from one picture."""


def person(identity: FaceIdentity, most: int = 3) -> str:
    """ "a bearded man with short brown hair, glasses and a blue shirt"; at most `most` things after "with"."""
    words = [w for w, has in (("bald", identity.hair_style == "bald"), ("bearded", identity.beard == "full")) if has]
    words.append("woman" if identity.feminine else "man")
    traits = []
    if identity.hair_style in HAIR:
        traits.append(HAIR[identity.hair_style].format(_nearest(identity.hair, HAIR_COLOURS)))
    if identity.beard == "moustache":
        traits.append("a moustache")
    if identity.glasses:
        traits.append("glasses")
    clothes = "hoodie" if identity.clothes == "hoodie" else "shirt"
    traits.append(f"a {_nearest(identity.shirt, SHIRT_COLOURS)} {clothes}")
    return f"{with_article(' '.join(words))} with {_list(traits[:most])}"


def thing(prop: Prop) -> str:
    """ "a red star", "a red number seven"."""
    name = f"number {NUMBERS[int(prop.name)]}" if prop.kind == "digit" else prop.name
    return with_article(f"{prop.colour} {name}")


def doing(gesture: str, prop: Prop | None = None, side: str = "right") -> str:
    """A verb for one of `FILM_GESTURES`; `side` is left or right as the viewer sees it."""
    return _DOES[gesture].format(side=side, thing=thing(prop) if prop else "")


def held_still(gesture: str, prop: Prop | None = None, side: str = "right") -> str:
    """A verb for one of `STILL_GESTURES`, empty for nothing."""
    return _HELD[gesture].format(side=side, thing=thing(prop) if prop else "")


def sentence(*parts: str) -> str:
    """The parts that are not empty, with a capital and a full stop."""
    text = " ".join(part for part in parts if part)
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def _list(parts: Sequence[str]) -> str:
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]


def _nearest(colour: Color, names: dict[Color, str]) -> str:
    return names[min(names, key=lambda c: sum((a - b) ** 2 for a, b in zip(c, colour, strict=True)))]

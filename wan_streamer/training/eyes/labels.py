"""What eyes are asked about in training, and how it is written as numbers.

`CLASSES`       questions with one of several answers;  `classes_of`  them as numbers of one unit
`VALUES`        questions with a number for an answer
`UNKNOWN`       the class of what cannot be told, such as the hair of the bald: it costs nothing
"""

from collections.abc import Mapping

from wan_streamer.simulation.face.person import (
    BEARDS,
    COLOURS,
    HAIR_STYLES,
    HAIRS,
    HAND_SHAPES,
    PROPS,
    SHIRTS,
    FaceIdentity,
)
from wan_streamer.simulation.tasks.describe import HAIR_COLOURS, SHIRT_COLOURS

UNKNOWN = -100
NONE = "none"
SEEN = ("thing", "colour", "hand", "waves")
"""What is in one place of the picture; the rest is about the person."""
CLASSES: dict[str, tuple[str, ...]] = {
    "thing": (NONE, *(name for names in PROPS.values() for name in names)),
    "colour": COLOURS,
    "hand": (NONE, *HAND_SHAPES),
    "waves": ("no", "yes"),
    "hair": tuple(HAIR_COLOURS[colour] for colour in HAIRS),
    "hair_style": HAIR_STYLES,
    "beard": BEARDS,
    "glasses": ("no", "yes"),
    "woman": ("no", "yes"),
    "shirt": tuple(SHIRT_COLOURS[colour] for colour in SHIRTS),
    "hoodie": ("no", "yes"),
}
VALUES: dict[str, tuple[float, float]] = {
    "smile": (0.5, 0.25),
    "mouth_open": (0.15, 0.2),
    "mouth_wide": (0.1, 0.25),
    "lip_round": (0.1, 0.2),
    "blink": (0.15, 0.3),
    "gaze_x": (0.0, 0.35),
    "gaze_y": (0.0, 0.2),
    "brow": (0.15, 0.25),
    "yaw": (0.0, 0.3),
    "pitch": (0.0, 0.2),
    "tilt": (0.0, 5.0),
    "head_x": (0.0, 0.1),
    "head_y": (0.0, 0.1),
    "brightness": (0.55, 0.15),
}
"""Their usual middle and spread, which make them numbers of about unit size. `tilt` is in degrees, with the body's and
the camera's; `head_x`, `head_y` are places in the picture, -1..1; `brightness` is 0..1; the rest are a `FacePose`'s."""


def classes_of(known: Mapping[str, str], identity: FaceIdentity) -> list[int]:
    """In the order of `CLASSES`; `known` are the answers to `SEEN`, as far as there are any."""
    answers = dict(known) | {
        "hair_style": identity.hair_style,
        "beard": identity.beard,
        "glasses": _yes(identity.glasses),
        "woman": _yes(identity.feminine),
        "shirt": SHIRT_COLOURS[identity.shirt],
        "hoodie": _yes(identity.clothes == "hoodie"),
    }
    if identity.hair_style != "bald":
        answers["hair"] = HAIR_COLOURS[identity.hair]
    return [names.index(answers[name]) if name in answers else UNKNOWN for name, names in CLASSES.items()]


def _yes(true: bool) -> str:
    return "yes" if true else "no"

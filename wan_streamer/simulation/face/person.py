"""Who a drawn person is and what they do in one frame. `renderer` draws them.

`FaceIdentity`  who it is: skin, hair, glasses, clothes, background (seedable)
`FacePose`      one frame: mouth, eyes, brows, head, breath, posture
`HandPose`      one frame of a raised hand
`Prop`          a thing in that hand: a coloured shape, a card with a digit, an object
"""

import math
from dataclasses import dataclass

import numpy as np

from wan_streamer.errors import ConfigError

HAIR_STYLES = ("side", "crop", "quiff", "curly", "long", "bob", "bun", "bald")
BEARDS = ("none", "stubble", "full", "moustache")
CLOTHES = ("crew", "collar", "hoodie", "vneck")
HAND_SHAPES = ("open", "point", "thumb", "fist", "hold", "two", "three", "four")
FINGERS = {"fist": 0, "point": 1, "two": 2, "three": 3, "four": 4, "open": 5}
"""Hand shapes that count, and to what."""
SIDES = ("left", "right")
SHAPES = ("circle", "square", "triangle", "star", "heart")
DIGITS = tuple("0123456789")
OBJECTS = (
    "cup", "book", "phone", "ball", "apple", "flower", "key", "hat", "car", "fish", "umbrella", "balloon",
)  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
PROPS = {"shape": SHAPES, "digit": DIGITS, "object": OBJECTS}
"""Every kind of thing that can be held, with its names."""
Color = tuple[int, int, int]

SKINS: tuple[Color, ...] = (
    (255, 221, 198), (246, 205, 176), (236, 188, 152), (214, 160, 120), (182, 125, 88), (142, 92, 64), (104, 66, 48),
)  # fmt: skip
HAIRS: tuple[Color, ...] = (
    (38, 28, 26), (70, 46, 34), (112, 72, 44), (158, 110, 62), (214, 170, 104), (150, 62, 34), (150, 150, 156),
)  # fmt: skip
EYES: tuple[Color, ...] = ((92, 60, 38), (60, 96, 130), (74, 112, 82), (116, 124, 132), (122, 88, 44))
SHIRTS: tuple[Color, ...] = (
    (58, 92, 140), (44, 110, 104), (156, 62, 66), (92, 72, 132), (60, 66, 80), (206, 156, 74), (226, 222, 214),
    (96, 132, 86), (196, 108, 128),
)  # fmt: skip
BACKGROUNDS: tuple[tuple[Color, Color], ...] = (
    ((214, 226, 232), (148, 172, 190)), ((240, 226, 206), (204, 170, 140)), ((222, 232, 214), (154, 180, 152)),
    ((232, 222, 236), (172, 154, 192)), ((246, 236, 222), (222, 190, 156)), ((206, 216, 226), (98, 118, 146)),
    ((120, 134, 152), (60, 70, 88)), ((238, 214, 208), (196, 146, 140)),
)  # fmt: skip


@dataclass(frozen=True)
class FaceIdentity:
    """Everything that stays the same while a person talks. Sizes are factors around 1."""

    skin: Color = SKINS[1]
    hair: Color = HAIRS[1]
    hair_style: str = "side"
    eyes: Color = EYES[0]
    shirt: Color = SHIRTS[0]
    clothes: str = "crew"
    background: tuple[Color, Color] = BACKGROUNDS[0]
    beard: str = "none"
    glasses: bool = False
    feminine: bool = False
    face_width: float = 1.0
    jaw: float = 1.0
    eye_size: float = 1.0
    eye_gap: float = 1.0
    nose: float = 1.0
    lips: float = 1.0
    brows: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("hair_style", HAIR_STYLES), ("beard", BEARDS), ("clothes", CLOTHES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"FaceIdentity.{name}: expected one of {', '.join(known)}, got {getattr(self, name)}")

    @staticmethod
    def sample(rng: np.random.Generator, split: str = "train") -> "FaceIdentity":
        """A random person. Combinations of skin, hair style and hair colour belong to exactly one split."""
        remainders = {"train": (0, 1, 2, 3, 4, 5), "valid": (6,), "test": (7,)}
        if split not in remainders:
            raise ConfigError(f"split: expected train, valid or test, got {split!r}")
        while True:
            skin, style = int(rng.integers(len(SKINS))), int(rng.integers(len(HAIR_STYLES)))
            hair = int(rng.integers(len(HAIRS)))
            if (skin * 5 + style * 3 + hair * 7) % 8 in remainders[split]:
                break
        name = HAIR_STYLES[style]
        feminine = name in ("long", "bob", "bun") or (name == "curly" and rng.random() < 0.5)

        def around(spread: float) -> float:
            return float(np.round(rng.uniform(1 - spread, 1 + spread), 3))

        return FaceIdentity(
            skin=SKINS[skin],
            hair=HAIRS[hair],
            hair_style=HAIR_STYLES[style],
            eyes=EYES[int(rng.integers(2 if skin > 3 else len(EYES)))] if skin < 5 else EYES[0],
            shirt=SHIRTS[int(rng.integers(len(SHIRTS)))],
            clothes=CLOTHES[int(rng.integers(len(CLOTHES)))],
            background=BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))],
            beard="none" if feminine or rng.random() < 0.5 else BEARDS[int(rng.integers(1, len(BEARDS)))],
            glasses=bool(rng.random() < 0.3),
            feminine=feminine,
            face_width=around(0.07),
            jaw=around(0.09) - (0.06 if feminine else 0.0),
            eye_size=around(0.1) + (0.06 if feminine else 0.0),
            eye_gap=around(0.05),
            nose=around(0.14),
            lips=around(0.15) + (0.12 if feminine else 0.0),
            brows=around(0.25) - (0.2 if feminine else 0.0),
            scale=around(0.06),
        )


AGENT_IDENTITY = FaceIdentity(
    skin=(246, 206, 178),
    hair=(84, 54, 38),
    hair_style="quiff",
    eyes=(66, 104, 132),
    shirt=(40, 98, 112),
    clothes="crew",
    background=((244, 232, 216), (214, 182, 150)),
    beard="stubble",
    brows=1.05,
    jaw=1.03,
    scale=1.04,
)
"""Joe, the agent of the embedded checkpoint."""


@dataclass(frozen=True)
class FacePose:
    """One frame. 0..1 unless said; head and gaze -1..1 (right, down and clockwise are positive, seen by the viewer).

    breath moves the shoulders, pitch nods, roll tilts, yaw turns; smile lifts the corners of mouth and cheeks;
    lean (-1..1) tilts the whole upper body sideways.
    """

    mouth_open: float = 0.0
    mouth_wide: float = 0.0
    lip_round: float = 0.0
    teeth: float = 0.0
    tongue: float = 0.0
    blink: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    brow: float = 0.0
    smile: float = 0.35
    head_x: float = 0.0
    head_y: float = 0.0
    roll: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    breath: float = 0.0
    lean: float = 0.0


@dataclass(frozen=True)
class HandPose:
    """One hand in one frame, with the forearm that it needs to reach the lower border.

    shape  one of `HAND_SHAPES`
    x, y   middle of the palm, -1..1 over the picture (right and down are positive); beyond 1 it is out of the picture
    angle  radians; 0 = fingers up, clockwise is positive
    side   side of the picture from which the arm comes, as the viewer sees it; the thumb is on the side of the face
    """

    shape: str = "open"
    x: float = 0.58
    y: float = 0.4
    angle: float = 0.0
    side: str = "right"

    def __post_init__(self) -> None:
        _known("HandPose.shape", self.shape, HAND_SHAPES)
        _known("HandPose.side", self.side, SIDES)
        for name in ("x", "y", "angle"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"HandPose.{name}: expected a finite number, got {getattr(self, name)}")


@dataclass(frozen=True)
class Prop:
    """A thing to hold up. `kind` is a key of `PROPS`, `name` one of its names, `colour` one of `COLOURS`."""

    kind: str
    name: str
    colour: str

    def __post_init__(self) -> None:
        _known("Prop.kind", self.kind, tuple(PROPS))
        _known(f"Prop.name of kind {self.kind}", self.name, PROPS[self.kind])
        _known("Prop.colour", self.colour, COLOURS)


def _known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{what}: expected one of {', '.join(known)}, got {value!r}")

"""Short clips of drawn people to learn to see from, and the truth about them.

`ClipConfig`   what happens in clips, and how often
`Clip`         one of them
`ClipMaker`    makes row `row` of step `step`, a pure function of those, the seed and the split

People, gestures and things are those of the simulator's conversations and tasks. Beyond them there are hands that
count and hands that hold nothing, all colours of rooms, faces that do everything at once, and cameras of all kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from wan_streamer.config import PerceptionConfig
from wan_streamer.errors import ConfigError
from wan_streamer.perception.video import scale_frames
from wan_streamer.simulation.conversation.partners import HEIGHT, WIDTH
from wan_streamer.simulation.face.motion import RAISE, Gesture, gesture_tracks, pose_track
from wan_streamer.simulation.face.person import FaceIdentity, FacePose, HandPose, Prop
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.tasks.plan import Stage
from wan_streamer.simulation.voice.speech import Speech, TimedPhoneme
from wan_streamer.training.eyes.camera import Camera, developed
from wan_streamer.training.eyes.labels import CLASSES, NONE, VALUES, classes_of
from wan_streamer.training.eyes.place import head_place, palm_place, thing_place
from wan_streamer.units import FPS, FRAMES_PER_UNIT, UNIT_S

KINDS = MappingProxyType(
    {"show": 0.38, "count": 0.12, "wave": 0.06, "point": 0.03, "thumb_up": 0.04, "touch_face": 0.03,
     "big_smile": 0.04, "look_away": 0.03, "shake": 0.03, "nod": 0.03, "": 0.21}
)  # fmt: skip
ROWS = 2  # rows that show the same person
COUNTING = ("fist", "point", "two", "three", "four", "open", "hold")
SOUNDS = tuple("pbmfvwuoɔaɑæeɛəiɪjszʃθlɫtdnkgrh")
BLINK = (0.2, 0.6, 1.0, 1.0, 0.55, 0.0)  # before, during and after
FREED = {"smile": (0.0, 1.0), "brow": (-0.4, 0.9), "gaze_x": (-0.9, 0.9), "gaze_y": (-0.5, 0.6)}
WAVING = 0.6  # a hand that waves is up when its palm is above this
INSIDE, OUTSIDE = 0.96, 1.45  # how far from the middle of the picture something is surely seen, surely not


@dataclass(frozen=True)
class ClipConfig:
    """What happens in clips.

    units     of a clip; a frame before them is what the first unit changes from
    kinds     how often each gesture of the simulator is seen, "count" a hand that counts, "" nothing
    moving    share of gestures that are coming or going
    opening   share of clips at the begin of a stream: the frame before is the first one
    painted   share of rooms in any two colours
    talking   share of people who talk
    blinking  share of clips with a blink
    freed     how often each of `FREED` is anything, whatever else the face does
    """

    units: int = 1
    kinds: Mapping[str, float] = field(default_factory=lambda: KINDS)
    moving: float = 0.2
    opening: float = 0.15
    painted: float = 0.5
    talking: float = 0.5
    blinking: float = 0.3
    freed: float = 0.35


@dataclass(frozen=True)
class Clip:
    """frames_THWC uint8, a frame before and 4 per unit; classes_KA int64, values_KA float32, see `labels`."""

    frames_THWC: Tensor
    classes_KA: Tensor
    values_KA: Tensor


class _Mute:
    """Nobody is heard in clips."""

    def speak(self, text: str, rng: np.random.Generator) -> Speech:
        raise NotImplementedError


@dataclass
class _Acting:
    kind: str
    poses: list[FacePose]
    hands: list[HandPose | None]
    props: list[Prop | None]


class ClipMaker:
    """Clips of one split, at the size of the eyes of `perception`. Raises `ConfigError`."""

    def __init__(self, perception: PerceptionConfig, split: str, config: ClipConfig, seed: int) -> None:
        if config.units < 1 or not config.kinds:
            raise ConfigError(f"units, kinds: expected at least one of each, got {config.units} and {config.kinds}")
        self.perception, self.split, self.config, self.seed = perception, split, config, seed
        self._ready: tuple[tuple[int, int], FaceRenderer] | None = None
        self.frames = 1 + config.units * FRAMES_PER_UNIT

    def make(self, step: int, row: int) -> Clip:
        rng = np.random.default_rng((self.seed, step, row))
        renderer = self.person(step, row // ROWS)
        acting = self._act(Stage(rng, self.split, _Mute(), None))
        if rng.random() < self.config.opening:
            acting.poses[0], acting.hands[0], acting.props[0] = acting.poses[1], acting.hands[1], acting.props[1]
        frames_THWC = renderer.film(acting.poses, acting.hands, acting.props)
        camera = Camera.sample(rng)
        frames = developed(camera.moved(scale_frames(frames_THWC, self.perception)), rng)
        return Clip(frames, *self._truth(frames, renderer.identity, acting, camera))

    def person(self, step: int, number: int) -> FaceRenderer:
        """Who is in so many rows of a step: getting somebody ready takes as long as drawing a clip."""
        if self._ready is None or self._ready[0] != (step, number):
            rng = np.random.default_rng((self.seed, step, number, 1))
            identity = FaceIdentity.sample(rng, self.split)
            if rng.random() < self.config.painted:
                identity = replace(identity, background=_room(rng))
            self._ready = (step, number), FaceRenderer(identity, HEIGHT, WIDTH)
        return self._ready[1]

    # ------------------------------------------------------------ what happens

    def _act(self, stage: Stage) -> _Acting:
        c, rng = self.config, stage.rng
        kind = list(c.kinds)[int(rng.choice(len(c.kinds), p=np.array([*c.kinds.values()]) / sum(c.kinds.values())))]
        gestures = [self._gesture(stage, "thumb_up" if kind == "count" else kind)] if kind else []
        talks = rng.random() < c.talking
        seconds = self.frames / FPS
        phonemes = _phonemes(seconds, rng) if talks else ()
        spans = [(-1.0, seconds + 1.0)]
        speaking, listening = (spans, []) if talks else ([], spans if rng.random() < 0.5 else [])
        energy = float(rng.uniform(0.7, 2.0))
        poses = pose_track(self.frames, phonemes, speaking, listening, rng, energy=energy, gestures=gestures).poses
        hands, props = gesture_tracks(self.frames, gestures, rng)
        if kind == "count":
            shape = str(rng.choice(COUNTING))
            hands = [hand and replace(hand, shape=shape) for hand in hands]
        return _Acting(kind, self._freed(poses, rng), hands, props)

    def _gesture(self, stage: Stage, kind: str) -> Gesture:
        """In its middle; or coming or going within the clip."""
        seconds = self.frames / FPS
        start = -RAISE - stage.between(0.0, 1.6)
        end = seconds + RAISE + stage.between(0.0, 1.6)
        if stage.chance(self.config.moving):
            if stage.chance(0.5):
                start = stage.between(-RAISE, seconds - UNIT_S / 2)
            else:
                end = stage.between(UNIT_S / 2, seconds + RAISE)
        return stage.gesture(kind, start, end)

    def _freed(self, poses: list[FacePose], rng: np.random.Generator) -> list[FacePose]:
        """The poses with anything in the face, so that nothing is told from something else."""
        c = self.config
        free = {name: float(rng.uniform(*range_)) for name, range_ in FREED.items() if rng.random() < c.freed}
        first = int(rng.integers(-len(BLINK), len(poses))) if rng.random() < c.blinking else len(poses)
        made = []
        for i, pose in enumerate(poses):
            closed = BLINK[i - first] if 0 <= i - first < len(BLINK) else pose.blink
            made.append(replace(pose, blink=closed, **free))
        return made

    # ------------------------------------------------------------ the truth

    def _truth(
        self, frames_THWC: Tensor, identity: FaceIdentity, acting: _Acting, camera: Camera
    ) -> tuple[Tensor, Tensor]:
        """Classes and values at the end of every unit."""
        lasts = range(FRAMES_PER_UNIT, self.frames, FRAMES_PER_UNIT)
        classes, values = [], []
        for last in lasts:
            pose = acting.poses[last]
            classes.append(classes_of(_seen(acting, last, camera), identity))
            x, y, tilt = head_place(pose)
            x, y = camera.place(x, y, WIDTH / HEIGHT)
            bright = float(frames_THWC[last].float().mean() / 255)
            known = {"tilt": tilt + camera.turn, "head_x": x, "head_y": y, "brightness": bright}
            row = [known[name] if name in known else getattr(pose, name) for name in VALUES]
            values.append([(v - middle) / spread for v, (middle, spread) in zip(row, VALUES.values(), strict=True)])
        assert len(classes[0]) == len(CLASSES)
        return torch.tensor(classes), torch.tensor(values, dtype=torch.float32)


def _seen(acting: _Acting, last: int, camera: Camera) -> dict[str, str]:
    """Answers about hand and thing in the unit whose last frame is `last`; none about what is half in the picture."""
    first, hand, prop = acting.hands[last - FRAMES_PER_UNIT + 1], acting.hands[last], acting.props[last]
    known: dict[str, str] = {} if acting.kind == "wave" and hand != first else {"waves": "no"}
    if hand is None:
        return known | {"thing": NONE, "hand": NONE}
    if acting.kind == "wave" and first is not None and max(first.y, hand.y) < WAVING:
        known["waves"] = "yes"
    where = _where(*camera.place(*palm_place(hand), WIDTH / HEIGHT))
    if where is not None:
        known["hand"] = hand.shape if where else NONE
    if prop is None:
        return known | {"thing": NONE}
    where = _where(*camera.place(*thing_place(hand), WIDTH / HEIGHT))
    if where is not None:
        known |= {"thing": prop.name, "colour": prop.colour} if where else {"thing": NONE}
    return known


def _where(x: float, y: float) -> bool | None:
    """Whether something with this middle is in the picture; None: in part."""
    far = max(abs(x), abs(y))
    return True if far <= INSIDE else False if far >= OUTSIDE else None


def _room(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two colours, related or not."""
    top = rng.integers(0, 256, 3)
    low = np.clip(top + rng.integers(-90, 60, 3), 0, 255) if rng.random() < 0.7 else rng.integers(0, 256, 3)
    return tuple(map(int, top)), tuple(map(int, low))  # type: ignore[return-value]


def _phonemes(seconds: float, rng: np.random.Generator) -> tuple[TimedPhoneme, ...]:
    """Any sounds one after the other, with pauses."""
    phonemes, at = [], float(rng.uniform(0, 0.1))
    while at < seconds:
        end = at + float(rng.uniform(0.05, 0.16))
        if rng.random() < 0.9:
            phonemes.append(TimedPhoneme(str(rng.choice(SOUNDS)), at, end))
        at = end
    return tuple(phonemes)

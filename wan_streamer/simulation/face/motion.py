"""How a head moves while its owner talks, listens or does nothing.

`pose_track`      phonemes, times of attention, gestures -> one `FacePose` per frame
`Gesture`         something a person does on purpose, with hand or head
`gesture_tracks`  gestures -> one hand and one held thing (or None) per frame

The movement has a cause wherever a person's would: nods answer the partner, brows and head follow the stressed
words, gaze rests on the camera while listening. The rest is slow noise, so that nobody ever freezes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.simulation.face.person import SIDES, FacePose, HandPose, Prop
from wan_streamer.simulation.face.visemes import VOWELS, mouth_track
from wan_streamer.simulation.voice.speech import TimedPhoneme
from wan_streamer.units import FPS

Span = tuple[float, float]
REACTION = 0.28  # seconds from the partner's first sound to the first visible attention
RAISE = 0.35  # seconds in which a hand comes from below, and in which it leaves
WAVE = 2.0  # Hz
HAND_GESTURES = ("wave", "point", "thumb_up", "show", "touch_face")
HEAD_GESTURES = ("shake", "nod", "look_away", "big_smile")


@dataclass(frozen=True)
class Gesture:
    """Something a person does on purpose. After "touch_face" and "look_away" nobody should say anything.

    kind   one of `HAND_GESTURES` or `HEAD_GESTURES`
    start  seconds; the hand enters the picture or the head begins to move
    end    seconds; hand and head are back
    prop   what is held up; "show" needs it, nothing else has it
    side   side of the picture on which the hand is, or to which the gaze goes

    Raises ConfigError if these do not fit together.
    """

    kind: str
    start: float
    end: float
    prop: Prop | None = None
    side: str = "right"

    def __post_init__(self) -> None:
        kinds = HAND_GESTURES + HEAD_GESTURES
        if self.kind not in kinds:
            raise ConfigError(f"Gesture.kind: expected one of {', '.join(kinds)}, got {self.kind!r}")
        if self.side not in SIDES:
            raise ConfigError(f"Gesture.side: expected left or right, got {self.side!r}")
        if not self.end > self.start:
            raise ConfigError(f"Gesture.end: expected more than start = {self.start}, got {self.end}")
        if (self.kind == "show") != (self.prop is not None):
            raise ConfigError(f'Gesture.prop: expected a thing for "show" and only there, got {self.kind}: {self.prop}')

    @property
    def direction(self) -> int:
        return 1 if self.side == "right" else -1


@dataclass(frozen=True)
class Motion:
    """The poses of one side and what caused them.

    poses  one per frame
    nods   seconds at which a nod begins
    """

    poses: list[FacePose]
    nods: list[float]


def _drift(frames: int, period: float, rng: np.random.Generator) -> np.ndarray:
    """Slow noise of about unit size: a cosine-interpolated random walk with knots every `period` seconds."""
    knots = max(4, int(frames / FPS / period) + 4)
    values = rng.standard_normal(knots)
    at = np.arange(frames) / FPS / period + rng.random()
    low = np.minimum(at.astype(int), knots - 2)
    ease = 0.5 - 0.5 * np.cos(np.pi * (at - low))
    return np.clip(values[low] * (1 - ease) + values[low + 1] * ease, -2, 2)


def _bump(track_T: np.ndarray, start: float, length: float, height: float) -> None:
    """Add one smooth rise and fall."""
    first, last = max(0, int(start * FPS)), min(len(track_T), int((start + length) * FPS) + 1)
    if last > first:
        phase = (np.arange(first, last) / FPS - start) / length
        track_T[first:last] += height * np.sin(np.pi * np.clip(phase, 0, 1)) ** 2


def _smooth(track_T: np.ndarray, seconds: float) -> np.ndarray:
    kernel = np.hanning(max(3, round(seconds * FPS) + 2))
    padded = np.pad(track_T, len(kernel), mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), "same")[len(kernel) : -len(kernel)]


def _blinks(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Closed for 2 frames with one frame of closing and two of opening, every 2 to 5 seconds."""
    track_T = np.zeros(frames)
    shape = (0.55, 1.0, 1.0, 0.6, 0.2)
    at = int(rng.uniform(0.3, 3.0) * FPS)
    while at < frames:
        for i, value in enumerate(shape):
            if at + i < frames:
                track_T[at + i] = value
        at += int(rng.uniform(1.8, 5.2) * FPS) if rng.random() > 0.12 else 9  # sometimes a double blink
    return track_T


def _nod_times(listening: Sequence[Span], rng: np.random.Generator) -> list[float]:
    """A nod or two inside longer turns of the partner, and often one when a turn ends."""
    nods: list[float] = []
    for start, end in listening:
        at = start + rng.uniform(0.5, 1.1)
        while at < end - 0.2:
            nods.append(round(float(at), 3))
            at += rng.uniform(1.0, 2.2)
        if rng.random() < 0.6:
            nods.append(round(float(end + 0.12), 3))
    return nods


def pose_track(
    frames: int,
    phonemes: tuple[TimedPhoneme, ...],
    speaking: Sequence[Span],
    listening: Sequence[Span],
    rng: np.random.Generator,
    smiles: Sequence[float] = (),
    energy: float = 1.0,
    gestures: Sequence[Gesture] = (),
) -> Motion:
    """Poses for `frames` frames.

    speaking   spans in seconds in which this side talks
    listening  spans in which the partner talks
    smiles     times at which a wide smile begins (greetings, thanks)
    energy     size of the movements
    gestures   what head and face add to them; a "nod" here is not listed in `Motion.nods`
    """
    mouth_TD = mouth_track(phonemes, frames)
    attention_T, voice_T = np.zeros(frames), np.zeros(frames)
    for spans, track_T, delay in ((listening, attention_T, REACTION), (speaking, voice_T, 0.0)):
        for start, end in spans:
            track_T[max(0, int((start + delay) * FPS)) : int((end + delay) * FPS) + 1] = 1
    attention_T, voice_T = _smooth(attention_T, 0.4), _smooth(voice_T, 0.4)
    focus_T = np.maximum(attention_T, 0.7 * voice_T)

    gaze_x, gaze_y = _glances(frames, focus_T, rng)
    pitch = 0.10 * _drift(frames, 1.3, rng)
    brow = 0.08 * _drift(frames, 1.7, rng) + 0.25 * attention_T
    smile = 0.44 + 0.06 * _drift(frames, 2.5, rng) + 0.12 * attention_T - 0.08 * voice_T
    nods = _nod_times(listening, rng)
    for at in nods:
        height = float(rng.uniform(0.55, 0.95))
        _bump(pitch, at, 0.44, height)
        if rng.random() < 0.4:
            _bump(pitch, at + 0.40, 0.40, height * 0.6)
    for at in smiles:
        _bump(smile, at, 1.7, 0.45)
    sway = np.zeros(frames)
    for phoneme in phonemes:  # beats: stressed (long) vowels move brows and head a little
        if phoneme.symbol[:1] in VOWELS and phoneme.end - phoneme.start > 0.09 and rng.random() < 0.45:
            _bump(pitch, phoneme.start - 0.05, 0.36, float(rng.uniform(0.15, 0.45)))
            _bump(brow, phoneme.start - 0.10, 0.45, float(rng.uniform(0.1, 0.5)))
            _bump(sway, phoneme.start - 0.10, 0.6, float(rng.uniform(-0.35, 0.35)))

    lively = energy * (0.75 + 0.5 * voice_T)
    columns = {
        "blink": _blinks(frames, rng),
        "gaze_x": gaze_x,
        "gaze_y": gaze_y,
        "brow": brow,
        "smile": smile,
        "head_x": (0.30 * _drift(frames, 2.2, rng)) * lively,
        "head_y": (0.22 * _drift(frames, 2.6, rng)) * lively,
        "roll": (0.22 * _drift(frames, 2.4, rng) + sway * 0.6) * lively,
        "yaw": (0.24 * _drift(frames, 1.9, rng) + sway) * lively,
        "pitch": pitch * energy,
        "breath": 0.5 + 0.5 * np.sin(2 * np.pi * (np.arange(frames) / FPS / 3.8 + rng.random())),
        "lean": _posture(frames, rng) * energy,
    }
    for gesture in gestures:
        _gesture_head(columns, gesture)
    columns["smile"] = np.clip(columns["smile"], 0, 1)
    names = ("mouth_open", "mouth_wide", "lip_round", "teeth", "tongue", *columns)
    table_TD = np.concatenate([mouth_TD, np.stack(list(columns.values()), 1)], 1)
    poses = [FacePose(**dict(zip(names, (round(float(v), 4) for v in row), strict=True))) for row in table_TD]
    return Motion(poses, nods)


def _glances(frames: int, focus_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gaze jumps every second or so: mostly to the camera, away more often when nobody talks."""
    gaze_x, gaze_y = np.zeros(frames), np.zeros(frames)
    at = 0
    while at < frames:
        stay = int(rng.uniform(0.5, 2.2) * FPS)
        if rng.random() < 0.5 * (1 - focus_T[at]) + 0.06:
            gaze_x[at : at + stay], gaze_y[at : at + stay] = rng.uniform(-0.8, 0.8), rng.uniform(-0.4, 0.5)
        else:
            gaze_x[at : at + stay], gaze_y[at : at + stay] = rng.normal(0, 0.06), rng.normal(0, 0.05)
        at += stay
    return _smooth(gaze_x, 0.08), _smooth(gaze_y, 0.08)


def _posture(frames: int, rng: np.random.Generator) -> np.ndarray:
    """A new way to sit every few seconds, and a slow sway around it."""
    target_T = np.zeros(frames)
    at = 0
    while at < frames:
        stay = int(rng.uniform(2.5, 7.0) * FPS)
        target_T[at : at + stay] = rng.uniform(-0.7, 0.7)
        at += stay
    return _smooth(target_T, 1.4) + 0.08 * _drift(frames, 3.1, rng)


def _envelope(frames: int, start: float, end: float, ramp: float) -> np.ndarray:
    """0 outside start..end, 1 inside, with smooth flanks of `ramp` seconds (less if the span is short)."""
    time_T = (np.arange(frames) + 0.5) / FPS
    ramp = min(ramp, (end - start) / 2)
    rise_T = np.clip(np.minimum(time_T - start, end - time_T) / ramp, 0, 1)
    return rise_T * rise_T * (3 - 2 * rise_T)


def _gesture_head(columns: dict[str, np.ndarray], gesture: Gesture) -> None:
    """Add to the columns of a pose track what head, gaze and smile do in one gesture."""
    kind, start, end, to = gesture.kind, gesture.start, gesture.end, gesture.direction
    frames = len(columns["gaze_x"])
    env_T = _envelope(frames, start, end, RAISE)

    def toward(name: str, value: float, weight_T: np.ndarray = env_T) -> None:
        columns[name] = columns[name] * (1 - weight_T) + value * weight_T

    def add(name: str, value: float | np.ndarray) -> None:
        columns[name] = columns[name] + value * env_T

    if kind == "nod":
        length = min(0.46, end - start)
        for i in range(max(1, int((end - start) / length + 1e-6))):
            _bump(columns["pitch"], start + i * length, length, 0.9)
    elif kind == "shake":
        add("yaw", 0.85 * np.sin(2 * np.pi * 1.9 * (np.arange(frames) / FPS - start)))
        toward("gaze_x", 0.0)
    elif kind == "look_away":
        toward("gaze_x", 0.95 * to)
        toward("gaze_y", 0.1)
        add("yaw", 0.75 * to)
        add("head_x", 0.3 * to)
    elif kind == "big_smile":
        toward("smile", 1.0)
        add("brow", 0.3)
    elif kind == "wave":
        toward("smile", 0.8)
        toward("gaze_x", 0.0)
        add("roll", 0.3 * to)
    elif kind == "thumb_up":
        toward("smile", 0.75)
        toward("gaze_x", 0.0)
        _bump(columns["pitch"], start + RAISE, 0.44, 0.5)
    elif kind == "show":  # a look at the thing while it comes up, then to the partner
        glance_T = _envelope(frames, start + 0.15, min(start + 0.95, end), 0.15)
        toward("gaze_x", 0.0)
        toward("gaze_x", 0.8 * to, glance_T)
        toward("gaze_y", 0.3, glance_T)
        add("brow", 0.25)
        add("lean", -0.2 * to)
    elif kind == "point":
        toward("gaze_x", 0.6 * to, _envelope(frames, start + 0.2, (start + end) / 2, 0.15))
        add("yaw", 0.3 * to)
    else:  # touch_face
        toward("gaze_x", -0.3 * to)
        toward("gaze_y", 0.35)
        add("roll", 0.35 * to)


#                 shape    x     y    angle, spread of each; x and angle for the right side
_POSITIONS: dict[str, tuple[str, float, float, float, float, float, float]] = {
    "wave": ("open", 0.68, 0.14, 0.05, 0.05, 0.12, 0.05),
    "point": ("point", 0.56, 0.30, 0.35, 0.05, 0.12, 0.45),
    "thumb_up": ("thumb", 0.54, 0.42, 0.05, 0.05, 0.12, 0.08),
    "show": ("hold", 0.57, 0.46, 0.04, 0.04, 0.12, 0.10),
    "touch_face": ("open", 0.45, 0.42, -0.34, 0.01, 0.05, 0.06),
}
_BELOW = 1.85  # y at which neither hand nor thing is in the picture


def gesture_tracks(
    frames: int, gestures: Sequence[Gesture], rng: np.random.Generator
) -> tuple[list[HandPose | None], list[Prop | None]]:
    """The hand and the thing in it for each of `frames` frames, None where there is none.

    A hand comes from below in `RAISE` seconds, stays with a little sway, and leaves in the same time. Gestures of the
    head alone are skipped; `pose_track` shows them. Raises ConfigError if two gestures want a hand at the same time.
    """
    hands: list[HandPose | None] = [None] * frames
    props: list[Prop | None] = [None] * frames
    free = -np.inf
    for gesture in sorted((g for g in gestures if g.kind in HAND_GESTURES), key=lambda g: g.start):
        if gesture.start < free:
            raise ConfigError(
                f"gestures: expected one hand at a time, got {gesture} before the last one ended ({free})"
            )
        free = gesture.end
        shape, *position = _POSITIONS[gesture.kind]
        x, y, angle = (position[i] + float(rng.uniform(-position[i + 3], position[i + 3])) for i in range(3))
        phases = rng.uniform(0, 2 * np.pi, 3)
        up_T = _envelope(frames, gesture.start, gesture.end, RAISE)
        first, last = (int(np.ceil(t * FPS - 0.5)) for t in (gesture.start, gesture.end))
        for i in range(max(0, first), min(frames, last)):
            seconds, up = (i + 0.5) / FPS - gesture.start, float(up_T[i])
            sway = np.sin(2 * np.pi * np.array((0.45, 0.38, 0.52)) * seconds + phases)
            swing = np.sin(2 * np.pi * WAVE * seconds) * up if gesture.kind == "wave" else 0.0
            hand_x = x + 0.10 * (1 - up) + 0.010 * sway[0] + 0.055 * swing
            hand_angle = angle + 0.035 * sway[2] + 0.38 * swing
            hands[i] = HandPose(
                shape,
                round(float(gesture.direction * hand_x), 4),
                round(float(_BELOW + (y + 0.014 * sway[1] - _BELOW) * up), 4),
                round(float(gesture.direction * hand_angle), 4),
                gesture.side,
            )
            props[i] = gesture.prop
    return hands, props

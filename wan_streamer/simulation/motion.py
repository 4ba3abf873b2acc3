"""How a head moves while its owner talks, listens or does nothing.

`pose_track`  phonemes and times of attention -> one `FacePose` per frame

The movement has a cause wherever a person's would: nods answer the partner, brows and head follow the stressed
words, gaze rests on the camera while listening. The rest is slow noise, so that nobody ever freezes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wan_streamer.simulation.faces import FacePose
from wan_streamer.simulation.speech import TimedPhoneme
from wan_streamer.simulation.visemes import VOWELS, mouth_track
from wan_streamer.units import FPS

Span = tuple[float, float]
REACTION = 0.28  # seconds from the partner's first sound to the first visible attention


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
) -> Motion:
    """Poses for `frames` frames.

    speaking   spans in seconds in which this side talks
    listening  spans in which the partner talks
    smiles     times at which a wide smile begins (greetings, thanks)
    energy     size of the movements
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
    smile = 0.36 + 0.06 * _drift(frames, 2.5, rng) + 0.12 * attention_T - 0.08 * voice_T
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
        "smile": np.clip(smile, 0, 1),
        "head_x": (0.30 * _drift(frames, 2.2, rng)) * lively,
        "head_y": (0.22 * _drift(frames, 2.6, rng)) * lively,
        "roll": (0.22 * _drift(frames, 2.4, rng) + sway * 0.6) * lively,
        "yaw": (0.24 * _drift(frames, 1.9, rng) + sway) * lively,
        "pitch": pitch * energy,
        "breath": 0.5 + 0.5 * np.sin(2 * np.pi * (np.arange(frames) / FPS / 3.8 + rng.random())),
    }
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

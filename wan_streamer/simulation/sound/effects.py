"""Short sounds that are not speech and that the agent should ignore, made from scratch.

`SOUNDS`  name -> `Sound` with its length and a function of rng -> float32 [T] at 24 kHz
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wan_streamer.units import SAMPLE_RATE


@dataclass(frozen=True)
class Sound:
    """`make(rng)` gives `seconds` of sound with a peak of at most 0.5."""

    seconds: float
    make: Callable[[np.random.Generator], np.ndarray]


def _time(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _band(noise_T: np.ndarray, low: float, high: float) -> np.ndarray:
    spectrum = np.fft.rfft(noise_T)
    hertz = np.fft.rfftfreq(len(noise_T), 1 / SAMPLE_RATE)
    spectrum[(hertz < low) | (hertz > high)] = 0
    return np.fft.irfft(spectrum, len(noise_T))


def _peak(sound_T: np.ndarray, peak: float = 0.5) -> np.ndarray:
    return (sound_T * (peak / max(float(np.abs(sound_T).max()), 1e-9))).astype(np.float32)


def _door(rng: np.random.Generator) -> np.ndarray:
    """A low thump and its rattle."""
    t = _time(0.5)
    thump = np.sin(2 * np.pi * rng.uniform(60, 90) * t) * np.exp(-t * 14)
    return _peak(thump + 0.5 * _band(rng.standard_normal(len(t)), 100, 3000) * np.exp(-t * 18))


def _knock(rng: np.random.Generator) -> np.ndarray:
    """Three knocks on wood."""
    t = _time(0.8)
    out = np.zeros(len(t))
    tone = rng.uniform(280, 420)
    for i in range(3):
        since = t - 0.05 - i * rng.uniform(0.19, 0.23)
        hit = np.sin(2 * np.pi * tone * since) + 0.6 * np.sin(2 * np.pi * tone * 2.3 * since)
        out += np.where(since > 0, hit * np.exp(-np.maximum(since, 0) * 45), 0)
    return _peak(out)


def _cough(rng: np.random.Generator) -> np.ndarray:
    """Two bursts of breath through a throat."""
    t = _time(0.7)
    out = np.zeros(len(t))
    for at in (0.03, rng.uniform(0.33, 0.4)):
        since = np.maximum(t - at, 0)
        envelope = np.where(t > at, (1 - np.exp(-since * 200)) * np.exp(-since * 13), 0)
        out += envelope * _band(rng.standard_normal(len(t)), 350, rng.uniform(1800, 2600))
    return _peak(out)


def _ring(rng: np.random.Generator) -> np.ndarray:
    """Two short rings of a telephone."""
    t = _time(1.2)
    phase = t % 0.6
    on = np.clip(np.minimum(phase, 0.4 - phase) * 50, 0, 1)
    low = rng.uniform(700, 1000)
    trill = np.where((t * 22).astype(int) % 2 == 0, low, low * 1.25)
    return _peak(on * np.sin(2 * np.pi * np.cumsum(trill) / SAMPLE_RATE), 0.3)


def _keys(rng: np.random.Generator) -> np.ndarray:
    """Typing on a keyboard."""
    t = _time(1.4)
    out = np.zeros(len(t))
    at = 0.02
    while at < 1.3:
        since = np.maximum(t - at, 0)
        click = _band(rng.standard_normal(len(t)), 1500, 6000) * np.exp(-since * 180)
        out += np.where(t > at, rng.uniform(0.4, 1.0) * click, 0)
        at += rng.uniform(0.09, 0.2)
    return _peak(out, 0.25)


SOUNDS: dict[str, Sound] = {
    "door": Sound(0.5, _door),
    "knock": Sound(0.8, _knock),
    "cough": Sound(0.7, _cough),
    "ring": Sound(1.2, _ring),
    "keys": Sound(1.4, _keys),
}

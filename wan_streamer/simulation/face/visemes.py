"""Phonemes to mouth shapes at 25 fps.

Every sound has a target and a weight: lips decide in p, f, o, w; the tongue sounds k, t, n borrow from neighbours.
Targets are blended with the weights over about 100 ms (co-articulation), then closures of p, b, m are restored.
"""

import numpy as np

from wan_streamer.simulation.voice.speech import TimedPhoneme
from wan_streamer.units import FPS

SHAPE = ("mouth_open", "mouth_wide", "lip_round", "teeth", "tongue")
"""Columns of a mouth track; `mouth_wide` is -1..1, the others 0..1."""

#            open  wide  round teeth tongue weight
_TARGETS: dict[str, tuple[float, ...]] = {
    "pbm": (0.0, 0.0, 0.1, 0.0, 0.0, 2.5),
    "fv": (0.10, 0.15, 0.0, 1.0, 0.0, 2.0),
    "wʍ": (0.14, -0.5, 1.0, 0.0, 0.0, 1.8),
    "uʊʉɯ": (0.26, -0.4, 0.95, 0.0, 0.0, 1.5),
    "oɔɵø": (0.60, -0.2, 0.75, 0.0, 0.1, 1.5),
    "aɑɒäɐ": (0.95, 0.10, 0.05, 0.35, 0.3, 1.5),
    "ʌæ": (0.80, 0.25, 0.0, 0.4, 0.3, 1.4),
    "eɛ": (0.58, 0.55, 0.0, 0.5, 0.3, 1.3),
    "əɜɚɝɘ": (0.42, 0.05, 0.1, 0.3, 0.2, 0.8),
    "iɪyᵻɨ": (0.34, 0.80, 0.0, 0.7, 0.2, 1.3),
    "j": (0.24, 0.6, 0.0, 0.6, 0.3, 0.8),
    "szʦ": (0.16, 0.45, 0.0, 1.0, 0.0, 1.1),
    "ʃʒʧʤ": (0.24, -0.3, 0.6, 0.9, 0.0, 1.4),
    "θð": (0.28, 0.15, 0.0, 0.7, 1.0, 1.2),
    "lɫ": (0.38, 0.15, 0.0, 0.4, 0.9, 0.9),
    "tdnɾ": (0.24, 0.2, 0.0, 0.7, 0.5, 0.6),
    "kgɡŋxɣ": (0.32, 0.05, 0.0, 0.2, 0.1, 0.4),
    "rɹɻʁ": (0.26, -0.15, 0.45, 0.4, 0.2, 0.9),
    "hʔ": (0.35, 0.0, 0.0, 0.2, 0.1, 0.25),
}
_BY_SYMBOL = {symbol: np.array(row) for group, row in _TARGETS.items() for symbol in group}
_DEFAULT = np.array((0.3, 0.0, 0.0, 0.3, 0.1, 0.4))
_REST_WEIGHT = 0.7
_GRID = 200  # Hz
_BLEND = 0.10  # seconds

CLOSED = frozenset("pbm")
VOWELS = frozenset("uʊʉɯoɔɵøaɑɒäɐʌæeɛəɜɚɝɘiɪyᵻɨ")


def mouth_track(phonemes: tuple[TimedPhoneme, ...], frames: int, rate: int = FPS) -> np.ndarray:
    """Mouth parameters [frames, 5] in the order of `SHAPE`; frame i stands for the time (i + 0.5) / rate."""
    length = frames * _GRID // rate + 1
    target_TD = np.zeros((length, 5))
    weight_T = np.full(length, _REST_WEIGHT)
    closures: list[tuple[float, float]] = []
    for phoneme in phonemes:
        symbols = [s for s in phoneme.symbol if s in _BY_SYMBOL] or ["?"]
        step = (phoneme.end - phoneme.start) / len(symbols)
        for i, symbol in enumerate(symbols):
            start = phoneme.start + i * step
            first, last = round(start * _GRID), max(round((start + step) * _GRID), round(start * _GRID) + 1)
            row = _BY_SYMBOL.get(symbol, _DEFAULT)
            target_TD[first:last], weight_T[first:last] = row[:5], row[5]
            if symbol in CLOSED:
                closures.append((start, start + step))
    kernel = np.hanning(round(_BLEND * _GRID) + 2)
    blended_TD = np.stack([np.convolve(target_TD[:, d] * weight_T, kernel, "same") for d in range(5)], 1)
    blended_TD /= np.convolve(weight_T, kernel, "same")[:, None]
    track_TD = blended_TD[np.minimum(((np.arange(frames) + 0.5) * _GRID / rate).astype(int), length - 1)]
    for start, end in closures:
        middle = int((start + end) / 2 * rate)
        inside = [i for i in range(int(start * rate), int(end * rate) + 1) if start <= (i + 0.5) / rate < end]
        for i in {*inside, middle}:
            if 0 <= i < frames:
                track_TD[i, 0] = min(track_TD[i, 0], 0.02)
                track_TD[i, 3:] = 0.0
    return track_TD.astype(np.float32)

"""Who speaks when, from the energy of a clean track: no model, no dependencies.

`EnergyMeter`   sound in pieces of any size -> level in dB of every 10 ms
`find_speech`   levels -> spans of speech

A recorded side holds one voice (its own microphone), so energy is enough. It is not if the other side is heard in it.
"""

import numpy as np

from wan_streamer.units import SAMPLE_RATE

HOP = SAMPLE_RATE // 100  # 10 ms
HOP_S = HOP / SAMPLE_RATE
LAG = 3  # x[t] - x[t - 3]: strongest at 4 kHz, nothing at 0 and 8 kHz
SILENT_DB = -90.0  # digital silence
FLOOR_S = 20.0  # the noise is measured in stretches of this length
ON_DB, OFF_DB = 9.0, 5.0  # above the noise: where speech is certain, and down to where it still goes on
ON_BELOW_DB, OFF_BELOW_DB = 32.0, 42.0  # the same, below the loud speech of the track
QUIETEST_DB = -62.0  # nothing below this level is speech
GAP_S = 0.35  # a pause inside an utterance
SHORTEST_S = 0.08  # a click is shorter


class EnergyMeter:
    """Levels of a track that arrives in pieces, without the rumble below and the hiss above speech."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)
        self._last = np.zeros(LAG, np.float32)
        self._levels: list[np.ndarray] = []

    def add(self, audio_T: np.ndarray) -> None:
        """float32 [T], mono, 24 kHz."""
        if not len(audio_T):
            return
        known = np.concatenate([self._last, audio_T])
        self._last = known[-LAG:]
        samples = np.concatenate([self._rest, (known[LAG:] - known[:-LAG]) / 2])
        whole = len(samples) // HOP * HOP
        self._rest = samples[whole:]
        power = np.square(samples[:whole].reshape(-1, HOP)).mean(axis=1)
        self._levels.append(10 * np.log10(np.maximum(power, 10 ** (SILENT_DB / 10))))

    def levels(self) -> np.ndarray:
        """dB [T], one value per 10 ms."""
        return np.concatenate([np.zeros(0, np.float32), *self._levels])


def _noise(levels_T: np.ndarray) -> np.ndarray:
    """dB [T]: the level of the pauses around each moment."""
    block = round(FLOOR_S / HOP_S)
    starts = range(0, max(1, len(levels_T) - block // 2), block)
    floors = [np.percentile(levels_T[start : start + block], 10) for start in starts]
    centres = [start + block / 2 for start in starts]
    return np.interp(np.arange(len(levels_T)), centres, floors)


def _runs(flags_T: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags_T, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def find_speech(levels_T: np.ndarray) -> list[tuple[float, float]]:
    """Spans (start, end) in seconds, in order, of a track's levels (`EnergyMeter`).

    A span holds a level of certain speech and reaches as far as the lower threshold is exceeded (hysteresis).
    """
    if not len(levels_T):
        return []
    noise_T = _noise(levels_T)
    loud = np.percentile(levels_T[levels_T > noise_T + ON_DB], 90) if (levels_T > noise_T + ON_DB).any() else 0.0
    on_T = np.maximum(np.maximum(noise_T + ON_DB, loud - ON_BELOW_DB), QUIETEST_DB)
    off_T = np.minimum(on_T, np.maximum(np.maximum(noise_T + OFF_DB, loud - OFF_BELOW_DB), QUIETEST_DB))
    certain = np.concatenate([[0], np.cumsum(levels_T > on_T)])
    spans: list[tuple[float, float]] = []
    for first, last in _runs(levels_T > off_T):
        if certain[last] - certain[first] < 2:
            continue
        start, end = first * HOP_S, last * HOP_S
        if spans and start - spans[-1][1] < GAP_S:
            start = spans.pop()[0]
        spans.append((start, end))
    return [(start, end) for start, end in spans if end - start >= SHORTEST_S]

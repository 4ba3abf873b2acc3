"""Lip sync: does a mouth move with the voice that is heard?

`sync_offset`       by how much sound or picture is early, over one or many clips together
`sync_scores`       how well a mouth follows its voice as the clip is played
`mouth_from_sound`  the opening that a sound calls for

The sound is turned into an opening by a ridge regression from log-mel frames to the simulator's `mouth_open`. It is
fitted on two seeded minutes of espeak-ng speakers, not on the agent's voice: that takes seconds and no cache, is as
good for the agent (peak correlation .81 in 8 test films; fitted on the agent .82, loudness .76) and better for others
(.79 in 7 films; .76, .74). Held out r: .74 for speakers of the test split, .73 for 427 s of the agent. The offset of
these films is +4 ms for the agent and -11 ms for others: no constant could remove both, so none is subtracted.
The sound does not tell where lips close: of the tenth of the frames that call for the least opening, a third are
closed. So there is no score of closures.

Mouth tracks are [F], 25 per second, in any unit, NaN where no mouth was found; sound is float32 [T], mono, 24 kHz.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from wan_streamer.evaluation.readers.observe import speech_of
from wan_streamer.evaluation.spans import frames_in
from wan_streamer.perception.audio import HOP, N_FFT, mel_filters
from wan_streamer.simulation.codec_sentences import codec_sentences
from wan_streamer.simulation.face.visemes import mouth_track
from wan_streamer.simulation.voice.users import UserVoice
from wan_streamer.units import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

WIDEST_S = 0.6  # offsets beyond this are not looked for
SENTENCES, SEED = 48, 20
BINS, REACH, STEP = 24, 6, 2  # mel bands; hops of 10 ms to both sides, every second one
RIDGE = 400.0
RANGE_DB, HEADROOM_DB = 60.0, 15.0  # of a band, below and above the clip's loud speech
STILL = 1e-3  # standard deviation of a mouth that does not move, in any unit
SHORTEST = FPS  # frames with a mouth; less is no clip
HOPS = SAMPLES_PER_FRAME // HOP  # per frame
BLOCK = 4096  # spectra at a time

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Ridge:
    """opening = constant + sum over the taps of log-mel [D] @ weights [D]."""

    weights: tuple[np.ndarray, ...]
    constant: float

    def __call__(self, mel_ND: np.ndarray) -> np.ndarray:
        taps = zip(_taps(mel_ND), self.weights, strict=True)
        return self.constant + np.sum([tap_ND @ weight_D for tap_ND, weight_D in taps], axis=0)


def _taps(mel_ND: np.ndarray) -> list[np.ndarray]:
    """The same frames moved by -60, -40 .. 60 ms."""
    padded_ND = np.pad(mel_ND, ((REACH, REACH), (0, 0)), mode="edge")
    return [padded_ND[shift : shift + len(mel_ND)] for shift in range(0, 2 * REACH + 1, STEP)]


def _log_mel(audio_T: np.ndarray) -> np.ndarray:
    """[N, 24] at 100 Hz, row n around the time n * 10 ms; 0 is the clip's loud speech, so that gain does not matter."""
    count = len(audio_T) // HOP + 1
    filters = mel_filters(N_FFT, BINS, 60, 8000).numpy()
    padded_T = np.pad(np.nan_to_num(audio_T), (N_FFT // 2, N_FFT))
    windows_NT = np.lib.stride_tricks.sliding_window_view(padded_T, N_FFT)[::HOP][:count]
    parts = []
    for first in range(0, count, BLOCK):
        spectrum = np.abs(np.fft.rfft(windows_NT[first : first + BLOCK] * np.hanning(N_FFT))) ** 2
        parts.append((spectrum @ filters + 1e-9).astype(np.float32))
    power_ND = np.concatenate(parts)
    level_N = 10 * np.log10(power_ND.sum(1))
    loud = np.percentile(level_N[level_N > level_N.max() - 30], 90)
    return np.clip(10 * np.log10(power_ND) - loud, -RANGE_DB, HEADROOM_DB) / RANGE_DB


@functools.cache
def _ridge() -> _Ridge:
    """Fitted once per process. Raises `ImportError` without the extra `simulate`."""
    rng = np.random.default_rng(SEED)
    inputs, targets = [], []
    for text in codec_sentences(SENTENCES, rng):
        speech = UserVoice.sample(rng, "train").speak(text, rng)
        mel_ND = np.concatenate(_taps(_log_mel(speech.audio)), axis=1)[HOPS // 2 :: HOPS]  # the middles of frames
        frames = min(len(mel_ND), len(speech.audio) // SAMPLES_PER_FRAME)
        inputs.append(mel_ND[:frames])
        targets.append(mouth_track(speech.phonemes, frames)[:, 0])
    x_ND, y_N = np.concatenate(inputs).astype(np.float64), np.concatenate(targets).astype(np.float64)
    mean_D = x_ND.mean(0)
    x_ND -= mean_D
    weights_D = np.linalg.solve(x_ND.T @ x_ND + RIDGE * np.eye(x_ND.shape[1]), x_ND.T @ (y_N - y_N.mean()))
    return _Ridge(tuple(np.split(weights_D, len(weights_D) // BINS)), float(y_N.mean() - mean_D @ weights_D))


def _opening(audio_T: np.ndarray) -> np.ndarray:
    """The opening at 100 Hz, value n for the time n * 10 ms."""
    return _ridge()(_log_mel(audio_T))


def mouth_from_sound(audio_T: np.ndarray) -> np.ndarray:
    """The opening that a sound calls for, float32 [T // 960], about 0 closed to 1 wide open.

    Raises `ImportError` without the extra `simulate`.
    """
    frames = len(audio_T) // SAMPLES_PER_FRAME
    return _opening(audio_T)[HOPS // 2 :: HOPS][:frames].astype(np.float32)


def _usable(pairs: Iterable[Pair]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(mouth standardised, opening at 100 Hz) of every clip with a moving mouth and a voice."""
    clips = []
    for mouth_F, audio_T in pairs:
        mouth_F = np.asarray(mouth_F, float)[: len(audio_T) // SAMPLES_PER_FRAME]
        seen_F = np.isfinite(mouth_F)
        if seen_F.sum() >= SHORTEST and mouth_F[seen_F].std() > STILL and speech_of(np.nan_to_num(audio_T)):
            clips.append(((mouth_F - mouth_F[seen_F].mean()) / mouth_F[seen_F].std(), _opening(audio_T)))
    return clips


def sync_offset(pairs: Sequence[Pair]) -> tuple[float, float]:
    """(offset in seconds, correlation there) of (mouth, sound) pairs that share one offset; within `WIDEST_S`.

    Positive means that the sound is early, and so the picture late (ITU-R BT.1359: noticed from +0.045 and -0.125 on).
    The correlations of all clips are summed before the peak is looked for: one clip of 4 s is off by 20 ms (standard
    deviation), one of 10 s by 15 ms. (NaN, NaN) if no clip has a moving mouth and a voice. A low correlation (below
    .3, say) means that mouth and voice have nothing to do with each other, whatever the offset is.
    """
    clips = _usable(pairs)
    if not clips:
        return float("nan"), float("nan")
    widest = round(WIDEST_S * SAMPLE_RATE / HOP)
    shared, power, frames = np.zeros(2 * widest + 1), np.zeros(2 * widest + 1), 0
    for mouth_F, opening_N in clips:
        seen = np.flatnonzero(np.isfinite(mouth_F))
        padded_N = np.pad(opening_N, widest, mode="edge")  # every frame counts at every lag
        frames += len(seen)
        for lag in range(2 * widest + 1):
            called_F = padded_N[seen * HOPS + HOPS // 2 + lag]
            shared[lag] += mouth_F[seen] @ (called_F - called_F.mean())
            power[lag] += called_F.var() * len(seen)
    # standardised mouths have a power of one per frame
    correlation = shared / np.sqrt(np.maximum(power * frames, 1e-9))
    best = int(correlation.argmax())
    top, finer = float(correlation[best]), 0.0
    if 0 < best < 2 * widest:  # a parabola through three points finds the peak between them
        left, right = correlation[best - 1], correlation[best + 1]
        finer = float(0.5 * (left - right) / min(left - 2 * top + right, -1e-9))
    return float(-(best + np.clip(finer, -0.5, 0.5) - widest) * HOP / SAMPLE_RATE), top


def sync_scores(mouth_F: np.ndarray, audio_T: np.ndarray) -> dict[str, float]:
    """How a mouth follows its voice as it is played, both on one clock.

    correlation     of the mouth with the opening that the sound calls for, at zero lag, over the whole clip
    aperture_error  root of the mean squared difference of the two, both standardised, over speech; rendered truth has
                    .75 to .90, chance 1.41

    A mouth that does not move while there is a voice has the scores of chance. NaN where nothing can be measured: no
    voice, or a mouth that is not seen for a second.
    """
    mouth_F = np.asarray(mouth_F, float)[: len(audio_T) // SAMPLES_PER_FRAME]
    speaks_F = frames_in(speech_of(np.nan_to_num(audio_T)), len(mouth_F))
    seen_F = np.isfinite(mouth_F)
    if seen_F.sum() < SHORTEST or not (seen_F & speaks_F).any():
        return {"correlation": float("nan"), "aperture_error": float("nan")}
    called_F = mouth_from_sound(audio_T)[: len(mouth_F)].astype(float)
    within = seen_F & speaks_F
    return {
        "correlation": _correlation(mouth_F[seen_F], called_F[seen_F]),
        # the mean squared difference of two standardised tracks
        "aperture_error": float(np.sqrt(2 - 2 * _correlation(mouth_F[within], called_F[within]))),
    }


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """0 if one of them never changes."""
    if a_N.std() < STILL or b_N.std() < 1e-9:
        return 0.0
    return float(np.clip(np.mean((a_N - a_N.mean()) * (b_N - b_N.mean())) / (a_N.std() * b_N.std()), -1, 1))

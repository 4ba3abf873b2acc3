"""What a voice returns: samples with the exact time of every word and phoneme.

`Speech`         audio, words, phonemes of one utterance
`resample`       band-limited change of sample rate
`level_speech`   sets the loudness measured over the voiced part
"""

from dataclasses import dataclass, replace

import numpy as np

from wan_streamer.units import SAMPLE_RATE

SILENT = frozenset({"", " ", "_", "_:", "^", "$", ".", ",", "!", "?", ";", ":", "-", "ˈ", "ˌ", "ː"})
"""Symbols of the synthesisers that make no sound of their own."""


@dataclass(frozen=True)
class TimedWord:
    """A word as written (punctuation kept), start and end in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class TimedPhoneme:
    """One IPA symbol, start and end in seconds."""

    symbol: str
    start: float
    end: float


@dataclass(frozen=True)
class Speech:
    """One utterance.

    audio     float32 [T], mono, 24 kHz
    words     in order, inside the audio, never overlapping
    phonemes  in order; silences between them are not listed
    """

    text: str
    audio: np.ndarray
    words: tuple[TimedWord, ...]
    phonemes: tuple[TimedPhoneme, ...]

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE

    def trimmed(self, lead: float = 0.04, tail: float = 0.10) -> "Speech":
        """The same utterance with at most `lead` seconds before and `tail` seconds after its phonemes."""
        if not self.phonemes:
            return self
        first = max(0, round((self.phonemes[0].start - lead) * SAMPLE_RATE))
        last = min(len(self.audio), round((self.phonemes[-1].end + tail) * SAMPLE_RATE))
        return replace(self, audio=fade(self.audio[first:last])).shifted(-first / SAMPLE_RATE, last - first)

    def shifted(self, seconds: float, samples: int) -> "Speech":
        """Labels moved by `seconds`, then limited to a clip of `samples`; the audio is left as it is."""
        end = samples / SAMPLE_RATE

        def clip(time: float) -> float:
            return round(min(max(time + seconds, 0.0), end), 4)

        return replace(
            self,
            words=tuple(TimedWord(w.text, clip(w.start), clip(w.end)) for w in self.words),
            phonemes=tuple(TimedPhoneme(p.symbol, clip(p.start), clip(p.end)) for p in self.phonemes),
        )


def join(first: Speech, second: Speech, pause: float) -> tuple[Speech, float, float]:
    """Two utterances as one with `pause` seconds of silence between their sounds; also where that silence lies."""
    start = first.phonemes[-1].end
    end = round(start + pause, 4)
    offset = round((end - second.phonemes[0].start) * SAMPLE_RATE)
    audio_T = np.zeros(max(offset + len(second.audio), len(first.audio)), np.float32)
    audio_T[: len(first.audio)] += first.audio
    audio_T[offset:][: len(second.audio)] += second.audio
    moved = second.shifted(offset / SAMPLE_RATE, len(audio_T))
    text = f"{first.text} {second.text}"
    return Speech(text, audio_T, first.words + moved.words, first.phonemes + moved.phonemes), start, end


def fade(audio_T: np.ndarray, seconds: float = 0.008) -> np.ndarray:
    """A copy whose ends rise from and fall to zero, so that cuts never click."""
    count = min(round(seconds * SAMPLE_RATE), len(audio_T) // 2)
    if count == 0:
        return audio_T.astype(np.float32)
    ramp = (0.5 - 0.5 * np.cos(np.pi * np.arange(count) / count)).astype(np.float32)
    faded_T = audio_T.astype(np.float32).copy()
    faded_T[:count] *= ramp
    faded_T[-count:] *= ramp[::-1]
    return faded_T


def resample(audio_T: np.ndarray, rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Band-limited resampling of a whole clip in the frequency domain; float32 out."""
    if rate == target or len(audio_T) == 0:
        return audio_T.astype(np.float32)
    step = rate // np.gcd(rate, target)
    padded = -(-(len(audio_T) + 64) // step) * step  # a whole number of periods keeps the ratio exact
    spectrum = np.fft.rfft(audio_T.astype(np.float64), padded)
    longer = padded * target // rate
    out_T = np.fft.irfft(spectrum[: longer // 2 + 1], longer) * (longer / padded)
    return out_T[: round(len(audio_T) * target / rate)].astype(np.float32)


def level_speech(audio_T: np.ndarray, dbfs: float) -> np.ndarray:
    """Scale so that the RMS over 20 ms blocks that carry speech is `dbfs`; peaks stay below 0.97."""
    block = SAMPLE_RATE // 50
    count = len(audio_T) // block
    if count == 0:
        return audio_T.astype(np.float32)
    power = np.mean(audio_T[: count * block].reshape(count, block).astype(np.float64) ** 2, axis=1)
    loud = power[power > power.max() * 1e-3]
    if len(loud) == 0 or loud.mean() <= 0:
        return audio_T.astype(np.float32)
    out_T = audio_T * (10 ** (dbfs / 20) / np.sqrt(loud.mean()))
    return (out_T * min(1.0, 0.97 / max(float(np.abs(out_T).max()), 1e-9))).astype(np.float32)

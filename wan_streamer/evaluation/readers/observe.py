"""A recording becomes an observation: when the agent is heard, what it says, what its face does."""

from collections.abc import Callable

import numpy as np

from wan_streamer.data.voice_activity import EnergyMeter, find_speech
from wan_streamer.evaluation.readers.face import read_face
from wan_streamer.evaluation.records import Observation, Recording, Span
from wan_streamer.simulation.voice.speech import TimedWord
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_FRAME

LOWEST_DB = -90.0
PADDING = 0.35  # seconds around speech that a recogniser is given

Recognise = Callable[[np.ndarray], list[tuple[str, float, float]]]
Predict = Callable[[np.ndarray], float]
Read = Callable[[np.ndarray], dict[str, np.ndarray]]


class Observer:
    """Turns recordings into observations.

    recognise  sound -> timed words;   predict  sound -> opinion score;   read  frames -> tracks of the face

    Pictures that repeat in a recording are read once, and speech that repeats in any is recognised once: blind agents
    show few and say little.
    """

    def __init__(
        self, recognise: Recognise | None = None, predict: Predict | None = None, read: Read = read_face
    ) -> None:
        self.recognise, self.predict, self.read = recognise, predict, read
        self.heard: dict[int, list[tuple[str, float, float]]] = {}  # by the sound

    def __call__(self, recording: Recording, words: bool = True) -> Observation:
        """`words=False` spares the recogniser where nobody asks what was said."""
        audio_T = recording.audio
        speech = speech_of(audio_T)
        voice_T, starts = _together(audio_T, speech)
        heard = self._words(voice_T) if words and speech else []
        return Observation(
            seconds=recording.seconds,
            speech=speech,
            words=[TimedWord(text, _moved(start, starts), _moved(end, starts)) for text, start, end in heard],
            said="".join(text for _, text in recording.text).strip(),
            transcript="".join(text for _, text in recording.transcript).strip(),
            loudness=loudness(audio_T),
            tracks={} if recording.video is None else self._tracks(recording.video),
            audio=np.round(audio_T.clip(-1, 1) * 32767).astype(np.int16),
            stage_ms=recording.stage_ms,
            mos=self.predict(voice_T) if self.predict and words and len(voice_T) >= SAMPLE_RATE else None,
            text=recording.text,
        )

    def _words(self, voice_T: np.ndarray) -> list[tuple[str, float, float]]:
        if self.recognise is None:
            return []
        key = hash(voice_T.tobytes())
        if key not in self.heard:
            self.heard[key] = self.recognise(voice_T)
        return self.heard[key]

    def _tracks(self, frames_THWC: np.ndarray) -> dict[str, np.ndarray]:
        keys = [hash(frame.tobytes()) for frame in frames_THWC]
        frame_of = {key: at for at, key in enumerate(keys)}
        unique = sorted(frame_of.values())
        order = {at: row for row, at in enumerate(unique)}
        rows = [order[frame_of[key]] for key in keys]
        tracks = {name: values[rows] for name, values in self.read(frames_THWC[unique]).items()}
        return tracks | {"change": change(frames_THWC)}


def speech_of(audio_T: np.ndarray) -> list[Span]:
    """When a clean track is heard."""
    meter = EnergyMeter()
    meter.add(audio_T)
    return find_speech(meter.levels())


def loudness(audio_T: np.ndarray) -> np.ndarray:
    """dB of every video frame's sound, float32 [F]."""
    whole = len(audio_T) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME
    power_F = np.square(audio_T[:whole].reshape(-1, SAMPLES_PER_FRAME)).mean(1)
    return (10 * np.log10(np.maximum(power_F, 10 ** (LOWEST_DB / 10)))).astype(np.float32)


def change(frames_THWC: np.ndarray) -> np.ndarray:
    """Mean absolute difference to the frame before, 0..1, float32 [F]; the first frame has 0."""
    out_T = np.zeros(len(frames_THWC), np.float32)
    for at in range(1, len(frames_THWC)):
        out_T[at] = np.abs(frames_THWC[at].astype(np.int16) - frames_THWC[at - 1]).mean() / 255
    return out_T


def _together(audio_T: np.ndarray, speech: list[Span]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The speech without the long silences, in which recognisers hear things and lose words, and where every part
    begins: (seconds there, seconds in the recording)."""
    parts, starts, at = [], [], 0
    for start, end in speech:
        first = max(0, round((start - PADDING) * SAMPLE_RATE))
        part = audio_T[first : round((end + PADDING) * SAMPLE_RATE)]
        starts.append((at / SAMPLE_RATE, first / SAMPLE_RATE))
        parts.append(part)
        at += len(part)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32), starts


def _moved(time: float, starts: list[tuple[float, float]]) -> float:
    """A time in the joined speech on the clock of the recording."""
    there, here = next((pair for pair in reversed(starts) if pair[0] <= time), starts[0])
    return time - there + here

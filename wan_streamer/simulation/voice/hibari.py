"""Many natural speakers from one voice, fast: hibari, distilled from Kokoro's `af_heart`.

`HibariVoice`  one of them, with the same `speak` as `UserVoice`

The network gives pitch and spectral envelopes, 12.5 ms at a time, before the signal is made. Another pitch, a shorter
or longer vocal tract (the envelopes moved in frequency) and another tilt make another speaker, who speaks as well as
the first. One core makes some forty seconds of speech a second, so nothing is cached.
"""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.files import parse_json
from wan_streamer.simulation.voice.agent import session_options, with_output
from wan_streamer.simulation.voice.natural import MAX_TOKENS, spell, timed_sounds
from wan_streamer.simulation.voice.speech import Speech, level_speech

FRAME = 0.025  # seconds, of the durations
DURATIONS = "/Clip_output_0"  # frames of every token, inside the network
PITCH = (-1.0, 0.3)  # octaves, of a voice at some 200 Hz: men to high women
TRACT_OF_PITCH = 0.22  # octaves that formants go along with an octave of pitch, as from women to men
TRACT = 0.08  # octaves that they differ besides
TILT = (-6.0, 4.0)  # dB from 0 to 6 kHz
SPEEDS = (0.85, 1.25)
RANGE = (0.6, 1.5)  # of the melody: the pitch's distance from its mean


@dataclass(frozen=True)
class HibariVoice:
    """One speaker.

    pitch   octaves above the original;  melody  how far the pitch moves, 1 as in the original
    tract   octaves that the formants lie higher (a shorter vocal tract);  tilt  dB at 6 kHz
    speed   1 as the original
    """

    pitch: float = 0.0
    melody: float = 1.0
    tract: float = 0.0
    tilt: float = 0.0
    speed: float = 1.0
    dbfs: float = -21.0

    @staticmethod
    def sample(rng: np.random.Generator) -> "HibariVoice":
        """A random speaker."""
        pitch = float(rng.uniform(*PITCH))
        numbers = (
            pitch,
            float(rng.uniform(*RANGE)),
            TRACT_OF_PITCH * pitch + float(rng.uniform(-TRACT, TRACT)),
            float(rng.uniform(*TILT)),
            float(rng.uniform(*SPEEDS)),
            float(rng.uniform(-25.0, -18.0)),
        )
        return HibariVoice(*(round(number, 3) for number in numbers))

    def speak(self, text: str, rng: np.random.Generator | None = None) -> Speech:
        """Synthesise `text`, a pure function; `rng` varies speed and level a little, as people do."""
        speed, dbfs = self.speed, self.dbfs
        if rng is not None:
            speed, dbfs = speed * float(rng.uniform(0.95, 1.05)), dbfs + float(rng.uniform(-1.5, 1.5))
        network = _network()
        sounds = spell(text, "en-us", frozenset(network.vocabulary))
        tokens = [network.vocabulary[c] for sound in sounds for c in sound.tokens]
        if not 1 <= len(tokens) <= MAX_TOKENS:
            raise ConfigError(f"text: expected something to say of at most {MAX_TOKENS} sounds, got {len(tokens)}")
        audio_T, frames = self._sound(network, tokens, speed)
        edges = np.cumsum(np.concatenate([[0], frames.reshape(-1)])) * FRAME
        return timed_sounds(text, level_speech(audio_T, dbfs), sounds, edges[1:])

    def _sound(self, network: "_Network", tokens: list[int], speed: float) -> tuple[np.ndarray, np.ndarray]:
        from hibari import dsp

        *spectra, f0, frames = network.session.run(
            ["lh", "theta", "ln", "lr", "phi", "f0", DURATIONS],
            {"ids": np.array([[0, *tokens, 0]], np.int64), "speed": np.array([speed], np.float32)},
        )
        lh, theta, ln, lr, phi = (part[0] for part in spectra)
        bins = np.arange(len(lh))
        source = np.clip(bins / 2**self.tract, 0, len(lh) - 1)
        nearest = source.round().astype(int)
        tilt = (np.log(10) / 20 * self.tilt * np.minimum(bins / (len(lh) / 2), 1))[:, None].astype(np.float32)

        def moved(envelope: np.ndarray) -> np.ndarray:
            low = source.astype(int)
            part = (source - low)[:, None].astype(np.float32)
            return envelope[low] * (1 - part) + envelope[np.minimum(low + 1, len(lh) - 1)] * part + tilt

        rng = np.random.default_rng(tokens)
        pitch = self._melody(f0[0])
        return dsp.synth(moved(lh), theta[nearest], moved(ln), moved(lr), phi[nearest], pitch, rng), frames

    def _melody(self, f0_F: np.ndarray) -> np.ndarray:
        voiced = f0_F > 40
        if not voiced.any():
            return f0_F
        octaves = np.log2(np.maximum(f0_F, 40))
        mean = octaves[voiced].mean()
        return np.where(voiced, 2 ** (mean + self.melody * (octaves - mean) + self.pitch), f0_F).astype(np.float32)

    def labels(self) -> dict:
        """What the labels of an episode say about the speaker."""
        return {"engine": "hibari", **asdict(self)}


@dataclass(frozen=True)
class _Network:
    session: Any
    vocabulary: dict[str, int]


@functools.cache
def _network() -> _Network:
    import onnxruntime
    from hibari.voices import ASSETS

    model = with_output((Path(ASSETS) / "hibari.onnx").read_bytes(), DURATIONS.encode())
    onnxruntime.set_seed(0)
    session = onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
    return _Network(session, parse_json((Path(ASSETS) / "vocab.json").read_bytes()))

"""Streams to learn to hear from: clips of the corpus one after the other, as they arrive in a call.

`StreamConfig`   how streams are made
`Stream`         one of them: what the ears hear, and which clip is where
`StreamMaker`    makes row `row` of step `step`, a pure function of those, the seed and the corpus

A clip is placed with a gap, a level, a speed (which moves pitch and formants too: another speaker), an equaliser. The
stream then goes through a room, noise, other people, the agent's echo, a microphone and a call, see
`wan_streamer.simulation.sound.microphone`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from wan_streamer.errors import ConfigError, DataError
from wan_streamer.simulation.sound.microphone import background, capture, speech_rms
from wan_streamer.simulation.sound.noises import fast_size
from wan_streamer.training.ears.corpus import Clip, Words, load_corpus, pieces, read_clip
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_S

SHARES = MappingProxyType(
    {"hibari": 0.45, "kokoro": 0.15, "espeak": 0.1, "orders": 0.1, "extra": 0.08, "reader": 0.06, "piper": 0.06}
)
OTHER_SHARE = 0.1


@dataclass(frozen=True)
class StreamConfig:
    """How streams are made.

    units       of a stream
    shares      how often a clip of a kind is taken (of others: `OTHER_SHARE`); in a kind, the longer the oftener
    gaps        units of silence between clips, drawn alike
    gain_db     level of a clip;  level_db  of the stream
    speed       clips are this much faster or slower, logarithmically
    equalised   share of clips;  tilt_db  at seven frequencies
    degraded    strength of `capture`: 2 puts every stream through room, noise, microphone or call
    noisy       share of streams with more noise, snr_db above it
    babble, echo  share of streams that may have other people or the agent's voice in them
    agents      kind whose clips are the agent's voice
    timed       take only clips whose words have times
    """

    units: int = 68
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    gaps: tuple[int, ...] = (0, 0, 1, 2, 4, 8, 20)
    gain_db: tuple[float, float] = (-6.0, 3.0)
    level_db: tuple[float, float] = (-14.0, 5.0)
    speed: float = 0.11
    equalised: float = 0.25
    tilt_db: tuple[float, float] = (-9.0, 6.0)
    degraded: float = 1.2
    noisy: float = 0.25
    snr_db: tuple[float, float] = (8.0, 30.0)
    babble: float = 0.3
    echo: float = 0.3
    agents: str = "piper"
    timed: bool = False


@dataclass(frozen=True)
class Placed:
    """A clip in a stream.

    first    unit
    clean_T  its samples, a whole number of units, as the teacher hears it
    words    (word, start, end) in seconds from the start of the stream; () if unknown
    """

    clip: Clip
    first: int
    clean_T: np.ndarray
    words: Words = ()

    @property
    def units(self) -> int:
        return len(self.clean_T) // SAMPLES_PER_UNIT


@dataclass(frozen=True)
class Stream:
    """audio_T float32 [units x 3 840] at 24 kHz, and the clips in it, in order and apart from each other."""

    audio_T: np.ndarray
    placed: tuple[Placed, ...]


class StreamMaker:
    """Streams of one split. Raises `ConfigError` or `DataError`."""

    def __init__(self, folder: str | Path, split: str, config: StreamConfig, seed: int) -> None:
        if config.units < 1 or not config.gaps:
            raise ConfigError(f"units, gaps: expected at least one of each, got {config.units} and {config.gaps}")
        self.folder, self.split, self.config, self.seed = Path(folder), split, config, seed
        self.reload()

    def reload(self) -> None:
        """Look at the corpus again: it may have grown."""
        config = self.config
        longest = (config.units - 1) * SAMPLES_PER_UNIT * math.exp(-config.speed) - SAMPLES_PER_UNIT
        known = load_corpus(self.folder, self.split, heard=True)
        whole = (c for c in known if c.text and (c.words or not self.config.timed))
        clips = [piece for c in whole for piece in pieces(c, int(longest))]
        if not clips:
            raise DataError(f"{self.folder}: expected clips with a text that fit {config.units} units, found none")
        self.clips = sorted(clips, key=lambda clip: clip.samples)
        self.samples_N = np.array([clip.samples for clip in self.clips])
        roots_N, kinds_N = np.sqrt(self.samples_N), np.array([clip.kind for clip in self.clips])
        parts = {name: config.shares.get(name, OTHER_SHARE) / roots_N[kinds_N == name].sum() for name in set(kinds_N)}
        self.sums_N = np.cumsum(roots_N * np.array([parts[name] for name in kinds_N]))
        self.agents = [clip for clip in self.clips if clip.kind == config.agents]

    def make(self, step: int, row: int) -> Stream:
        c, rng = self.config, np.random.default_rng((self.seed, step, row))
        audio_T = np.zeros(c.units * SAMPLES_PER_UNIT, np.float32)
        at, placed = int(rng.integers(0, 11)), []
        while (clip := self._draw(c.units - at, rng)) is not None:
            clean_T, words = self._played(clip, at, rng)
            one = Placed(clip, at, clean_T, words)
            placed.append(one)
            heard_T = clean_T * np.float32(10 ** (rng.uniform(*c.gain_db) / 20))
            if rng.random() < c.equalised:
                heard_T = equalise(heard_T, rng, c.tilt_db)
            audio_T[at * SAMPLES_PER_UNIT :][: len(heard_T)] += heard_T
            at += one.units + int(rng.choice(c.gaps))
        return Stream(self._captured(audio_T, rng), tuple(placed))

    def _draw(self, units: int, rng: np.random.Generator) -> Clip | None:
        """A clip that surely fits so many units at any speed, with the unit that its start may be moved by."""
        limit = (units - 1) * SAMPLES_PER_UNIT * math.exp(-self.config.speed) - SAMPLES_PER_UNIT
        count = int(np.searchsorted(self.samples_N, limit, "right"))
        if count == 0:
            return None
        return self.clips[int(np.searchsorted(self.sums_N[:count], rng.random() * self.sums_N[count - 1]))]

    def _played(self, clip: Clip, at: int, rng: np.random.Generator) -> tuple[np.ndarray, Words]:
        """Its samples at some speed, begun somewhere in unit `at`, up to a whole number of units; and its words."""
        speed = math.exp(rng.uniform(-1, 1) * self.config.speed)
        audio_T = stretch(read_clip(self.folder, clip), speed)
        before = int(rng.integers(SAMPLES_PER_UNIT))
        start = at * UNIT_S + before / SAMPLE_RATE
        words = tuple((word, start + first / speed, start + last / speed) for word, first, last in clip.words)
        return np.pad(audio_T, (before, -(before + len(audio_T)) % SAMPLES_PER_UNIT)), words

    def _captured(self, audio_T: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        c, level = self.config, speech_rms(audio_T)
        echo_T = self._filled(self.agents, len(audio_T), rng) if self.agents and rng.random() < c.echo else None
        others = self._babble if rng.random() < c.babble else None
        audio_T, _ = capture(audio_T, rng, echo_T, c.degraded, others)
        if rng.random() < c.noisy:
            loud_T, _ = background(np.zeros_like(audio_T), 1.0, rng, None, str(rng.choice(["white", "pink", "brown"])))
            wanted = level * 10 ** (-rng.uniform(*c.snr_db) / 20)
            audio_T = audio_T + loud_T * np.float32(wanted / max(float(np.sqrt(np.mean(np.square(loud_T)))), 1e-9))
        return np.clip(audio_T * np.float32(10 ** (rng.uniform(*c.level_db) / 20)), -1, 1).astype(np.float32)

    def _filled(self, clips: list[Clip], samples: int, rng: np.random.Generator) -> np.ndarray:
        """Clips one after the other, with pauses."""
        pieces: list[np.ndarray] = [np.zeros(int(rng.integers(SAMPLE_RATE)), np.float32)]
        while sum(len(piece) for piece in pieces) < samples:
            pieces.append(read_clip(self.folder, clips[int(rng.integers(len(clips)))]))
            pieces.append(np.zeros(int(rng.integers(SAMPLE_RATE // 4, SAMPLE_RATE)), np.float32))
        return np.concatenate(pieces)[:samples]

    def _babble(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """One to three other people who talk."""
        people = [self._filled(self.clips, samples, rng) for _ in range(int(rng.integers(1, 4)))]
        return np.stack(people).sum(0)


def stretch(audio_T: np.ndarray, speed: float) -> np.ndarray:
    """Played `speed` times as fast, pitch with it; band-limited."""
    size = fast_size(len(audio_T) + 64)
    made = round(size / speed / 2) * 2
    spectrum = np.fft.rfft(audio_T, size)
    spectrum = np.pad(spectrum, (0, max(0, made // 2 + 1 - len(spectrum))))[: made // 2 + 1]
    return (np.fft.irfft(spectrum, made) * (made / size))[: round(len(audio_T) * made / size)].astype(np.float32)


def equalise(audio_T: np.ndarray, rng: np.random.Generator, tilt_db: tuple[float, float]) -> np.ndarray:
    """Louder and softer at seven frequencies up to 8.4 kHz."""
    size = fast_size(len(audio_T) + 2400)
    spectrum = np.fft.rfft(audio_T, size)
    hz = np.linspace(0, SAMPLE_RATE / 2, len(spectrum))
    gain_db = np.interp(hz, np.linspace(0, 8400, 7), rng.uniform(*tilt_db, 7))
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), size)[: len(audio_T)].astype(np.float32)

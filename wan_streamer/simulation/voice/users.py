"""The voices of the simulated world.

`AgentVoice`  one natural voice (Piper, "joe"), see `agent`
`UserVoice`   many speakers: accent, variant, pitch and rate of espeak-ng, called as a library with phoneme events;
              speakers whom a recogniser does not understand are left out (`voice_errors.json`)

Both return `Speech`. Synthesisers are needed only here (`pip install wan-streamer[simulate]`), never by the runtime.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.files import parse_json
from wan_streamer.simulation.voice.agent import AGENT_DBFS, AgentVoice
from wan_streamer.simulation.voice.espeak import Espeak, match_words
from wan_streamer.simulation.voice.speech import SILENT, Speech, TimedPhoneme, level_speech, resample
from wan_streamer.units import SAMPLE_RATE

__all__ = [
    "ACCENTS", "AGENT_DBFS", "ERRORS_FILE", "MAX_ERROR", "VARIANTS", "AgentVoice", "UserVoice", "clear_speakers_of",
    "speakers_of",
]  # fmt: skip

ERRORS_FILE = Path(__file__).with_name("voice_errors.json")
"""Word error of every accent with every speaker, measured by scripts/voice_table.py."""
MAX_ERROR = 0.2
"""Word error above which a voice is not used: leaves out the worst 45 of 448 (median 0.09), one speaker wholly."""

ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = (
    "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Alex", "Alicia", "Andrea", "Andy",
    "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Reed",
    "adam", "anika", "announcer", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward",
    "grandma", "grandpa", "gustave", "ian", "iven", "john", "kaukovalta", "linda", "marcelo", "max", "miguel", "pablo",
    "paul", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)  # fmt: skip
"""Speakers of espeak-ng without the robots, whispers and monsters."""


def speakers_of(split: str) -> tuple[str, ...]:
    """The speakers that only this split uses."""
    remainders = {"train": (0, 1, 2, 3, 4, 5), "valid": (6,), "test": (7,)}
    if split not in remainders:
        raise ConfigError(f"split: expected train, valid or test, got {split!r}")
    return tuple(name for i, name in enumerate(VARIANTS) if i % 8 in remainders[split])


@functools.cache
def clear_speakers_of(split: str, accent: str) -> tuple[str, ...]:
    """Those speakers of `split` who can be understood with this accent."""
    errors = parse_json(ERRORS_FILE.read_bytes())
    return tuple(name for name in speakers_of(split) if errors[f"{accent}+{name}"] <= MAX_ERROR)


@dataclass(frozen=True)
class UserVoice:
    """One espeak-ng speaker. pitch and pitch_range 0..100, rate in words per minute."""

    accent: str
    variant: str
    pitch: int = 50
    pitch_range: int = 50
    rate: int = 165
    dbfs: float = -21.0

    @staticmethod
    def sample(rng: np.random.Generator, split: str = "train") -> "UserVoice":
        """A random speaker that belongs to `split` and can be understood."""
        accent = str(rng.choice(ACCENTS))
        return UserVoice(
            accent=accent,
            variant=str(rng.choice(clear_speakers_of(split, accent))),
            pitch=int(rng.integers(35, 66)),
            pitch_range=int(rng.integers(35, 75)),
            rate=int(rng.integers(140, 186)),
            dbfs=float(np.round(rng.uniform(-25.0, -18.0), 2)),
        )

    def speak(self, text: str, rng: np.random.Generator | None = None, language: str = "en") -> Speech:
        """Synthesise `text`, a pure function; `rng` may vary rate and pitch a little, as people do.

        language  "en" is said with the speaker's accent; any other is a language of espeak-ng
        """
        pitch, rate = self.pitch, self.rate
        if rng is not None:
            pitch, rate = pitch + int(rng.integers(-4, 5)), rate + int(rng.integers(-10, 11))
        with Espeak.lock:
            audio_T, native, events = Espeak.get().synthesise(
                text, f"{self.accent if language == 'en' else language}+{self.variant}", pitch, self.pitch_range, rate
            )
        audio_T = level_speech(resample(audio_T, native), self.dbfs)
        return _from_events(text, audio_T, native, events, language)


def _from_events(
    text: str, audio_T: np.ndarray, rate: int, events: list[tuple[str, int, int, str]], language: str
) -> Speech:
    phonemes: list[TimedPhoneme] = []
    spans: list[list[float]] = []
    sounds: list[int] = []
    for i, (kind, sample, _, symbol) in enumerate(events):
        if kind == "word":
            spans.append([sample / rate, sample / rate])
            sounds.append(0)
        elif kind == "phoneme" and symbol.strip("ˈˌː_ ") not in SILENT:
            following = next((s for k, s, _, _ in events[i + 1 :] if k != "word"), len(audio_T) * rate // SAMPLE_RATE)
            if following > sample:
                phonemes.append(TimedPhoneme(symbol.strip("ˈˌ"), sample / rate, following / rate))
                if spans:
                    if spans[-1][1] == spans[-1][0]:
                        spans[-1][0] = sample / rate
                    spans[-1][1] = following / rate
                    sounds[-1] += 1
    spoken = [(a, b) for a, b in spans if b > a]
    speech = Speech(
        text, audio_T, match_words(text, spoken, [n for n in sounds if n], language) if spoken else (), tuple(phonemes)
    )
    return speech.shifted(0.0, len(audio_T)).trimmed()

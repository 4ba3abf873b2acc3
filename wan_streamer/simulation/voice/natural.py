"""Natural voices for the simulated users: Kokoro-82M (int8, ONNX), with exact words and phonemes. Optional.

`NaturalVoices`  the model and its voices in a local folder, and the cache of what was synthesised
`NaturalVoice`   one of them as a speaker, with the same `speak` as `UserVoice`
`belongs`        a fixed random part of all (voice, text) pairs, for worlds that cannot afford them all

`scripts/fetch_kokoro.sh DIR` fills the folder. One core makes 1.5 to 3 seconds of speech per second, so everything is
synthesised once. The same machine gives the same samples again, bit by bit (one thread, fixed seed); another
processor may round differently, so between machines the cache is the truth.
"""

import functools
import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.files import parse_json
from wan_streamer.simulation.voice.agent import load_renderings, save_renderings, session_options, with_output
from wan_streamer.simulation.voice.espeak import Espeak, match_words
from wan_streamer.simulation.voice.speech import Speech, TimedPhoneme, TimedWord, level_speech
from wan_streamer.units import SAMPLE_RATE

VERSION = 1  # of the renderings; part of the cache key
CACHED_DBFS = -21.0
FRAME = 0.025  # seconds, the grid of the model's durations
LABEL_LAG = 0.05  # seconds; the durations were measured to run this late
AUDIBLE = 0.01  # RMS of 5 ms against the peak of the utterance
SHORTEST = 0.04  # seconds that a sound before a pause keeps
PAUSES = frozenset(",.!?;:")
MAX_TOKENS = 500
SPEEDS = (0.9, 1.15)
VOICES = (
    "af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_nova", "af_river",
    "af_sarah", "af_sky", "am_adam", "am_echo", "am_eric", "am_fenrir", "am_liam", "am_michael", "am_onyx", "am_puck",
    "am_santa", "bf_alice", "bf_emma", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_george", "bm_lewis",
)  # fmt: skip
"""American (a) and British (b), female (f) and male (m)."""
HELD_OUT = {
    "valid": ("af_nova", "am_liam", "bf_lily", "bm_fable"),
    "test": ("af_kore", "am_eric", "bf_alice", "bm_lewis"),
}

# espeak's IPA in the symbols that Kokoro was trained on; applied in this order inside one sound
_BOTH = (("dʒ", "ʤ"), ("tʃ", "ʧ"), ("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W"), ("ɔɪ", "Y"), ("g", "ɡ"), ("r", "ɹ"),
         ("ʔ", "t"), ("x", "k"), ("əl", "ᵊl"), ("n̩", "ᵊn"), ("l̩", "ᵊl"), ("ᵻ", "ɪ"), ("̩", ""), ("̃", ""))  # fmt: skip
_SYMBOLS = {
    "en-us": (
        *_BOTH,
        ("oʊ", "O"),
        ("ɜː", "ɜɹ"),
        ("ɚ", "əɹ"),
        ("ɐ", "ə"),
        ("ɾ", "T"),
        ("oː", "ɔ"),
        ("ː", ""),
        ("a", "æ"),
    ),
    "en": (*_BOTH, ("əʊ", "Q"), ("eə", "ɛː"), ("iə", "ɪə"), ("ɾ", "t")),
}


def natural_speakers_of(split: str) -> tuple[str, ...]:
    """The voices that only this split uses: 20 for train, 4 for valid, 4 for test."""
    if split == "train":
        return tuple(v for v in VOICES if not any(v in names for names in HELD_OUT.values()))
    if split not in HELD_OUT:
        raise ConfigError(f"split: expected train, valid or test, got {split!r}")
    return HELD_OUT[split]


def belongs(voice: str, text: str, share: float) -> bool:
    """Whether this pair is among a fixed random `share` (0..1) of all pairs; a larger share keeps the smaller one."""
    return int(hashlib.sha256(f"{voice}|{text}".encode()).hexdigest()[:8], 16) < share * 2**32


@dataclass(frozen=True)
class NaturalVoice:
    """One speaker. `speak` has the contract of `UserVoice.speak`."""

    name: str
    library: "NaturalVoices" = field(repr=False, compare=False)
    dbfs: float = CACHED_DBFS

    def speak(self, text: str, rng: np.random.Generator | None = None) -> Speech:
        """The cached rendering of `text`, synthesised if need be; `rng` varies the level a little, as people do."""
        speech = self.library.rendering(self.name, text)
        dbfs = self.dbfs + (0.0 if rng is None else float(rng.uniform(-1.5, 1.5)))
        return replace(speech, audio=level_speech(speech.audio, dbfs))

    def labels(self) -> dict:
        """What the labels of an episode say about the speaker."""
        return {"engine": "kokoro", "name": self.name, "dbfs": self.dbfs}


class NaturalVoices:
    """Kokoro-82M in a folder: `kokoro.onnx`, `vocab.json`, `voices/*.bin`.

    cache  folder for the renderings (created)

    A rendering is a pure function of (voice, text). Raises `ConfigError` if the folder is not complete.
    """

    def __init__(self, folder: str | Path, cache: str | Path) -> None:
        self.folder, self.cache = Path(folder), Path(cache)
        needed = [self.folder / "kokoro.onnx", self.folder / "vocab.json", *(self._path(v) for v in VOICES)]
        missing = [p for p in needed if not p.is_file()]
        if missing:
            raise ConfigError(
                f"natural voices: expected {missing[0]}, found nothing; run scripts/fetch_kokoro.sh {self.folder}"
            )

    def sample(self, rng: np.random.Generator, split: str = "train") -> NaturalVoice:
        """A random speaker that belongs to `split`."""
        name = str(rng.choice(natural_speakers_of(split)))
        return NaturalVoice(name, self, float(np.round(rng.uniform(-25.0, -18.0), 2)))

    def rendering(self, voice: str, text: str) -> Speech:
        """`text` in `voice`, about -21 dBFS, from the cache or synthesised now.

        "A+B+B" is a speaker of its own: the mean of the styles of A, B and B.
        """
        unknown = [name for name in voice.split("+") if name not in VOICES]
        if unknown:
            raise ConfigError(f"voice: expected one of {', '.join(VOICES)} or a blend A+B, got {voice!r}")
        digest = hashlib.sha256(f"kokoro|{VERSION}|{voice}|{text}".encode()).hexdigest()
        path = self.cache / f"{digest[:20]}.npz"
        if not path.is_file():
            speed = SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * int(digest[-8:], 16) / 2**32
            save_renderings(path, [self._synthesise(voice, text, round(speed, 3))])
        return load_renderings(path, text)[0]

    def _path(self, voice: str) -> Path:
        return self.folder / "voices" / f"{voice}.bin"

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        path = self.folder / "vocab.json"
        try:
            return parse_json(path.read_bytes())["vocab"]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: expected the vocabulary of Kokoro as JSON ({error}); fetch it again") from error

    @functools.cached_property
    def _session(self) -> Any:
        import onnxruntime

        model = with_output((self.folder / "kokoro.onnx").read_bytes(), b"/encoder/Clip_output_0")  # frames per token
        onnxruntime.set_seed(0)
        return onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])

    def _synthesise(self, voice: str, text: str, speed: float) -> Speech:
        sounds = spell(text, "en-us" if voice.startswith("a") else "en", frozenset(self._vocabulary))
        tokens = [self._vocabulary[c] for sound in sounds for c in sound.tokens]
        if not 1 <= len(tokens) <= MAX_TOKENS:
            raise ConfigError(f"text: expected something to say of at most {MAX_TOKENS} sounds, got {len(tokens)}")
        styles = [np.fromfile(self._path(name), np.float32).reshape(-1, 256) for name in voice.split("+")]
        style_TD = np.mean(styles, axis=0)
        audio_T, frames = self._session.run(
            ["audio", "/encoder/Clip_output_0"],
            {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": style_TD[None, len(tokens) - 1],
                "speed": np.array([speed], np.float32),
            },
        )
        edges = np.cumsum(np.concatenate([[0], frames.reshape(-1)])) * FRAME - LABEL_LAG  # of token i, i + 1
        return timed_sounds(text, level_speech(audio_T, CACHED_DBFS), sounds, edges[1:])


@dataclass(frozen=True)
class Sound:
    """One phoneme, pause or mark of a text.

    tokens  Kokoro's symbols, one character each
    ipa     espeak's symbol, "" for pauses and marks
    word    number of the spoken word, -1 outside words
    clause  number of the clause
    """

    tokens: str
    ipa: str
    word: int
    clause: int


_CLAUSE = re.compile(r"[^,.!?;:]+[,.!?;:]*")


def _clauses(text: str) -> list[str]:
    return [clause for match in _CLAUSE.findall(text) if (clause := match.strip())]


def spell(text: str, language: str, known: frozenset[str]) -> list[Sound]:
    """The sounds of a text for Kokoro, from espeak's phonemes. `known` holds the model's symbols."""
    sounds: list[Sound] = []
    word = 0
    for number, clause in enumerate(_clauses(text)):
        with Espeak.lock:
            spoken = Espeak.get().phonemes(clause, language)
        for phonemes in spoken:
            if sounds:
                sounds.append(Sound(" ", "", -1, number))
            for ipa in phonemes:
                symbols = ipa
                for old, new in _SYMBOLS[language]:
                    symbols = symbols.replace(old, new)
                symbols = "".join(c for c in symbols if c in known)
                if symbols:
                    sounds.append(Sound(symbols, ipa.strip("ˈˌː"), word, number))
            word += 1
        if clause[-1] in PAUSES and spoken:
            sounds.append(Sound(clause[-1], "", -1, number))
    return sounds


def timed_sounds(text: str, audio_T: np.ndarray, sounds: list[Sound], edges: np.ndarray) -> Speech:
    """Words and phonemes from the edges (seconds) of every token."""
    at = np.cumsum([0] + [len(sound.tokens) for sound in sounds])
    clauses = _clauses(text)
    phonemes: list[TimedPhoneme] = []
    words: list[TimedWord] = []
    spans: dict[int, dict[int, list[TimedPhoneme]]] = {}
    for i, sound in enumerate(sounds):
        if not sound.ipa:
            continue
        start, end = float(edges[at[i]]), float(edges[at[i + 1]])
        if i + 1 == len(sounds) or sounds[i + 1].tokens in PAUSES:
            end = _audible_end(audio_T, start, end)
        phonemes.append(TimedPhoneme(sound.ipa, start, end))
        spans.setdefault(sound.clause, {}).setdefault(sound.word, []).append(phonemes[-1])
    for number, spoken in spans.items():
        ends = [(group[0].start, group[-1].end) for group in spoken.values()]
        words += match_words(clauses[number], ends, [len(group) for group in spoken.values()])
    return Speech(text, audio_T, tuple(words), tuple(phonemes)).shifted(0.0, len(audio_T)).trimmed()


def _audible_end(audio_T: np.ndarray, start: float, end: float) -> float:
    """Where a sound before a pause dies away; the model counts much of the pause to the sound (median 0.25 s)."""
    block = SAMPLE_RATE // 200
    first, count = round(start * SAMPLE_RATE), round((end - start) * 200)
    blocks = audio_T[first : first + count * block]
    blocks = blocks[: len(blocks) // block * block].reshape(-1, block)
    loud = np.flatnonzero(np.sqrt(np.square(blocks).mean(1)) > AUDIBLE * np.abs(audio_T).max())
    return min(end, start + max(SHORTEST, (loud[-1] + 1) / 200 if len(loud) else 0.0))

"""Makes the corpus: many voices that say many sentences, and people.

`make_corpus`   adds utterances of one source until it has so many minutes
`whole_plan`    what a corpus is made of, given the folders that there are;   `make_plan`   makes it
`SOURCES`       what there is: hibari, Kokoro, Piper, espeak-ng, flite (test only), and folders of recordings

Every utterance is a pure function of (source, number); a stopped run goes on with the next number. Synthesisers and
recordings are needed for training only.
"""

import functools
import hashlib
import itertools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wan_streamer.data.cluster import Engine, run_jobs
from wan_streamer.data.media import read_sound
from wan_streamer.errors import ConfigError, DataError
from wan_streamer.files import parse_json
from wan_streamer.simulation.voice.hibari import HibariVoice
from wan_streamer.simulation.voice.natural import HELD_OUT, NaturalVoices, natural_speakers_of
from wan_streamer.simulation.voice.speech import Speech, level_speech
from wan_streamer.simulation.voice.users import AgentVoice, UserVoice
from wan_streamer.training.ears.corpus import CorpusWriter, Words
from wan_streamer.training.ears.heard import transcribe_corpus
from wan_streamer.training.ears.texts import for_test, load_sentences
from wan_streamer.units import SAMPLE_RATE

DBFS = -21.0
MINUTES = {"piper": 20.0, "hibari": 300.0, "espeak": 60.0}
"""Of the synthesisers that need texts alone; the slowest first."""
PART = 10.0
"""Most minutes of a file, so that several processes make a source."""
FLITE = ("awb", "kal16", "rms", "slt")
KINDS = {"topical": 0.4, "meetings": 0.3, "orders": 0.2, "chat": 0.1}
"""How often a synthesised sentence is of this kind."""
BLENDED = 2
"""Most voices that are mixed into another."""
TEST_ALSO = ("bm_fable",)
"""Of Kokoro, a test voice beside those that the simulator keeps for its tests."""
SPLITS = {"train": 0.92, "valid": 0.02, "test": 0.06}
"""How often a synthesised utterance belongs to this split."""
HUMAN_SPLITS = {"test": 0.15, "valid": 0.03}
"""Shares of recordings, by a hash of the file's name."""
READER_TEST = 0.2
"""Of the reader's clips, the last by name: by its scores, an earlier training kept them out (`docs/hearing.md`)."""

Said = tuple[np.ndarray, str, str, str, str, Words]
"""float32 [T] at 24 kHz, voice, text, split, slots, words: what `CorpusWriter.add` takes."""


@dataclass(frozen=True)
class Folders:
    """Where things are.

    texts   `ami/words.tsv.gz` and `talk/*` (every synthesiser)
    people  `commands/*.opus` with `labels.json`, `reader/*.opus` with `transcripts.tsv`
    kokoro  what scripts/fetch_kokoro.sh wrote
    extra   recordings without texts: one folder of sound files, each a few seconds
    split   of synthesised utterances, None for a mixture
    """

    texts: Path | None = None
    people: Path | None = None
    kokoro: Path | None = None
    extra: Path | None = None
    split: str | None = None


def make_corpus(
    out_dir: str | Path,
    source: str,
    folders: Folders,
    minutes: float,
    name: str | None = None,
    split: str | None = None,
) -> float:
    """Add utterances of `source` to `out_dir` until it has `minutes` or no more; returns how many minutes it has.

    name   of the files, if another than the source's (so that two runs may write side by side)
    split  what synthesised utterances all belong to, None for the usual mixture

    Raises `ConfigError` for an unknown source or a missing folder, `DataError` if a file is not what it should be.
    """
    if source not in SOURCES:
        raise ConfigError(f"source: expected one of {', '.join(SOURCES)}, got {source!r}")
    writer = CorpusWriter(out_dir, name or source)
    seed = int(hashlib.sha256((name or source).encode()).hexdigest()[:7], 16)
    utterances = SOURCES[source](replace(folders, split=split), seed, writer.count)
    while writer.end / SAMPLE_RATE < 60 * minutes and (said := next(utterances, None)) is not None:
        writer.add(*said)
    return writer.end / SAMPLE_RATE / 60


@dataclass(frozen=True)
class Part:
    """Files of a corpus: what `make_corpus` takes."""

    name: str
    source: str
    minutes: float
    split: str | None = None


def whole_plan(folders: Folders, hours: float | None = None) -> list[Part]:
    """All that `folders` allow, in parts of at most `PART` minutes; `hours` of the fast natural voices."""
    plan: dict[str, tuple[str, float, str | None]] = {}
    if folders.people is not None:
        plan |= {source: (source, math.inf, None) for source in ("reader", "orders")}
    if folders.extra is not None:
        plan["extra"] = ("extra", math.inf, None)
    if folders.texts is not None:
        if folders.kokoro is not None:
            plan |= {"kokoro": ("kokoro", 30, None), "kokoro-test": ("kokoro", 4.5, "test")}
        plan |= {source: (source, minutes, None) for source, minutes in MINUTES.items()}
        if hours is not None:
            plan["hibari"] = ("hibari", 60 * hours, None)
        if shutil.which("flite"):
            plan["flite"] = ("flite", 5, None)
    return [
        Part(name if number == 0 else f"{name}-{number}", source, minutes / count, split)
        for name, (source, minutes, split) in plan.items()
        for count in [math.ceil(minutes / PART) if math.isfinite(minutes) else 1]
        for number in range(count)
    ]


def make_plan(
    out_dir: Path, plan: Sequence[Part], folders: Folders, engine: Engine | None = None
) -> Iterator[tuple[Part, float]]:
    """Make the parts of a corpus, and write down what is said where nobody has. Yields each and its minutes."""
    job = functools.partial(_make_part, out_dir, tuple(plan), folders)
    for number, minutes in run_jobs(job, range(len(plan)), engine or Engine()):
        yield plan[number], minutes


def _make_part(out_dir: Path, plan: Sequence[Part], folders: Folders, number: int) -> tuple[int, float]:
    part = plan[number]
    minutes = make_corpus(out_dir, part.source, folders, part.minutes, part.name, part.split)
    if part.source in ("orders", "extra", "reader"):
        transcribe_corpus(out_dir, part.name)
    return number, minutes


def _need(folder: Path | None, what: str) -> Path:
    if folder is None or not folder.is_dir():
        raise ConfigError(f"{what}: expected a folder, got {folder}")
    return folder


@functools.cache  # for all parts that a process makes: reading them takes as long as an hour of espeak-ng
def _by_split(texts: Path) -> dict[bool, dict[str, list[str]]]:
    """Sentences by whether they are for tests, and by kind."""
    known = load_sentences(texts).items()
    return {test: {kind: [s for s in said if for_test(s) == test] for kind, said in known} for test in (False, True)}


class _Sentences:
    """Which split and which sentence utterance `number` has."""

    def __init__(self, folders: Folders, seed: int) -> None:
        self.seed, self.split = seed, folders.split
        self.by_split = _by_split(_need(folders.texts, "texts"))

    def draw(self, number: int) -> tuple[str, str, np.random.Generator]:
        rng = np.random.default_rng((self.seed, number))
        split = self.split or str(rng.choice(list(SPLITS), p=list(SPLITS.values())))
        sentences = self.by_split[split != "train"][str(rng.choice(list(KINDS), p=list(KINDS.values())))]
        return split, sentences[int(rng.integers(len(sentences)))], rng


def _spoken(speech: Speech, voice: str, split: str) -> Said:
    words = tuple((word.text, word.start, word.end) for word in speech.words)
    return level_speech(speech.audio, DBFS), voice, speech.text, split, "", words


def kokoro_voices(split: str) -> tuple[str, ...]:
    """The voices of Kokoro that only this split uses: the simulator's, and one more of them in the test."""
    names = natural_speakers_of(split)
    if split == "train":
        return names
    others = tuple(voice for voice in HELD_OUT["valid"] if voice in TEST_ALSO)
    return (*names, *others) if split == "test" else tuple(voice for voice in names if voice not in others)


def _speaker(names: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of the voices, or more often a blend of up to three of one accent: there are too few to learn from alone."""
    first = str(rng.choice(names))
    alike = [name for name in names if name[0] == first[0]]
    others = rng.choice(alike, size=int(rng.integers(0, BLENDED + 1)))
    return "+".join([first, *map(str, others)])


def _kokoro(folders: Folders, seed: int, first: int) -> Iterator[Said]:
    sentences = _Sentences(folders, seed)
    with tempfile.TemporaryDirectory() as cache:
        voices = NaturalVoices(_need(folders.kokoro, "kokoro"), cache)
        for number in itertools.count(first):
            split, text, rng = sentences.draw(number)
            voice = _speaker(kokoro_voices(split), rng)
            yield _spoken(voices.rendering(voice, text), voice, split)
            for path in Path(cache).iterdir():
                path.unlink()


def _piper(folders: Folders, seed: int, first: int) -> Iterator[Said]:
    sentences = _Sentences(folders, seed)
    with tempfile.TemporaryDirectory() as cache:
        voice = AgentVoice(cache, variants=1)
        for number in itertools.count(first):
            split, text, rng = sentences.draw(number)
            yield _spoken(voice.speak(text, rng), "joe", split)
            for path in Path(cache).iterdir():
                path.unlink()


def _hibari(folders: Folders, seed: int, first: int) -> Iterator[Said]:
    """A new speaker in every sentence; all of them for training, since one voice is behind them."""
    sentences = _Sentences(replace(folders, split="train"), seed)
    for number in itertools.count(first):
        split, text, rng = sentences.draw(number)
        voice = HibariVoice.sample(rng)
        yield _spoken(voice.speak(text), f"{voice.pitch}/{voice.tract}", split)


def _espeak(folders: Folders, seed: int, first: int) -> Iterator[Said]:
    sentences = _Sentences(folders, seed)
    for number in itertools.count(first):
        split, text, rng = sentences.draw(number)
        voice = UserVoice.sample(rng, split)
        yield _spoken(voice.speak(text), f"{voice.accent}+{voice.variant}", split)


def _flite(folders: Folders, seed: int, first: int) -> Iterator[Said]:
    """Four voices of a synthesiser that is never trained on."""
    if shutil.which("flite") is None:
        raise ConfigError("source flite: expected the program flite, found none; install it with the system's packages")
    sentences = _Sentences(replace(folders, split="test"), seed)
    with tempfile.TemporaryDirectory() as folder:
        for number in itertools.count(first):
            _, text, _ = sentences.draw(number)
            voice, path = FLITE[number % len(FLITE)], Path(folder) / "said.wav"
            subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True, capture_output=True)
            yield level_speech(read_sound(path), DBFS), voice, text, "test", "", ()


def human_split(name: str) -> str:
    """The split of a recording, a fixed random choice by the name of its file."""
    place = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
    if place < HUMAN_SPLITS["test"]:
        return "test"
    return "valid" if place < HUMAN_SPLITS["test"] + HUMAN_SPLITS["valid"] else "train"


def _recordings(
    folder: Path, first: int, said: dict[str, tuple[str, str]], voice: str, split_of: Callable[[str], str] = human_split
) -> Iterator[Said]:
    """Sound files in the order of their names; `said` has text and slots by the stem of the name."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SOUNDS)
    if not paths:
        raise DataError(f"{folder}: expected sound files, found none")
    for path in paths[first:]:
        text, slots = said.get(path.stem, ("", ""))
        who = voice or path.parent.name
        yield level_speech(read_sound(path), DBFS), who, text, split_of(path.stem), slots, ()


SOUNDS = frozenset({".opus", ".ogg", ".wav", ".flac", ".g722"})


def _orders(folders: Folders, seed: int, first: int) -> Iterator[Said]:
    folder = _need(folders.people, "people") / "commands"
    try:
        labels = parse_json((folder / "labels.json").read_bytes())
        said = {Path(name).stem: ("", " ".join(what["slots"].values())) for name, what in labels.items()}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: expected labels.json with the slots of every clip ({error})") from error
    yield from _recordings(folder, first, said, "")


def _reader(folders: Folders, seed: int, first: int) -> Iterator[Said]:
    folder = _need(folders.people, "people") / "reader"
    try:
        lines = (folder / "transcripts.tsv").read_text(encoding="utf-8").splitlines()[1:]
        said = {name: (text, "") for name, text in (line.split("\t") for line in lines)}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: expected transcripts.tsv with a clip and its text a line ({error})") from error
    names = sorted(said)
    kept = frozenset(names[round((1 - READER_TEST) * len(names)) :])
    yield from _recordings(folder, first, said, "reader", lambda name: "test" if name in kept else "train")


def _extra(folders: Folders, seed: int, first: int) -> Iterator[Said]:
    yield from _recordings(_need(folders.extra, "extra"), first, {}, "")


SOURCES: dict[str, Callable[[Folders, int, int], Iterator[Said]]] = {
    "hibari": _hibari, "kokoro": _kokoro, "piper": _piper, "espeak": _espeak, "flite": _flite, "orders": _orders,
    "reader": _reader, "extra": _extra,
}  # fmt: skip

"""Trials of hearing alone: somebody says a few sentences, nobody looks, and the transcript lane is read.

`VOICES`        kind of voice -> whose, and what it says
`sources_of`    kinds of voice that a machine has: without a corpus (`docs/hearing.md`) only espeak-ng
`hear_trial`    sentences of one kind, as a microphone picks them up
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from wan_streamer.data.shards import SCHEMA, Episode, episode_key
from wan_streamer.errors import DataError
from wan_streamer.evaluation.suite.unseen import unseen_texts
from wan_streamer.simulation.conversation.dialogue import episode_rng
from wan_streamer.simulation.conversation.repertoire import any_wording
from wan_streamer.simulation.sound.microphone import capture
from wan_streamer.simulation.voice.users import UserVoice
from wan_streamer.training.ears.corpus import load_corpus, read_clip
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT

SPLIT = "test"
SENTENCES = 3
LEAD, GAPS = 0.8, (1.2, 2.4)  # seconds of silence before the first sentence, and after each
LONGEST_S = 12.0  # clips of a corpus that are longer are left out


@dataclass(frozen=True)
class Voice:
    """source  of a corpus, "" for espeak-ng;   known  whether it says sentences of the training world"""

    source: str = ""
    known: bool = False


VOICES: dict[str, Voice] = {
    "own": Voice(known=True),
    "espeak": Voice(),
    "kokoro": Voice("kokoro-test"),
    "flite": Voice("flite"),
    "reader": Voice("reader"),
    "orders": Voice("orders"),
}
"""own: an unseen speaker of the simulator says its sentences. espeak: free sentences. The others come from a corpus; of
people's orders only some words are known."""


def sources_of(speech: Path | None) -> tuple[str, ...]:
    """Kinds of voice for which there is sound. Raises `DataError` if the corpus has none of its own."""
    if speech is None:
        return tuple(name for name, voice in VOICES.items() if not voice.source)
    found = tuple(
        name for name, voice in VOICES.items() if not voice.source or (speech / f"{voice.source}.jsonl").is_file()
    )
    if not any(VOICES[name].source for name in found):
        names = ", ".join(voice.source for voice in VOICES.values() if voice.source)
        raise DataError(f"{speech}: expected a corpus with {names} or some of them, found none; see docs/hearing.md")
    return found


@dataclass(frozen=True)
class _Said:
    audio_T: np.ndarray
    text: str
    slots: str = ""


def hear_trial(kind: str, seed: int, number: int, index: int, speech: Path | None) -> Episode:
    """The episode of trial `number` of a kind of voice: the user's sound and what was said, no agent, no picture.

    Words carry the time span of their sentence; of an order, they are those that are known.

    Raises `DataError` if the corpus is damaged.
    """
    rng, voice = episode_rng(seed, SPLIT, index, 1), VOICES[kind]
    if voice.source:
        assert speech is not None
        said = _of_corpus(speech, voice.source, seed, number)
    else:
        speaker, texts = UserVoice.sample(rng, SPLIT), unseen_texts()
        wanted = [any_wording(rng) if voice.known else texts[int(rng.integers(len(texts)))] for _ in range(SENTENCES)]
        said = [_Said(speaker.speak(text, rng).audio, text) for text in wanted]
    pieces, events, words, at = [np.zeros(round(LEAD * SAMPLE_RATE), np.float32)], [], [], LEAD
    for one in said:
        end = at + len(one.audio_T) / SAMPLE_RATE
        span = {"start": round(at, 4), "end": round(end, 4)}
        events.append({"type": "speech", "side": "user", "label": one.slots, **span})
        words += [{"text": word, **span} for word in (one.text or one.slots).split()]
        rest = float(rng.uniform(*GAPS))
        pieces += [one.audio_T, np.zeros(round(rest * SAMPLE_RATE), np.float32)]
        at = sum(map(len, pieces)) / SAMPLE_RATE
    user_T = np.concatenate(pieces)
    user_T = np.pad(user_T, (0, -len(user_T) % SAMPLES_PER_UNIT))
    user_T, microphone = capture(user_T, rng)
    labels = {
        "schema": SCHEMA, "generator": "hearing", "seed": seed, "split": SPLIT, "index": index,
        "units": len(user_T) // SAMPLES_PER_UNIT, "scenarios": [kind], "events": events,
        "words": {"user": words, "agent": []}, "user": {"voice": asdict(voice), "microphone": microphone},
    }  # fmt: skip
    return Episode(episode_key(index), user_T, np.zeros_like(user_T), None, None, labels)


def _of_corpus(folder: Path, source: str, seed: int, number: int) -> list[_Said]:
    """The next sentences of a corpus, in an order that depends on the seed alone; from the begin again at its end."""
    clips = [c for c in load_corpus(folder, SPLIT, [source]) if c.seconds <= LONGEST_S and (c.text or c.slots)]
    if len(clips) < SENTENCES:
        raise DataError(f"{folder}: expected {SENTENCES} test clips of {source}, found {len(clips)}")
    order = np.random.default_rng(seed).permutation(len(clips))
    chosen = [clips[int(order[(number * SENTENCES + i) % len(clips)])] for i in range(SENTENCES)]
    return [_Said(read_clip(folder, clip), clip.text, clip.slots) for clip in chosen]

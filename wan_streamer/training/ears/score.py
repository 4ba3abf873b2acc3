"""How many words get through the ears, read by the frozen original decoder from features alone.

`words_wrong`    substitutions, insertions and deletions of one text
`Score`          a share of so many words
`score_hearing`  a table for ears or teacher: voices, noise, orders
`score_endless`  the same clips alone and in one long stream

The decoder was made for the teacher's features: what it reads from the ears' shows how near they are. A text counts as
wrong at most as a whole.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wan_streamer.perception.ears import Ears
from wan_streamer.training.ears.corpus import Clip, load_corpus, read_clip
from wan_streamer.training.ears.heard import LONGEST, padded
from wan_streamer.training.ears.moonshine import Tokenizer
from wan_streamer.training.ears.reader import Decoder
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT

FIGURES = {
    "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine",
    "10": "ten", "12": "twelve", "16": "sixteen", "20": "twenty",
}  # fmt: skip
GAPS = (0, 5, 30, 125, 300, 5, 60, 125)
"""Units of near silence between the clips of the endless stream: up to 48 s."""
FAINT = 3e-4
BATCH = 16

Hear = Callable[[Tensor], Tensor]
"""float32 [T] at 24 kHz, whole units -> features [frames, D]."""


@dataclass(frozen=True)
class Score:
    """`count` of `words`, and of how many clips."""

    count: int
    words: int
    clips: int

    @property
    def share(self) -> float:
        return self.count / max(1, self.words)


def normal_words(text: str) -> list[str]:
    """Lower-case words without marks, small figures spelt."""
    words = re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("\u2019", "'")).split()
    return [FIGURES.get(word, word) for word in words]


def words_wrong(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein distance over words, at most the length of the reference."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != other))
    return min(row[-1], len(reference))


def slots_right(slots: str, heard: Sequence[str]) -> int:
    """How many of the words that must be there are there."""
    return sum(word in heard for word in normal_words(slots))


@torch.no_grad()
def read_features(reader: Decoder, tokenizer: Tokenizer, features: Sequence[Tensor]) -> list[list[str]]:
    """Words of every clip; features [frames, D] each."""
    order = sorted(range(len(features)), key=lambda i: len(features[i]))
    texts: dict[int, list[str]] = {}
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        rows = [features[i].float() for i in chosen]
        tokens = reader.transcribe(
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])
        )
        texts |= {i: normal_words(tokenizer.decode(row)) for i, row in zip(chosen, tokens, strict=True)}
    return [texts[i] for i in range(len(features))]


def with_noise(audio_T: np.ndarray, snr_db: float, seed: int) -> np.ndarray:
    """White noise `snr_db` below the clip's own RMS."""
    noise_T = np.random.default_rng(seed).standard_normal(len(audio_T), np.float32)
    return audio_T + noise_T * np.float32(np.sqrt(np.mean(np.square(audio_T))) * 10 ** (-snr_db / 20))


def scored_clips(folder: str | Path, source: str, most: int | None = None) -> list[Clip]:
    """Test clips of a source that can be scored, the first `most` of them."""
    clips = load_corpus(folder, "test", [source], heard=True)
    return [clip for clip in clips if clip.seconds <= LONGEST and (clip.text or clip.slots)][:most]


@torch.no_grad()
def score_hearing(
    hear: Hear,
    reader: Decoder,
    tokenizer: Tokenizer,
    folder: str | Path,
    sources: Iterable[str],
    most: int | None = None,
    snr_db: float | None = None,
) -> dict[str, Score]:
    """Words wrong of every source in the split "test" of a corpus; of clips with slots, slot words right.

    most    clips of a source at most;  snr_db  white noise

    Raises `DataError` if a source has no test clips.
    """
    table = {}
    for source in sources:
        clips = scored_clips(folder, source, most)
        sounds = [read_clip(folder, clip) for clip in clips]
        if snr_db is not None:
            sounds = [with_noise(sound_T, snr_db, i) for i, sound_T in enumerate(sounds)]
        texts = read_features(reader, tokenizer, [hear(padded(sound_T)) for sound_T in sounds])
        table[source] = _count(clips, texts)
    return table


def _count(clips: Sequence[Clip], texts: Sequence[Sequence[str]]) -> Score:
    count = words = 0
    for clip, heard in zip(clips, texts, strict=True):
        reference = normal_words(clip.slots or clip.text)
        words += len(reference)
        count += slots_right(clip.slots, heard) if clip.slots else words_wrong(reference, heard)
    return Score(count, words, len(clips))


@torch.no_grad()
def score_endless(
    ears: Ears, reader: Decoder, tokenizer: Tokenizer, folder: str | Path, clips: Sequence[Clip], seed: int = 0
) -> tuple[Score, Score, float]:
    """Words wrong of clips alone and in one stream, unit by unit, with gaps of up to 48 s; its length in seconds."""
    rng = np.random.default_rng(seed)
    state, alone, late, units = None, [], [], 0
    frames = ears.config.frames
    for number, clip in enumerate(clips):
        gap = GAPS[number % len(GAPS)]
        sound_T = padded(read_clip(folder, clip))
        alone.append(ears(sound_T[None])[0][0])
        silence_T = rng.standard_normal(gap * SAMPLES_PER_UNIT, np.float32) * np.float32(FAINT)
        whole_T = torch.cat([torch.from_numpy(silence_T), sound_T])
        pieces = []
        for unit_T in whole_T.split(SAMPLES_PER_UNIT):
            features_BTD, state = ears(unit_T[None], state)
            pieces.append(features_BTD[0])
        units += len(pieces)
        late.append(torch.cat(pieces)[gap * frames :])
    scores = [_count(clips, read_features(reader, tokenizer, features)) for features in (alone, late)]
    return scores[0], scores[1], units * SAMPLES_PER_UNIT / SAMPLE_RATE

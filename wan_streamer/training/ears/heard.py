"""What the full-context teacher hears in recordings that nobody wrote down, and when words are said.

`padded`              samples up to a whole number of units
`transcribe_corpus`   writes `NAME.heard.json` for a source
`align`               when each of some words is said, from where the reader looks
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wan_streamer.config import EarsConfig
from wan_streamer.training.ears.corpus import Words, read_clip, read_index, save_heard
from wan_streamer.training.ears.moonshine import Tokenizer
from wan_streamer.training.ears.reader import Decoder, load_reader
from wan_streamer.training.ears.teacher import Teacher
from wan_streamer.units import SAMPLES_PER_UNIT, UNIT_S

LONGEST = 16.0
"""Seconds; longer recordings are left without text, and so out of training."""
SILENT = 0.05
"""Level below that of speech, of a frame in which nothing is said."""


def padded(audio_T: np.ndarray) -> Tensor:
    """float32 [T] with silence behind it up to a whole number of units."""
    return F.pad(torch.from_numpy(audio_T), (0, -len(audio_T) % SAMPLES_PER_UNIT))


def transcribe_corpus(folder: str | Path, source: str) -> int:
    """Listen to every utterance of `source` that has no text or no times of its words; returns how many there are."""
    teacher, reader, tokenizer = Teacher(), load_reader(), Tokenizer()
    heard: dict[str, Words] = {}
    for clip in read_index(Path(folder) / f"{source}.jsonl"):
        if not clip.words and clip.seconds <= LONGEST:
            audio_T = padded(read_clip(folder, clip))
            features_TD = teacher(audio_T[None])[-1][0]
            text = clip.text
            if not text:
                tokens = reader.transcribe(features_TD[None], torch.tensor([len(features_TD)]))[0]
                text = tokenizer.decode(tokens)
            heard[str(clip.start)] = align(reader, tokenizer, features_TD, text, audio_T)
    save_heard(folder, source, heard)
    return len(heard)


def align(reader: Decoder, tokenizer: Tokenizer, features_TD: Tensor, text: str, audio_T: Tensor) -> Words:
    """When the words of `text` are said: (word, start, end) in seconds. `audio_T` is what the features were made of.

    Attention to the sound, averaged over all layers and heads, is followed along the monotonic path that sees most of
    it; silence at the ends of a word's part of the path is left out (figures: docs/decisions.md, 65).
    """
    words = text.split()
    tokens = [tokenizer.encode(word) for word in words]
    if not words:
        return ()
    seen_NT = reader.attention(features_TD, [number for word in tokens for number in word])
    owner_T = _path(seen_NT.double().numpy())
    level_T = F.adaptive_avg_pool1d(audio_T.square()[None], len(owner_T))[0].sqrt().numpy()
    loud_T = level_T > SILENT * np.quantile(level_T, 0.9)
    frame_s, first, placed = UNIT_S / EarsConfig().frames, 0, []
    for word, count in zip(words, map(len, tokens), strict=True):
        mine_T = (owner_T >= first) & (owner_T < first + count)
        frames = np.flatnonzero(mine_T & loud_T if (mine_T & loud_T).any() else mine_T)
        if len(frames):
            placed.append((word, float(frames[0] * frame_s), float((frames[-1] + 1) * frame_s)))
        first += count
    return tuple(placed)


def _path(seen_NT: np.ndarray) -> np.ndarray:
    """Which of N tokens each of T frames belongs to, never falling, each of the tokens at least once if T allows it."""
    N, T = seen_NT.shape
    best_NT, stays_NT = np.full((N, T), -np.inf), np.zeros((N, T), bool)
    best_NT[0, 0] = seen_NT[0, 0]
    for t in range(1, T):
        before_N = np.concatenate([[-np.inf], best_NT[:-1, t - 1]])
        stays_NT[:, t] = best_NT[:, t - 1] >= before_N
        best_NT[:, t] = np.maximum(best_NT[:, t - 1], before_N) + seen_NT[:, t]
    owner_T = np.zeros(T, int)
    owner_T[-1] = N - 1 if np.isfinite(best_NT[-1, -1]) else int(np.argmax(best_NT[:, -1]))
    for t in range(T - 1, 0, -1):
        owner_T[t - 1] = owner_T[t] - (not stays_NT[owner_T[t], t])
    return owner_T

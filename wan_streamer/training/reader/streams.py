"""Streams of speech -> what a reader has to find in every unit.

`Due`         a batch
`DueStreams`  batches of streams as the ears are trained on (`training/ears/data.py`), whose words have times
`DueTalks`    batches of encoded conversations in which the user is heard
`misread`     the same with words in the place of others, as an agent writes them down
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wan_streamer.codecs.text import END, SILENCE, TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.data.latents import LatentStore
from wan_streamer.errors import DataError
from wan_streamer.model.layout import LANES
from wan_streamer.training.ears.data import Stream, StreamConfig, StreamMaker
from wan_streamer.training.examples.heard import EASIER, labels_of

UNITS = 68
LATE = 0.3  # share of streams that are written down a unit later than they could be
IGNORED = -100
TRANSCRIPT = LANES.index("transcript")


class Due(NamedTuple):
    """A batch of B streams of K units.

    heard_BX     float32 [B, K x 3840] at 24 kHz, or what ears made of it [B, K, tokens, features]
    written_BKS  int64, the transcript
    due_BKG      int64: tokens that are due and not written before the unit, then END if that is all; then `IGNORED`
    """

    heard_BX: Tensor
    written_BKS: Tensor
    due_BKG: Tensor


class DueStreams:
    """Streams of one split of the corpus in `folder`. Raises `DataError`."""

    def __init__(self, folder: Path, split: str, config: StreamerConfig, text: TextCodec, seed: int) -> None:
        settings: dict[str, Any] = {"units": UNITS, "timed": True, **EASIER}
        self.streams = StreamMaker(folder, split, StreamConfig(**settings), seed)
        self.config, self.text, self.seed = config, text, seed

    def batch(self, step: int, rows: range) -> Due:
        """These rows of the batch of `step`."""
        return _stacked(self._row(step, row) for row in rows)

    def _row(self, step: int, row: int) -> Due:
        stream: Stream = self.streams.make(step, row)
        later = np.random.default_rng((self.seed, step, row, 1)).random() < LATE
        return _written(torch.from_numpy(stream.audio_T), self.lane(stream), int(later), self.config.perception.reading)

    def lane(self, stream: Stream) -> np.ndarray:
        """Its transcript [K, S]."""
        return conversation_lanes(labels_of(stream), self.config.text, self.text)[1][..., TRANSCRIPT]


class DueTalks:
    """Stretches of the conversations in `folder`; `ears` is the fingerprint of who has to have heard them.

    Raises `DataError` if others did.
    """

    def __init__(self, folder: Path, ears: str, config: StreamerConfig, text: TextCodec, seed: int) -> None:
        self.store = LatentStore(folder, None)
        if self.store.hears and self.store.senses["ears"] != ears:
            raise DataError(f"{folder}: ears {self.store.senses['ears']}, expected {ears}; encode it with the agent's")
        self.config, self.text, self.seed = config, text, seed
        self.lanes = functools.lru_cache(maxsize=4096)(self._lane)

    def _lane(self, number: int) -> np.ndarray:
        return conversation_lanes(self.store.labels[number], self.config.text, self.text)[1][..., TRANSCRIPT]

    def batch(self, step: int, rows: range) -> Due:
        """These rows of the batch of `step`."""
        return _stacked(self._row(np.random.default_rng((self.seed, step, row, 2))) for row in rows)

    def _row(self, rng: np.random.Generator) -> Due:
        number = int(rng.integers(len(self.store.paths)))
        lane_KS = self.lanes(number)
        first = int(rng.integers(max(1, len(lane_KS) - UNITS + 1)))
        known = min(UNITS, len(lane_KS) - first)
        heard_X = self.store.heard(number, first, known)
        heard_X = F.pad(heard_X, (0, 0) * (heard_X.ndim - 1) + (0, (UNITS - known) * len(heard_X) // known))
        lane_KS = np.pad(lane_KS[first : first + known], ((0, UNITS - known), (0, 0)), constant_values=SILENCE)
        return _written(heard_X, lane_KS, int(rng.random() < LATE), self.config.perception.reading)


def _stacked(rows: Iterable[Due]) -> Due:
    return Due(*map(torch.stack, zip(*rows, strict=True)))


def _written(heard_X: Tensor, lane_KS: np.ndarray, later: int, count: int) -> Due:
    """One row, whose words are written down `later` units late."""
    written_KS = np.pad(lane_KS, ((later, 0), (0, 0)), constant_values=SILENCE)[: len(lane_KS)]
    return Due(heard_X, torch.from_numpy(written_KS), torch.from_numpy(_due(lane_KS, later, count)))


def _due(lane_KS: np.ndarray, later: int, count: int) -> np.ndarray:
    """[K, count] of a transcript that is written `later` units after `lane_KS`."""
    K, S = lane_KS.shape
    due_KG = np.full((K, count), IGNORED)
    for unit in range(K):
        slots = lane_KS[max(0, unit - later) : unit + 1].ravel()
        words = slots[slots > END][:count].tolist()
        if len(words) < min(count, S * (later + 1)):  # where all slots are full, more may be due
            words.append(END)
        due_KG[unit, : len(words)] = words
    return due_KG


def misread(written_BKS: Tensor, due_BKG: Tensor, found_BKG: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """`written_BKS` with, in so many of the places in which a word is found as another, the other."""
    wrong_BKG = (due_BKG > END) & (found_BKG > END) & (due_BKG != found_BKG)
    wrong_BKG &= torch.rand(wrong_BKG.shape, generator=rng).to(wrong_BKG.device) < share
    written_BKS = written_BKS.clone()
    for stream, unit, place in wrong_BKG.nonzero().tolist():
        near_XS = written_BKS[stream, unit : unit + 2]
        same = (near_XS == due_BKG[stream, unit, place]).nonzero()
        if len(same):
            near_XS[tuple(same[0])] = found_BKG[stream, unit, place]
    return written_BKS

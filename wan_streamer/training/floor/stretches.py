"""Encoded conversations -> what a floor learns from: what was heard, seen and written in every unit.

`Stretch`     a batch
`Stretches`   of the conversations of one folder
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wan_streamer.codecs.text import END, HOLD, SILENCE, TextCodec
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.data.latents import LatentStore
from wan_streamer.errors import DataError
from wan_streamer.model.layout import LANES
from wan_streamer.model.memory import timeline
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.senses import senses_of
from wan_streamer.speaking.floor import BRIEF, kind_of
from wan_streamer.training.examples.clips import told
from wan_streamer.training.examples.misheard import Heard
from wan_streamer.units import UNIT_S

RESPONSE, TRANSCRIPT = LANES.index("response"), LANES.index("transcript")
IGNORED = -100
MISREAD = 0.15  # share of the user's words that are read as others, by the floor alone
VARIANTS, MISHEARD = 3, 0.7  # in which a conversation is learned from, and how many of them are misheard by the reader
TYPED, DEAF = 0.06, 0.06  # shares of rows in which the user types, and in which only their words are known
LATE, UNITS_LATE = 0.3, 6  # share of yields that come late, so that who talks on still yields; units at most


class Stretch(NamedTuple):
    """B stretches of K units.

    heard, seen   float32 [B, K, tokens, features]
    there_BK3     bool: microphone, camera, and whether the user types
    before_BKSL   int64, tokens of the unit before each;   told_BKD  float32, what the wording makes of all before it
    slot_BKS      int64, the agent's words;   kind_BKS  what they are (`speaking/floor.py`), `IGNORED` behind the end
    """

    heard: Tensor
    seen: Tensor
    there_BK3: Tensor
    before_BKSL: Tensor
    told_BKD: Tensor
    slot_BKS: Tensor
    kind_BKS: Tensor


class Stretches:
    """Of the conversations in `folder`; what is kept as it sounded is heard by the ears of `streamer`.

    shown  nothing is heard in them

    Raises `DataError` if other ears or eyes than its own heard and saw them.
    """

    def __init__(self, folder: Path, streamer: Streamer, text: TextCodec, shown: bool) -> None:
        config = streamer.config
        self.store, self.hearing, self.wording = LatentStore(folder, None), streamer.hearing, streamer.wording
        for name, own in senses_of(config.perception, self.hearing, streamer.seeing).items():
            if self.store.senses[name] not in (own, "none"):
                raise DataError(
                    f"{folder}: {name} {self.store.senses[name]}, expected {own}; encode it with the agent's own"
                )
        self.config, self.text, self.shown = config, text, shown
        rows, columns = config.perception.video_grid
        self.seen = config.perception.video_ticks * rows * columns, config.perception.video_features
        self.units = sum(labels["units"] for labels in self.store.labels)
        self.lanes = functools.lru_cache(maxsize=32768)(self._lanes)

    def _lanes(self, number: int, typed: bool, variant: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]:
        """What the user types [units, S], both lanes [units, S, L], where the agent is a listener [units], and what the
        wording makes of the words before each unit [units, D].

        variant  0: as it is; else with what happens in calls
        """
        labels, rng = self.store.labels[number], np.random.default_rng((number, variant))
        if variant:
            labels = Heard.somehow(rng, MISHEARD).labels(labels)
        user, lanes = conversation_lanes(labels, self.config.text, self.text, typed)
        if variant:
            lanes = self._yielding_late(number, lanes, rng)
        listens = np.zeros(len(user), bool)
        for event in labels["events"]:
            if event["type"] == "backchannel" and event["side"] == "agent":
                first = int(event["start"] / UNIT_S) - self.config.text.lead_units
                listens[max(0, first) : int(event["end"] / UNIT_S) + 1] = True
        return user, lanes, listens, self._understood(labels, user, lanes)

    @torch.no_grad()
    def _understood(self, labels: dict, user: np.ndarray, lanes: np.ndarray) -> Tensor:
        """float16 [units, D]"""
        if self.wording is None:
            return torch.zeros(len(user), 0)
        before_1M2 = told(labels.get("before", ()), self.text)[None]
        written_1K = torch.ones(1, len(user), dtype=torch.bool)
        clip = torch.from_numpy(user)[None], torch.from_numpy(lanes)[None], written_1K
        said_1N2, before_1KS = timeline(before_1M2, *clip)
        return self.wording.understood(said_1N2, before_1KS[..., 0])[0].half()

    def row(self, number: int, first: int, units: int, rng: np.random.Generator | None = None) -> Stretch:
        """One stretch of a conversation, as it is, or with `rng` with what happens in calls."""
        typed, deaf, misread = (False,) * 3 if rng is None else rng.random(3) < (TYPED, DEAF, MISREAD > 0)
        variant = 0 if rng is None else int(rng.integers(1, VARIANTS + 1))
        user, lanes, listens, told_KD = self.lanes(number, bool(typed), variant)
        known = min(units, len(user) - first)
        clip = self.store.read(number, first, known)
        heard, seen = clip["user_audio"], clip.get("user_video") if self.store.sees else None
        if not self.store.hears:
            with torch.no_grad():
                heard = self.hearing(heard[None])[0][0].unflatten(0, (known, -1))
        there = torch.tensor([not (self.shown or typed or deaf), seen is not None, False]).repeat(known, 1)
        there[:, 2] = torch.from_numpy((user[first : first + known] != SILENCE).any(-1))
        slots = torch.from_numpy(lanes[first : first + known])
        before = torch.from_numpy(lanes[max(0, first - 1) : first + known - 1].copy())
        before = F.pad(before, (0, 0, 0, 0, known - len(before), 0), value=SILENCE)
        if misread and rng is not None:
            heard_KS = before[..., TRANSCRIPT]
            wrong = (heard_KS > END) & torch.from_numpy(rng.random(heard_KS.shape) < MISREAD)
            other = torch.from_numpy(rng.integers(END + 1, self.config.text.vocab_size, heard_KS.shape))
            before[..., TRANSCRIPT] = torch.where(wrong, other, heard_KS)
        kind = kind_of(slots[..., RESPONSE])
        listens_K1 = torch.from_numpy(listens[first : first + known])[:, None]
        kind = torch.where((slots[..., RESPONSE] > END) & listens_K1, BRIEF, kind)

        def whole(x: Tensor, value: int = 0) -> Tensor:
            return F.pad(x, (0, 0) * (x.ndim - 1) + (0, units - known), value=value)

        seen = torch.zeros(known, *self.seen) if seen is None else seen
        told_KD = F.pad(told_KD[first : first + known].float(), (0, 0, 0, units - known))
        sensed, slots = (whole(heard), whole(seen), whole(there)), whole(slots[..., RESPONSE])
        return Stretch(*sensed, whole(before), told_KD, slots, whole(kind, IGNORED))

    def _yielding_late(self, number: int, lanes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The lanes with some of the agent's ends, where the user breaks in, later: until then it says something."""
        lanes = lanes.copy()
        flat, slots = lanes[..., RESPONSE].copy().ravel(), lanes.shape[1]
        for event in self.store.labels[number]["events"]:
            end = int(event["start"] / UNIT_S) * slots
            later = end + slots * int(rng.integers(1, UNITS_LATE + 1))
            if event["type"] != "yield" or rng.random() >= LATE or later >= len(flat):
                continue
            if flat[end] == END and not flat[end + 1 : later + 1].any():
                flat[end:later], flat[later] = HOLD, END
        lanes[..., RESPONSE] = flat.reshape(-1, slots)
        return lanes

    def batch(self, rng: np.random.Generator, rows: int, units: int) -> Stretch:
        """`rows` random stretches."""
        parts = []
        for _ in range(rows):
            number = int(rng.integers(len(self.store.paths)))
            first = int(rng.integers(max(1, self.store.labels[number]["units"] - units + 1)))
            parts.append(self.row(number, first, units, rng))
        return stacked(parts)


def stacked(rows: list[Stretch]) -> Stretch:
    """As one batch."""
    return Stretch(*map(torch.stack, zip(*rows, strict=True)))

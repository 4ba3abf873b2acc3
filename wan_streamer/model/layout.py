"""Where every token of a unit sits: order, kind, rank and rotary position (docs/architecture.md, "Tokens of a block").

Block k, in order:

    clean agent video(k-1), clean agent audio(k-1)   rank 0       what was emitted, now history
    user audio, video, text, what is read(k)         rank 1       bidirectional among themselves
    lane starts, then slot 1, ... slot S             rank 2 ...   token-causal; both lanes share a rank
    noisy agent video(k), noisy agent audio(k)       last rank    read everything above, never committed

A query sees a key of its own block if the key's rank is not higher; noisy keys are seen by noisy queries only.
A key of an earlier block is seen while it is inside the window of its kind, or if it is a sink.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from wan_streamer.config import StreamerConfig
from wan_streamer.units import TICKS_PER_UNIT

LANES = ("response", "transcript")


class Kind(IntEnum):
    """Which history window a token falls under."""

    VIDEO = 0
    AUDIO = 1
    TEXT = 2


class Latents(NamedTuple):
    """Agent latents of one unit as model tokens: video [..., tokens, patch_dim], audio [..., 4, latent_dim]."""

    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class ClipBatch:
    """K units of B conversations, as the model is trained on them.

    video_BKNP    float [B, K + 1, video tokens, patch_dim]: standardised agent latents; entry 0 is before the clip
    audio_BKTC    float [B, K + 1, 4, latent_dim]: likewise
    user_audio    float [B, (L + K) x 3840], L `PerceptionConfig.lead_units` before the clip, or [B, 0] to leave the
                  ears out
    microphone_BK bool: False where it is off
    user_video    uint8 [B, 4 K, h, w, 3], or [B, 0, h, w, 3] to leave the eyes out;   camera_BK bool
                  Of both, also what frozen ears or eyes made of them: float [B, K, tokens, features]
    user_text_BKS int64 [B, K, S];           slot_BKSL int64 [B, K, S, lanes]
    written_BK    bool: False where the agent's own text is hidden from it (half of guidance), and then in the memory
    memory_BM2    int64 [B, M, 2]: source and token of the latest that was said before (`model/memory.py`), -1 for none
    sound_BKP     int64 [B, K + 2, 16]: the agent's sounds of speech (`speaking/sounds.py`); entry 0 is before the clip,
                  the last one behind it
    """

    video_BKNP: Tensor
    audio_BKTC: Tensor
    user_audio: Tensor
    microphone_BK: Tensor
    user_video: Tensor
    camera_BK: Tensor
    user_text_BKS: Tensor
    slot_BKSL: Tensor
    written_BK: Tensor
    memory_BM2: Tensor
    sound_BKP: Tensor


@dataclass(frozen=True)
class UnitLayout:
    """Token indices inside one block, derived once from the config.

    kind_N, rank_N       int64 [N]
    position_N3          float64 [N, 3]: tick, row and column ids relative to the first tick of unit k. Row and column
                         ids are offsets on top of the tick, so text and audio have the same id on all three axes.
    """

    kind_N: Tensor
    rank_N: Tensor
    position_N3: Tensor
    agent_video: slice
    agent_audio: slice
    user_audio: slice
    user_video: slice
    user_text: slice
    user_read: slice  # what a reader expects to be said next; may be empty
    lane_start: slice
    slots: tuple[slice, ...]  # one per slot, each holds a token per lane
    noisy_video: slice
    noisy_audio: slice

    @property
    def context(self) -> slice:
        """The tokens that enter the history."""
        return slice(0, self.noisy_video.start)

    @property
    def noisy(self) -> slice:
        return slice(self.noisy_video.start, self.noisy_audio.stop)

    def part(self, history: bool, heard: bool, seen: bool, noisy: bool, pictures: bool = True) -> "UnitLayout":
        """The same block without what the agent has made, what is heard or seen of the user, or its noisy latents,
        which nothing else sees; without `pictures` the agent makes sound alone.
        """
        kept_N = torch.zeros(len(self.kind_N), dtype=torch.bool)
        for where in self.kept(history, heard, seen, noisy, pictures):
            kept_N[where] = True

        def moved(old: slice) -> slice:
            return slice(*(int(kept_N[:edge].sum()) for edge in (old.start, old.stop)))

        slices = {f.name: moved(getattr(self, f.name)) for f in fields(self) if f.type is slice}
        return UnitLayout(
            self.kind_N[kept_N],
            self.rank_N[kept_N],
            self.position_N3[kept_N],
            slots=tuple(moved(slot) for slot in self.slots),
            **slices,
        )

    def kept(self, history: bool, heard: bool, seen: bool, noisy: bool, pictures: bool = True) -> list[slice]:
        """Which tokens `part` keeps, in order."""
        parts = [
            (self.agent_video, history and pictures),
            (self.agent_audio, history),
            (self.user_audio, heard),
            (self.user_video, seen),
            (self.user_text, True),
            (self.user_read, heard),
            (slice(self.lane_start.start, self.noisy.start), True),
            (self.noisy_video, noisy and pictures),
            (self.noisy_audio, noisy),
        ]
        return [where for where, there in parts if there]

    @property
    def clean(self) -> slice:
        """What the agent has made of the unit before."""
        return slice(0, self.agent_audio.stop)

    @property
    def opening(self) -> slice:
        """The tokens that are known when unit k of the user is complete, after those before it: user, lane starts."""
        return slice(self.agent_audio.stop, self.lane_start.stop)


def unit_layout(config: StreamerConfig) -> UnitLayout:
    """The layout of one block of `config`."""
    kinds: list[int] = []
    ranks: list[int] = []
    positions: list[tuple[float, float, float]] = []

    def add(kind: Kind, rank: int, ids: Sequence[tuple[float, int, int]]) -> slice:
        start = len(kinds)
        kinds.extend([int(kind)] * len(ids))
        ranks.extend([rank] * len(ids))
        positions.extend((tick, tick + row, tick + column) for tick, row, column in ids)
        return slice(start, len(kinds))

    rows, columns = config.grid
    patches = [(0, row, column) for row in range(rows) for column in range(columns)]
    ticks = [(tick, 0, 0) for tick in range(TICKS_PER_UNIT)]
    last_unit = -TICKS_PER_UNIT
    perception = config.perception
    user_rows, user_columns = perception.video_grid
    heard = [(_spread(i, perception.audio_tokens), 0, 0) for i in range(perception.audio_tokens)]
    user_patches = [
        (_spread(i, perception.video_ticks), row, column)
        for i in range(perception.video_ticks)
        for row in range(user_rows)
        for column in range(user_columns)
    ]
    slots = config.text.slots
    agent_video = add(Kind.VIDEO, 0, [(tick + last_unit, row, column) for tick, row, column in patches])
    agent_audio = add(Kind.AUDIO, 0, [(tick + last_unit, 0, 0) for tick, _, _ in ticks])
    user_audio = add(Kind.AUDIO, 1, heard)
    user_video = add(Kind.VIDEO, 1, user_patches)
    user_text = add(Kind.TEXT, 1, [(slot, 0, 0) for slot in range(slots)])
    user_read = add(Kind.TEXT, 1, [(place, 0, 0) for place in range(perception.reading)])
    lane_start = add(Kind.TEXT, 2, [(0, 0, 0)] * len(LANES))
    slot_slices = tuple(add(Kind.TEXT, 3 + slot, [(slot + 1, 0, 0)] * len(LANES)) for slot in range(slots))
    noisy_video = add(Kind.VIDEO, 3 + slots, patches)
    noisy_audio = add(Kind.AUDIO, 3 + slots, ticks)
    return UnitLayout(
        torch.tensor(kinds),
        torch.tensor(ranks),
        torch.tensor(positions, dtype=torch.float64),
        agent_video,
        agent_audio,
        user_audio,
        user_video,
        user_text,
        user_read,
        lane_start,
        slot_slices,
        noisy_video,
        noisy_audio,
    )


def _spread(number: int, count: int) -> float:
    """Tick of the token `number` of `count` that share a unit."""
    return number * TICKS_PER_UNIT / count


def window_units(config: StreamerConfig) -> Tensor:
    """Blocks that a query sees, its own included, per kind: int64 [kinds]. Under `full` there is no limit."""
    cache = config.cache
    if cache.policy == "full":
        return torch.full((len(Kind),), 1 << 40)
    return torch.tensor([cache.video_units, cache.audio_units, cache.text_units])


def effective_distance(config: StreamerConfig, kind: Tensor, query_block: Tensor | int, key_block: Tensor) -> Tensor:
    """Distance in units at which a query sees keys of a block, or -1 where it does not. Arguments broadcast.

    Inside the window it is the true distance. A sink outside the window is moved to sit just before the window, so
    that distances stay inside what training saw. With a text memory, text has no sinks: their words are in the memory.
    """
    distance = query_block - key_block
    window = window_units(config)[kind]
    sinks = config.cache.sink_units
    as_sink = torch.where(key_block < sinks, window + sinks - 1 - key_block, -1)
    if config.cache.memory_tokens:
        as_sink = torch.where(kind == Kind.TEXT, -1, as_sink)
    return torch.where(distance < window, distance.clamp(min=-1), as_sink)


def visible_in_block(layout: UnitLayout) -> Tensor:
    """Which token of a block sees which other of the same block: bool [N queries, N keys]."""
    index = torch.arange(len(layout.rank_N))
    by_rank = layout.rank_N[None, :] <= layout.rank_N[:, None]
    noisy = index >= layout.noisy.start
    return by_rank & (~noisy[None, :] | noisy[:, None])

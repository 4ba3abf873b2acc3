"""What a live session of the model carries from unit to unit.

`LiveState`  all of it
`KVCache`    the history: a preallocated key-value cache, with peek and commit kept apart

`open_block` drops what has left its window: the last rows move into the holes, so that a unit costs the same at any
age. Keys are rotated once, to where they stand in the session; a query is rotated likewise, and attention sees the
distance between them. Only what moves along with the session is rotated again for each block: sinks outside their
window, and memory tokens (`model/memory.py`), which belong to no block and end where the text window begins.

`peek` writes behind the last row, where the next commit writes as well. `append` is the one call that advances the
cache.
"""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wan_streamer.config import StreamerConfig
from wan_streamer.model.layers import rotary_table, rotate
from wan_streamer.model.layout import Kind, UnitLayout, effective_distance, window_units
from wan_streamer.model.memory import SOURCES, memory_ids
from wan_streamer.perception.audio import AudioPerceptionState
from wan_streamer.perception.ears import EarsState
from wan_streamer.perception.reading import Expected, Pair
from wan_streamer.perception.turn import Turn
from wan_streamer.perception.video import VideoPerceptionState
from wan_streamer.speaking.chat import Reply
from wan_streamer.speaking.floor import Odds
from wan_streamer.speaking.voice import Speech
from wan_streamer.speaking.wording import Talk
from wan_streamer.units import TICKS_PER_UNIT

START_BLOCKS = 64  # of capacity; doubled when needed, which a window of nano's size never does
MEMORY = -1  # the block of the first memory token; that of each later one is one less


@dataclass(frozen=True)
class KVSlice:
    """Keys (not rotated) and values that one call adds: [Z, N, G, d], and the layout indices of its tokens [N]."""

    key_ZNGd: Tensor
    value_ZNGd: Tensor
    index_N: Tensor


@dataclass(frozen=True)
class CacheState:
    """All that a session's cache holds: keys (not rotated) and values, where they belong, and the last block."""

    raw_2ZMGd: Tensor
    block_M: Tensor
    index_M: Tensor
    block: int


class KVCache:
    """Cache of one session. What a query of the open block reads is in no order."""

    def __init__(self, config: StreamerConfig, layout: UnitLayout, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.layout = config, layout
        backbone = config.backbone
        most = START_BLOCKS * layout.context.stop
        if config.cache.policy == "window":
            of_kind = torch.bincount(layout.kind_N[layout.context], minlength=len(Kind))
            most = min(most, int((of_kind * (window_units(config) + config.cache.sink_units)).sum()))
        if config.cache.memory_tokens:  # and the words of a unit, while the oldest are still there
            most += config.cache.memory_tokens + len(SOURCES) * config.text.slots
        most += len(layout.kind_N)  # for what is peeked at
        shape = (2, backbone.layers, most, backbone.kv_heads, backbone.head_dim)
        self.raw = torch.empty(shape, device=device, dtype=dtype)  # keys before rotation, and values
        self.rotated = torch.empty(shape[1:], device=device, dtype=dtype)
        self.block_M = torch.empty(shape[2], dtype=torch.long)
        self.index_M = torch.empty(shape[2], dtype=torch.long)
        self.length = 0
        self.block = -1
        self._by_layer()

    def _by_layer(self) -> None:
        """What is read of each layer: views of rotated keys and of values."""
        self.layers = list(zip(self.rotated, self.raw[1], strict=True))

    def open_block(self) -> None:
        """Start the next block: forget what left its window, move what moves along."""
        self.block += 1
        self._drop(self._distance() < 0)
        index_M, block_M = self.index_M[: self.length], self.block_M[: self.length]
        position_M3 = self.layout.position_N3[index_M]
        moves_M = self.block - block_M >= window_units(self.config)[self.layout.kind_N[index_M]]
        if self.config.cache.memory_tokens:
            memory = self._memory()
            position_M3[memory], moves_M[memory] = memory_ids(len(memory), self.config.cache.span), True
        if moves_M.any():
            distance_M = self._distance()[moves_M]
            self._rotate(moves_M.nonzero().squeeze(1), position_M3[moves_M] - TICKS_PER_UNIT * distance_M[:, None])
        self.table_2Nd = self._table(self.layout.position_N3)

    def _distance(self) -> Tensor:
        """How many units before the open block a row is seen, or -1 where it is not seen any more."""
        index_M, block_M = self.index_M[: self.length], self.block_M[: self.length]
        distance_M = effective_distance(self.config, self.layout.kind_N[index_M], self.block, block_M)
        if self.config.cache.memory_tokens:
            memory = self._memory()
            distance_M[memory] = min(self.block, self.config.cache.text_units - 1)  # of the text window's first unit
            distance_M[memory[: -self.config.cache.memory_tokens]] = -1
        return distance_M

    def _drop(self, gone_M: Tensor) -> None:
        """Forget rows: the last ones that stay move into their places."""
        kept = self.length - int(gone_M.sum())
        holes, movers = gone_M[:kept].nonzero().squeeze(1), kept + (~gone_M[kept:]).nonzero().squeeze(1)
        if len(holes):
            self.raw[:, :, holes] = self.raw[:, :, movers]
            self.rotated[:, holes] = self.rotated[:, movers]
            self.block_M[holes], self.index_M[holes] = self.block_M[movers], self.index_M[movers]
        self.length = kept

    def _table(self, position_N3: Tensor) -> Tensor:
        """Rotary table of positions relative to the open block."""
        position_N3 = position_N3 + TICKS_PER_UNIT * self.block
        return rotary_table(position_N3, self.config.backbone).to(self.raw.device)

    def _rotate(self, rows: Tensor, position_R3: Tensor) -> None:
        self.rotated[:, rows] = rotate(self.raw[0, :, rows], self._table(position_R3))

    def append(self, part: KVSlice) -> None:
        """Commit tokens of the open block to the history."""
        here = self._rows(part.index_N.numel())
        self.raw[0, :, here] = part.key_ZNGd
        self.raw[1, :, here] = part.value_ZNGd
        self.rotated[:, here] = rotate(self.raw[0, :, here], self.table_2Nd[:, part.index_N])
        self.block_M[here] = self.block
        self.index_M[here] = part.index_N

    def peek(self, layer: int, key_NGd: Tensor, value_NGd: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values [1, M + N, G, d] of one layer, those of N more tokens included. Commits nothing."""
        end = self.length + len(key_NGd)
        while end > self.raw.shape[2]:
            self._grow()
        keys, values = self.layers[layer]
        keys[self.length : end] = key_NGd
        values[self.length : end] = value_NGd
        return keys[None, :end], values[None, :end]

    def memory(self, most: int) -> Tensor:
        """Keys (not rotated) and values [2, Z, M, G, d] of the memory's last tokens, `most` at most."""
        rows = self._memory()
        return self.raw[:, :, rows[max(0, len(rows) - most) :]]

    def remember(self, new_2ZNGd: Tensor) -> None:
        """Add keys (not rotated) and values to the memory. The next block is the first to read them."""
        memory = self._memory()
        first = int(self.block_M[memory[-1]]) - 1 if len(memory) else MEMORY
        here = self._rows(new_2ZNGd.shape[2])
        self.raw[:, :, here] = new_2ZNGd
        self.block_M[here] = torch.arange(first, first - new_2ZNGd.shape[2], -1)
        self.index_M[here] = 0  # of a token of no block; its position follows from its place in the memory

    def _memory(self) -> Tensor:
        """Rows of the memory, oldest first."""
        rows = (self.block_M[: self.length] <= MEMORY).nonzero().squeeze(1)
        return rows[self.block_M[rows].argsort(descending=True)]

    def _rows(self, count: int) -> slice:
        """New rows at the end."""
        here = slice(self.length, self.length + count)
        while here.stop > self.raw.shape[2]:
            self._grow()
        self.length = here.stop
        return here

    def state(self, last: int | None = None) -> CacheState:
        """What the cache holds up to the end of block `last`, or of all; later changes of the cache do not reach it."""
        last = self.block if last is None else last
        kept_M = (self.block_M[: self.length] <= last).nonzero().squeeze(1)
        return CacheState(self.raw[:, :, kept_M], self.block_M[kept_M], self.index_M[kept_M], last)

    def restore(self, state: CacheState) -> None:
        """Hold what another cache held. The next block can be opened; the one of then cannot be read any more."""
        self.length, self.block = 0, state.block
        here = self._rows(len(state.block_M))
        self.raw[:, :, here] = state.raw_2ZMGd
        self.block_M[here], self.index_M[here] = state.block_M, state.index_M
        position_M3 = self.layout.position_N3[state.index_M]
        position_M3 = position_M3 - TICKS_PER_UNIT * (state.block - state.block_M)[:, None]
        self._rotate(torch.arange(here.stop), position_M3)

    def _grow(self) -> None:
        self.raw = torch.cat([self.raw, torch.empty_like(self.raw)], dim=2)
        self.rotated = torch.cat([self.rotated, torch.empty_like(self.rotated)], dim=1)
        self.block_M = torch.cat([self.block_M, torch.empty_like(self.block_M)])
        self.index_M = torch.cat([self.index_M, torch.empty_like(self.index_M)])
        self._by_layer()

    @property
    def bytes(self) -> int:
        return (self.raw.numel() + self.rotated.numel()) * self.raw.element_size()


@dataclass
class LiveState:
    """What a live session of the model carries from unit to unit.

    told_N2  int64 [N, 2]: memory tokens that the next block is the first to read
    said     int64 [S, sources] of each unit in the text window, oldest first; stays empty in a model without memory
    heard    what a reader looks at of the latest units (`live_hints`)
    features what the ears made of them [T, D], for a model with hindsight; stays empty in others
    turn     where in it the user's turn stands; None in a model that does not read it again
    again    what a reader looks at of that turn in this unit; None until it has been asked
    whole_N  what the turn was that has ended in this unit; None if none has
    expected what it expects in the unit, of which words are being written
    speech   what its voice goes on from, and   guessed  [4, C] what it guesses of the unit; None in a model without one
    talk     what its wording has read; None in a model without one
    floor    what its floor knows [layers, 1, D], and   odds  what it finds likely in the unit; None in a model without
    sight    evidence for the names of what is seen [1, names]; None in a model without one
    reply    what its chat model answers; None without one
    settled  the next block is open and has the last latents
    """

    cache: KVCache
    hearing: AudioPerceptionState | EarsState | None = None
    seeing: VideoPerceptionState | None = None
    told_N2: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.long))
    said: deque[Tensor] = field(default_factory=deque)
    heard: deque[Tensor] = field(default_factory=deque)
    features: deque[Tensor] = field(default_factory=deque)
    turn: Turn | None = None
    again: list[Pair] | None = None
    whole_N: Tensor | None = None
    expected: Expected | None = None
    speech: Speech | None = None
    guessed: Tensor | None = None
    talk: Talk | None = None
    floor: Tensor | None = None
    odds: Odds | None = None
    sight: Tensor | None = None
    reply: Reply | None = None
    settled: bool = False

"""Preallocated key-value cache of a live session, with peek and commit kept apart.

Keys are stored before rotation. When a block opens, `open_block` drops what has left its window and rotates what is
left relative to this block, all layers at once: ids stay small for any length of session, and sinks move with the
window for free. `append` is the one call that advances the cache. Memory tokens (`model/memory.py`) live in the same
rows, `remember` adds them; they belong to no block and end where the text window begins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wan_streamer.config import StreamerConfig
from wan_streamer.model.layers import rotary_table, rotate
from wan_streamer.model.layout import Kind, UnitLayout, effective_distance, window_units
from wan_streamer.model.memory import SOURCES, memory_ids
from wan_streamer.units import TICKS_PER_UNIT

START_BLOCKS = 64  # of capacity; doubled when needed, which a window of nano's size never does
MEMORY = -1  # the block of a memory token


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
    """Cache of one session. `view` is what a query of the open block reads: keys rotated, oldest first."""

    def __init__(self, config: StreamerConfig, layout: UnitLayout, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.layout = config, layout
        backbone = config.backbone
        most = START_BLOCKS * layout.context.stop
        if config.cache.policy == "window":
            of_kind = torch.bincount(layout.kind_N[layout.context], minlength=len(Kind))
            most = min(most, int((of_kind * (window_units(config) + config.cache.sink_units)).sum()))
        if config.cache.memory_tokens:  # and the words of a unit, while the oldest are still there
            most += config.cache.memory_tokens + len(SOURCES) * config.text.slots
        shape = (2, backbone.layers, most, backbone.kv_heads, backbone.head_dim)
        self.raw = torch.empty(shape, device=device, dtype=dtype)  # keys before rotation, and values
        self.rotated = torch.empty(shape[1:], device=device, dtype=dtype)
        self.block_M = torch.empty(shape[2], dtype=torch.long)
        self.index_M = torch.empty(shape[2], dtype=torch.long)
        self.length = 0
        self.block = -1

    def open_block(self) -> None:
        """Start the next block: forget what left its window, rotate the rest relative to the new block."""
        self.block += 1
        blocks, index = self.block_M[: self.length], self.index_M[: self.length]
        distance = effective_distance(self.config, self.layout.kind_N[index], self.block, blocks)
        position_M3 = self.layout.position_N3[index]
        if self.config.cache.memory_tokens:
            memory = self._memory()
            distance[memory] = min(self.block, self.config.cache.text_units - 1)  # of the text window's first unit
            distance[memory[: -self.config.cache.memory_tokens]] = -1
            position_M3[memory] = memory_ids(len(memory))
        keep = (distance >= 0).nonzero().squeeze(1)
        if len(keep) < self.length:
            self.raw[:, :, : len(keep)] = self.raw[:, :, keep]
            self.block_M[: len(keep)] = blocks[keep]
            self.index_M[: len(keep)] = index[keep]
            self.length = len(keep)
        position = position_M3[keep] - TICKS_PER_UNIT * distance[keep][:, None]
        table = rotary_table(position, self.config.backbone).to(self.raw.device)
        self.rotated[:, : self.length] = rotate(self.raw[0, :, : self.length], table)

    def append(self, part: KVSlice) -> None:
        """Commit tokens of the open block to the history."""
        here = self._rows(part.index_N.numel())
        self.raw[0, :, here] = part.key_ZNGd
        self.raw[1, :, here] = part.value_ZNGd
        table = rotary_table(self.layout.position_N3[part.index_N], self.config.backbone).to(self.raw.device)
        self.rotated[:, here] = rotate(part.key_ZNGd, table)
        self.block_M[here] = self.block
        self.index_M[here] = part.index_N

    def memory(self, most: int) -> Tensor:
        """Keys (not rotated) and values [2, Z, M, G, d] of the memory's last tokens, `most` at most."""
        rows = self._memory()
        return self.raw[:, :, rows[max(0, len(rows) - most) :]]

    def remember(self, new_2ZNGd: Tensor) -> None:
        """Add keys (not rotated) and values to the memory. The next block is the first to read them."""
        here = self._rows(new_2ZNGd.shape[2])
        self.raw[:, :, here] = new_2ZNGd
        self.block_M[here] = MEMORY
        self.index_M[here] = 0  # of a token of no block; its position follows from its place in the memory

    def _memory(self) -> Tensor:
        """Rows of the memory, oldest first: rows never change their order."""
        return (self.block_M[: self.length] == MEMORY).nonzero().squeeze(1)

    def _rows(self, count: int) -> slice:
        """New rows at the end."""
        here = slice(self.length, self.length + count)
        while here.stop > self.raw.shape[2]:
            self._grow()
        self.length = here.stop
        return here

    def state(self) -> CacheState:
        """What the cache holds, between two blocks; later changes of the cache do not reach it."""
        raw_2ZMGd, block_M, index_M = self.raw[:, :, : self.length], self.block_M, self.index_M
        return CacheState(raw_2ZMGd.clone(), block_M[: self.length].clone(), index_M[: self.length].clone(), self.block)

    def restore(self, state: CacheState) -> None:
        """Hold what another cache held. The next block can be opened; the one of then cannot be read any more."""
        self.length, self.block = 0, state.block
        here = self._rows(len(state.block_M))
        self.raw[:, :, here] = state.raw_2ZMGd
        self.block_M[here], self.index_M[here] = state.block_M, state.index_M

    def view(self, layer: int) -> tuple[Tensor, Tensor]:
        """Rotated keys and values [1, M, G, d] of one layer. Reading changes nothing."""
        return self.rotated[layer, None, : self.length], self.raw[1, layer, None, : self.length]

    def _grow(self) -> None:
        self.raw = torch.cat([self.raw, torch.empty_like(self.raw)], dim=2)
        self.rotated = torch.cat([self.rotated, torch.empty_like(self.rotated)], dim=1)
        self.block_M = torch.cat([self.block_M, torch.empty_like(self.block_M)])
        self.index_M = torch.cat([self.index_M, torch.empty_like(self.index_M)])

    @property
    def bytes(self) -> int:
        return (self.raw.numel() + self.rotated.numel()) * self.raw.element_size()

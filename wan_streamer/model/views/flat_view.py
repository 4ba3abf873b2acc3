"""A clip as one sequence and a mask: FlexAttention on GPUs, dense attention as the reference for every other way.

Keys are all tokens of the clip, and behind them, for every block, the sinks in the place to which they have moved for
that block (`clip_view.moved_sinks`), and behind those the text memory. FlexAttention skips what is hidden, so its cost
grows with what is seen, where the history is `full` too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from wan_streamer.config import StreamerConfig
from wan_streamer.model.layers import Attention, States, rotate
from wan_streamer.model.layout import UnitLayout, visible_in_block, window_units
from wan_streamer.model.memory import MemoryKV
from wan_streamer.model.views.clip_view import moved_sinks, own_table


@dataclass(frozen=True)
class FlatView:
    """What the tokens of a clip of K blocks attend to.

    layout      of a block;   sinks   units that move
    own_2Qd     rotary tables of all Q = K N tokens;   sink_2KMd   of the moved sinks
    mask        dense: bool [Q, Q + K M + memory]; flex: a `BlockMask` of that size. The memory is all seen in it
    """

    layout: UnitLayout
    sinks: int
    own_2Qd: Tensor
    sink_2KMd: Tensor
    mask: Tensor | BlockMask

    def attend(self, attention: Attention, x_BKND: States, memory: MemoryKV | None = None) -> States:
        """Attention of normalised hidden states, output projection included."""
        parts = attention.project(x_BKND)
        K, N = parts[0].shape[1:3]
        q, raw_k, v = (z.flatten(1, 2) for z in parts)  # [B, Q, heads, d]
        q, k, v = rotate(q, self.own_2Qd), rotate(raw_k, self.own_2Qd), v.to(raw_k.dtype)
        if self.sinks:
            context = torch.arange(self.sinks * N, device=q.device).unflatten(0, (self.sinks, N))
            first = context[:, self.layout.context].flatten()
            moved = rotate(raw_k[:, None, first], self.sink_2KMd)  # [B, K, M, G, d]
            k = torch.cat([k, moved.flatten(1, 2)], dim=1)
            v = torch.cat([v, v[:, None, first].expand_as(moved).flatten(1, 2)], dim=1)
        start = k.shape[1]
        if memory is not None:
            k, v = torch.cat([k, memory.key_BMGd], dim=1), torch.cat([v, memory.value_BMGd], dim=1)
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        if isinstance(self.mask, BlockMask):
            # What differs from row to row is a change of scores, so that the mask of blocks is made once.
            without_padding = None if memory is None else _padding(memory.seen_BM, start)
            out = flex_attention(q, k, v, score_mod=without_padding, block_mask=self.mask, enable_gqa=True)
        else:
            mask = self.mask
            if memory is not None:
                mask = mask & F.pad(memory.seen_BM, (start, 0), value=True)[:, None, None]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return attention.close(out.transpose(1, 2).flatten(2).unflatten(1, (K, N)), x_BKND)  # type: ignore[union-attr]


def _padding(seen_BM: Tensor, start: int) -> Callable[..., Tensor]:
    """The change of scores that hides the padding of memories, whose keys begin at `start`."""
    most = seen_BM.shape[1] - 1

    def change(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where((key < start) | seen_BM[batch, (key - start).clamp(0, most)], score, float("-inf"))

    return change


def flat_view(
    config: StreamerConfig, layout: UnitLayout, K: int, device: torch.device, flex: bool, memory: int = 0
) -> FlatView:
    """The view of clips of K blocks with so many memory tokens, for FlexAttention or dense."""
    sinks, seen_KM, sink_table = moved_sinks(config, layout, K)
    sees = _rule(config, layout, K, seen_KM, device)
    Q, M = K * len(layout.kind_N), K * seen_KM.shape[1] + memory
    mask: Tensor | BlockMask
    if flex:
        mask = create_block_mask(sees, None, None, Q, Q + M, device=str(device))
    else:
        index = torch.arange(Q + M, device=device)
        mask = sees(0, 0, index[:Q, None], index[None, :])
    return FlatView(layout, sinks, own_table(config, layout, K).flatten(1, 2).to(device), sink_table.to(device), mask)


def _rule(
    config: StreamerConfig, layout: UnitLayout, K: int, seen_KM: Tensor, device: torch.device
) -> Callable[..., Tensor]:
    """(batch, head, query, key) -> whether the query sees the key; element-wise, as FlexAttention wants it."""
    N, M = len(layout.kind_N), max(1, seen_KM.shape[1])
    memory_start = K * (N + seen_KM.shape[1])
    inside = visible_in_block(layout).to(device)
    window_N = window_units(config)[layout.kind_N].to(device)
    history_N = (torch.arange(N) < layout.context.stop).to(device)
    seen = (seen_KM if seen_KM.numel() else torch.zeros(K, 1, dtype=torch.bool)).to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        block, place = query // N, query % N
        behind = (key - K * N).clamp(min=0)
        own = key.clamp(max=K * N - 1)
        distance, other = block - own // N, own % N
        earlier = (distance > 0) & (distance < window_N[other]) & history_N[other]
        of_clip = torch.where(distance == 0, inside[place, other], earlier)
        as_sink = (behind // M == block) & seen[block, behind % M]
        return torch.where(key < K * N, of_clip, as_sink) | (key >= memory_start)

    return sees

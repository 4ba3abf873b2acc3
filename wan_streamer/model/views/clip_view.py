"""What each block of a clip attends to in one training pass: the keys it would find in the live cache.

`ClipView`  block after block with the keys of its window, so the cost grows with the window and not with the square of
            the clip; the fast way on CPUs
`FlatView`  (`flat_view.py`) one long sequence and a mask: FlexAttention, or dense attention as the reference
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wan_streamer.config import StreamerConfig
from wan_streamer.model.layers import Attention, States, rotary_table, rotate
from wan_streamer.model.layout import Kind, UnitLayout, effective_distance, visible_in_block, window_units
from wan_streamer.model.memory import MemoryKV
from wan_streamer.model.views.window_attention import window_attention
from wan_streamer.units import TICKS_PER_UNIT


@dataclass(frozen=True)
class ClipView:
    """What each block of a clip of K blocks attends to. Built once per clip length.

    layout       of a block;   sinks   how many of the first blocks are sinks
    own_2KNd     rotary tables of all tokens, ids counted from the clip's start
    sink_2KMd    rotary tables of the sinks' keys as seen from each block
    order_N      tokens of a block, kind by kind what enters the history, then the rest
    sizes        history tokens per kind;   windows   blocks per kind that are seen
    bias_KNT     0 where a token sees one of T = M + N sinks and tokens of its block (in that order), else -inf
    """

    layout: UnitLayout
    sinks: int
    own_2KNd: Tensor
    sink_2KMd: Tensor
    order_N: Tensor
    sizes: list[int]
    windows: list[int]
    bias_KNT: Tensor

    def attend(self, attention: Attention, x_BKND: States, memory: MemoryKV | None = None) -> States:
        """Attention of normalised hidden states, output projection included."""
        q, raw_k, v = attention.project(x_BKND)
        B, _, N, groups, _ = raw_k.shape
        if memory is None:
            none = raw_k.new_empty(B, 0, *raw_k.shape[3:])
            memory = MemoryKV(none, none, none.new_empty(B, 0, dtype=torch.bool))
        hidden_BM = torch.zeros_like(memory.seen_BM, dtype=q.dtype).masked_fill(~memory.seen_BM, float("-inf"))
        q, k, v = rotate(q, self.own_2KNd), rotate(raw_k, self.own_2KNd), v.to(raw_k.dtype)
        q = (q * q.shape[-1] ** -0.5).unflatten(3, (groups, -1)).permute(1, 0, 3, 4, 2, 5)  # [K, B, G, rep, N, d]
        sink_k = raw_k[:, : self.sinks, self.layout.context].flatten(1, 2)
        sink_v = v[:, : self.sinks, self.layout.context].flatten(1, 2)
        out = window_attention(
            q.flatten(3, 4).flatten(1, 2),
            k[:, :, self.order_N].permute(0, 3, 1, 2, 4).flatten(0, 1),
            v[:, :, self.order_N].permute(0, 3, 1, 2, 4).flatten(0, 1),
            rotate(sink_k[:, None], self.sink_2KMd).permute(0, 3, 1, 2, 4).flatten(0, 1),
            sink_v.transpose(1, 2).flatten(0, 1),
            memory.key_BMGd.transpose(1, 2).flatten(0, 1),
            memory.value_BMGd.transpose(1, 2).flatten(0, 1),
            hidden_BM.repeat_interleave(groups, dim=0),
            self.bias_KNT.to(q.dtype),
            self.sizes,
            self.windows,
        )
        out = out.unflatten(1, (B, groups)).unflatten(3, (-1, N)).permute(1, 0, 4, 2, 3, 5).flatten(3)
        return attention.close(out, x_BKND)


def clip_view(config: StreamerConfig, layout: UnitLayout, K: int, device: torch.device | None = None) -> ClipView:
    """The view of clips of K blocks."""
    kinds, N = layout.kind_N, len(layout.kind_N)
    context = torch.arange(layout.context.stop)
    by_kind = [context[kinds[context] == kind] for kind in Kind]
    order = torch.cat([*by_kind, torch.arange(layout.noisy.start, N)])
    sinks, seen_KM, sink_table = moved_sinks(config, layout, K)
    sees_own = visible_in_block(layout)[:, order]
    sees_KNT = torch.cat([seen_KM[:, None].expand(K, N, -1), sees_own.expand(K, N, N)], dim=2)
    bias = torch.zeros(sees_KNT.shape).masked_fill(~sees_KNT, float("-inf"))
    return ClipView(
        layout,
        sinks,
        own_table(config, layout, K).to(device),
        sink_table.to(device),
        order.to(device),
        [len(index) for index in by_kind],
        [min(K, int(window)) for window in window_units(config)],
        bias.to(device),
    )


def own_table(config: StreamerConfig, layout: UnitLayout, K: int) -> Tensor:
    """Rotary tables [2, K, N, head_dim / 2] of the tokens of K blocks, ids counted from the first."""
    position = layout.position_N3[None] + TICKS_PER_UNIT * torch.arange(K)[:, None, None]
    return rotary_table(position.flatten(0, 1), config.backbone).unflatten(1, (K, len(layout.kind_N)))


def moved_sinks(config: StreamerConfig, layout: UnitLayout, K: int) -> tuple[int, Tensor, Tensor]:
    """Sinks that have left a window within K blocks: (units, seen_KM, table_2KMd) for their M context tokens.

    seen_KM     bool: block k sees the token as a sink, in its moved place
    table_2KMd  rotary tables of the moved places;  0 units and empty tensors if nothing moves
    """
    context = torch.arange(layout.context.stop)
    moves = config.cache.policy == "window" and int(window_units(config).min()) < K
    sinks = min(config.cache.sink_units, K) if moves else 0
    block_K, key_block = torch.arange(K), torch.arange(sinks).repeat_interleave(len(context))[None, :]
    kind_M = layout.kind_N[context].repeat(sinks)
    distance_KM = effective_distance(config, kind_M, block_K[:, None], key_block)
    seen_KM = (distance_KM >= 0) & (block_K[:, None] - key_block >= window_units(config)[kind_M])
    seen_at_KM = TICKS_PER_UNIT * (block_K[:, None] - distance_KM)
    position = layout.position_N3[context].repeat(sinks, 1)[None] + seen_at_KM[..., None]
    return sinks, seen_KM, rotary_table(position.flatten(0, 1), config.backbone).unflatten(1, (K, kind_M.numel()))

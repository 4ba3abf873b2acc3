"""What each block of a clip attends to in one training pass: the keys it would find in the live cache.

`ClipView`  the keys of a block's window are gathered per block, so the cost grows with the window and not with the
            square of the clip; the fast way on CPUs
`FlatView`  (`model/flat_view.py`) one long sequence and a mask: FlexAttention, or dense attention as the reference
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wan_streamer.config import StreamerConfig
from wan_streamer.model.layers import Attention, rotary_table, rotate
from wan_streamer.model.layout import Kind, UnitLayout, effective_distance, visible_in_block, window_units
from wan_streamer.units import TICKS_PER_UNIT


@dataclass(frozen=True)
class ClipView:
    """What each block of a clip of K blocks attends to. Built once per clip length.

    layout       of a block;   sinks   how many of the first blocks are sinks
    own_2KNh     rotary tables of all tokens, ids counted from the clip's start
    runs         per kind: (window in blocks, slices of the block's tokens of that kind)
    sink_2KMh    rotary tables of the sinks' keys as seen from each block, or None if no sink has left a window
    mask_KNM     bool: the row's token sees the gathered key
    """

    layout: UnitLayout
    sinks: int
    own_2KNh: Tensor
    runs: list[tuple[int, list[slice]]]
    sink_2KMh: Tensor | None
    mask_KNM: Tensor

    def attend(self, attention: Attention, x_BKND: Tensor) -> Tensor:
        """Attention of normalised hidden states, output projection included."""
        B, K, N, _ = x_BKND.shape
        q, raw_k, v = attention.project(x_BKND)
        q, k = rotate(q, self.own_2KNh), rotate(raw_k, self.own_2KNh)
        kv = torch.stack([k, v.to(k.dtype)], dim=3)  # [B, K, N, 2, G, d]
        parts = []
        for window, slices in self.runs:
            group = torch.cat([kv[:, :, part] for part in slices], dim=2)
            padded = F.pad(group, (0, 0, 0, 0, 0, 0, 0, 0, window - 1, 0))
            parts.append(torch.stack([padded[:, j : j + K] for j in range(window)], dim=2).flatten(2, 3))
        if self.sink_2KMh is not None:
            context = self.layout.context
            sink_k = raw_k[:, : self.sinks, context].flatten(1, 2).unsqueeze(1)
            sink_v = v[:, : self.sinks, context].flatten(1, 2).unsqueeze(1).expand(B, K, -1, -1, -1)
            sink_k = rotate(sink_k, self.sink_2KMh)
            parts.append(torch.stack([sink_k, sink_v.to(sink_k.dtype)], dim=3))
        parts.append(kv[:, :, self.layout.noisy])
        keys, values = torch.cat(parts, dim=2).permute(3, 0, 1, 4, 2, 5).unbind(0)  # [B, K, G, M, d]
        # Plain products instead of the fused kernel: on CPU its backward pass is several times slower than these.
        groups = keys.shape[2]
        q = q.unflatten(3, (groups, -1)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4)  # [B, K, G, rep N, d]
        score = q @ (keys * q.shape[-1] ** -0.5).transpose(3, 4)
        hidden = ~self.mask_KNM[None, :, None, None]
        score = score.unflatten(3, (-1, N)).masked_fill(hidden, float("-inf")).flatten(3, 4)
        out = score.softmax(-1).to(values.dtype) @ values
        out = out.unflatten(3, (-1, N)).permute(0, 1, 4, 2, 3, 5).flatten(3)
        return attention.out_proj(out)


def _runs(index: list[int]) -> list[slice]:
    """Ascending indices as contiguous slices."""
    slices: list[slice] = []
    for i in index:
        if slices and slices[-1].stop == i:
            slices[-1] = slice(slices[-1].start, i + 1)
        else:
            slices.append(slice(i, i + 1))
    return slices


def clip_view(config: StreamerConfig, layout: UnitLayout, K: int, device: torch.device | None = None) -> ClipView:
    """The view of clips of K blocks."""
    context = torch.arange(layout.context.stop)
    kinds, N = layout.kind_N, len(layout.kind_N)
    block_K = torch.arange(K)
    inside = visible_in_block(layout)
    runs, masks = [], []
    for kind in Kind:
        index = context[kinds[context] == kind]
        window = min(K, int(window_units(config)[kind]))
        runs.append((window, _runs(index.tolist())))
        key_block = block_K[:, None] - (window - 1) + torch.arange(window)[None, :]
        mask = (key_block >= 0)[:, None, :, None].expand(K, N, window, len(index)).clone()
        mask[:, :, -1] &= inside[:, index]
        masks.append(mask.flatten(2))
    sinks, outside_KM, sink_table = moved_sinks(config, layout, K)
    if sinks:
        masks.append(outside_KM[:, None].expand(K, N, -1))
    masks.append(inside[None, :, layout.noisy].expand(K, N, -1))
    own = own_table(config, layout, K).to(device)
    mask = torch.cat(masks, dim=2).to(device)
    return ClipView(layout, sinks, own, runs, sink_table.to(device) if sinks else None, mask)


def own_table(config: StreamerConfig, layout: UnitLayout, K: int) -> Tensor:
    """Rotary tables [2, K, N, head_dim / 2] of the tokens of K blocks, ids counted from the first."""
    position = layout.position_N3[None] + TICKS_PER_UNIT * torch.arange(K)[:, None, None]
    return rotary_table(position.flatten(0, 1), config.backbone).unflatten(1, (K, len(layout.kind_N)))


def moved_sinks(config: StreamerConfig, layout: UnitLayout, K: int) -> tuple[int, Tensor, Tensor]:
    """Sinks that have left a window within K blocks: (units, seen_KM, table_2KMh) for their M context tokens.

    seen_KM     bool: block k sees the token as a sink, in its moved place
    table_2KMh  rotary tables of the moved places;  0 units and empty tensors if nothing moves
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

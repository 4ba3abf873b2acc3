"""The one Transformer, run two ways over the same layers.

`Backbone.forward`  training: all blocks of a clip in one pass, every query with exactly the keys it has live
`Backbone.step`     live: the tokens of one call against the cache; returns what a commit would add, commits nothing

In training the keys of a block's window are gathered per block (`ClipView`), so the cost grows with the window and not
with the square of the clip. `tests/test_model.py` holds it against a dense token-by-token reference.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.config import StreamerConfig
from wan_streamer.model.cache import KVCache, KVSlice
from wan_streamer.model.layers import Layer, RMSNorm, rotary_table, rotate
from wan_streamer.model.layout import Kind, UnitLayout, effective_distance, unit_layout, visible_in_block, window_units
from wan_streamer.units import TICKS_PER_UNIT


@dataclass(frozen=True)
class ClipView:
    """What each block of a clip of K blocks attends to. Built once per clip length.

    own_2KNh     rotary tables of all tokens, ids counted from the clip's start
    runs         per kind: (window in blocks, slices of the block's tokens of that kind)
    sink_2KMh    rotary tables of the sinks' keys as seen from each block, or None if no sink has left a window
    mask_KNM     bool: the row's token sees the gathered key
    """

    own_2KNh: Tensor
    runs: list[tuple[int, list[slice]]]
    sink_2KMh: Tensor | None
    mask_KNM: Tensor


def _runs(index: list[int]) -> list[slice]:
    """Ascending indices as contiguous slices."""
    slices: list[slice] = []
    for i in index:
        if slices and slices[-1].stop == i:
            slices[-1] = slice(slices[-1].start, i + 1)
        else:
            slices.append(slice(i, i + 1))
    return slices


def clip_view(config: StreamerConfig, layout: UnitLayout, K: int) -> ClipView:
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
    sinks = min(config.cache.sink_units, K) if config.cache.policy == "window" else 0
    sink_table = None
    if int(window_units(config).min()) < K and sinks:
        key_block = torch.arange(sinks).repeat_interleave(len(context))[None, :]
        kind_M = kinds[context].repeat(sinks)
        distance_KM = effective_distance(config, kind_M, block_K[:, None], key_block)
        outside_KM = (distance_KM >= 0) & (block_K[:, None] - key_block >= window_units(config)[kind_M])
        seen_at_KM = TICKS_PER_UNIT * (block_K[:, None] - distance_KM)
        position = layout.position_N3[context].repeat(sinks, 1)[None] + seen_at_KM[..., None]
        sink_table = rotary_table(position.flatten(0, 1), config.backbone).unflatten(1, (K, -1))
        masks.append(outside_KM[:, None].expand(K, N, -1))
    masks.append(inside[None, :, layout.noisy].expand(K, N, -1))
    position = layout.position_N3[None] + TICKS_PER_UNIT * block_K[:, None, None]
    own = rotary_table(position.flatten(0, 1), config.backbone).unflatten(1, (K, N))
    return ClipView(own, runs, sink_table, torch.cat(masks, dim=2))


class Backbone(nn.Module):
    def __init__(self, config: StreamerConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = unit_layout(config)
        self.layers = nn.ModuleList(Layer(config.backbone) for _ in range(config.backbone.layers))
        self.norm = RMSNorm(config.backbone.dim, config.backbone.norm_eps)
        self.clip_layer = self._clip_layer
        self._views: dict[int, ClipView] = {}  # constants per clip length, not state

    def forward(self, x_BKND: Tensor) -> Tensor:
        """One pass over K blocks of N tokens (context and noisy), as the live cache would have shown them."""
        K = x_BKND.shape[1]
        if K not in self._views:
            self._views[K] = clip_view(self.config, self.layout, K)
        view = self._views[K]
        x = x_BKND
        for layer in self.layers:
            x = self.clip_layer(layer, x, view)
        return self.norm(x)

    def _clip_layer(self, layer: nn.Module, x_BKND: Tensor, view: ClipView) -> Tensor:
        return layer.finish(x_BKND, self._attend_clip(layer, x_BKND, view))  # type: ignore[operator]

    def compile_training(self) -> None:
        """Fuse the element-wise work of a training layer (one graph for all layers; needs a C++ compiler)."""
        self.clip_layer = torch.compile(self._clip_layer, dynamic=False)

    def _attend_clip(self, layer: nn.Module, x_BKND: Tensor, view: ClipView) -> Tensor:
        B, K, N, _ = x_BKND.shape
        q, raw_k, v = layer.attention.project(layer.attention_norm(x_BKND))  # type: ignore[operator, union-attr]
        table = view.own_2KNh.to(x_BKND.device)
        q, k = rotate(q, table), rotate(raw_k, table)
        kv = torch.stack([k, v.to(k.dtype)], dim=3)  # [B, K, N, 2, G, d]
        parts = []
        for window, slices in view.runs:
            group = torch.cat([kv[:, :, part] for part in slices], dim=2)
            padded = F.pad(group, (0, 0, 0, 0, 0, 0, 0, 0, window - 1, 0))
            parts.append(torch.stack([padded[:, j : j + K] for j in range(window)], dim=2).flatten(2, 3))
        if view.sink_2KMh is not None:
            sinks, context = self.config.cache.sink_units, self.layout.context
            sink_k = raw_k[:, :sinks, context].flatten(1, 2).unsqueeze(1)
            sink_v = v[:, :sinks, context].flatten(1, 2).unsqueeze(1).expand(B, K, -1, -1, -1)
            sink_k = rotate(sink_k, view.sink_2KMh.to(x_BKND.device))
            parts.append(torch.stack([sink_k, sink_v.to(sink_k.dtype)], dim=3))
        parts.append(kv[:, :, self.layout.noisy])
        keys, values = torch.cat(parts, dim=2).permute(3, 0, 1, 4, 2, 5).unbind(0)  # [B, K, G, M, d]
        # Plain products instead of the fused kernel: on CPU its backward pass is several times slower than these.
        groups = keys.shape[2]
        q = q.unflatten(3, (groups, -1)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4)  # [B, K, G, rep N, d]
        score = q @ (keys * q.shape[-1] ** -0.5).transpose(3, 4)
        hidden = ~view.mask_KNM.to(x_BKND.device)
        score = score.unflatten(3, (-1, N)).masked_fill(hidden[None, :, None, None], float("-inf")).flatten(3, 4)
        out = score.softmax(-1).to(values.dtype) @ values
        out = out.unflatten(3, (-1, N)).permute(0, 1, 4, 2, 3, 5).flatten(3)
        return layer.attention.out_proj(out)  # type: ignore[operator, union-attr]

    def step(self, x_ND: Tensor, index_N: Tensor, cache: KVCache) -> tuple[Tensor, KVSlice]:
        """Run tokens `index_N` of the open block against the cache: hidden states [N, D] and the KV slice to commit.

        Only peeks: the cache is the same afterwards. Runs in the precision of the layers' weights; what comes in and
        out keeps its own.
        """
        table = rotary_table(self.layout.position_N3[index_N], self.config.backbone).to(x_ND.device)
        own = visible_in_block(self.layout)[index_N][:, index_N]
        mask = None
        if not own.all():
            mask = torch.cat([own.new_ones(len(index_N), cache.length), own], dim=1).to(x_ND.device)
        x, raw_keys, all_values = x_ND[None].to(self.norm.weight.dtype), [], []
        for number, layer in enumerate(self.layers):
            q, raw_k, v = layer.attention.project(layer.attention_norm(x))  # type: ignore[operator, union-attr]
            past_k, past_v = cache.view(number)
            k = torch.cat([past_k.to(q.dtype), rotate(raw_k, table)], dim=1)
            attended = layer.attention.attend(  # type: ignore[operator, union-attr]
                rotate(q, table), k, torch.cat([past_v.to(q.dtype), v.to(q.dtype)], dim=1), mask
            )
            x = layer.finish(x, attended)  # type: ignore[operator]
            raw_keys.append(raw_k[0])
            all_values.append(v[0])
        return self.norm(x[0]).to(x_ND.dtype), KVSlice(torch.stack(raw_keys), torch.stack(all_values), index_N)

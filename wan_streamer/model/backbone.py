"""The one Transformer, run four ways over the same layers.

`Backbone.forward`   training: all blocks of a clip in one pass, every query with exactly the keys it has live
`Backbone.step`      live: the tokens of one call against the cache; returns what a commit would add, commits nothing
`Backbone.remember`  live: more tokens of the text memory; in training they pass the layers beside the clip
`Backbone.read`      text only: plain sequences, as a causal language model reads them

What a clip attends to is a view (`model/views`); `tests/test_model.py` holds them against a dense token-by-token
reference and against the live cache.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from wan_streamer.config import StreamerConfig
from wan_streamer.model.cache import KVCache, KVSlice
from wan_streamer.model.layers import Attention, Layer, Mixed, RMSNorm, States, by_kind, rotary_table, rotate
from wan_streamer.model.layout import UnitLayout, unit_layout, visible_in_block
from wan_streamer.model.memory import ClipMemory, MemoryKV, attend_memory, clip_memory, memory_mask, memory_table
from wan_streamer.model.views.clip_view import ClipView, clip_view
from wan_streamer.model.views.flat_view import FlatView, flat_view

Step = Callable[[States, Tensor, Sequence[KVCache]], tuple[States, list[KVSlice]]]
"""`Backbone.step`, or what stands in for it."""


GRAPHS = 64  # of a compiled training layer, at most


class Backbone(nn.Module):
    def __init__(self, config: StreamerConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = unit_layout(config)
        self.layers = nn.ModuleList(Layer(config.backbone) for _ in range(config.backbone.layers))
        self.norm = by_kind(config.backbone, lambda dim, _: RMSNorm(dim, config.backbone.norm_eps))
        self.attention = "windows"  # how a clip is attended to: "windows", "flex" or "dense" give the same numbers
        self.clip_layer = _clip_layer
        self._views: dict[
            tuple[str, int, tuple[int, ...], int, torch.device], ClipView | FlatView
        ] = {}  # constants, not state

    def forward(
        self,
        x_BKND: States,
        m_BMD: Tensor | None = None,
        seen_BM: Tensor | None = None,
        layout: UnitLayout | None = None,
    ) -> States:
        """One pass over K blocks of N tokens (context and noisy), as the live cache would have shown them.

        m_BMD   the text memory that every block sees, where `seen_BM` is True
        layout  of the blocks, if it is a part of the whole
        """
        layout, M = layout or self.layout, 0 if m_BMD is None else m_BMD.shape[1]
        K = (x_BKND if isinstance(x_BKND, Tensor) else x_BKND.text).shape[1]
        x, view, memory = x_BKND, self._view(layout, K, M, x_BKND.device), None
        if m_BMD is not None and seen_BM is not None:  # one sequence, because a split layer is put together once a pass
            memory = clip_memory(seen_BM, self.config.backbone, self.config.cache.span)
            x = _behind(m_BMD, x)
        for layer in self.layers:
            x = self.clip_layer(layer, x, view, memory)
        return self.norm(x if memory is None else _apart(x, M, len(layout.kind_N))[1])

    def _view(self, layout: UnitLayout, K: int, M: int, device: torch.device) -> ClipView | FlatView:
        key = (
            self.attention,
            K,
            tuple(layout.rank_N.tolist()),
            M,
            device,
        )  # the ranks tell the parts of a layout apart
        if key not in self._views:
            if self.attention == "windows":
                self._views[key] = clip_view(self.config, layout, K, device)
            else:
                self._views[key] = flat_view(self.config, layout, K, device, self.attention == "flex", M)
        return self._views[key]

    def compile_training(self) -> None:
        """Fuse the element-wise work of a training layer (one graph for all layers; needs a C++ compiler)."""
        # Each kind of step has its tokens, and each batch one of a few sizes of memory: beyond the usual eight graphs
        # the others would run as they are.
        torch.compiler.config.recompile_limit = GRAPHS
        self.clip_layer = torch.compile(_clip_layer, dynamic=False)

    @property
    def weight(self) -> Tensor:
        """One of the parameters, for their device and precision."""
        return next(self.norm.parameters())

    def step(self, x_BND: States, index_N: Tensor, caches: Sequence[KVCache]) -> tuple[States, list[KVSlice]]:
        """Run tokens `index_N` of the open blocks of B sessions: hidden states [B, N, D], KV slices to commit.

        Only peeks: the caches are the same afterwards. Runs in the precision of the layers' weights; what comes in and
        out keeps its own. Weights are read once for all sessions; each attends to its own history.
        """
        table_2BNd = torch.stack([cache.table_2Nd[:, index_N] for cache in caches], dim=1)
        masks = [self._mask(index_N, cache.length, x_BND.device) for cache in caches]
        x, added, Q = x_BND.to(self.weight.dtype), [], self.config.backbone.heads

        def attend(layer: int, attention: Attention, normed: States) -> States:
            raw, v = attention.heads(normed)
            turned = rotate(raw, table_2BNd)
            added.append(torch.stack([raw[..., Q:, :], v]))
            parts = [
                attention.mix(turned[b, None, :, :Q], *cache.peek(layer, turned[b, :, Q:], v[b]), mask)
                for b, (cache, mask) in enumerate(zip(caches, masks, strict=True))
            ]
            return attention.close(parts[0] if len(parts) == 1 else torch.cat(parts), normed)

        for number, layer in enumerate(self.layers):
            x = layer(x, partial(attend, number))
        key_BZNGd, value_BZNGd = torch.stack(added, dim=2)
        slices = [KVSlice(key, value, index_N) for key, value in zip(key_BZNGd, value_BZNGd, strict=True)]
        return self.norm(x).to(x_BND.dtype), slices

    def _mask(self, index_N: Tensor, length: int, device: torch.device) -> Tensor | None:
        """What tokens of a block see of the history, which is all of it, and of each other: bool [N, M + N]."""
        own = visible_in_block(self.layout)[index_N][:, index_N]
        if own.all():
            return None
        return torch.cat([own.new_ones(len(index_N), length), own], dim=1).to(device)

    def remember(self, x_ND: Tensor, past_2ZMGd: Tensor) -> Tensor:
        """Keys (not rotated) and values [2, Z, N, G, d] of N more memory tokens; the past is that of those before."""
        N, M = len(x_ND), past_2ZMGd.shape[2]
        table = memory_table(M + N, self.config.backbone, M + N, x_ND.device)
        mask = memory_mask(N, M + N, self.config.cache.span, x_ND.device)
        x, added = x_ND[None].to(self.weight.dtype), []

        def attend(past_2BMGd: Tensor, attention: Attention, normed: Tensor) -> Tensor:
            out, kv_2BNGd = attend_memory(attention, normed, table, mask, past_2BMGd)
            added.append(kv_2BNGd[:, 0])
            return out

        for number, layer in enumerate(self.layers):
            x = layer(x, partial(attend, past_2ZMGd[:, number, None]))
        return torch.stack(added, dim=1)

    def read(
        self, x_BND: Tensor, past_Z2BMGd: Tensor | None = None, seen_NN: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """N more tokens of B plain sequences, each token after the other: hidden states [B, N, D] and the new past.

        The past is the rotated keys and the values of the M tokens before; None starts a sequence. Nothing is changed
        in place. Token i has the id i on all three axes, which is the 1-D rotary embedding of a language model.

        seen_NN  which of these tokens each comes after, itself included, where they are several ways to go on from the
                 past: a tree (Miao et al. 2024, section 4.2)
        """
        N, M = x_BND.shape[1], 0 if past_Z2BMGd is None else past_Z2BMGd.shape[3]
        seen_NN = torch.ones(N, N, device=x_BND.device).tril().bool() if seen_NN is None else seen_NN
        index_N = M - 1 + seen_NN.sum(1)
        table = rotary_table(index_N[:, None].expand(N, 3), self.config.backbone)
        mask = nn.functional.pad(seen_NN, (M, 0), value=True)
        x, grown = x_BND.to(self.weight.dtype), []

        def attend(past_2BMGd: Tensor | None, attention: Attention, normed: Tensor) -> Tensor:
            q, raw_k, v = attention.project(normed)
            kv = torch.stack([rotate(raw_k, table), v.to(raw_k.dtype)])
            if past_2BMGd is not None:
                kv = torch.cat([past_2BMGd, kv], dim=2)
            grown.append(kv)
            keys, values = kv.to(q.dtype)
            return attention.attend(rotate(q, table), keys, values, mask)

        for number, layer in enumerate(self.layers):
            x = layer(x, partial(attend, None if past_Z2BMGd is None else past_Z2BMGd[number]))
        return self.norm(x).to(x_BND.dtype), torch.stack(grown)

    def forget(self, past_Z2BMGd: Tensor, first: int, last: int) -> Tensor:
        """A past of `read` without the tokens from `first` up to `last`: those behind have their places.

        What was computed of these tokens has seen those that are forgotten, and stays as it is.
        """
        back_1 = torch.tensor([first - last], device=past_Z2BMGd.device)
        table = rotary_table(back_1[:, None].expand(1, 3), self.config.backbone)
        keys, values = past_Z2BMGd[:, :, :, last:].unbind(1)
        moved = torch.stack([rotate(keys, table).to(keys.dtype), values], dim=1)
        return torch.cat([past_Z2BMGd[:, :, :, :first], moved], dim=3)


def _clip_layer(layer: nn.Module, x: States, view: ClipView | FlatView, memory: ClipMemory | None) -> States:
    """Blocks [B, K, N, D]; with a memory, its tokens and those of all blocks [B, M + K N, D]."""
    return layer(x, view.attend if memory is None else partial(_attend_both, view, memory))


def _attend_both(view: ClipView | FlatView, memory: ClipMemory, attention: Attention, x_BTD: States) -> States:
    m_BMD, x_BKND = _apart(x_BTD, memory.seen_BM.shape[1], len(view.layout.kind_N))
    remembered, (raw_k, v) = attend_memory(attention, m_BMD, memory.own_2Md, memory.mask_B1MM)
    kv = MemoryKV(rotate(raw_k, memory.table_2Md), v, memory.seen_BM)
    return _behind(remembered, view.attend(attention, x_BKND, kv))


def _behind(m_BMD: Tensor, x_BKND: States) -> States:
    """Memory tokens, which are text, and those of all blocks behind them."""
    if isinstance(x_BKND, Tensor):
        return torch.cat([m_BMD, x_BKND.flatten(1, 2)], dim=1)
    return Mixed(_behind(m_BMD, x_BKND.text), x_BKND.media.flatten(1, 2), x_BKND.kinds)  # type: ignore[arg-type]


def _apart(x_BTD: States, M: int, N: int) -> tuple[Tensor, States]:
    """M memory tokens and blocks of N tokens."""
    if isinstance(x_BTD, Tensor):
        return x_BTD[:, :M], x_BTD[:, M:].unflatten(1, (-1, N))
    m_BMD, text = _apart(x_BTD.text, M, len(x_BTD.kinds.text_T))
    return m_BMD, Mixed(text, x_BTD.media.unflatten(1, (text.shape[1], -1)), x_BTD.kinds)  # type: ignore[union-attr,arg-type]

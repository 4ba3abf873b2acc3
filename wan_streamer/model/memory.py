"""The text memory: spoken tokens that are older than the text window (docs/architecture.md, "Memory").

`spoken`         text of units -> memory tokens
`latest`         the last of them, in a tensor of fixed size
`readable`       a memory without what is hidden from the model
`timeline`       all words of clips, one after the other;  `foretold`  what a reader expects behind them
`ClipMemory`     how the memories of a batch of clips are read;   `MemoryKV`  what their blocks see of them in a layer
`attend_memory`  attention among memory tokens, each to those before it

A memory token is a pair (source, token) and stands behind all that was said before it: by unit, slot and source. In
batches the pairs stand at the end of a row, so that the last one always has the same place; padding is in front.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.config import BackboneConfig
from wan_streamer.model.layers import Attention, rotary_table, rotate
from wan_streamer.model.layout import LANES

SOURCES = (*LANES, "typed")
RESPONSE, TRANSCRIPT = (SOURCES.index(name) for name in LANES)
PADDING = -1  # source and token of nothing


def spoken(said_KSX: Tensor) -> Tensor:
    """Memory tokens int64 [N, 2] of what every source said in K units, int64 [K, S, sources].

    Words and ends of turns, which keep utterances apart; no SILENCE and no HOLD.
    """
    where_N3 = (said_KSX > HOLD).nonzero()  # in the order of the memory
    return torch.stack([where_N3[:, 2], said_KSX[where_N3.unbind(1)]], dim=1)


def latest(memory_N2: Tensor, size: int) -> Tensor:
    """The last `size` memory tokens [size, 2], with padding in front where there are fewer."""
    memory_N2 = memory_N2[max(0, len(memory_N2) - size) :]
    return F.pad(memory_N2, (0, 0, size - len(memory_N2), 0), value=PADDING)


def readable(memory_BM2: Tensor, written_B: Tensor) -> Tensor:
    """The memories without holes, and without the agent's words where `written_B` is False; padding in front."""
    source_BM = memory_BM2[..., 0]
    kept_BM = (source_BM != PADDING) & ((source_BM != RESPONSE) | written_B[:, None])
    order_BM = kept_BM.long().argsort(dim=1, stable=True)
    kept_BM2 = torch.where(kept_BM[..., None], memory_BM2, PADDING)
    return kept_BM2.gather(1, order_BM[..., None].expand(-1, -1, 2))


def timeline(memory_BM2: Tensor, typed_BKS: Tensor, slot_BKSL: Tensor, written_BK: Tensor) -> tuple[Tensor, Tensor]:
    """The words of clips [B, N, 2], with padding behind; how many stand before each slot, [B, K, S].

    What is typed in a unit is known before its slots.
    """
    K, S, L = slot_BKSL.shape[1:]
    slot_BKSL = torch.where(written_BK[..., None, None] | (torch.arange(L).to(slot_BKSL) != RESPONSE), slot_BKSL, 0)
    said_BKX = torch.cat([typed_BKS, slot_BKSL.flatten(2)], dim=2)
    source_X = torch.tensor([SOURCES.index("typed")] * S + [*range(L)] * S, device=said_BKX.device)
    words_BKX2 = torch.stack([source_X.expand_as(said_BKX), said_BKX], dim=-1)
    there_BKX = said_BKX > HOLD
    words_BKX2 = torch.where(there_BKX[..., None], words_BKX2, PADDING)
    all_BN2 = torch.cat([readable(memory_BM2, written_BK.all(1)), words_BKX2.flatten(1, 2)], dim=1)
    order_BN = (all_BN2[..., 0] == PADDING).long().argsort(dim=1, stable=True)
    count_BN = (all_BN2[..., 0] != PADDING).cumsum(1)
    upto_BKX = count_BN[:, memory_BM2.shape[1] :].unflatten(1, (K, -1))
    before_BKS = upto_BKX[..., S - 1 : -1 : L]
    return all_BN2.gather(1, order_BN[..., None].expand(-1, -1, 2)), before_BKS


def foretold(token_XR: Tensor, written_XS: Tensor, slot: int) -> Tensor:
    """Words [..., R, 2] that a reader expects to be written from a slot on, with padding behind.

    token_XR  [..., R], what it expects in the unit;   written_XS  the transcript of the unit so far
    """
    alike_X1 = (token_XR[..., :slot] == written_XS[..., :slot]).all(-1, keepdim=True)
    left_XR = F.pad(token_XR[..., slot:], (0, slot), value=SILENCE)
    there_XR = (left_XR > END).long().cumprod(-1).bool() & alike_X1
    return torch.where(
        there_XR[..., None], torch.stack([torch.full_like(left_XR, TRANSCRIPT), left_XR], dim=-1), PADDING
    )


class ClipMemory(NamedTuple):
    """How the memories of B clips are read.

    own_2Md    rotary tables for each other: the last token has the id -1, one tick before the clip
    table_2Md  for the blocks: likewise, but none stands before the span
    seen_BM    bool: whether there is a token
    mask_B1MM  bool: which token sees which; padding sees itself, because a row of nothing would be NaN
    """

    own_2Md: Tensor
    table_2Md: Tensor
    seen_BM: Tensor
    mask_B1MM: Tensor


def clip_memory(seen_BM: Tensor, config: BackboneConfig, span: int) -> ClipMemory:
    """The `ClipMemory` of memories of which `seen_BM` is there."""
    M, device = seen_BM.shape[1], seen_BM.device
    itself_MM = torch.eye(M, dtype=torch.bool, device=device)
    mask_BMM = (memory_mask(M, M, span, device) & seen_BM[:, None]) | itself_MM
    own_2Md, table_2Md = (memory_table(M, config, reach, device) for reach in (M, span))
    return ClipMemory(own_2Md, table_2Md, seen_BM, mask_BMM[:, None])


def memory_mask(N: int, M: int, span: int, device: torch.device) -> Tensor:
    """Which of M memory tokens the last N see: bool [N, M]. Themselves, and those before them in a span."""
    near_NM = torch.ones(N, M, dtype=torch.bool, device=device)
    return near_NM.tril(M - N) & near_NM.triu(M - N - span + 1)


def memory_table(M: int, config: BackboneConfig, span: int, device: torch.device) -> Tensor:
    """Rotary tables [2, M, head_dim / 2] of M memory tokens, ids counted from where the text window begins."""
    return rotary_table(memory_ids(M, span).to(device), config)


def memory_ids(M: int, span: int) -> Tensor:
    """Ids [M, 3] of M memory tokens, counted from the first tick of the text window: -M ... -1 on all axes.

    Those before the span have the id of its first.
    """
    return torch.arange(-M, 0, dtype=torch.float64).clamp(min=-span)[:, None].expand(M, 3)


class MemoryKV(NamedTuple):
    """What the blocks of B clips read of their memories in one layer: rotated keys, values, whether they are there."""

    key_BMGd: Tensor
    value_BMGd: Tensor
    seen_BM: Tensor


def attend_memory(
    attention: Attention, x_BND: Tensor, table_2Md: Tensor, mask: Tensor, past_2BMGd: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention among memory tokens, output projection included, and keys (not rotated) and values [2, B, N, G, d].

    x_BND       normalised hidden states of N tokens
    past_2BMGd  keys and values of the tokens before; table and mask (broadcasts to [B, 1, N, M]) are those of both
    """
    q, raw_k, v = attention.project(x_BND)
    added = kv = torch.stack([raw_k, v.to(raw_k.dtype)])
    if past_2BMGd is not None:
        kv = torch.cat([past_2BMGd.to(kv.dtype), kv], dim=2)
    keys, values = rotate(kv[0], table_2Md).to(q.dtype), kv[1].to(q.dtype)
    return attention.attend(rotate(q, table_2Md[:, -x_BND.shape[1] :]), keys, values, mask), added

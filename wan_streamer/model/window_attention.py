"""Attention of the blocks of a clip to the keys in their windows, one block after the other.

A block's scores stay in the processor's cache from the product that makes them to the product that uses them, and a
block near the start of a clip pays only for the history it has. One opaque operation, so that `torch.compile` neither
unrolls the blocks nor splits the layer there.

    window_attention   forward and, registered with autograd, backward; scores are made again in the backward pass

Suffixes: K blocks, B batch times key heads, R query heads of a key head times N tokens, W history tokens of a kind in
a block, M sink tokens, d head_dim.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("wan_streamer::window_attention", mutates_args=())
def window_attention(
    q_KBRd: Tensor,
    k_BKNd: Tensor,
    v_BKNd: Tensor,
    sink_k_BKMd: Tensor,
    sink_v_BMd: Tensor,
    bias_KNT: Tensor,
    sizes: list[int],
    windows: list[int],
) -> Tensor:
    """Softmax attention [K, B, R, d].

    q_KBRd       scaled queries
    k_BKNd       keys of all tokens of a block: kind by kind what enters the history, then the rest
    sink_k_BKMd  keys of the sinks as each block sees them; M may be 0
    bias_KNT     0 where a block's query sees one of its T = M + N sinks and own tokens, else -inf
    sizes        history tokens of a block, per kind;   windows  blocks per kind that are seen, the query's own included
    """
    out = torch.empty_like(q_KBRd)
    for block in range(len(q_KBRd)):
        keys = _gather(k_BKNd, sink_k_BKMd[:, block], block, sizes, windows)
        values = _gather(v_BKNd, sink_v_BMd, block, sizes, windows)
        torch.bmm(_weights(q_KBRd[block], keys, bias_KNT[block]), values, out=out[block])
    return out


@window_attention.register_fake
def _(q_KBRd: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q_KBRd)


@torch.library.custom_op("wan_streamer::window_attention_backward", mutates_args=())
def window_attention_backward(
    grad_KBRd: Tensor,
    q_KBRd: Tensor,
    k_BKNd: Tensor,
    v_BKNd: Tensor,
    sink_k_BKMd: Tensor,
    sink_v_BMd: Tensor,
    bias_KNT: Tensor,
    sizes: list[int],
    windows: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, sink_k and sink_v. A key's gradient is summed over its readers in float32."""
    grad_q, grad_sink_k = torch.empty_like(q_KBRd), torch.empty_like(sink_k_BKMd)
    grad_k, grad_v, grad_sink_v = (torch.zeros_like(z, dtype=torch.float32) for z in (k_BKNd, v_BKNd, sink_v_BMd))
    for block in range(len(q_KBRd)):
        q, grad = q_KBRd[block], grad_KBRd[block]
        keys = _gather(k_BKNd, sink_k_BKMd[:, block], block, sizes, windows)
        values = _gather(v_BKNd, sink_v_BMd, block, sizes, windows)
        weights = _weights(q, keys, bias_KNT[block])
        grad_score = torch._softmax_backward_data(grad @ values.transpose(1, 2), weights, -1, weights.dtype)
        torch.bmm(grad_score, keys, out=grad_q[block])
        grad_sink_k[:, block] = _scatter(grad_score.transpose(1, 2) @ q, grad_k, block, sizes, windows)
        grad_sink_v += _scatter(weights.transpose(1, 2) @ grad, grad_v, block, sizes, windows)
    return grad_q, grad_k.to(q_KBRd.dtype), grad_v.to(q_KBRd.dtype), grad_sink_k, grad_sink_v.to(q_KBRd.dtype)


@window_attention_backward.register_fake
def _(grad_KBRd: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(z) for z in inputs[:5])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.sizes, ctx.windows = inputs[6:]


def _backward(ctx: Any, grad_KBRd: Tensor) -> tuple[Tensor | None, ...]:
    grads = window_attention_backward(grad_KBRd.contiguous(), *ctx.saved_tensors, ctx.sizes, ctx.windows)
    return *grads, None, None, None


window_attention.register_autograd(_backward, setup_context=_save)


def _weights(q_BRd: Tensor, keys_BSd: Tensor, bias_NT: Tensor) -> Tensor:
    """Attention weights [B, R, S]; the last T keys are biased."""
    score = torch.bmm(q_BRd, keys_BSd.transpose(1, 2))
    N, T = bias_NT.shape
    score[:, :, -T:].unflatten(1, (-1, N)).add_(bias_NT)
    return score.softmax(-1)


def _history(x_BKNd: Tensor, block: int, sizes: list[int], windows: list[int]) -> Iterator[Tensor]:
    """What a block sees of the blocks before it: a view [B, blocks, W, d] of each kind."""
    start = 0
    for size, window in zip(sizes, windows, strict=True):
        yield x_BKNd[:, max(0, block - window + 1) : block, start : start + size]
        start += size


def _gather(x_BKNd: Tensor, sink_BMd: Tensor, block: int, sizes: list[int], windows: list[int]) -> Tensor:
    """All that a block sees [B, S, d]: history of each kind, sinks, its own tokens."""
    history = [part.flatten(1, 2) for part in _history(x_BKNd, block, sizes, windows)]
    return torch.cat([*history, sink_BMd, x_BKNd[:, block]], dim=1)


def _scatter(grad_BSd: Tensor, total_BKNd: Tensor, block: int, sizes: list[int], windows: list[int]) -> Tensor:
    """Adds the gradient of `_gather` to the total; returns the part of the sinks [B, M, d]."""
    start = 0
    for part in _history(total_BKNd, block, sizes, windows):
        end = start + part.shape[1] * part.shape[2]
        part += grad_BSd[:, start:end].unflatten(1, part.shape[1:3])
        start = end
    own = grad_BSd.shape[1] - total_BKNd.shape[2]
    total_BKNd[:, block] += grad_BSd[:, own:]
    return grad_BSd[:, start:own]

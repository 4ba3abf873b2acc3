"""Attention of the blocks of a clip to the keys in their windows, one block after the other.

A block's scores stay in the processor's cache from the product that makes them to the product that uses them, and a
block near the start of a clip pays only for the history it has. One opaque operation, so that `torch.compile` neither
unrolls the blocks nor splits the layer there.

    window_attention   forward and, registered with autograd, backward; scores are made again in the backward pass

Suffixes: K blocks, X batch times key heads, R query heads of a key head times N tokens, W history tokens of a kind in
a block, M sink tokens, Y memory tokens, U all keys that a block sees, T sinks and own tokens among them, d head_dim.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("wan_streamer::window_attention", mutates_args=())
def window_attention(
    q_KXRd: Tensor,
    k_XKNd: Tensor,
    v_XKNd: Tensor,
    sink_k_XKMd: Tensor,
    sink_v_XMd: Tensor,
    memory_k_XYd: Tensor,
    memory_v_XYd: Tensor,
    bias_XY: Tensor,
    bias_KNT: Tensor,
    sizes: list[int],
    windows: list[int],
) -> Tensor:
    """Softmax attention [K, X, R, d].

    q_KXRd       scaled queries
    k_XKNd       keys of all tokens of a block: kind by kind what enters the history, then the rest
    sink_k_XKMd  keys of the sinks as each block sees them; M may be 0
    memory_k_XYd keys of the text memory, which are the same for all blocks; Y may be 0
    bias_XY      0 where there is a memory token, else -inf
    bias_KNT     0 where a block's query sees one of its T = M + N sinks and own tokens, else -inf
    sizes        history tokens of a block, per kind;   windows  blocks per kind that are seen, the query's own included
    """
    out = torch.empty_like(q_KXRd)
    keys, values = _History(k_XKNd, sizes, windows), _History(v_XKNd, sizes, windows)
    with torch.autocast(q_KXRd.device.type, enabled=False):  # on CUDA it would make the softmax float32
        for block in range(len(q_KXRd)):
            seen = keys.seen(block, memory_k_XYd, sink_k_XKMd[:, block])
            weights = _weights(q_KXRd[block], seen, bias_XY, bias_KNT[block])
            torch.bmm(weights, values.seen(block, memory_v_XYd, sink_v_XMd), out=out[block])
    return out


@window_attention.register_fake
def _(q_KXRd: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q_KXRd)


@torch.library.custom_op("wan_streamer::window_attention_backward", mutates_args=())
def window_attention_backward(
    grad_KXRd: Tensor,
    q_KXRd: Tensor,
    k_XKNd: Tensor,
    v_XKNd: Tensor,
    sink_k_XKMd: Tensor,
    sink_v_XMd: Tensor,
    memory_k_XYd: Tensor,
    memory_v_XYd: Tensor,
    bias_XY: Tensor,
    bias_KNT: Tensor,
    sizes: list[int],
    windows: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, and of keys and values: k, v, those of sinks and memory. Sums over readers are in float32."""
    keys, values = _History(k_XKNd, sizes, windows), _History(v_XKNd, sizes, windows)
    grad_keys, grad_values = keys.zeros(), values.zeros()
    grad_q, grad_sink_k = torch.empty_like(q_KXRd), torch.empty_like(sink_k_XKMd)
    grad_sink_v, grad_memory_k, grad_memory_v = (
        torch.zeros_like(z, dtype=torch.float32) for z in (sink_v_XMd, memory_k_XYd, memory_v_XYd)
    )
    sizes_YM = [memory_k_XYd.shape[1], sink_v_XMd.shape[1]]
    for block in range(len(q_KXRd)):
        q, grad, k = q_KXRd[block], grad_KXRd[block], keys.seen(block, memory_k_XYd, sink_k_XKMd[:, block])
        weights = _weights(q, k, bias_XY, bias_KNT[block])
        grad_weights = grad @ values.seen(block, memory_v_XYd, sink_v_XMd).transpose(1, 2)
        grad_score = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        torch.bmm(grad_score, k, out=grad_q[block])
        of_memory, grad_sink_k[:, block] = grad_keys.add(block, grad_score.transpose(1, 2) @ q).split(sizes_YM, dim=1)
        grad_memory_k += of_memory
        of_memory, of_sinks = grad_values.add(block, weights.transpose(1, 2) @ grad).split(sizes_YM, dim=1)
        grad_memory_v += of_memory
        grad_sink_v += of_sinks
    grads = grad_keys.whole(), grad_values.whole(), grad_sink_k, grad_sink_v, grad_memory_k, grad_memory_v
    return grad_q, *(grad.to(q_KXRd.dtype) for grad in grads)  # type: ignore[return-value]


@window_attention_backward.register_fake
def _(grad_KXRd: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(z) for z in inputs[:7])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.sizes, ctx.windows = inputs[9:]


def _backward(ctx: Any, grad_KXRd: Tensor) -> tuple[Tensor | None, ...]:
    grads = window_attention_backward(grad_KXRd.contiguous(), *ctx.saved_tensors, ctx.sizes, ctx.windows)
    return *grads, None, None, None, None


window_attention.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.wan_streamer.window_attention)
def _operations(q_KXRd: torch.Size, k_XKNd: torch.Size, *rest: Any, products: int = 2, **_: Any) -> int:
    """Operations of the matrix products, from the shapes of the arguments."""
    (K, B, R, d), bias_XY, bias_KNT, sizes, windows = q_KXRd, *rest[-4:]
    history = sum(size * min(k, window - 1) for size, window in zip(sizes, windows, strict=True) for k in range(K))
    return products * 2 * B * R * d * (history + K * (bias_XY[-1] + bias_KNT[-1]))


@register_flop_formula(torch.ops.wan_streamer.window_attention_backward)
def _operations_backward(grad_KXRd: torch.Size, *rest: Any, **_: Any) -> int:
    return _operations(*rest, products=4)  # without the scores that are made again: they are no use of the machine


def _weights(q_XRd: Tensor, keys_XUd: Tensor, bias_XY: Tensor, bias_NT: Tensor) -> Tensor:
    """Attention weights [X, R, U]; the last T keys are biased, and the Y keys before them."""
    score = torch.bmm(q_XRd, keys_XUd.transpose(1, 2))
    (N, T), Y = bias_NT.shape, bias_XY.shape[1]
    score[:, :, -T:].unflatten(1, (-1, N)).add_(bias_NT)
    if Y:
        score[:, :, -T - Y : -T].add_(bias_XY[:, None])
    return score.softmax(-1)


class _History:
    """Keys or values of a clip, so that what a block sees lies together."""

    def __init__(self, x_XKNd: Tensor, sizes: list[int], windows: list[int]) -> None:
        self.own_XKNd, self.sizes, self.windows = x_XKNd, sizes, windows
        # Copies, since a block has more tokens than those of one kind.
        self.kinds = [part.flatten(1, 2) for part in x_XKNd[:, :, : sum(sizes)].split(sizes, dim=2)]  # [X, K W, d]

    def zeros(self) -> "_History":
        """Nothing yet, in the same shape, for sums in float32."""
        return _History(torch.zeros_like(self.own_XKNd, dtype=torch.float32), self.sizes, self.windows)

    def seen(self, block: int, memory_XYd: Tensor, sink_XMd: Tensor) -> Tensor:
        """All that a block sees [X, U, d]: history of each kind, memory, sinks, its own tokens."""
        return torch.cat([*self._earlier(block), memory_XYd, sink_XMd, self.own_XKNd[:, block]], dim=1)

    def add(self, block: int, grad_XUd: Tensor) -> Tensor:
        """Adds the gradient of `seen`; returns the part of memory and sinks [X, Y + M, d]."""
        start = 0
        for part in self._earlier(block):
            part += grad_XUd[:, start : start + part.shape[1]]
            start += part.shape[1]
        own = grad_XUd.shape[1] - self.own_XKNd.shape[2]
        self.own_XKNd[:, block] += grad_XUd[:, own:]
        return grad_XUd[:, start:own]

    def whole(self) -> Tensor:
        """What was added [X, K, N, d]."""
        start = 0
        for part, size in zip(self.kinds, self.sizes, strict=True):
            self.own_XKNd[:, :, start : start + size] += part.unflatten(1, (self.own_XKNd.shape[1], size))
            start += size
        return self.own_XKNd

    def _earlier(self, block: int) -> Iterator[Tensor]:
        """Views of what a block sees of the blocks before it, kind by kind."""
        for part, size, window in zip(self.kinds, self.sizes, self.windows, strict=True):
            yield part[:, max(0, block - window + 1) * size : block * size]

"""Layers for inference on a CPU: weights in half precision, packed once, and float32 sums (FBGEMM).

`PackedLinear`, `PackedConv`  what stands in for a layer
`pack`                        replaces all of them inside a module;   `pack_if_possible`, `can_pack`  if they can be
`drop_unpacked`               to save memory
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

HALF_MAX = 65_504.0


class PackedLinear(nn.Linear):
    """`linear` with the same parameters, for inference on a CPU; later changes of the parameters are not seen.

    A pass of few tokens does little more than read weights, and a processor without bfloat16 instructions reads half
    the bytes this way. Weights of a checkpoint are bfloat16, which has fewer digits than half precision: packing loses
    nothing of them but numbers below 6e-8.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        bias = None if linear.bias is None else linear.bias.detach().float()
        weight = linear.weight.detach().float().clone()  # which packing may change
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(input, self._packed)


class PackedConv(nn.Module):
    """A convolution without padding as a product, in one or two dimensions; parameters as in `PackedLinear`.

    Few positions of a long kernel are a product that no routine for convolutions has in mind.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._windows = [*zip(conv.kernel_size, conv.stride, strict=True)]
        linear = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
        linear.weight.data = conv.weight.detach().movedim(1, -1).flatten(1)  # channels innermost, as in memory
        if conv.bias is not None:
            linear.bias.data = conv.bias.detach()
        self._linear = [PackedLinear(linear)]  # in a list: its parameters are those of this module

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, places] -> [B, D, places'], with channels innermost in memory."""
        for dim, (size, step) in enumerate(self._windows, start=2):
            x = x.unfold(dim, size, step)
        windows = x.movedim(1, -1).flatten(1 + len(self._windows))  # of [B, C, places, window]
        return self._linear[0](windows).movedim(-1, 1)


def can_pack(layer: nn.Module) -> bool:
    """Whether this build of PyTorch can, and the weights are in range; True for layers that stay as they are."""
    kind = _kind(layer)
    if kind is None:
        return True
    if layer.weight.detach().abs().max() > HALF_MAX:  # type: ignore[operator, union-attr]
        return False
    try:
        kind(layer)
    except (RuntimeError, AttributeError):  # not an x86 processor
        return False
    return True


def pack_if_possible(module: nn.Module) -> bool:
    """`pack` it, unless one of its layers cannot be packed."""
    possible = all(map(can_pack, module.modules()))
    if possible:
        pack(module)
    return possible


def pack(module: nn.Module) -> None:
    """Replace all linear layers inside `module`, and convolutions without padding whose windows overlap little."""
    for name, child in module.named_children():
        kind = _kind(child)
        if kind is not None:
            setattr(module, name, kind(child))
        else:
            pack(child)


def drop_unpacked(module: nn.Module) -> None:
    """Forget the weights from which the linear layers inside `module` were packed: it cannot be saved any more."""
    for part in module.modules():
        if isinstance(part, PackedLinear):
            part.weight = nn.Parameter(part.weight.new_empty(0), requires_grad=False)


def _kind(layer: nn.Module) -> Callable[[Any], nn.Module] | None:
    """What stands in for a layer; None for one that stays."""
    if type(layer) is nn.Linear:
        return PackedLinear
    if type(layer) not in (nn.Conv1d, nn.Conv2d):
        return None
    plain = set(layer.padding) == {0} and set(layer.dilation) == {1} and layer.groups == 1  # type: ignore[arg-type]
    return PackedConv if plain and min(layer.stride) > 1 else None  # type: ignore[arg-type, type-var]

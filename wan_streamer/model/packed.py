"""Linear layers whose weights are packed once in half precision and multiplied in float32 (FBGEMM).

A pass of few tokens does little more than read weights, and a processor without bfloat16 instructions reads half the
bytes this way. Weights of a checkpoint are bfloat16, which has fewer digits than half precision: packing them loses
nothing, but for numbers below 6e-8.
"""

import torch
from torch import Tensor, nn

HALF_MAX = 65_504.0


class PackedLinear(nn.Linear):
    """`linear` with the same parameters, for inference on a CPU; later changes of the parameters are not seen."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        bias = None if linear.bias is None else linear.bias.detach().float()
        weight = linear.weight.detach().float().clone()  # which packing may change
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(input, self._packed)


def can_pack(linear: nn.Linear) -> bool:
    """Whether this build of PyTorch can, and the weights are in range."""
    if linear.weight.detach().abs().max() > HALF_MAX:
        return False
    try:
        PackedLinear(linear)
    except (RuntimeError, AttributeError):  # not an x86 processor
        return False
    return True


def pack(module: nn.Module) -> None:
    """Replace all linear layers inside `module`."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            pack(child)

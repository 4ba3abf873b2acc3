"""The operation in which the blocks of a clip attend: what compilers and counters are told about it is true."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from wan_streamer.model.views.window_attention import window_attention

K, B, N, REPEAT, M, D, Y = 6, 2, 5, 2, 3, 8, 4
SIZES, WINDOWS = [2, 1], [3, 6]


def arguments() -> tuple:
    g = torch.Generator().manual_seed(0)
    shapes = [(K, B, REPEAT * N, D), (B, K, N, D), (B, K, N, D), (B, K, M, D), (B, M, D), (B, Y, D), (B, Y, D)]
    tensors = [torch.randn(shape, generator=g).requires_grad_() for shape in shapes]
    bias_KNT = torch.zeros(K, N, M + N)
    bias_KNT[:, 0, -1] = float("-inf")
    bias_XY = torch.zeros(B, Y)
    bias_XY[1, :2] = float("-inf")
    return (*tensors, bias_XY, bias_KNT, SIZES, WINDOWS)


def test_compilers_are_told_the_truth() -> None:
    torch.library.opcheck(window_attention, arguments())


def test_operations_are_those_of_the_products() -> None:
    seen = sum(sum(size * min(k, w - 1) for size, w in zip(SIZES, WINDOWS, strict=True)) + Y + M + N for k in range(K))
    product = 2 * B * REPEAT * N * D * seen
    with FlopCounterMode(display=False) as counter:
        out = window_attention(*arguments())
        assert counter.get_total_flops() == 2 * product  # scores and their use
        out.sum().backward()
    assert counter.get_total_flops() == 6 * product  # two for each of them; scores made again do not count

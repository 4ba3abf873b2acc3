"""Causal layers with explicit state: `(x, state) -> (y, state)`.

No state hides on a module. `None` is the fresh state, so offline is one long chunk: `layer(x, None)`.

    CausalConv1d   convolution over time that sees the present and the past
    ConvNeXt1d     causal depthwise convolution + pointwise MLP, with a residual
    MemoryBlock    2-D residual block that reads the previous frame's features (after TAEHV)
    CodecStats     per-channel mean and deviation of a codec's latents
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = Tensor | None


class CausalConv1d(nn.Module):
    """x_BCT -> y_BCT. The state holds the last kernel - 1 inputs."""

    def __init__(self, c_in: int, c_out: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, groups=groups)
        self.past = kernel - 1

    def forward(self, x_BCT: Tensor, state: State) -> tuple[Tensor, State]:
        if state is None:
            state = x_BCT.new_zeros(x_BCT.shape[0], x_BCT.shape[1], self.past)
        x_BCT = torch.cat([state.to(x_BCT.dtype), x_BCT], dim=2)
        return self.conv(x_BCT), x_BCT[:, :, x_BCT.shape[2] - self.past :]


class ConvNeXt1d(nn.Module):
    """x_BTD -> y_BTD with the same length."""

    def __init__(self, dim: int, kernel: int, expand: int = 3) -> None:
        super().__init__()
        self.mix = CausalConv1d(dim, dim, kernel, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, expand * dim)
        self.down = nn.Linear(expand * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.3))

    def forward(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        mixed, state = self.mix(x_BTD.transpose(1, 2), state)
        hidden = self.norm(mixed.transpose(1, 2))
        return x_BTD + self.scale * self.down(F.gelu(self.up(hidden), approximate="tanh")), state


class MemoryBlock(nn.Module):
    """x_BTCHW -> y_BTCHW. The state is what the last input frame adds to the next one [B, 1, C, H, W].

    conv1 reads present and past together. It is run as two convolutions of the same activations, and the past's result
    is shifted by a frame: nothing is concatenated, and the activation is computed once.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.fixed: tuple[Tensor, Tensor] | None = None

    def fix(self) -> None:
        """Put the weights of present and past apart; later changes of them are not seen."""
        with torch.no_grad():
            present, past = self.conv1.weight.chunk(2, dim=1)
            order = torch.channels_last
            self.fixed = present.contiguous(memory_format=order), past.contiguous(memory_format=order)

    def forward(self, x_BTCHW: Tensor, state: State) -> tuple[Tensor, State]:
        frames = x_BTCHW.shape[:2]
        active = F.silu(x_BTCHW.flatten(0, 1))
        present, past = self.fixed or self.conv1.weight.chunk(2, dim=1)
        hidden = F.conv2d(active, present, self.conv1.bias, padding=1).unflatten(0, frames)
        memory = F.conv2d(active, past, padding=1).unflatten(0, frames)
        hidden[:, 1:] += memory[:, :-1]
        if state is not None:
            hidden[:, :1] += state.to(hidden.dtype)
        hidden = self.conv2(activated(hidden.flatten(0, 1)))
        return added(hidden.unflatten(0, frames), x_BTCHW), memory[:, -1:]


def activated(x: Tensor) -> Tensor:
    """SiLU of what is not read again: in its place, where nothing is learned. Fresh memory would take longer."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def added(x: Tensor, other: Tensor) -> Tensor:
    """The sum, in the place of `x`, which is not read again, where nothing is learned."""
    return x + other if torch.is_grad_enabled() else x.add_(other)


class CodecStats(nn.Module):
    """Standardises latents. `mean_C` and `std_C` are measured after training and stored with the weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("std_C", torch.ones(channels))
        self.mean_C: Tensor
        self.std_C: Tensor

    def measure(self, latent_NC: Tensor) -> None:
        """Set the statistics from a sample of raw latents [N, C]."""
        self.mean_C.copy_(latent_NC.float().mean(0))
        self.std_C.copy_(latent_NC.float().std(0).clamp(min=1e-4))

    def standardise(self, latent: Tensor, dim: int) -> Tensor:
        return (latent - self._shape(self.mean_C, latent, dim)) / self._shape(self.std_C, latent, dim)

    def restore(self, latent: Tensor, dim: int) -> Tensor:
        return latent * self._shape(self.std_C, latent, dim) + self._shape(self.mean_C, latent, dim)

    @staticmethod
    def _shape(value_C: Tensor, like: Tensor, dim: int) -> Tensor:
        shape = [1] * like.ndim
        shape[dim] = -1
        return value_C.view(shape)

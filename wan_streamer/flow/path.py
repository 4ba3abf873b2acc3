"""The linear path of conditional flow matching (paper eq. 1-3): tau = 0 is data, tau = 1 is noise.

z_tau = (1 - tau) z0 + tau eps,   velocity target = eps - z0.
"""

import torch
from torch import Tensor

from wan_streamer.flow.noise import RowNoise


def interpolate(clean: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
    """z_tau (eq. 1). `tau` broadcasts against the latents."""
    return (1 - tau) * clean + tau * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """d z_tau / d tau (eq. 2)."""
    return noise - clean


def shift_tau(tau: Tensor, shift: float) -> Tensor:
    """Move a time in [0, 1] towards noise: shift tau / (1 + (shift - 1) tau)."""
    return shift * tau / (1 + (shift - 1) * tau)


def sample_tau(shape: tuple[int, ...], shift: float, noise: RowNoise, uniform: float = 0.1) -> Tensor:
    """Training times: logit-normal, shifted, and a share `uniform` drawn evenly so that both ends are seen."""
    tau = shift_tau(noise.normal(shape).sigmoid(), shift)
    return torch.where(noise.uniform(shape) < uniform, noise.uniform(shape), tau)

"""The Euler solver of the flow, from noise (tau = 1) to data (tau = 0). Whatever rolls the model out calls it."""

from collections.abc import Callable
from itertools import pairwise

import torch

from wan_streamer.flow.path import shift_tau
from wan_streamer.model.layout import Latents


def time_grid(steps: int, shift: float) -> list[float]:
    """Falling times [steps + 1] from 1 to 0."""
    return shift_tau(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()


def solve(velocity: Callable[[Latents, float], Latents], noise: Latents, grid: list[float]) -> Latents:
    """Integrate both modalities together: z <- z - (tau_i - tau_{i+1}) v(z, tau_i)."""
    latents = noise
    for now, following in pairwise(grid):
        slope = velocity(latents, now)
        step = now - following
        latents = Latents(latents.video - step * slope.video, latents.audio - step * slope.audio)
    return latents

"""Drawing one unit of the agent. The live session and the rollouts of training call the same function."""

from collections.abc import Callable

import torch

from wan_streamer.config import FlowConfig
from wan_streamer.flow.solver import resample, solve, time_grid
from wan_streamer.model.layout import Latents


def draw_unit(
    velocity: Callable[[Latents, float], Latents],
    like: Latents,
    flow: FlowConfig,
    generator: torch.Generator,
    steps: int | None = None,
) -> Latents:
    """Latents of one unit, shaped like `like`, from noise drawn on the CPU.

    velocity  of the latents at a time; for a live state, `Streamer.velocity` of its open block
    steps     of the solver (default: those of `flow`)
    """

    def fresh() -> Latents:
        drawn = (torch.randn(z.shape, generator=generator).to(z.device, z.dtype) * flow.temperature for z in like)
        return Latents(*drawn)

    grid = time_grid(flow.steps if steps is None else steps, flow.shift)
    if flow.renoise:
        return resample(velocity, fresh(), grid, fresh)
    return solve(velocity, fresh(), grid)

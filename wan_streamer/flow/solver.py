"""Solvers of the flow, from noise (tau = 1) to data (tau = 0).

`time_grid`   the times at which they ask the model
`solve`       Euler: follow the path
`resample`    jump to data and go back with fresh noise: for students that learned to jump
"""

from collections.abc import Callable
from itertools import pairwise

import torch

from wan_streamer.flow.joint import advance, denoise, mix
from wan_streamer.flow.path import shift_tau
from wan_streamer.model.layout import Latents

Velocity = Callable[[Latents, float], Latents]
"""Of latents at a time; for a live state, `Streamer.velocity` of its open block."""


def time_grid(steps: int, shift: float) -> list[float]:
    """Falling times [steps + 1] from 1 to 0."""
    return shift_tau(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()


def solve(velocity: Velocity, noise: Latents, grid: list[float], audio_steps: int = 0) -> Latents:
    """Integrate both modalities together: z <- z - (tau_i - tau_{i+1}) v(z, tau_i).

    audio_steps  the sound is what the jump to data after so many steps gives, z0 = z - tau v (0: it goes all the way).
                 After one it is the mean of all that could be said: clearer than any drawn from too wide a guess
    """
    latents, audio = noise, None
    for number, (now, following) in enumerate(pairwise(grid), start=1):
        step = velocity(latents, now)
        if number == audio_steps:
            audio = denoise(latents, step, now).audio
        latents = advance(latents, step, now - following)
    return latents if audio is None else latents._replace(audio=audio)


def resample(velocity: Velocity, noise: Latents, grid: list[float], fresh: Callable[[], Latents]) -> Latents:
    """Every step jumps to data, z0 = z - tau v(z, tau), and all but the last go back: z = (1 - tau') z0 + tau' eps.

    fresh  draws eps, independent of the noise before: with the same noise again, z would not be on the path that the
           student was trained on, because its z0 depends on that noise
    """
    latents = noise
    for now, following in pairwise(grid):
        latents = denoise(latents, velocity(latents, now), now)
        if following > 0:
            latents = mix(latents, fresh(), following)
    return latents

"""Points on the path for both modalities together: the one arithmetic of solvers, objectives and distillation.

A time is a number, or a tensor [..., 2] (video, audio) for latents [..., tokens, numbers].
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from wan_streamer.flow.path import interpolate
from wan_streamer.model.layout import Latents

Time = float | Tensor


def each(change: Callable[..., Tensor], *latents: Latents) -> Latents:
    """`change` of the video parts and `change` of the audio parts."""
    return Latents(change(*(z.video for z in latents)), change(*(z.audio for z in latents)))


def stack(latents: Iterable[Latents], dim: int = 0) -> Latents:
    """One more axis."""
    return each(lambda *z: torch.stack(z, dim), *latents)


def mix(clean: Latents, noise: Latents, tau: Time) -> Latents:
    """z_tau = (1 - tau) z0 + tau eps (paper eq. 1)."""
    return each(interpolate, clean, noise, _of_each(tau))


def advance(noisy: Latents, velocity: Latents, step: Time) -> Latents:
    """One Euler step towards data, from tau to tau - step: z - step v."""
    return each(lambda z, v, size: z - size * v, noisy, velocity, _of_each(step))


def denoise(noisy: Latents, velocity: Latents, tau: Time) -> Latents:
    """z0 = z - tau v, all the way to data.

    Above the floor of the model's times (`TAU_FLOOR`) this is what the network put out. Below, where the velocity is
    (z - output) / floor, it is z + (tau / floor) (output - z), which ends in z itself at tau = 0: what a consistency
    function has to do there.
    """
    return advance(noisy, velocity, tau)


def _of_each(time: Time) -> Latents:
    """The time of video and of audio, ready to be multiplied with latents."""
    if isinstance(time, Tensor):
        return Latents(time[..., 0, None, None], time[..., 1, None, None])
    return Latents(time, time)  # type: ignore[arg-type]

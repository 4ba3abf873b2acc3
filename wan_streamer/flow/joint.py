"""Points on the path for both modalities together: the one arithmetic of solvers, objectives and distillation.

A time is a number, or a tensor [..., 2] (video, audio) for latents [..., tokens, numbers].
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_streamer.flow.path import interpolate, velocity_target
from wan_streamer.model.layout import Latents
from wan_streamer.model.streamer import TAU_FLOOR

Time = float | Tensor


@dataclass(frozen=True)
class Guidance:
    """How far classifier-free guidance goes: 0 ignores the text, 1 is the model as it is, more exaggerates."""

    video: float = 1.5
    audio: float = 2.5


def each(change: Callable[..., Tensor], *latents: Latents) -> Latents:
    """`change` of the video parts and `change` of the audio parts."""
    return Latents(change(*(z.video for z in latents)), change(*(z.audio for z in latents)))


def stack(latents: Iterable[Latents], dim: int = 0) -> Latents:
    """One more axis."""
    return each(lambda *z: torch.stack(z, dim), *latents)


def mix(clean: Latents, noise: Latents, tau: Time) -> Latents:
    """z_tau = (1 - tau) z0 + tau eps (paper eq. 1)."""
    return each(interpolate, clean, noise, _of_each(tau))


def velocity_goal(clean: Latents, noise: Latents, tau: Tensor) -> Latents:
    """The velocity of a network that guesses z0 rightly: eps - z0 (eq. 2), and below the floor of times less of it.

    There the velocity of the model is (z - output) / floor, and z - z0 is tau (eps - z0). A loss on eps - z0 would ask
    the network for more than z0.
    """
    share = tau / tau.clamp(min=TAU_FLOOR)
    return each(lambda z, eps, part: part * velocity_target(z, eps), clean, noise, _of_each(share))


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


def guide(conditional: Latents, unconditional: Latents, weight: Guidance) -> Latents:
    """unconditional + weight (conditional - unconditional); exactly the conditional at weight 1."""
    return each(torch.lerp, unconditional, conditional, Latents(weight.video, weight.audio))  # type: ignore[arg-type]


def _of_each(time: Time) -> Latents:
    """The time of video and of audio, ready to be multiplied with latents."""
    if isinstance(time, Tensor):
        return Latents(time[..., 0, None, None], time[..., 1, None, None])
    return Latents(time, time)  # type: ignore[arg-type]

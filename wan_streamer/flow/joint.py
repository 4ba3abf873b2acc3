"""Steps on the path for both modalities together, each with times of its own.

Times `tau_2` are [..., 2] (video, audio) for latents [..., tokens, numbers].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from wan_streamer.model.layout import Latents


def each(change: Callable[..., Tensor], *latents: Latents) -> Latents:
    """`change` of the video parts and `change` of the audio parts."""
    return Latents(change(*(z.video for z in latents)), change(*(z.audio for z in latents)))


def advance(noisy: Latents, velocity: Latents, now_2: Tensor, following_2: Tensor) -> Latents:
    """One Euler step: z - (tau - tau') v."""
    step_2 = (now_2 - following_2)[..., None, None]
    return Latents(
        noisy.video - step_2[..., 0, :, :] * velocity.video, noisy.audio - step_2[..., 1, :, :] * velocity.audio
    )


def denoise(noisy: Latents, velocity: Latents, tau_2: Tensor) -> Latents:
    """z0 = z - tau v, all the way to data.

    Above the floor of the model's times (`TAU_FLOOR`) this is what the network put out. Below, where the velocity is
    (z - output) / floor, it is z + (tau / floor) (output - z), which ends in z itself at tau = 0: what a consistency
    function has to do there.
    """
    return advance(noisy, velocity, tau_2, torch.zeros_like(tau_2))

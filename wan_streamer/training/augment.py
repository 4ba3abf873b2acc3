"""Small random changes of how the user is heard and seen, new at every reading, so that no clip is learned by heart.

`vary`  other loudness, another microphone and some hiss; another lamp, the camera moved a little

Nothing moves in time, and what the words and labels of a clip say stays true.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wan_streamer.training.clips import Example

GAIN_DB = (-9.0, 6.0)
CURVE_DB, CURVE_POINTS = 4.0, 6  # deviation of a microphone's response at so many frequencies, from low to high
HISS_DBFS = (-75.0, -42.0)
LIGHT, CONTRAST = 24.0, (0.8, 1.2)  # of 255; factor around the mean
SHIFT = 0.06  # of the picture's height and width


def vary(example: Example, rng: np.random.Generator) -> Example:
    """`example` (one row) as another microphone and another camera in the same place would have recorded it."""
    clips = example.clips
    if clips.microphone_BK.all():
        clips = dataclasses.replace(clips, user_audio_BT=_heard(clips.user_audio_BT, rng))
    if clips.camera_BK.all():
        clips = dataclasses.replace(clips, user_video=_seen(clips.user_video[0], rng)[None])
    return dataclasses.replace(example, clips=clips)


def _heard(sound_BT: Tensor, rng: np.random.Generator) -> Tensor:
    spectrum = torch.fft.rfft(sound_BT)
    curve_db = torch.from_numpy(rng.normal(0.0, CURVE_DB, CURVE_POINTS)) + rng.uniform(*GAIN_DB)
    # A bin's octave decides: ten octaves, from what is below hearing to half the sampling rate.
    bins = torch.arange(spectrum.shape[-1])
    place = 1 + (bins.clamp(min=1) / len(bins)).log2().clamp(min=-10) / 10
    left = (place * (CURVE_POINTS - 1)).long().clamp(max=CURVE_POINTS - 2)
    share = place * (CURVE_POINTS - 1) - left
    gain = 10 ** ((curve_db[left] * (1 - share) + curve_db[left + 1] * share) / 20)
    hiss = 10 ** (rng.uniform(*HISS_DBFS) / 20) * torch.from_numpy(rng.standard_normal(tuple(sound_BT.shape)))
    return (torch.fft.irfft(spectrum * gain, n=sound_BT.shape[-1]) + hiss).clamp(-1, 1).to(sound_BT.dtype)


def _seen(frames_FHWC: Tensor, rng: np.random.Generator) -> Tensor:
    H, W = frames_FHWC.shape[1:3]
    down, right = (int(rng.integers(-round(SHIFT * side), round(SHIFT * side) + 1)) for side in (H, W))
    pad = (abs(right), abs(right), abs(down), abs(down))
    wide = F.pad(frames_FHWC.permute(0, 3, 1, 2).float(), pad, mode="replicate").permute(0, 2, 3, 1)
    moved = wide[:, abs(down) - down :, abs(right) - right :][:, :H, :W]
    mean = moved.mean()
    lit = mean + (moved - mean) * rng.uniform(*CONTRAST) + rng.normal(0.0, LIGHT / 2)
    return lit.round().clamp(0, 255).to(frames_FHWC.dtype)

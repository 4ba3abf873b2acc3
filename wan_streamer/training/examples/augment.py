"""Small random changes of how the user is heard and seen, new at every reading, so that no clip is learned by heart.

`vary`  other loudness, another microphone and some hiss; another lamp, the camera moved a little
`lit`   the other lamp alone

Nothing moves in time, and what the words and labels of a clip say stays true. What frozen ears and eyes made of the
user stays as it is.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from wan_streamer.training.examples.clips import Example

GAIN_DB = (-9.0, 6.0)
CURVE_DB, CURVE_POINTS = 4.0, 6  # deviation of a microphone's response at so many frequencies, from low to high
HISS_DBFS = (-75.0, -42.0)
LIGHT, CONTRAST = 12.0, (0.8, 1.2)  # deviation, of 255; factor around the mean
SHIFT = 0.06  # of the picture's height and width


def vary(example: Example, rng: np.random.Generator) -> Example:
    """`example` (one row) as another microphone and another camera in the same place would have recorded it."""
    clips = example.clips
    if clips.microphone_BK.all() and clips.user_audio.ndim == 2:
        clips = dataclasses.replace(clips, user_audio=_heard(clips.user_audio, rng))
    if clips.camera_BK.all() and clips.user_video.dtype == torch.uint8:
        clips = dataclasses.replace(clips, user_video=_seen(clips.user_video[0], rng)[None])
    return dataclasses.replace(example, clips=clips)


def _heard(sound_BT: Tensor, rng: np.random.Generator) -> Tensor:
    spectrum = torch.fft.rfft(sound_BT)
    curve_db = rng.normal(0.0, CURVE_DB, CURVE_POINTS) + rng.uniform(*GAIN_DB)
    # Ten octaves, from what is below hearing to half the sampling rate.
    bins = np.arange(spectrum.shape[-1])
    octave = np.log2(np.maximum(bins, 1) / len(bins))
    gain = 10 ** (np.interp(octave, np.linspace(-10, 0, CURVE_POINTS), curve_db) / 20)
    hiss = 10 ** (rng.uniform(*HISS_DBFS) / 20) * rng.standard_normal(tuple(sound_BT.shape), dtype=np.float32)
    sound_BT = torch.fft.irfft(spectrum * torch.from_numpy(gain).float(), n=sound_BT.shape[-1])
    return (sound_BT + torch.from_numpy(hiss)).clamp(-1, 1)


def _seen(frames_FHWC: Tensor, rng: np.random.Generator) -> Tensor:
    frames = frames_FHWC.numpy()
    for axis in (1, 2):
        side = frames.shape[axis]
        most = round(SHIFT * side)
        frames = frames.take((np.arange(side) + rng.integers(-most, most + 1)).clip(0, side - 1), axis)
    return lit(frames, rng)


def lit(frames_FHWC: np.ndarray, rng: np.random.Generator) -> Tensor:
    """uint8 [F, H, W, 3] under another lamp: another contrast and another brightness."""
    mean = frames_FHWC[::4, ::4, ::4].mean()
    levels = mean + (np.arange(256) - mean) * rng.uniform(*CONTRAST) + rng.normal(0.0, LIGHT)
    # bytes are looked up several times faster than an array is indexed
    made = bytearray(frames_FHWC.tobytes()).translate(levels.round().clip(0, 255).astype(np.uint8).tobytes())
    return torch.frombuffer(made, dtype=torch.uint8).view(frames_FHWC.shape)

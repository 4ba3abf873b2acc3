"""What a codec or the model makes of held-out data, to look at and to listen to. Nothing here is random.

`video_sheet`   pairs of films -> one picture: originals, rebuilt frames and four times their difference
`pair_sheet`    films of one length -> one picture: the same moments of each, one below the other
`mel_sheet`     sounds -> one picture: their mel spectrograms, one below the other
`stack_images`  pictures of any width, one below the other
`write_png`, `write_wav`   put them into files
"""

import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from wan_streamer.training.codecs.losses import mel_matrix, stft
from wan_streamer.units import SAMPLE_RATE

FILM_FRAMES, SOUND_SECONDS = 20, 3  # enough of a film and of a sound for a sample
SHOWN = (9, 11, 12, 14, 15, 16)  # frames of a film: units meet at 11|12 and at 15|16
MOMENTS = 8  # columns of a sheet of whole films
ERROR_GAIN = 4
N_FFT, HOP, MEL_BINS = 1024, 256, 80
LEVELS = (-3.0, 1.0)  # of the log10 magnitude: black and the brightest colour
COLOURS = ((0, 0, 0), (70, 20, 110), (190, 50, 90), (250, 150, 40), (255, 255, 200))
ZOOM = 3
GAP = 4  # black lines between spectrograms
SILENCE = 0.3  # seconds between sounds


def video_sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(original, rebuilt) films, uint8 [T, H, W, 3] -> uint8 [3 H x pairs, W x columns, 3]; a column is a frame."""
    rows = []
    for original_THWC, rebuilt_THWC in pairs:
        error = np.abs(original_THWC.astype(np.int16) - rebuilt_THWC) * ERROR_GAIN
        shown = [t for t in SHOWN if t < len(original_THWC)]
        for film in (original_THWC, rebuilt_THWC, error.clip(0, 255).astype(np.uint8)):
            rows.append(np.concatenate(film[shown], axis=1))
    return np.concatenate(rows)


def pair_sheet(films: Sequence[np.ndarray]) -> np.ndarray:
    """Films, uint8 [T, H, W, 3] of one size -> uint8 [films x H / 2, columns x W / 2, 3], evenly spread in time."""
    shown = np.linspace(0, len(films[0]) - 1, min(MOMENTS, len(films[0]))).astype(int)
    return np.concatenate([np.concatenate(film_THWC[shown][:, ::2, ::2], axis=1) for film_THWC in films])


def stack_images(images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [H, W, 3] each -> one picture; narrower ones end in black."""
    width = max(image.shape[1] for image in images)
    return np.concatenate([np.pad(image, ((0, GAP), (0, width - image.shape[1]), (0, 0))) for image in images])


def mel_sheet(sounds: Sequence[np.ndarray]) -> np.ndarray:
    """Sounds, float32 [T] of one length -> uint8 [H, W, 3]; low tones below, time to the right."""
    rows: list[np.ndarray] = []
    for sound_T in sounds:
        magnitude_FT = stft(torch.from_numpy(sound_T)[None], N_FFT, HOP)[0].abs()
        level_HW = (mel_matrix(N_FFT, MEL_BINS, magnitude_FT.device).T @ magnitude_FT + 1e-5).log10().flip(0).numpy()
        place_HW = np.clip((level_HW - LEVELS[0]) / (LEVELS[1] - LEVELS[0]), 0, 1) * (len(COLOURS) - 1)
        channels = [np.interp(place_HW, range(len(COLOURS)), channel) for channel in zip(*COLOURS, strict=True)]
        picture_HWC = np.stack(channels, axis=2).astype(np.uint8).repeat(ZOOM, 0).repeat(ZOOM, 1)
        rows += [picture_HWC, np.zeros((GAP, picture_HWC.shape[1], 3), np.uint8)]
    return np.concatenate(rows[:-1])


def write_png(image_HWC: np.ndarray, path: Path) -> None:
    """uint8 [H, W, 3] -> a PNG. The folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec: Any = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt, codec.time_base = *image_HWC.shape[:2], "rgb24", Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
    path.write_bytes(b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)]))


def write_wav(sounds: Sequence[np.ndarray], path: Path) -> None:
    """Sounds, float32 [T] at 24 kHz -> one mono WAV with a short silence after each. The folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    silence_T = np.zeros(round(SILENCE * SAMPLE_RATE), np.float32)
    whole_T = np.concatenate([part for sound_T in sounds for part in (sound_T, silence_T)])
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((whole_T.clip(-1, 1) * 32767).astype("<i2").tobytes())

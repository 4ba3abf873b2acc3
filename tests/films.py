"""Makes small recordings of every kind for the tests: a moving picture with a white flash, silence with a tone."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def picture(time: float, size: tuple[int, int], flash: tuple[float, float]) -> np.ndarray:
    """uint8 [H, W, 3]: a dark ground with a bar that moves, all white during the flash."""
    height, width = size
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, int(time * 50) % width, 1] = 120
    if flash[0] <= time < flash[1]:
        image[:] = 255
    return image


def make_film(
    path: Path,
    seconds: float = 2.0,
    size: tuple[int, int] | None = (120, 160),
    fps: Fraction | int = 25,
    rate: int | None = 48_000,
    layout: str = "stereo",
    flash: tuple[float, float] = (1.0, 1.2),
    tone: tuple[float, float] = (1.0, 1.2),
    video_start: float = 0.0,
    audio_start: float = 0.0,
    codecs: tuple[str, str] = ("libx264", "aac"),
    pts: list[int] | None = None,
) -> Path:
    """Write `path`. size None: no picture; rate None: no sound.

    `seconds`, `flash` and `tone` are on the clock of the film; a track that starts later begins in the middle of it.
    `pts` replaces the regular timestamps of the frames (milliseconds): a variable frame rate.
    """
    with av.open(str(path), "w") as film:
        if size is not None:
            video = film.add_stream(codecs[0], rate=fps)
            video.height, video.width = size
            video.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
            video.codec_context.thread_count = 1
        if rate is not None:
            audio = film.add_stream(codecs[1], rate=rate, layout=layout)
        if size is not None:
            base = Fraction(1, 1000) if pts else 1 / Fraction(fps)
            video.codec_context.time_base = base
            first = round(video_start / base)
            for stamp in pts or range(first, round(seconds / base)):
                frame = av.VideoFrame.from_ndarray(picture(float(stamp * base), size, flash), format="rgb24")
                frame.pts, frame.time_base = stamp, base
                film.mux(video.encode(frame))
            film.mux(video.encode(None))
        if rate is not None:
            time = np.arange(round(audio_start * rate), round(seconds * rate)) / rate
            sound = np.where((time >= tone[0]) & (time < tone[1]), 0.5 * np.sin(2 * np.pi * 1000 * time), 0.0)
            channels = audio.layout.nb_channels
            for start in range(0, len(sound), 1024):
                block = np.tile(sound[start : start + 1024].astype(np.float32), (channels, 1))
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(audio_start * rate) + start
                converted = av.AudioResampler(format=audio.format.name, layout=layout, rate=rate).resample(frame)
                for part in converted:
                    film.mux(audio.encode(part))
            film.mux(audio.encode(None))
    return path

"""Decoded pictures -> RGB as a person sees them, for films and calls alike.

`Scaler`     a video frame of any format -> uint8 [H, W, 3], upright, with square pixels
`one_size`   pictures in a row -> one array, even where a camera changes its size
"""

from collections.abc import Callable, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter


class Scaler:
    """One thread at a time.

    fit           (height, width) of the upright picture -> the size that it gets
    pixel_aspect  width of a pixel divided by its height
    """

    def __init__(self, fit: Callable[[float, float], tuple[int, int]], pixel_aspect: float = 1.0) -> None:
        self._fit, self._pixel_aspect = fit, pixel_aspect
        self._reformatter = VideoReformatter()  # keeps the scaler: setting one up costs more than a frame

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3]."""
        turns = round(frame.rotation / 90) % 4  # quarter turns, counterclockwise
        shape = frame.height, frame.width * self._pixel_aspect
        height, width = self._fit(*shape) if turns % 2 == 0 else self._fit(*shape[::-1])[::-1]
        image = self._reformatter.reformat(frame, width=width, height=height, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def one_size(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [T, H, W, 3], of the size of the last picture, which also stands for those of another size."""
    newest = pictures[-1]
    return np.stack([picture if picture.shape == newest.shape else newest for picture in pictures])

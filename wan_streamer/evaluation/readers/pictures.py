"""Measures of pictures. Frames are uint8 [T, H, W, 3], RGB.

`psnr`, `ssim`        distance of two films
`mouth_box`           where the mouth of our rendered heads is
`mouth_gap_track`, `mouth_shape_track`   how far it is open, read from colours and from brightness
`border_flicker`      whether pictures jump between units
`delayed_correlation` correlation of two tracks and the delay at which it is highest
"""

from itertools import pairwise

import numpy as np

from wan_streamer.errors import ShapeError
from wan_streamer.units import FRAMES_PER_UNIT

Box = tuple[slice, slice]
_LUMA = np.array((0.299, 0.587, 0.114))
_COLUMNS = 8  # the mouth's height is read where it is highest
_SHAPE_COLUMNS = 24


def _check_pair(a_THWC: np.ndarray, b_THWC: np.ndarray) -> None:
    for frames in (a_THWC, b_THWC):
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise ShapeError(f"frames: expected uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if a_THWC.shape != b_THWC.shape:
        raise ShapeError(f"frames: expected two films of one shape, got {list(a_THWC.shape)} and {list(b_THWC.shape)}")


def psnr(a_THWC: np.ndarray, b_THWC: np.ndarray, box: Box | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all frames and colours; infinite if equal. `box` limits it to a part."""
    _check_pair(a_THWC, b_THWC)
    if box is not None:
        a_THWC, b_THWC = a_THWC[:, *box], b_THWC[:, *box]
    error = np.mean([np.square(a.astype(np.float64) - b).mean() for a, b in zip(a_THWC, b_THWC, strict=True)])
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(a_THWC: np.ndarray, b_THWC: np.ndarray) -> float:
    """Mean structural similarity of the luma (Wang et al. 2004): Gaussian window 11 x 11, sigma 1.5, K .01 and .03.

    Windows that pass the border are left out. Raises `ShapeError` for frames smaller than the window.
    """
    _check_pair(a_THWC, b_THWC)
    if min(a_THWC.shape[1:3]) < 11:
        raise ShapeError(f"frames: expected sides of 11 pixels or more, got {a_THWC.shape[1]}x{a_THWC.shape[2]}")
    return float(np.mean([_ssim_of_frame(a @ _LUMA, b @ _LUMA) for a, b in zip(a_THWC, b_THWC, strict=True)]))


def _ssim_of_frame(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blur(a_HW), _blur(b_HW)
    var_a, var_b = _blur(a_HW * a_HW) - mean_a**2, _blur(b_HW * b_HW) - mean_b**2
    covariance = _blur(a_HW * b_HW) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _blur(x_HW: np.ndarray) -> np.ndarray:
    """Gaussian 11 x 11 without padding."""
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()
    rows = sum(w * x_HW[i : x_HW.shape[0] - 10 + i] for i, w in enumerate(weights))
    return sum(w * rows[:, i : x_HW.shape[1] - 10 + i] for i, w in enumerate(weights))  # type: ignore[index, return-value]


def mouth_box(height: int = 192, width: int = 336) -> Box:
    """Rows and columns that hold the mouth of a rendered head wherever it moves: 50 x 76 of 192 x 336 pixels."""
    zoom, middle = height / 192, width / 2
    return slice(round(110 * zoom), round(160 * zoom)), slice(round(middle - 38 * zoom), round(middle + 38 * zoom))


def mouth_gap_track(frames_THWC: np.ndarray) -> np.ndarray:
    """How far the mouth of a rendered head is open, one value per frame, in pixels.

    Counts what is inside a mouth (dark red, teeth, tongue) column by column and averages the highest columns. It reads
    colours: a mouth that was drawn without teeth and tongue, or in another hue, counts as closed.
    Measured on 200 frames of each of 19 films of the test split: correlation with the true opening .979-.992 for the
    agent and .68-.99, median .93, for others; delay 0 frames. Values of different people do not compare.
    """
    box = _mouth_pixels(frames_THWC).astype(np.int16)
    red, green, blue = box[..., 0], box[..., 1], box[..., 2]
    cavity = (green < 50) & (red > 35) & (red < 140) & (5 * red > 8 * green)
    teeth = (np.minimum(green, blue) > 195) & (red > 195) & (red - blue < 35)
    tongue = (red > 160) & (np.abs(green - blue) < 18) & (green < 135) & (red - green > 70)
    return _highest_columns((cavity | teeth | tongue).astype(np.float32), _COLUMNS)


def mouth_shape_track(frames_THWC: np.ndarray) -> np.ndarray:
    """How much of the mouth stands out from the skin in brightness, whatever its hue; one value per frame.

    Reads blurred and discoloured mouths too. Measured on the same films: correlation with the true opening .955-.981
    for the agent, delay 0 frames; not usable for others (.14-.99), whose hair, clothes or room may be in the box.
    """
    luma_THW = _mouth_pixels(frames_THWC) @ _LUMA
    skin = max(float(np.median(luma_THW)), 1.0)
    return _highest_columns(np.abs(luma_THW - skin) / skin, _SHAPE_COLUMNS)


def _mouth_pixels(frames_THWC: np.ndarray) -> np.ndarray:
    if frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3 or frames_THWC.dtype != np.uint8:
        raise ShapeError(f"frames: expected uint8 [T, H, W, 3], got {frames_THWC.dtype} {list(frames_THWC.shape)}")
    return frames_THWC[:, *mouth_box(*frames_THWC.shape[1:3])]


def _highest_columns(value_THW: np.ndarray, count: int) -> np.ndarray:
    return np.sort(value_THW.sum(1), axis=1)[:, -count:].mean(1)


def border_flicker(frames_THWC: np.ndarray) -> float:
    """Mean change from frame to frame where units meet, over the mean change inside units. Natural motion gives 1."""
    if len(frames_THWC) < 2 * FRAMES_PER_UNIT:
        raise ShapeError(f"frames: expected two units or more, got {len(frames_THWC)} frames")
    change = np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames_THWC)])
    at_border = np.arange(1, len(frames_THWC)) % FRAMES_PER_UNIT == 0
    return float(change[at_border].mean() / max(change[~at_border].mean(), 1e-9))


def delayed_correlation(track_T: np.ndarray, truth_T: np.ndarray, most: int = 5) -> tuple[float, int]:
    """(correlation at zero delay, delay in frames with the highest one; positive = `track_T` is late).

    (0, 0) if one of them never changes.
    """
    if len(track_T) != len(truth_T) or len(track_T) <= 2 * most:
        raise ShapeError(f"tracks: expected one length over {2 * most}, got {len(track_T)} and {len(truth_T)}")
    if min(np.std(track_T), np.std(truth_T)) < 1e-9:
        return 0.0, 0

    def at(delay: int) -> float:
        late, early = track_T[max(0, delay) :], truth_T[max(0, -delay) :]
        length = len(track_T) - abs(delay)
        late, early = late[:length], early[:length]
        return float(np.corrcoef(late, early)[0, 1]) if min(late.std(), early.std()) > 1e-9 else -1.0

    return at(0), max(range(-most, most + 1), key=at)

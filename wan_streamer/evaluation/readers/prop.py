"""Which thing somebody holds up beside the face, read by comparing the picture with drawings of every thing.

Every thing of `person.PROPS` in every colour and three tilts is laid over every place beside the face at a quarter of
the resolution; the best of them are compared again at half of it. Whoever holds it and whatever room is behind it do
not matter: only pixels of the thing count. What is read is almost always right; what fails is said to be nothing,
first keys and stars, which are thin, and things whose colours a codec has washed out.
"""

from collections import Counter
from functools import cache

import numpy as np
import skia
import torch
import torch.nn.functional as F

from wan_streamer.simulation.face.person import COLOURS, PROPS, Prop
from wan_streamer.simulation.face.props import draw_prop

_HEIGHT, _WIDTH = 192, 336
_THINGS = [Prop(kind, name, colour) for kind, names in PROPS.items() for name in names for colour in COLOURS]
_BOX = (88, 72)  # rows and columns of a drawing, pixels of the design
_THUMB = 21  # pixels below the middle from which on a thumb may cover the thing
_TILTS = (-0.12, 0.0, 0.12)  # radians
_ROWS, _COLUMNS = slice(32, 164), slice(20, 168)  # where a thing can be; columns from the middle of the picture
_COARSE, _FINE = 4, 2  # pixels of the design per pixel that is compared
_COARSE_ERROR, _FINE_ERROR = 0.20**2, 0.15**2  # squared errors (colours 0..1) from which on nothing is alike
_KEPT = 25
_DOUBT = 0.0075  # of 300 rendered things 98 % have less, of 300 pictures without one all have more
_LOOKS = 5


def read_prop(frames_THWC: np.ndarray) -> tuple[str, str] | None:
    """(colour, what) of the thing that is held up in most of five frames spread over a clip, None if nothing is.

    frames_THWC  uint8, any size; the thing is where `motion.gesture_tracks` shows things, left or right, and of that
                 size. Colour and name are those of `person.COLOURS` and `person.PROPS`.
    """
    if not len(frames_THWC):
        return None
    looks = np.unique(np.linspace(0, len(frames_THWC) - 1, _LOOKS + 2).round().astype(int)[1:-1])
    votes = Counter(_thing_in(frames_THWC[i]) for i in looks)
    nothing = votes.pop(None, 0)
    if not votes or nothing > len(looks) / 2:
        return None
    prop = votes.most_common(1)[0][0]
    return None if prop is None else (prop.colour, prop.name)


def _thing_in(frame_HWC: np.ndarray) -> Prop | None:
    picture = torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1)[None]
    best_score, best_doubt, best = 0.0, 1.0, 0
    for coarse, fine in zip(_sides(picture, _COARSE), _sides(picture, _FINE), strict=True):
        error_PN, likeness_PN, area_N = _compare(_patches(coarse, _COARSE), *_drawings(_COARSE))
        score_PN = (_COARSE_ERROR - error_PN).clamp_min(0) * area_N * likeness_PN.clamp_min(0) ** 2
        score_N, index_N = score_PN.max(0)
        kept_K = score_N.topk(_KEPT).indices
        # Each kept drawing again, finer, up to two pixels around its place.
        step, across = _COARSE // _FINE, coarse.shape[2] - _BOX[1] // _COARSE + 1
        height, width = (side // _FINE for side in _BOX)
        padded = F.pad(fine[None], (2, 2, 2, 2), mode="replicate")[0]
        near = [
            padded[:, step * y : step * y + height + 4, step * x : step * x + width + 4]
            for y, x in (divmod(index, across) for index in index_N[kept_K].tolist())
        ]
        patches_KPCD = torch.stack([_patches(part, _FINE) for part in near])
        colour_NCD, mask_ND = _drawings(_FINE)
        error_KP1, likeness_KP1, area_K1 = _compare(patches_KPCD, colour_NCD[kept_K, None], mask_ND[kept_K, None])
        score_KP1 = (_FINE_ERROR - error_KP1).clamp_min(0) * area_K1[:, None] * likeness_KP1.clamp_min(0)
        if score_KP1.max() > best_score:
            at = int(score_KP1.argmax())
            best_score, best = float(score_KP1.max()), int(kept_K[at // patches_KPCD.shape[1]]) % len(_THINGS)
            best_doubt = float((error_KP1 * (1 - likeness_KP1)).flatten()[at])
    return _THINGS[best] if best_doubt < _DOUBT else None


def _sides(picture_1CHW: torch.Tensor, step: int) -> list[torch.Tensor]:
    """The parts of a picture right and left of the face as float32 [3, H, W], 0..1, one pixel per `step`."""
    size = (_HEIGHT // step, _WIDTH // step)
    small = F.interpolate(picture_1CHW, size, mode="bilinear", antialias=True, align_corners=False)[0].float() / 255
    rows, middle = slice(_ROWS.start // step, _ROWS.stop // step), _WIDTH // 2
    right = slice((middle + _COLUMNS.start) // step, (middle + _COLUMNS.stop) // step)
    left = slice((middle - _COLUMNS.stop) // step, (middle - _COLUMNS.start) // step)
    return [small[:, rows, right], small[:, rows, left]]


def _patches(image_CHW: torch.Tensor, step: int) -> torch.Tensor:
    """All parts of the size of a drawing, [P, 3, D]."""
    height, width = (side // step for side in _BOX)
    parts = image_CHW.unfold(1, height, 1).unfold(2, width, 1)
    return parts.permute(1, 2, 0, 3, 4).reshape(-1, 3, height * width)


def _compare(
    patches: torch.Tensor, colour: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches [.., P, 3, D] with drawings [.., N, 3, D] inside their masks [.., N, D].

    Returns the mean squared error of the colours [.., P, N]; their correlation [.., P, N], which asks for the outlines
    and parts of a thing where a plain wall has the right colour too; and the area of the masks [.., N].
    """
    area = mask.sum(-1)
    inside = colour * mask[..., None, :]
    sum_p = torch.einsum("...pcd,...nd->...pnc", patches, mask)
    squares_p = torch.einsum("...pd,...nd->...pn", patches.square().sum(-2), mask)
    product = torch.einsum("...pcd,...ncd->...pn", patches, inside)
    sum_n, squares_n = inside.sum(-1), (inside * colour).sum((-1, -2))
    error = (squares_p - 2 * product + squares_n[..., None, :]) / area[..., None, :] / 3
    covariance = product - torch.einsum("...pnc,...nc->...pn", sum_p, sum_n) / area[..., None, :]
    spread_p = squares_p - sum_p.square().sum(-1) / area[..., None, :]
    spread_n = squares_n - sum_n.square().sum(-1) / area
    return error, covariance / (spread_p * spread_n[..., None, :]).clamp_min(1e-6).sqrt(), area


@cache
def _drawings(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours [N, 3, D] and masks [N, D] of all things at all tilts, one pixel per `step`."""
    pictures = np.zeros((len(_TILTS), len(_THINGS), *_BOX, 4), np.uint8)
    for i, tilt in enumerate(_TILTS):
        for j, prop in enumerate(_THINGS):
            canvas = skia.Surface(pictures[i, j], colorType=skia.kRGBA_8888_ColorType).getCanvas()
            canvas.translate(_BOX[1] / 2, _BOX[0] / 2)
            canvas.rotate(float(np.degrees(tilt)))
            draw_prop(canvas, prop)
    pictures[:, :, _BOX[0] // 2 + _THUMB :] = 0
    tall = torch.from_numpy(pictures).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    small = F.interpolate(tall, scale_factor=1 / step, mode="bilinear", antialias=True, align_corners=False).flatten(2)
    return small[:, :3] / small[:, 3:].clamp_min(1e-3), small[:, 3]  # the canvas holds colours times their cover

"""Hands, forearms and what they hold.

Hand space: pixels of the 192 x 336 design, origin in the middle of the palm, fingers up, drawn for an arm that comes
from the right of the picture; the other side is its mirror image. A thing sits above the palm, a thumb in front of it.
"""

import math
from dataclasses import dataclass
from typing import Any

import skia

from wan_streamer.simulation.face.paint import DARK, fill, line, linear, mix, outline, solid
from wan_streamer.simulation.face.person import FaceIdentity, HandPose, Prop
from wan_streamer.simulation.face.props import draw_prop

Finger = tuple[float, float, float, float, float, float, float]  # base, bend, tip, thickness

_PALM = ((-9.5, 30), (-11, 22, -17, 14, -16.5, 2), (-16.5, -8, -15, -13, -8, -14), (0, -16, 8, -15, 13, -12),
         (17.5, -8, 17, 6, 15, 14), (13, 20, 10, 24, 9.5, 30))  # fmt: skip
_FIST = ((-9.5, 30), (-10, 24, -16, 18, -16, 8), (-17, -4, -17, -13, -8, -14), (0, -16, 8, -15, 13, -12),
         (19, -9, 18, 4, 17, 10), (15, 20, 10, 24, 9.5, 30))  # fmt: skip
_THUMB_ACROSS: Finger = (-13, 12, -8, 4, 4, 7, 9.5)


def _curled(x: float, top: float, low: float) -> Finger:
    return (x, top, x, (top + low) / 2, x, low, 8.4)


@dataclass(frozen=True)
class _Design:
    """palm outline; fingers that belong to the silhouette; fingers drawn on top of it, each with its own edge."""

    palm: tuple[tuple[float, ...], ...]
    outer: tuple[Finger, ...]
    inner: tuple[Finger, ...] = ()
    creases: tuple[tuple[float, ...], ...] = ()


_SPREAD: tuple[Finger, ...] = (
    (-11.4, -6, -13.5, -22, -16, -38, 9.0), (-3.6, -8, -4.2, -26, -5, -44, 9.4), (4.4, -8, 5.8, -24, 7, -41, 9.0),
    (12, -4, 15, -16, 18.5, -30, 7.8),
)  # fmt: skip
"""The fingers of an open hand, from the one beside the thumb on."""


def _counting(fingers: int) -> _Design:
    """So many fingers beside the thumb are up."""
    folded = (_curled(0, -11, 3), _curled(8, -10, 3.5), _curled(14, -7, 4))[fingers - 1 :]
    return _Design(_FIST, _SPREAD[:fingers], (*folded, _THUMB_ACROSS))


_DESIGNS = {
    "open": _Design(
        _PALM,
        (*_SPREAD, (-10, 14, -20, 8, -27, -9, 9.6)),
        creases=((-13, -4, -4, -3, 2, -8, 5, -13), (-15, 0, -4, 2, 6, 0, 14, -6), (-12, -2, -4, 4, -3, 14, -6, 22)),
    ),
    "point": _Design(
        _FIST,
        ((-9.5, -4, -9.8, -24, -9, -44, 9.6),),
        (_curled(0, -11, 3), _curled(8, -10, 3.5), _curled(14, -7, 4), _THUMB_ACROSS),
    ),
    "fist": _Design(
        _FIST, (), (_curled(-9.5, -10, 2), _curled(-1, -11.5, 3), _curled(7.2, -10.5, 3.5), _curled(14, -7, 4),
                    (-14, 14, -9, 7, 3, 10, 9.5)),
    ),
    "thumb": _Design(
        _FIST,
        ((-10, 4, -13.5, -18, -9, -41, 11.0),),
        ((-5, -8, 5, -9, 12, -7.5, 9.0), (-6, 0, 5, -0.5, 13.5, 0.5, 9.2), (-6, 8, 5, 8.5, 13, 8.5, 9.0),
         (-4, 15.5, 4, 16.5, 10.5, 15.5, 7.8)),
    ),
    "two": _counting(2),
    "three": _counting(3),
    "four": _counting(4),
    "hold": _Design(
        _FIST, ((-8, -6, -9, -20, -6, -30, 9.0), (2, -6, 2, -20, 2, -31, 9.2), (10, -5, 11, -16, 9, -26, 8.8)),
    ),
}  # fmt: skip
_HOLDING_THUMB: Finger = (-12, 10, -14, -1, -5, -10, 10.5)
PROP_Y = -36.0  # middle of the thing in hand space


def _finger(shape: Finger) -> Any:
    """A bent capsule."""
    x0, y0, x1, y1, x2, y2, thick = shape
    spine, body = skia.Path(), skia.Path()
    spine.moveTo(x0, y0)
    spine.quadTo(x1, y1, x2, y2)
    line((0, 0, 0), thick).getFillPath(spine, body)
    return body


def _grown(path: Any, by: float) -> Any:
    """The path with a border of `by` pixels. Filling it costs a third of stroking the path in every frame."""
    border = skia.Path()
    line((0, 0, 0), 2 * by).getFillPath(path, border)
    return skia.Op(path, border, skia.PathOp.kUnion_PathOp)


class _Drawn:
    """One hand shape as paths."""

    def __init__(self, design: _Design) -> None:
        self.silhouette = outline(*design.palm)
        for shape in design.outer:
            self.silhouette = skia.Op(self.silhouette, _finger(shape), skia.PathOp.kUnion_PathOp)
        self.border = _grown(self.silhouette, 1.3)
        self.fingers = [(_grown(finger, 0.75), finger) for finger in map(_finger, design.inner)]
        self.creases = skia.Path()
        for crease in design.creases:
            self.creases.moveTo(*crease[:2])
            self.creases.cubicTo(*crease[2:])


class Hands:
    """The paints of one identity's hands; the shapes are made when they are first needed."""

    def __init__(self, identity: FaceIdentity, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.size = 1.04 if identity.feminine else 1.14
        skin, shirt = identity.skin, identity.shirt
        deep = mix(mix(skin, (150, 60, 50), 0.22), (60, 20, 30), 0.16)
        dark = 1 - sum(skin) / 765
        palm = mix(skin, (255, 206, 184), 0.12 + 0.4 * dark)
        self.edge = fill(mix(deep, DARK, 0.22))
        self.thin_edge = fill(mix(deep, DARK, 0.08), 215)
        self.crease = line(deep, 1.2, 120)
        self.skin = linear(-14, -46, 10, 30, [solid(mix(palm, (255, 250, 240), 0.3)), solid(palm), solid(skin)])
        self.wrist = fill(skin)
        tones = [mix(shirt, DARK, 0.25), mix(shirt, (255, 255, 255), 0.14), shirt, mix(shirt, DARK, 0.38)]
        self.sleeve_paint = linear(-20, 0, 20, 0, [solid(tone) for tone in tones], [0.0, 0.3, 0.6, 1.0])
        self.sleeve_edge = fill(mix(shirt, DARK, 0.5))
        self.cuff_paint = fill(mix(shirt, DARK, 0.3))
        self._drawn: dict[str, _Drawn] = {}
        self._thumb = _finger(_HOLDING_THUMB)
        self._thumb_border = _grown(self._thumb, 1.2)
        self._forearm = outline(
            (-9.5, -2), (-5, -12, 5, -12, 9.5, -2), (10, 12, 11, 24, 12, 40), (12, 44, -12, 44, -12, 40),
            (-11, 24, -10, 12, -9.5, -2)
        )  # fmt: skip
        self._forearm_border = _grown(self._forearm, 1.3)
        self._sleeve = outline(
            (-14, 26), (-6, 31, 6, 31, 14, 26), (17, 70, 21, 120, 22, 260), (10, 264, -10, 264, -22, 260),
            (-21, 120, -17, 70, -14, 26)
        )  # fmt: skip
        self._sleeve_border = _grown(self._sleeve, 0.9)
        self._cuff = outline(
            (-14.3, 25), (-6, 30, 6, 30, 14.3, 25), (14.5, 28, 14.7, 31, 14.9, 33), (6, 38, -6, 38, -14.9, 33),
            (-14.7, 31, -14.5, 28, -14.3, 25)
        )  # fmt: skip

    def draw(self, canvas: Any, pose: HandPose, prop: Prop | None) -> None:
        """Arm, hand and thing over whatever the canvas shows."""
        zoom, mirror = self.height / 192, 1 if pose.side == "right" else -1
        canvas.save()
        canvas.translate(self.width / 2, self.height / 2)
        canvas.scale(mirror * zoom, zoom)
        x, y, angle = mirror * pose.x * self.width / 2 / zoom, pose.y * 96, mirror * pose.angle
        below = 20 * self.size  # the wrist lies below the palm
        wrist_x, wrist_y = x - below * math.sin(angle), y + below * math.cos(angle)
        elbow_x, elbow_y = 74 + 0.28 * x, max(150.0, wrist_y + 40)
        bend = math.degrees(math.atan2(wrist_x - elbow_x, elbow_y - wrist_y))
        shape = self._drawn.get(pose.shape)
        if shape is None:
            shape = self._drawn[pose.shape] = _Drawn(_DESIGNS[pose.shape])
        canvas.save()
        canvas.translate(wrist_x, wrist_y)
        canvas.rotate(bend)
        canvas.scale(self.size, self.size)
        canvas.drawPath(self._forearm_border, self.edge)
        canvas.restore()
        canvas.translate(x, y)
        canvas.save()
        canvas.rotate(math.degrees(angle))
        canvas.scale(self.size, self.size)
        canvas.drawPath(shape.border, self.edge)
        canvas.restore()
        canvas.save()
        canvas.translate(wrist_x - x, wrist_y - y)
        canvas.rotate(bend)
        canvas.scale(self.size, self.size)
        canvas.drawPath(self._forearm, self.wrist)
        canvas.drawPath(self._sleeve_border, self.sleeve_edge)
        canvas.drawPath(self._sleeve, self.sleeve_paint)
        canvas.drawPath(self._cuff, self.cuff_paint)
        canvas.restore()
        canvas.rotate(math.degrees(angle))
        canvas.scale(self.size, self.size)
        self._hand(canvas, shape)
        if pose.shape == "hold":
            if prop is not None:
                canvas.save()
                canvas.translate(0, PROP_Y)
                canvas.scale(mirror / self.size, 1 / self.size)
                draw_prop(canvas, prop)
                canvas.restore()
            canvas.drawPath(self._thumb_border, self.edge)
            canvas.drawPath(self._thumb, self.skin)
        canvas.restore()

    def _hand(self, canvas: Any, shape: _Drawn) -> None:
        canvas.drawPath(shape.silhouette, self.skin)
        canvas.drawPath(shape.creases, self.crease)
        for border, finger in shape.fingers:
            canvas.drawPath(border, self.thin_edge)
            canvas.drawPath(finger, self.skin)

"""How a head is drawn: body, face, eyes, brows, nose. Hair is in `hair`, the mouth in `mouth`.

Head space: pixels of the 192 x 336 design, origin between the cheeks, y down. A face is about 128 high, 94 wide.
"""

from typing import Any

import numpy as np
import skia

from wan_streamer.simulation.face.hair import Hair
from wan_streamer.simulation.face.mouth import Mouth
from wan_streamer.simulation.face.paint import DARK, fill, line, linear, mix, outline, radial, solid
from wan_streamer.simulation.face.person import FaceIdentity, FacePose

HEAD_Y = 0.515  # where the head's origin is, of the picture's height
LEAN, LEAN_Y = 3.2, 260  # degrees by which the body leans most; about a point so far below the head
ROLL, ROLL_Y = 9, 70  # degrees by which the head tilts most; about a point so far below its origin


def head_shift(pose: FacePose) -> tuple[float, float]:
    """How far the head is from its place, before the body leans."""
    return pose.head_x * 9, pose.head_y * 5 + pose.breath * 0.9


class Parts:
    """The paints and shapes of one identity, made once; `draw` only fills paths."""

    def __init__(self, identity: FaceIdentity, height: int, width: int) -> None:
        self.who, self.height, self.width = identity, height, width
        self.half = 46.0 * identity.face_width
        self.hair = Hair(identity, self.half)
        skin = identity.skin
        self.shade = mix(mix(skin, (150, 60, 50), 0.22), (60, 20, 30), 0.16)
        light, deep = mix(skin, (255, 250, 240), 0.35), mix(skin, self.shade, 0.75)
        clear = skia.ColorSetA
        self.skin_paint = radial(
            -16, -18, 92, [solid(light), solid(skin), solid(deep), solid(self.shade)], [0.0, 0.45, 0.86, 1.0]
        )
        self.neck_paint = linear(
            0, 40, 0, 92, [solid(mix(self.shade, (50, 20, 24), 0.25)), solid(deep), solid(skin)], [0.1, 0.5, 1.0]
        )
        blush = solid(mix(skin, (226, 84, 80), 0.2 + 0.3 * min(1.0, max(0.0, (sum(skin) - 330) / 270))))
        self.blush = [
            radial(x, 18, 17, [clear(blush, 92 if identity.feminine else 66), clear(blush, 0)]) for x in (-27, 27)
        ]
        self.ear_paint = fill(mix(skin, self.shade, 0.35))
        self.ear_inner = line(mix(self.shade, DARK, 0.1), 1.6, 130)
        shirt = identity.shirt
        self.shirt_paint = linear(
            -70, 70, 80, 150, [solid(mix(shirt, (255, 255, 255), 0.22)), solid(shirt), solid(mix(shirt, DARK, 0.35))]
        )
        self.shirt_dark = fill(mix(shirt, DARK, 0.35))
        self.shirt_light = fill(mix(shirt, (255, 255, 255), 0.45))
        self.shirt_line = line(mix(shirt, DARK, 0.4), 1.6, 200)
        self.white = radial(0, 1, 12, [solid((255, 255, 253)), solid((228, 224, 226))])
        eye = identity.eyes
        rings = [mix(eye, (255, 246, 220), 0.4), eye, mix(eye, DARK, 0.65)]
        self.iris = radial(0, 1.6, 6.2, [solid(ring) for ring in rings], [0.0, 0.6, 1.0])
        self.pupil, self.glint = fill((22, 16, 20)), fill((255, 255, 255), 235)
        self.eye_shadow = fill(mix(self.shade, DARK, 0.5), 70)
        self.lash = line(mix(DARK, identity.hair, 0.15), 2.5 if identity.feminine else 2.0)
        self.lower_lash = line(mix(self.shade, DARK, 0.3), 0.9, 120)
        self.crease = line(mix(self.shade, DARK, 0.2), 1.1, 140)
        self.brow_paint = fill(
            mix(identity.hair, DARK, 0.3) if identity.hair_style != "bald" else mix(DARK, skin, 0.2), 235
        )
        self.nose_line = line(mix(self.shade, DARK, 0.16), 1.7, 185)
        self.nose_side = linear(-3, -10, 12, -6, [clear(solid(self.shade), 0), clear(solid(self.shade), 105)])
        shine = mix(skin, (255, 255, 255), 0.55)
        self.nose_light = radial(-1.5, 12, 6.5, [solid(shine, 120), solid(shine, 0)])
        if identity.beard == "stubble":
            tint = mix(identity.hair, skin, 0.3)
            self.beard_paint = linear(0, 17, 0, 44, [solid(tint, 0), solid(tint, 66), solid(tint, 92)])
        else:
            self.beard_paint = fill(mix(identity.hair, DARK, 0.22), 240)
        self.mouth = Mouth(identity, self.shade, self.beard_paint)
        self.frame_paint = line((44, 40, 48), 2.4, 240)
        self.lens_paint = fill((220, 235, 245), 34)

    def background(self) -> Any:
        """A soft room: wall light, blurred shapes. Drawn once."""
        top, low = self.who.background
        surface = skia.Surface(self.width, self.height)
        canvas = surface.getCanvas()
        canvas.drawPaint(radial(self.width * 0.3, self.height * 0.2, self.width * 0.85, [solid(top), solid(low)]))
        rng = np.random.default_rng([*top, *low, *self.who.shirt])
        for _ in range(7):
            radius = float(rng.uniform(0.1, 0.3)) * self.height
            tint = mix(top, (255, 255, 255), 0.5) if rng.random() < 0.5 else mix(low, DARK, 0.25)
            paint = fill(tint, 40)
            paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, radius * 0.25))
            canvas.drawCircle(float(rng.uniform(0, self.width)), float(rng.uniform(0, self.height)), radius, paint)
        return surface.makeImageSnapshot()

    def draw(self, canvas: Any, pose: FacePose) -> None:
        """The person over whatever the canvas shows."""
        zoom = self.height / 192
        canvas.save()
        canvas.translate(self.width / 2, self.height * HEAD_Y)
        canvas.scale(zoom, zoom)
        canvas.rotate(pose.lean * LEAN, 0, LEAN_Y)
        head_x, head_y = head_shift(pose)
        scale = self.who.scale
        self._hair_behind(canvas, pose, head_x, head_y, scale)
        self._body(canvas, pose, head_x)
        canvas.save()
        canvas.translate(head_x, head_y)
        canvas.rotate(pose.roll * ROLL, 0, ROLL_Y)
        canvas.scale(scale, scale)
        self._head(canvas, pose)
        canvas.restore()
        canvas.restore()

    def _hair_behind(self, canvas: Any, pose: FacePose, x: float, y: float, scale: float) -> None:
        canvas.save()
        canvas.translate(x, y)
        canvas.rotate(pose.roll * ROLL, 0, ROLL_Y)
        canvas.scale(scale, scale)
        canvas.translate(-pose.yaw * 4, 0)
        self.hair.behind(canvas)
        canvas.restore()

    def _body(self, canvas: Any, pose: FacePose, head_x: float) -> None:
        lift = -pose.breath * 1.6
        shift = head_x * 0.35
        canvas.save()
        canvas.translate(shift, lift)
        wide = 84.0 if self.who.feminine else 98.0
        neck = 20.0 if self.who.feminine else 25.0
        body = outline((-wide - 22, 130), (-wide - 14, 88, -wide + 18, 82, -neck - 8, 70),
                       (-neck, 78, neck, 78, neck + 8, 70), (wide - 18, 82, wide + 14, 88, wide + 22, 130))  # fmt: skip
        canvas.drawPath(body, self.shirt_paint)
        throat = skia.Path()
        lean = head_x * 0.65
        throat.moveTo(-neck + lean, 34)
        throat.cubicTo(-neck, 58, -neck, 66, -neck - 10, 72)
        depth = {"vneck": 118, "collar": 100}.get(self.who.clothes, 90)
        throat.cubicTo(-neck * 0.8, depth - 8, -neck * 0.3, depth, 0, depth)
        throat.cubicTo(neck * 0.3, depth, neck * 0.8, depth - 8, neck + 10, 72)
        throat.cubicTo(neck, 66, neck, 58, neck + lean, 34)
        throat.close()
        canvas.drawPath(throat, self.neck_paint)
        self._clothes(canvas, neck, depth)
        canvas.restore()

    def _clothes(self, canvas: Any, neck: float, depth: float) -> None:
        if self.who.clothes == "collar":
            for side in (-1, 1):
                flap = outline((side * (neck + 5), 62), (side * (neck + 17), 76), (side * 13, 104), (0, 92))
                canvas.drawPath(flap, self.shirt_light)
                canvas.drawPath(flap, self.shirt_line)
        elif self.who.clothes == "hoodie":
            for side in (-1, 1):
                hood = outline(
                    (side * (neck + 3), 58),
                    (side * (neck + 30), 62, side * (neck + 30), 84, side * 4, 104),
                    (side * (neck + 4), 88, side * (neck + 8), 78, side * (neck + 3), 58),
                    close=False,
                )
                canvas.drawPath(hood, self.shirt_dark)
                canvas.drawLine(side * 9, 98, side * 10, 128, self.shirt_light)
        else:
            edge = outline((-neck - 11, 71), (-neck * 0.8, depth - 8, -neck * 0.3, depth + 1, 0, depth + 1),
                           (neck * 0.3, depth + 1, neck * 0.8, depth - 8, neck + 11, 71), close=False)  # fmt: skip
            rim = line(self.who.shirt, 5.0)
            canvas.drawPath(edge, rim)
            canvas.drawPath(edge, self.shirt_line)

    def _head(self, canvas: Any, pose: FacePose) -> None:
        yaw, half = pose.yaw, self.half
        for side in () if self.who.hair_style in ("long", "bob") else (-1, 1):
            x = side * (half + 0.5) - yaw * 5
            canvas.drawOval(skia.Rect.MakeLTRB(x - 7, -10, x + 7, 17), self.ear_paint)
            canvas.drawArc(
                skia.Rect.MakeLTRB(x - 3.5, -5, x + 3.5, 11), 90 if side < 0 else -90, 180, False, self.ear_inner
            )
        face = self._face_path(pose)
        canvas.drawPath(face, self.skin_paint)
        canvas.save()
        canvas.clipPath(face, doAntiAlias=True)
        if self.who.beard in ("stubble", "full"):
            self._beard(canvas, pose)
        canvas.translate(yaw * 9, pose.pitch * 5)
        for paint, side in zip(self.blush, (-1, 1), strict=True):
            canvas.drawCircle(side * 27, 18 - pose.smile * 2, 17, paint)
        self._nose(canvas, yaw)
        self.mouth.draw(canvas, pose)
        for side in (-1, 1):
            self._eye(canvas, pose, side)
            self._brow(canvas, pose, side)
        if self.who.glasses:
            self._glasses(canvas)
        canvas.restore()
        canvas.save()
        canvas.translate(yaw * 3, pose.pitch * 2)
        self.hair.front(canvas)
        canvas.restore()

    def _face_path(self, pose: FacePose) -> Any:
        half, jaw, turn = self.half, self.half * 0.8 * self.who.jaw, pose.yaw * 3
        chin = 61 + pose.mouth_open * 6 + pose.pitch * 2
        path = outline((0, -64), (half * 0.66, -64, half, -44, half, -8), (half, 12, half * 0.97, 22, jaw + turn, 36),
                       (jaw * 0.8 + turn, 50, 20 + turn, chin, turn * 1.5, chin),
                       (-20 + turn, chin, -jaw * 0.8 + turn, 50, -jaw + turn, 36),
                       (-half * 0.97, 22, -half, 12, -half, -8), (-half, -44, -half * 0.66, -64, 0, -64))  # fmt: skip
        return path

    def _beard(self, canvas: Any, pose: FacePose) -> None:
        half, x, y = self.half, pose.yaw * 8, pose.pitch * 4
        path = outline((-half - 4, -6), (-half + 9, 14, -half + 12, 22, -22 + x, 23 + y),
                       (-12 + x, 18 + y, 12 + x, 18 + y, 22 + x, 23 + y), (half - 12, 22, half - 9, 14, half + 4, -6),
                       (half + 8, 80), (-half - 8, 80))  # fmt: skip
        canvas.drawPath(path, self.beard_paint)

    def _nose(self, canvas: Any, yaw: float) -> None:
        size, x = self.who.nose, yaw * 3
        side = outline((3 + x * 0.3, -10), (5, 0, 7 * size + x, 8, 8 * size + x, 14),
                       (5 * size + x, 17, 2 + x, 17, x, 17), (2, 8, 1, 0, 3 + x * 0.3, -10), close=False)  # fmt: skip
        canvas.drawPath(side, self.nose_side)
        tip = outline((-7.5 * size + x, 13), (-7 * size + x, 17.5, -3.5 * size + x, 15.5, x, 18),
                      (3.5 * size + x, 15.5, 7 * size + x, 17.5, 7.5 * size + x, 13), close=False)  # fmt: skip
        canvas.drawPath(tip, self.nose_line)
        canvas.save()
        canvas.translate(x, 0)
        canvas.drawCircle(-1.5, 12, 6.5, self.nose_light)
        canvas.restore()

    def _eye(self, canvas: Any, pose: FacePose, side: int) -> None:
        size = self.who.eye_size
        half, tall = 9.8 * size, 7.4 * size
        open_ = max(0.0, 1 - pose.blink) * (1 - 0.18 * max(pose.smile - 0.3, 0.0)) * (1 + 0.12 * pose.brow)
        canvas.save()
        canvas.translate(side * 19.5 * self.who.eye_gap, -9)
        low = 4.6 * size * (0.35 + 0.65 * min(open_, 1.0)) - pose.smile * 0.6
        high = low - (tall + 4.6 * size) * open_
        inner, outer = (-side * half, side * half)
        upper = outline((inner, 1.6), (inner * 0.55, high * 1.12, outer * 0.55, high * 1.18, outer, -0.6), close=False)
        if open_ > 0.08:
            almond = skia.Path(upper)
            almond.cubicTo(outer * 0.6, low, inner * 0.5, low + 0.8, inner, 1.6)
            almond.close()
            canvas.save()
            canvas.clipPath(almond, doAntiAlias=True)
            canvas.drawPaint(self.white)
            canvas.translate(pose.gaze_x * 3.6 + pose.yaw * 0.8, pose.gaze_y * 2.4 - 0.4)
            canvas.drawCircle(0, 0, 5.6 * size, self.iris)
            canvas.drawCircle(0, 0, 2.6 * size, self.pupil)
            canvas.drawCircle(-1.8, -2.0, 1.45, self.glint)
            canvas.restore()
            shadow = skia.Path(upper)
            shadow.cubicTo(outer * 0.55, high * 1.18 + 3, inner * 0.55, high * 1.12 + 3, inner, 1.6)
            canvas.drawPath(shadow, self.eye_shadow)
            lower = outline((outer, -0.6), (outer * 0.6, low, inner * 0.5, low + 0.8, inner, 1.6), close=False)
            canvas.drawPath(lower, self.lower_lash)
        canvas.drawPath(upper, self.lash)
        if self.who.feminine:
            canvas.drawLine(outer, -0.6, outer + side * 3.2, -3.2 * (0.4 + 0.6 * open_), self.lash)
        fold = skia.Path()
        fold.moveTo(inner * 0.8, -5.5 * size)
        fold.cubicTo(inner * 0.4, -10.5 * size, outer * 0.5, -11 * size, outer * 1.02, -5.5 * size)
        canvas.drawPath(fold, self.crease)
        canvas.restore()

    def _brow(self, canvas: Any, pose: FacePose, side: int) -> None:
        thick = 4.4 * self.who.brows
        lift = -25.5 - pose.brow * 4.5
        centre = side * 19.5 * self.who.eye_gap
        path = skia.Path()
        inner, outer = centre - side * 11, centre + side * 13
        path.moveTo(inner, lift + 2 - max(pose.brow, 0) * 0.5)
        path.cubicTo(inner + side * 6, lift - 3.5, outer - side * 8, lift - 4.5, outer, lift + 3)
        path.cubicTo(
            outer - side * 8,
            lift - 4.5 + thick * 0.8,
            inner + side * 6,
            lift - 3.5 + thick * 1.15,
            inner,
            lift + 2 + thick * 0.7,
        )
        path.close()
        canvas.drawPath(path, self.brow_paint)

    def _glasses(self, canvas: Any) -> None:
        for side in (-1, 1):
            x = side * 19.5 * self.who.eye_gap
            lens = skia.RRect.MakeRectXY(skia.Rect.MakeLTRB(x - 14.5, -21, x + 14.5, 4.5), 9, 9)
            canvas.drawRRect(lens, self.lens_paint)
            canvas.drawRRect(lens, self.frame_paint)
            canvas.drawLine(x + side * 14.5, -12, side * (self.half + 4), -14, self.frame_paint)
        canvas.drawLine(-5, -11, 5, -11, self.frame_paint)

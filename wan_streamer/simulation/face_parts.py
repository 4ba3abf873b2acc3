"""How a head is drawn: body, face, eyes, brows, nose, mouth. Hair is in `face_hair`.

Head space: pixels of the 192 x 336 design, origin between the cheeks, y down. A face is about 128 high, 94 wide.
"""

from typing import Any

import numpy as np
import skia

from wan_streamer.simulation.face_hair import Hair
from wan_streamer.simulation.faces import Color, FaceIdentity, FacePose


def mix(a: Color, b: Color, amount: float) -> Color:
    return tuple(round(x + (y - x) * amount) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def solid(color: Color, alpha: int = 255) -> Any:
    return skia.Color(*color, alpha)


def fill(color: Color, alpha: int = 255) -> Any:
    return skia.Paint(AntiAlias=True, Color=solid(color, alpha))


def line(color: Color, width: float, alpha: int = 255) -> Any:
    return skia.Paint(
        AntiAlias=True, Color=solid(color, alpha), Style=skia.Paint.kStroke_Style, StrokeWidth=width,
        StrokeCap=skia.Paint.kRound_Cap, StrokeJoin=skia.Paint.kRound_Join,
    )  # fmt: skip


def radial(x: float, y: float, radius: float, colors: list[Any], stops: list[float] | None = None) -> Any:
    shader = skia.GradientShader.MakeRadial((x, y), radius, colors, stops)
    return skia.Paint(AntiAlias=True, Shader=shader)


def linear(x0: float, y0: float, x1: float, y1: float, colors: list[Any], stops: list[float] | None = None) -> Any:
    shader = skia.GradientShader.MakeLinear([(x0, y0), (x1, y1)], colors, stops)
    return skia.Paint(AntiAlias=True, Shader=shader)


DARK: Color = (40, 22, 24)


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
        self.iris = radial(0, 1.6, 6.2, [solid(mix(eye, (255, 246, 220), 0.4)), solid(eye), solid(mix(eye, DARK, 0.65))],
                           [0.0, 0.6, 1.0])
        self.pupil, self.glint = fill((22, 16, 20)), fill((255, 255, 255), 235)
        self.eye_shadow = fill(mix(self.shade, DARK, 0.5), 70)
        self.lash = line(mix(DARK, identity.hair, 0.15), 2.5 if identity.feminine else 2.0)
        self.lower_lash = line(mix(self.shade, DARK, 0.3), 0.9, 120)
        self.crease = line(mix(self.shade, DARK, 0.2), 1.1, 140)
        self.brow_paint = fill(mix(identity.hair, DARK, 0.3) if identity.hair_style != "bald" else mix(DARK, skin, 0.2),
                               235)
        self.nose_line = line(mix(self.shade, DARK, 0.16), 1.7, 185)
        self.nose_side = linear(-3, -10, 12, -6, [clear(solid(self.shade), 0), clear(solid(self.shade), 105)])
        shine = mix(skin, (255, 255, 255), 0.55)
        self.nose_light = radial(-1.5, 12, 6.5, [solid(shine, 120), solid(shine, 0)])
        lip = mix(mix(skin, (196, 62, 70), 0.62 if identity.feminine else 0.36), self.shade, 0.2)
        self.lip_upper = linear(0, -7, 0, 4, [solid(lip), solid(mix(lip, (110, 30, 40), 0.35))])
        self.lip_lower = linear(0, 0, 0, 12, [solid(mix(lip, (255, 226, 214), 0.22)), solid(mix(lip, self.shade, 0.4))])
        self.lip_light = line((255, 244, 238), 1.8, 70)
        self.lip_line = line(mix(lip, (90, 24, 34), 0.7), 1.7, 225)
        self.cavity = linear(0, -8, 0, 16, [solid((52, 14, 22)), solid((112, 34, 42))])
        self.teeth_paint = linear(0, -8, 0, 2, [solid((226, 220, 214)), solid((252, 249, 244))])
        self.tongue_paint = radial(0, 4, 15, [solid((226, 118, 118)), solid((176, 70, 78))])
        self.chin_shadow = fill(self.shade, 60)
        self.fold = line(mix(self.shade, DARK, 0.1), 1.2, 85)
        if identity.beard == "stubble":
            tint = mix(identity.hair, skin, 0.3)
            self.beard_paint = linear(0, 17, 0, 44, [solid(tint, 0), solid(tint, 66), solid(tint, 92)])
        else:
            self.beard_paint = fill(mix(identity.hair, skin, 0.1), 235)
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
        canvas.translate(self.width / 2, self.height * 0.515)
        canvas.scale(zoom, zoom)
        head_x, head_y = pose.head_x * 9, pose.head_y * 5 + pose.breath * 0.9
        scale = self.who.scale
        self._hair_behind(canvas, pose, head_x, head_y, scale)
        self._body(canvas, pose, head_x)
        canvas.save()
        canvas.translate(head_x, head_y)
        canvas.rotate(pose.roll * 9, 0, 70)
        canvas.scale(scale, scale)
        self._head(canvas, pose)
        canvas.restore()

    def _hair_behind(self, canvas: Any, pose: FacePose, x: float, y: float, scale: float) -> None:
        canvas.save()
        canvas.translate(x, y)
        canvas.rotate(pose.roll * 9, 0, 70)
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
        body = skia.Path()
        body.moveTo(-wide - 22, 130)
        body.cubicTo(-wide - 14, 88, -wide + 18, 82, -neck - 8, 70)
        body.cubicTo(-neck, 78, neck, 78, neck + 8, 70)
        body.cubicTo(wide - 18, 82, wide + 14, 88, wide + 22, 130)
        body.close()
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
                flap = skia.Path()
                flap.moveTo(side * (neck + 5), 62)
                flap.lineTo(side * (neck + 17), 76)
                flap.lineTo(side * 13, 104)
                flap.lineTo(0, 92)
                flap.close()
                canvas.drawPath(flap, self.shirt_light)
                canvas.drawPath(flap, self.shirt_line)
        elif self.who.clothes == "hoodie":
            for side in (-1, 1):
                hood = skia.Path()
                hood.moveTo(side * (neck + 3), 58)
                hood.cubicTo(side * (neck + 30), 62, side * (neck + 30), 84, side * 4, 104)
                hood.cubicTo(side * (neck + 4), 88, side * (neck + 8), 78, side * (neck + 3), 58)
                canvas.drawPath(hood, self.shirt_dark)
                canvas.drawLine(side * 9, 98, side * 10, 128, self.shirt_light)
        else:
            edge = skia.Path()
            edge.moveTo(-neck - 11, 71)
            edge.cubicTo(-neck * 0.8, depth - 8, -neck * 0.3, depth + 1, 0, depth + 1)
            edge.cubicTo(neck * 0.3, depth + 1, neck * 0.8, depth - 8, neck + 11, 71)
            rim = line(self.who.shirt, 5.0)
            canvas.drawPath(edge, rim)
            canvas.drawPath(edge, self.shirt_line)

    def _head(self, canvas: Any, pose: FacePose) -> None:
        yaw, half = pose.yaw, self.half
        for side in (-1, 1):
            x = side * (half + 0.5) - yaw * 5
            canvas.drawOval(skia.Rect.MakeLTRB(x - 7, -10, x + 7, 17), self.ear_paint)
            canvas.drawArc(skia.Rect.MakeLTRB(x - 3.5, -5, x + 3.5, 11), 90 if side < 0 else -90, 180, False,
                           self.ear_inner)
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
        self._mouth(canvas, pose)
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
        path = skia.Path()
        path.moveTo(0, -64)
        path.cubicTo(half * 0.66, -64, half, -44, half, -8)
        path.cubicTo(half, 12, half * 0.97, 22, jaw + turn, 36)
        path.cubicTo(jaw * 0.8 + turn, 50, 20 + turn, chin, turn * 1.5, chin)
        path.cubicTo(-20 + turn, chin, -jaw * 0.8 + turn, 50, -jaw + turn, 36)
        path.cubicTo(-half * 0.97, 22, -half, 12, -half, -8)
        path.cubicTo(-half, -44, -half * 0.66, -64, 0, -64)
        path.close()
        return path

    def _beard(self, canvas: Any, pose: FacePose) -> None:
        half, x, y = self.half, pose.yaw * 8, pose.pitch * 4
        path = skia.Path()
        path.moveTo(-half - 4, -6)
        path.cubicTo(-half + 9, 14, -half + 12, 22, -22 + x, 23 + y)
        path.cubicTo(-12 + x, 18 + y, 12 + x, 18 + y, 22 + x, 23 + y)
        path.cubicTo(half - 12, 22, half - 9, 14, half + 4, -6)
        path.lineTo(half + 8, 80)
        path.lineTo(-half - 8, 80)
        path.close()
        canvas.drawPath(path, self.beard_paint)

    def _nose(self, canvas: Any, yaw: float) -> None:
        size, x = self.who.nose, yaw * 3
        side = skia.Path()
        side.moveTo(3 + x * 0.3, -10)
        side.cubicTo(5, 0, 7 * size + x, 8, 8 * size + x, 14)
        side.cubicTo(5 * size + x, 17, 2 + x, 17, x, 17)
        side.cubicTo(2, 8, 1, 0, 3 + x * 0.3, -10)
        canvas.drawPath(side, self.nose_side)
        tip = skia.Path()
        tip.moveTo(-7.5 * size + x, 13)
        tip.cubicTo(-7 * size + x, 17.5, -3.5 * size + x, 15.5, x, 18)
        tip.cubicTo(3.5 * size + x, 15.5, 7 * size + x, 17.5, 7.5 * size + x, 13)
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
        upper = skia.Path()
        upper.moveTo(inner, 1.6)
        upper.cubicTo(inner * 0.55, high * 1.12, outer * 0.55, high * 1.18, outer, -0.6)
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
            lower = skia.Path()
            lower.moveTo(outer, -0.6)
            lower.cubicTo(outer * 0.6, low, inner * 0.5, low + 0.8, inner, 1.6)
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
        path.cubicTo(outer - side * 8, lift - 4.5 + thick * 0.8, inner + side * 6, lift - 3.5 + thick * 1.15, inner,
                     lift + 2 + thick * 0.7)
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

    def _mouth(self, canvas: Any, pose: FacePose) -> None:
        smile, full = pose.smile, self.who.lips
        half = 21.0 * (1 + 0.14 * pose.mouth_wide + 0.10 * smile) * (1 - 0.36 * pose.lip_round)
        gap = 19.0 * pose.mouth_open
        up, down = -gap * 0.30, gap * 0.70
        corner = 0.6 - 5.4 * smile * (1 - 0.5 * pose.lip_round) + gap * 0.10
        pout = 1 + 0.35 * pose.lip_round
        thick_up, thick_down = 5.0 * full * pout * (1 - 0.12 * smile), 6.4 * full * pout * (1 - 0.1 * smile)
        bend = half * (0.52 + 0.16 * pose.lip_round)  # rounder corners for o and u
        canvas.save()
        canvas.translate(pose.yaw * 1.5, 35)
        if self.who.beard == "moustache":
            self._moustache(canvas, up - thick_up)
        inner = skia.Path()
        inner.moveTo(-half, corner)
        inner.cubicTo(-bend, up + corner * 0.12, -half * 0.2, up, 0, up + 0.6)
        inner.cubicTo(half * 0.2, up, bend, up + corner * 0.12, half, corner)
        inner.cubicTo(bend, down * 1.02 + 0.8, half * 0.25, down + 1.2, 0, down + 1.2)
        inner.cubicTo(-half * 0.25, down + 1.2, -bend, down * 1.02 + 0.8, -half, corner)
        inner.close()
        self._lips(canvas, half, bend, corner, up, down, thick_up, thick_down)
        if gap > 0.9:
            canvas.drawPath(inner, self.cavity)
            canvas.save()
            canvas.clipPath(inner, doAntiAlias=True)
            if gap > 5:
                rise = (3.0 + 6 * pose.tongue) * min(1.0, gap / 10)
                canvas.save()
                canvas.translate(0, down - rise)
                canvas.drawOval(skia.Rect.MakeLTRB(-half * 0.62, 0, half * 0.62, 16), self.tongue_paint)
                canvas.restore()
            shown = min(6.2, gap * 0.5) * (0.45 + 0.55 * pose.teeth)
            edge = up + 0.6 + shown
            teeth = skia.Rect.MakeLTRB(-half * 0.82, up - 9, half * 0.82, edge)
            canvas.drawRRect(skia.RRect.MakeRectXY(teeth, 5, 3.5), self.teeth_paint)
            canvas.restore()
        else:
            seam = skia.Path()
            seam.moveTo(-half, corner)
            seam.cubicTo(-bend, 0.4 + corner * 0.1, -4, -0.2, 0, 0.6)
            seam.cubicTo(4, -0.2, bend, 0.4 + corner * 0.1, half, corner)
            canvas.drawPath(seam, self.lip_line)
        for side in (-1, 1):
            canvas.drawLine(side * half, corner, side * (half + 1.6), corner - 1.2 * smile, self.lip_line)
            if smile > 0.2:
                cheek = skia.Path()
                cheek.moveTo(side * (half + 3), corner - 12)
                cheek.cubicTo(side * (half + 7), corner - 8, side * (half + 8), corner - 4, side * (half + 6), corner + 2)
                canvas.drawPath(cheek, self.fold)
        canvas.restore()

    def _moustache(self, canvas: Any, lip: float) -> None:
        path = skia.Path()
        path.moveTo(0, lip - 6)
        path.cubicTo(-8, lip - 8, -18, lip - 2, -23, lip + 6)
        path.cubicTo(-14, lip + 3, -8, lip + 2, 0, lip + 1)
        path.cubicTo(8, lip + 2, 14, lip + 3, 23, lip + 6)
        path.cubicTo(18, lip - 2, 8, lip - 8, 0, lip - 6)
        canvas.drawPath(path, self.beard_paint)

    def _lips(
        self, canvas: Any, half: float, bend: float, corner: float, up: float, down: float, thick_up: float,
        thick_down: float,
    ) -> None:  # fmt: skip
        top = up - thick_up
        upper = skia.Path()
        upper.moveTo(-half, corner)
        upper.cubicTo(-bend, top * 0.75 + corner * 0.2, -6, top - 0.6, -3.5, top - 0.4)
        upper.cubicTo(-2, top, -1, top + 1.1, 0, top + 1.2)
        upper.cubicTo(1, top + 1.1, 2, top, 3.5, top - 0.4)
        upper.cubicTo(6, top - 0.6, bend, top * 0.75 + corner * 0.2, half, corner)
        upper.cubicTo(bend, up + 1.5, -bend, up + 1.5, -half, corner)
        upper.close()
        bottom = down + thick_down
        lower = skia.Path()
        lower.moveTo(-half, corner)
        lower.cubicTo(-bend, down, bend, down, half, corner)
        lower.cubicTo(bend + 1, bottom * 0.96, half * 0.3, bottom + 0.4, 0, bottom + 0.4)
        lower.cubicTo(-half * 0.3, bottom + 0.4, -bend - 1, bottom * 0.96, -half, corner)
        lower.close()
        canvas.save()
        canvas.translate(0, down)
        canvas.drawOval(skia.Rect.MakeLTRB(-9, thick_down + 1.5, 9, thick_down + 6), self.chin_shadow)
        canvas.restore()
        canvas.drawPath(lower, self.lip_lower)
        canvas.drawPath(upper, self.lip_upper)
        light = skia.Path()
        light.moveTo(-half * 0.3, down + thick_down * 0.55)
        light.quadTo(0, down + thick_down * 0.68, half * 0.3, down + thick_down * 0.55)
        canvas.drawPath(light, self.lip_light)

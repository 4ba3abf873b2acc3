"""The mouth of a head: lips, teeth, tongue. Head space as in `parts`."""

from typing import Any

import skia

from wan_streamer.simulation.face.paint import DARK, fill, line, linear, mix, outline, radial, solid
from wan_streamer.simulation.face.person import Color, FaceIdentity, FacePose


class Mouth:
    """Paints of one mouth, made once. `draw` forms it from open, wide, round, teeth, tongue and smile."""

    def __init__(self, identity: FaceIdentity, shade: Color, beard_paint: Any) -> None:
        self.who, self.shade, self.beard_paint = identity, shade, beard_paint
        skin = identity.skin
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

    def draw(self, canvas: Any, pose: FacePose) -> None:
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
        inner = outline((-half, corner), (-bend, up + corner * 0.12, -half * 0.2, up, 0, up + 0.6),
                        (half * 0.2, up, bend, up + corner * 0.12, half, corner),
                        (bend, down * 1.02 + 0.8, half * 0.25, down + 1.2, 0, down + 1.2),
                        (-half * 0.25, down + 1.2, -bend, down * 1.02 + 0.8, -half, corner))  # fmt: skip
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
            seam = outline((-half, corner), (-bend, 0.4 + corner * 0.1, -4, -0.2, 0, 0.6),
                           (4, -0.2, bend, 0.4 + corner * 0.1, half, corner), close=False)  # fmt: skip
            canvas.drawPath(seam, self.lip_line)
        for side in (-1, 1):
            canvas.drawLine(side * half, corner, side * (half + 1.6), corner - 1.2 * smile, self.lip_line)
            if smile > 0.2:
                cheek = skia.Path()
                cheek.moveTo(side * (half + 3), corner - 12)
                x, y = side * half, corner
                cheek.cubicTo(x + side * 7, y - 8, x + side * 8, y - 4, x + side * 6, y + 2)
                canvas.drawPath(cheek, self.fold)
        canvas.restore()

    def _moustache(self, canvas: Any, lip: float) -> None:
        path = outline((0, lip - 6), (-8, lip - 8, -18, lip - 2, -23, lip + 6), (-14, lip + 3, -8, lip + 2, 0, lip + 1),
                       (8, lip + 2, 14, lip + 3, 23, lip + 6),
                       (18, lip - 2, 8, lip - 8, 0, lip - 6), close=False)  # fmt: skip
        canvas.drawPath(path, self.beard_paint)

    def _lips(
        self, canvas: Any, half: float, bend: float, corner: float, up: float, down: float, thick_up: float,
        thick_down: float,
    ) -> None:  # fmt: skip
        top = up - thick_up
        upper = outline((-half, corner), (-bend, top * 0.75 + corner * 0.2, -6, top - 0.6, -3.5, top - 0.4),
                        (-2, top, -1, top + 1.1, 0, top + 1.2), (1, top + 1.1, 2, top, 3.5, top - 0.4),
                        (6, top - 0.6, bend, top * 0.75 + corner * 0.2, half, corner),
                        (bend, up + 1.5, -bend, up + 1.5, -half, corner))  # fmt: skip
        bottom = down + thick_down
        lower = outline((-half, corner), (-bend, down, bend, down, half, corner),
                        (bend + 1, bottom * 0.96, half * 0.3, bottom + 0.4, 0, bottom + 0.4),
                        (-half * 0.3, bottom + 0.4, -bend - 1, bottom * 0.96, -half, corner))  # fmt: skip
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

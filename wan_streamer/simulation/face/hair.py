"""Hair of a head: a part behind it and a part in front. Head space as in `parts`."""

from collections.abc import Sequence
from typing import Any

import skia

from wan_streamer.simulation.face.paint import line, linear, mix, outline, solid
from wan_streamer.simulation.face.person import FaceIdentity

Points = tuple[float, ...]
Front = tuple[list[Any], Sequence[Points]]
"""Paths to fill, and the strands over them as the points of one cubic each."""


class Hair:
    """Paths and paints of one hair style, made once."""

    def __init__(self, identity: FaceIdentity, half: float) -> None:
        self.style, self.half = identity.hair_style, half
        hair, light, dark = identity.hair, (255, 226, 190), (18, 10, 16)
        tones = [solid(mix(hair, light, 0.28)), solid(hair), solid(mix(hair, dark, 0.35))]
        self._paint = linear(-34, -84, 38, -10, tones, [0.0, 0.45, 1.0])
        self._back_paint = linear(0, -70, 0, 80, [solid(hair), solid(mix(hair, dark, 0.4))])
        self._strand = line(mix(hair, light, 0.35), 1.5, 110)
        self._deep = line(mix(hair, dark, 0.55), 1.4, 90)
        self._behind: list[Any] = getattr(self, f"_{self.style}_behind", lambda half: [])(half)
        front, strands = getattr(self, f"_{self.style}_front", lambda half: ([], []))(half)
        self._front: list[Any] = front
        self._strands = [outline(points[:2], points[2:], close=False) for points in strands]

    def behind(self, canvas: Any) -> None:
        for path in self._behind:
            canvas.drawPath(path, self._back_paint)

    def front(self, canvas: Any) -> None:
        for path in self._front:
            canvas.drawPath(path, self._paint)
        for i, path in enumerate(self._strands):
            canvas.drawPath(path, self._strand if i % 2 == 0 else self._deep)

    def _cap(self, low: float, extra: float = 3.0, top: float = -73.0) -> Any:
        """The shape around the skull down to `low`; what lies over the face is cut by the front part."""
        w = self.half + extra
        return outline((-w, low), (-w - 2, -52, -w * 0.62, top, 0, top), (w * 0.62, top, w + 2, -52, w, low))

    def _rim(self, hair_line: Sequence[Points], low: float, extra: float, top: float) -> Any:
        """Skull outline from the left sideburn over the top to the right one, then back along a hair line."""
        w = self.half + extra
        return outline((-w + 4, low), (-w - 4, -14, -w - 3, -34, -w + 2, -46),
                       (-w * 0.74, top + 6, -w * 0.34, top, 0, top), (w * 0.36, top, w * 0.76, top + 6, w - 2, -46),
                       (w + 3, -34, w + 4, -14, w - 4, low), *hair_line)  # fmt: skip

    def _quiff_front(self, h: float) -> Front:
        sides = self._rim(
            [(h - 6, -10, h - 6, -26, h - 12, -38), (20, -44, -14, -46, -h + 11, -36),
             (-h + 7, -26, -h + 7, -10, -h + 1, 4)],
            4, 3.0, -72,
        )  # fmt: skip
        tuft = outline((-h + 8, -34), (-h - 8, -54, -h + 8, -80, -12, -82), (4, -90, 34, -86, h - 4, -66),
                       (h + 6, -58, h + 2, -44, h - 10, -36), (h - 16, -46, 20, -50, 4, -48),
                       (-14, -46, -26, -46, -h + 8, -34))  # fmt: skip
        strands = [
            (-32, -46, -30, -64, -16, -74, 6, -78), (-22, -48, -16, -64, 4, -74, 26, -74),
            (-8, -50, 2, -62, 18, -68, 38, -62), (6, -50, 16, -58, 28, -60, 42, -52),
            (-38, -44, -40, -58, -30, -70, -16, -77),
        ]  # fmt: skip
        return [sides, tuft], strands

    def _side_front(self, h: float) -> Front:
        path = self._rim(
            [(h - 5, -10, h - 5, -24, h - 9, -34), (20, -34, -6, -42, -16, -54), (-22, -42, -34, -34, -h + 8, -28),
             (-h + 6, -20, -h + 6, -8, -h + 1, 6)], 6, 3.5, -78,
        )  # fmt: skip
        strands = [(-14, -56, 2, -70, 26, -66, 42, -44), (-14, -56, 6, -62, 24, -54, 38, -38),
                   (-18, -58, -26, -66, -38, -54, -42, -36), (-10, -62, 6, -74, 30, -70, 44, -52)]  # fmt: skip
        return [path], strands

    def _crop_front(self, h: float) -> Front:
        path = self._rim(
            [(h - 4, -12, h - 4, -28, h - 12, -42), (24, -50, -24, -50, -h + 12, -42),
             (-h + 4, -28, -h + 4, -12, -h + 1, 2)],
            2, 1.5, -70,
        )  # fmt: skip
        strands = [(-24, -50, -20, -58, -12, -64, -4, -66), (-6, -52, 0, -58, 8, -64, 18, -64),
                   (14, -52, 18, -56, 24, -60, 32, -58)]  # fmt: skip
        return [path], strands

    def _curly_front(self, h: float) -> Front:
        path = skia.Path()
        for x, y, r in (
            (-h + 2, -22, 11), (-h + 2, -40, 14), (-h + 12, -56, 15), (-22, -68, 16), (-4, -74, 17), (14, -72, 16),
            (h - 16, -62, 16), (h - 6, -46, 15), (h, -28, 12), (-26, -52, 13), (-8, -56, 13), (10, -55, 13),
            (26, -50, 12), (-h + 1, -8, 7), (h - 1, -12, 8),
        ):  # fmt: skip
            path.addCircle(x, y, r)
        strands = [(-30, -56, -26, -66, -14, -66, -14, -56), (-4, -64, 0, -76, 14, -74, 14, -64),
                   (20, -54, 24, -64, 34, -62, 34, -52), (-12, -50, -8, -58, 2, -58, 2, -50)]  # fmt: skip
        return [path], strands

    def _curly_behind(self, w: float) -> list[Any]:
        return [self._cap(2, 9, -84)]

    def _long_behind(self, w: float) -> list[Any]:
        path = outline((0, -78), (-w - 8, -78, -w - 16, -30, -w - 13, 10), (-w - 12, 50, -w - 20, 76, -w - 6, 112),
                       (w + 6, 112), (w + 20, 76, w + 12, 50, w + 13, 10),
                       (w + 16, -30, w + 8, -78, 0, -78))  # fmt: skip
        return [path]

    def _long_front(self, h: float) -> Front:
        path = self._rim(
            [(h + 4, 4, h - 2, -20, h - 8, -32), (26, -42, 6, -52, 2, -62), (-6, -48, -28, -38, -h + 7, -28),
             (-h + 2, -18, -h - 4, 6, -h + 1, 34)], 34, 9, -79,
        )  # fmt: skip
        strands = [(2, -64, -18, -62, -38, -46, -44, -14), (2, -64, 22, -62, 40, -44, 46, -10),
                   (0, -68, -26, -68, -44, -46, -50, 0), (4, -68, 28, -66, 46, -44, 51, 6)]  # fmt: skip
        return [path], strands

    def _bob_behind(self, w: float) -> list[Any]:
        path = outline((0, -78), (-w - 10, -78, -w - 17, -30, -w - 13, 6), (-w - 10, 34, -w - 12, 48, -w + 4, 56),
                       (w - 4, 56), (w + 12, 48, w + 10, 34, w + 13, 6),
                       (w + 17, -30, w + 10, -78, 0, -78))  # fmt: skip
        return [path]

    def _bob_front(self, h: float) -> Front:
        path = self._rim(
            [(h + 1, 2, h - 4, -16, h - 7, -27), (22, -34, -22, -34, -h + 7, -27),
             (-h + 4, -16, -h - 1, 2, -h + 1, 28)],
            28, 10, -79,
        )  # fmt: skip
        strands = [(-20, -32, -22, -52, -14, -66, -2, -72), (-4, -33, -6, -52, 0, -66, 8, -72),
                   (14, -33, 14, -50, 14, -62, 10, -70), (30, -31, 32, -48, 28, -60, 18, -68)]  # fmt: skip
        return [path], strands

    def _bun_behind(self, w: float) -> list[Any]:
        bun = skia.Path()
        bun.addCircle(2, -74, 17)
        return [bun, self._cap(0, 4, -78)]

    def _bun_front(self, h: float) -> Front:
        path = self._rim(
            [(h - 5, -12, h - 5, -26, h - 12, -38), (26, -54, -26, -54, -h + 12, -38),
             (-h + 5, -26, -h + 5, -12, -h + 1, 4)],
            4, 2.5, -76,
        )  # fmt: skip
        strands = [(-34, -40, -30, -56, -14, -68, 0, -74), (34, -40, 30, -56, 16, -68, 2, -74),
                   (-12, -51, -10, -58, -4, -66, 0, -72)]  # fmt: skip
        return [path], strands

"""Things that a hand holds up: coloured shapes, cards with a digit, everyday objects.

Every thing fills a box of 56 x 56 pixels of the 192 x 336 design around its middle, y down. The lowest tenth may lie
under a thumb, so nothing that tells things apart is there. Digits are drawn, not set in a font of the machine.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import skia

from wan_streamer.simulation.face.paint import DARK, fill, line, linear, mix, outline, solid
from wan_streamer.simulation.face.person import Color, Prop

PAINTS: dict[str, Color] = {
    "red": (222, 38, 44),
    "green": (36, 158, 66),
    "blue": (34, 92, 220),
    "yellow": (252, 212, 36),
    "orange": (248, 128, 20),
    "purple": (138, 58, 180),
    "white": (250, 250, 250),
    "black": (30, 30, 34),
}
WHITE: Color = (252, 251, 248)
Layers = list[tuple[Any, Any]]


def draw_prop(canvas: Any, prop: Prop) -> None:
    """Draw the thing around the origin of the canvas."""
    for path, paint in _layers(prop.kind, prop.name, prop.colour):
        canvas.drawPath(path, paint)


@lru_cache(maxsize=512)
def _layers(kind: str, name: str, colour: str) -> Layers:
    tone = PAINTS[colour]
    if kind == "shape":
        return _solid(_SHAPES[name](), tone, 2.4)
    if kind == "digit":
        return _card(name, tone, colour)
    return _OBJECTS[name](tone)


def _glow(tone: Color) -> Any:
    """The paint of a body in soft light from the upper left."""
    light = mix(tone, (255, 255, 255), 0.28)
    return linear(-24, -28, 22, 30, [solid(light), solid(tone), solid(mix(tone, DARK, 0.16))], [0.0, 0.4, 1.0])


def _edge(tone: Color, width: float = 2.0) -> Any:
    return line(mix(tone, DARK, 0.62) if sum(tone) > 120 else (120, 120, 128), width)


def _solid(path: Any, tone: Color, width: float = 2.0) -> Layers:
    return [(path, _edge(tone, width * 1.6)), (path, _glow(tone))]


def _contrast(tone: Color) -> Color:
    """White, or dark grey on light things."""
    return (70, 72, 80) if tone[0] * 0.3 + tone[1] * 0.6 + tone[2] * 0.1 > 185 else WHITE


def _oval(left: float, top: float, right: float, bottom: float) -> Any:
    return skia.Path().addOval(skia.Rect.MakeLTRB(left, top, right, bottom))


def _box(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Any:
    return skia.Path().addRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), corner, corner)


def _star() -> Any:
    turns = [(math.pi * i / 5, 30.0 if i % 2 == 0 else 12.5) for i in range(10)]
    return outline(*((r * math.sin(turn), 2 - r * math.cos(turn)) for turn, r in turns))


def _heart() -> Any:
    return outline((0, 27), (-12, 16, -29, 6, -28, -9), (-27, -26, -6, -28, 0, -13), (6, -28, 27, -26, 28, -9),
                 (29, 6, 12, 16, 0, 27))  # fmt: skip


_SHAPES: dict[str, Callable[[], Any]] = {
    "circle": lambda: _oval(-27, -27, 27, 27),
    "square": lambda: _box(-25, -25, 25, 25, 1.5),
    "triangle": lambda: outline((0, -28), (30, 25), (-30, 25)),
    "star": _star,
    "heart": _heart,
}

_DIGITS: dict[str, tuple[tuple[float, ...], ...]] = {
    "0": ((0, -18), (-15, -18, -15, 18, 0, 18), (15, 18, 15, -18, 0, -18)),
    "1": ((-8, -10), (2, -18), (2, 18)),
    "2": ((-11, -9), (-11, -22, 12, -22, 11, -8), (10, 2, -6, 7, -11, 18), (12, 18)),
    "3": ((-11, -14), (-4, -22, 11, -19, 10, -9.5), (9.5, -3, 3, -1, -3, -1), (6, -1, 12, 2, 12, 8),
          (12, 20, -6, 21, -12, 13)),
    "4": ((6, 18), (6, -18), (-13, 8), (13, 8)),
    "5": ((10, -18), (-8, -18), (-10, -2), (-4, -7, 12, -7, 12, 6), (12, 20, -6, 21, -12, 13)),
    "6": ((7, -18), (-4, -14, -11, -4, -11, 6), (-11, 22, 11, 22, 11, 6), (11, -8, -9, -8, -11, 5)),
    "7": ((-12, -18), (12, -18), (4, -6, -2, 6, -3, 18)),
    "8": ((0, -1), (-12, -2, -12, -18, 0, -18), (12, -18, 12, -2, 0, -1), (-15, 0, -15, 18, 0, 18),
          (15, 18, 15, 0, 0, -1)),
    "9": ((-7, 18), (4, 14, 11, 4, 11, -6), (11, -22, -11, -22, -11, -6), (-11, 8, 9, 8, 11, -5)),
}  # fmt: skip


def _card(name: str, tone: Color, colour: str) -> Layers:
    """White, or dark under white and yellow."""
    dark = colour in ("white", "yellow")
    card = _box(-23, -30, 23, 30, 4)
    board: Color = (58, 62, 72) if dark else WHITE
    stroke = line(tone, 8.6)
    spine = outline(*_DIGITS[name], close=False)
    spine.offset(0, -4)
    return [(card, line((60, 60, 66), 3.0)), (card, fill(board)), (spine, stroke)]


def _cup(tone: Color) -> Layers:
    body = outline((-25, -19), (13, -19), (12, 10), (12, 24, 6, 27, -2, 27), (-10, 27), (-18, 27, -24, 24, -24, 10))
    handle = outline((12, -10), (30, -14, 31, 14, 10, 13), close=False)
    coffee = _oval(-24, -24, 12, -14)
    return [
        (handle, _edge(tone, 9.5)),
        (handle, line(mix(tone, DARK, 0.1), 6.0)),
        *_solid(body, tone),
        (coffee, _edge(tone, 3.2)),
        (coffee, fill((92, 56, 34))),
    ]


def _book(tone: Color) -> Layers:
    label = _contrast(tone)
    pages, cover = _box(-17, -26, 23, 29, 2), _box(-22, -29, 19, 26, 2)
    lines = outline((-8, -17), (13, -17), close=False)
    lines.moveTo(-8, -9)
    lines.lineTo(8, -9)
    return [
        (pages, line((90, 84, 78), 3.0)),
        (pages, fill((246, 240, 226))),
        *_solid(cover, tone),
        (_box(-22, -29, -14, 26, 2), fill(mix(tone, DARK, 0.35))),
        (lines, line(label, 3.6)),
    ]


def _phone(tone: Color) -> Layers:
    icons = skia.Path()
    for row in range(3):
        for column in range(2):
            icons.addRoundRect(skia.Rect.MakeXYWH(-8.5 + column * 10, -17 + row * 11, 7, 7), 2, 2)
    screen = linear(0, -24, 0, 22, [solid((120, 190, 240)), solid((40, 70, 150))])
    return [
        *_solid(_box(-17, -30, 17, 30, 6), tone),
        (_box(-13, -24, 13, 22, 2), screen),
        (icons, fill(WHITE, 235)),
        (_oval(-2.5, 23, 2.5, 28), fill(_contrast(tone))),
    ]


def _ball(tone: Color) -> Layers:
    other = WHITE if sum(tone) < 660 else (176, 182, 192)
    ball = _oval(-27, -27, 27, 27)
    stripes = outline((-4, -27), (-30, -14, -30, 14, -4, 27), (-14, 12, -14, -12, -4, -27))
    stripes.addPath(outline((6, -26), (14, -10, 14, 10, 6, 26), (32, 16, 32, -16, 6, -26)))
    return [
        *_solid(ball, tone),
        (stripes, fill(other)),
        (stripes, _edge(tone, 1.2)),
        (_oval(-5, -29, 7, -22), fill(other)),
    ]


def _apple(tone: Color) -> Layers:
    body = outline((0, -13), (-8, -20, -28, -18, -27, 3), (-26, 20, -12, 31, 0, 26), (12, 31, 26, 20, 27, 3),
                 (28, -18, 8, -20, 0, -13))  # fmt: skip
    stem = outline((0, -12), (0, -22, 4, -28), close=False)
    leaf = outline((3, -21), (6, -33, 18, -32, 22, -28), (20, -19, 9, -17, 3, -21))
    return [
        *_solid(body, tone),
        (stem, line((88, 56, 36), 3.6)),
        (leaf, line((24, 70, 30), 2.4)),
        (leaf, fill((86, 176, 70))),
        (_oval(-19, -8, -11, 4), fill(WHITE, 120)),
    ]


def _flower(tone: Color) -> Layers:
    petals = skia.Path()
    for i in range(6):
        x, y = 13.5 * math.sin(math.pi * i / 3), -12 - 13.5 * math.cos(math.pi * i / 3)
        petals.addCircle(x, y, 8.6)
    stem = outline((0, 0), (-2, 16, 0, 36), close=False)
    leaf = outline((-1, 18), (6, 6, 18, 6, 20, 8), (18, 18, 8, 20, -1, 18))
    centre = (250, 204, 50) if sum(tone[:2]) < 440 or tone[2] > 200 else (122, 72, 34)
    return [
        (stem, line((30, 92, 40), 5.0)),
        (stem, line((70, 160, 70), 3.0)),
        (leaf, line((30, 92, 40), 2.0)),
        (leaf, fill((80, 170, 76))),
        *_solid(petals, tone),
        (_oval(-7.5, -19.5, 7.5, -4.5), fill(centre)),
    ]


def _key(tone: Color) -> Layers:
    ring = _oval(-12, -30, 12, -6)
    shaft = outline((0, -4), (0, 28), close=False)
    for y, reach in ((6, 11), (15, 14)):
        shaft.moveTo(0, y)
        shaft.lineTo(reach, y)
    return [(ring, _edge(tone, 11.0)), (shaft, _edge(tone, 9.6)), (ring, line(tone, 7.0)), (shaft, line(tone, 5.6))]


def _hat(tone: Color) -> Layers:
    crown = outline((-16, 14), (-19, -26), (-8, -31, 8, -31, 19, -26), (16, 14))
    band = outline((-16.8, 3), (-8, 7, 8, 7, 16.8, 3), (16, 15), (8, 18, -8, 18, -16, 15))
    return [*_solid(_oval(-31, 8, 31, 25), tone), *_solid(crown, tone), (band, fill(_contrast(tone)))]


def _car(tone: Color) -> Layers:
    body = outline((-31, 12), (-31, 2, -29, -2, -20, -3), (-14, -17, -10, -19, -2, -19), (6, -19),
                 (13, -19, 16, -12, 20, -3), (30, -1, 31, 4, 31, 12), (30, 16), (-30, 16))  # fmt: skip
    windows = outline((-14, -4), (-10, -13, -8, -14, -3, -14), (-1, -14), (-1, -4))
    windows.addPath(outline((3, -14), (6, -14), (10, -14, 12, -10, 14, -4), (3, -4)))
    wheels, hubs = skia.Path(), skia.Path()
    for x in (-17, 17):
        wheels.addCircle(x, 15, 8)
        hubs.addCircle(x, 15, 3.4)
    return [
        *_solid(body, tone),
        (windows, fill((190, 224, 244))),
        (wheels, line((120, 120, 128), 1.6)),
        (wheels, fill((36, 36, 40))),
        (hubs, fill((200, 202, 208))),
    ]


def _fish(tone: Color) -> Layers:
    body = outline((-30, 0), (-22, -22, 6, -24, 16, -3), (22, -10, 26, -15, 31, -17), (27, -4, 27, 4, 31, 17),
                 (26, 15, 22, 10, 16, 3), (6, 24, -22, 22, -30, 0))  # fmt: skip
    mark = _contrast(tone)
    gill = outline((-10, -12), (-5, 0, -10, 12), close=False)
    fin = outline((-2, -1), (8, -6, 10, 5, 0, 4))
    return [
        *_solid(body, tone),
        (gill, line(mix(tone, DARK, 0.45), 2.0)),
        (fin, fill(mix(tone, DARK, 0.3))),
        (_oval(-22.5, -8.5, -13.5, 0.5), fill(mark)),
        (_oval(-20, -6.5, -15.5, -2), fill((16, 16, 20))),
    ]


def _umbrella(tone: Color) -> Layers:
    canopy = outline((-31, 0), (-30, -36, 30, -36, 31, 0), (24, -7, 16, -7, 10, 0), (5, -7, -5, -7, -10, 0),
                   (-16, -7, -24, -7, -31, 0))  # fmt: skip
    ribs = outline((-10, 0), (-8, -16, 0, -27), close=False)
    ribs.addPath(outline((10, 0), (8, -16, 0, -27), close=False))
    handle = outline((0, -26), (0, 34), close=False)
    return [
        (handle, line((70, 46, 34), 4.4)),
        (outline((0, -32), (0, -27), close=False), line((70, 46, 34), 3.6)),
        *_solid(canopy, tone),
        (ribs, line(mix(tone, DARK, 0.4), 1.6)),
    ]


def _balloon(tone: Color) -> Layers:
    body = outline((0, 14), (-14, 8, -24, -4, -22, -14), (-20, -36, 20, -36, 22, -14), (24, -4, 14, 8, 0, 14))
    return [
        (outline((0, 17), (-5, 24, 3, 28, 0, 40), close=False), line((84, 84, 92), 1.8)),
        (outline((0, 12), (4.5, 19), (-4.5, 19)), fill(mix(tone, DARK, 0.35))),
        *_solid(body, tone),
        (_oval(-14, -24, -7, -11), fill(WHITE, 150)),
    ]


_OBJECTS: dict[str, Callable[[Color], Layers]] = {
    "cup": _cup,
    "book": _book,
    "phone": _phone,
    "ball": _ball,
    "apple": _apple,
    "flower": _flower,
    "key": _key,
    "hat": _hat,
    "car": _car,
    "fish": _fish,
    "umbrella": _umbrella,
    "balloon": _balloon,
}

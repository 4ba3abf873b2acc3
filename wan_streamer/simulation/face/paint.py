"""Colours, Skia paints and paths used by all parts of a face."""

from typing import Any

import skia

from wan_streamer.simulation.face.person import Color

DARK: Color = (40, 22, 24)


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


def outline(*commands: tuple[float, ...], close: bool = True) -> Any:
    """Two numbers go on with a line, four with a quadratic, six with a cubic; the first two start."""
    path = skia.Path()
    path.moveTo(*commands[0])
    for command in commands[1:]:
        {2: path.lineTo, 4: path.quadTo, 6: path.cubicTo}[len(command)](*command)
    if close:
        path.close()
    return path

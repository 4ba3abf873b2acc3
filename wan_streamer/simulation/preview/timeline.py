"""What happens in a conversation, drawn with Skia: voices, mouths, events and captions.

`Timeline`      a strip under a film; everything but the cursor and the captions is drawn once
`spoken`        the words of the sentence that is being said
`event_color`, `event_name`   a colour and a name for any type of event
`label_font`, `draw_text`   text, or none where the machine has no font at all

Text is drawn in DejaVu Sans, Liberation Sans or whatever the machine has. Skia brings no font of its own: on a machine
without fonts the pictures are complete but for the letters (Debian: `apt install fonts-dejavu-core`).
"""

import colorsys
import zlib
from typing import Any

import numpy as np
import skia

from wan_streamer.data.shards import SIDES, Episode
from wan_streamer.simulation.face.paint import fill, line
from wan_streamer.simulation.face.person import Color
from wan_streamer.units import FPS, SAMPLE_RATE

FAMILIES = ("DejaVu Sans", "Liberation Sans", "Noto Sans", "Arial", "Helvetica")
GROUND: Color = (18, 20, 27)
LANE: Color = (28, 31, 41)
WHITE: Color = (240, 243, 248)
GREY: Color = (138, 146, 162)
SIDE_COLORS: dict[str, Color] = {"user": (92, 164, 255), "agent": (255, 164, 82)}
CAPTION, VOICE, ROW, ROWS, AXIS = 24, 36, 11, 3, 12  # heights in pixels
SENTENCE_GAP = 0.7  # seconds without a word that begin a new caption
LINGER = 0.8  # seconds that a caption stays


def label_font(size: float, bold: bool = False) -> Any | None:
    """A font of the machine, or None if it has none."""
    style = skia.FontStyle.Bold() if bold else skia.FontStyle.Normal()
    manager = skia.FontMgr()
    for family in (*FAMILIES, *(manager.getFamilyName(i) for i in range(manager.countFamilies()))):
        typeface = manager.matchFamilyStyle(family, style)
        if typeface is not None and typeface.unicharToGlyph(ord("a")):
            font = skia.Font(typeface, size)
            font.setEdging(skia.Font.Edging.kAntiAlias)
            font.setSubpixel(True)
            return font
    return None


def text_width(text: str, font: Any | None) -> float:
    return float(font.measureText(text)) if font is not None else 0.0


def draw_text(canvas: Any, text: str, x: float, y: float, font: Any | None, color: Color) -> float:
    """Draw from x on with the base line y, if there is a font. Returns where the text ends."""
    if font is not None:
        canvas.drawString(text, x, y, font, fill(color))
    return x + text_width(text, font)


def event_color(kind: str) -> Color:
    """Bright enough to read on the dark ground; the same for the same type on every machine."""
    code = zlib.crc32(kind.encode())
    red, green, blue = colorsys.hls_to_rgb(code % 360 / 360, 0.68, 0.45 + code // 360 % 4 * 0.12)
    return round(255 * red), round(255 * green), round(255 * blue)


def event_name(event: dict[str, Any]) -> str:
    """ "barge in: stop"; the type alone if there is no label."""
    name = event["type"].replace("_", " ")
    return f"{name}: {event['label']}" if event.get("label") else name


def spoken(words: list[dict[str, Any]], time: float) -> tuple[list[str], bool]:
    """The words of the present sentence that have begun by `time`, and whether the last one is being said."""
    begun = [word for word in words if word["start"] <= time]
    if not begun or time > begun[-1]["end"] + LINGER:
        return [], False
    first = len(begun) - 1
    while first and begun[first]["start"] - begun[first - 1]["end"] < SENTENCE_GAP:
        first -= 1
    return [word["text"] for word in begun[first:]], time <= begun[-1]["end"] + 1 / FPS


def last_words(words: list[str], font: Any | None, room: float) -> list[str]:
    """As many of the last words as fit into `room` pixels, after "…" if some are left out."""
    while len(words) > 1 and text_width(" ".join(words), font) > room:
        words = ["…", *words[2:]] if words[0] == "…" else ["…", *words[1:]]
    return words


def camera_off(height: int, width: int) -> np.ndarray:
    """The picture of somebody without a camera: uint8 [height, width, 3]."""
    pixels = np.zeros((height, width, 4), np.uint8)
    canvas = skia.Surface(pixels, colorType=skia.kRGBA_8888_ColorType).getCanvas()
    canvas.clear(skia.Color(36, 39, 48))
    x, y, size = width / 2, height * 0.42, height * 0.1
    canvas.drawCircle(x, y - size * 0.6, size, fill((74, 80, 96)))
    shoulders = skia.Rect.MakeXYWH(x - size * 1.8, y + size * 0.8, size * 3.6, size * 2)
    canvas.drawRoundRect(shoulders, size, size, fill((74, 80, 96)))
    font = label_font(height * 0.06)
    text = "camera off"
    draw_text(canvas, text, x - text_width(text, font) / 2, height * 0.86, font, GREY)
    return pixels[:, :, :3].copy()


class Timeline:
    """The strip of one conversation. Not thread safe.

    From top to bottom: captions; the user's voice and mouth; the user's events; the agent's events; the agent's voice
    and mouth; seconds. An event of both sides lies as a band over both.
    """

    height = CAPTION + 2 * (VOICE + ROWS * ROW) + AXIS

    def __init__(self, episode: Episode, width: int) -> None:
        self.episode, self.width = episode, width
        self.seconds = len(episode.user_audio) / SAMPLE_RATE
        self._small, self._text, self._bold = label_font(8), label_font(12), label_font(12, bold=True)
        self._pixels = np.zeros((self.height, width, 4), np.uint8)
        surface = skia.Surface(self._pixels, colorType=skia.kRGBA_8888_ColorType)
        self._canvas: Any = surface.getCanvas()
        self._tops = {"user": CAPTION, "agent": CAPTION + VOICE + 2 * ROWS * ROW}
        self._draw_ground()
        self._ground = self._pixels.copy()

    def draw(self, time: float) -> np.ndarray:
        """uint8 [height, width, 3] at `time` seconds."""
        self._pixels[:] = self._ground
        x = self._x(time)
        self._canvas.drawRect(skia.Rect.MakeLTRB(0, CAPTION, x, self.height - AXIS), fill(WHITE, 10))
        self._canvas.drawLine(x, CAPTION - 1, x, self.height - AXIS, line(WHITE, 1.5))
        self._canvas.drawCircle(x, CAPTION - 1, 2.5, fill(WHITE))
        for number, side in enumerate(SIDES):
            self._caption(side, number * self.width / 2, time)
        return self._pixels[:, :, :3].copy()

    def _x(self, time: float) -> float:
        return time / self.seconds * self.width

    def _caption(self, side: str, left: float, time: float) -> None:
        words, now = spoken(self.episode.labels["words"][side], time)
        words = last_words(words, self._bold, self.width / 2 - 24)
        self._canvas.drawCircle(left + 10, 12, 3, fill(SIDE_COLORS[side] if words else LANE))
        x = left + 18
        for number, word in enumerate(words):
            last = now and number == len(words) - 1
            font, color = (self._bold, WHITE) if last else (self._text, GREY)
            x = draw_text(self._canvas, word + " ", x, 16.5, font, color)

    def _draw_ground(self) -> None:
        canvas = self._canvas
        canvas.clear(skia.Color(*GROUND))
        for side in SIDES:
            canvas.drawRect(skia.Rect.MakeXYWH(0, self._tops[side], self.width, VOICE), fill(LANE))
        self._draw_axis()
        for event in self.episode.labels["events"]:
            if event["side"] == "both":
                color = event_color(event["type"])
                box = skia.Rect.MakeLTRB(self._x(event["start"]), CAPTION, self._x(event["end"]), self.height - AXIS)
                canvas.drawRect(box, fill(color, 14))
        for side in SIDES:
            self._draw_voice(side)
            self._draw_events(side)

    def _draw_axis(self) -> None:
        bottom = self.height - AXIS
        step = next(s for s in (1, 2, 5, 10, 30, 60, 300, 600, 3600) if self.width * s / self.seconds > 40 or s == 3600)
        for second in range(0, int(self.seconds) + 1, step):
            x = self._x(second)
            self._canvas.drawLine(x, CAPTION, x, bottom + 3, line(WHITE, 1, 18))
            text = f"{second // 60}:{second % 60:02d}"
            if x + 3 + text_width(text, self._small) < self.width:
                draw_text(self._canvas, text, x + 3, self.height - 3, self._small, GREY)

    def _draw_voice(self, side: str) -> None:
        canvas, color, top = self._canvas, SIDE_COLORS[side], self._tops[side]
        for event in self.episode.labels["events"]:
            if event["type"] == "speech" and event["side"] == side:
                left, right = self._x(event["start"]), self._x(event["end"])
                canvas.drawRoundRect(skia.Rect.MakeLTRB(left, top + 1, right, top + VOICE - 1), 4, 4, fill(color, 52))
        audio = self.episode.user_audio if side == "user" else self.episode.agent_audio
        edges = np.linspace(0, len(audio), self.width + 1).astype(int)[:-1]
        peak_W = np.maximum.reduceat(np.abs(audio), edges)
        half_W = 1 + (VOICE / 2 - 3) * peak_W / max(0.05, float(peak_W.max()))
        middle, paint = top + VOICE / 2, fill(color, 225)
        for column, half in enumerate(half_W):
            canvas.drawRect(skia.Rect.MakeLTRB(column, middle - half / 2, column + 1, middle + half / 2), paint)
        mouth = self.episode.labels.get("mouth_open", {}).get(side)
        if mouth:
            path = skia.Path()
            for number, value in enumerate(mouth):
                x, y = self._x((number + 0.5) / FPS), top + VOICE - 2 - value * (VOICE - 8)
                path.lineTo(x, y) if number else path.moveTo(x, y)
            canvas.drawPath(path, line(WHITE, 1, 150))
        draw_text(canvas, side, 4, top + 9, self._small, color)

    def _draw_events(self, side: str) -> None:
        """Marks in the first row that has room; where all are full, a mark without its name."""
        canvas, top = self._canvas, self._tops[side]
        first = top + VOICE if side == "user" else top - ROWS * ROW
        lane = top + VOICE if side == "user" else top
        shown = (side, "both") if side == "user" else (side,)
        events = [e for e in self.episode.labels["events"] if e["side"] in shown and e["type"] != "speech"]
        free = [0.0] * ROWS
        for event in sorted(events, key=lambda e: e["start"]):
            color, left = event_color(event["type"]), self._x(event["start"])
            bar = max(3.0, self._x(event["end"]) - left)
            name = event_name(event)
            wide = max(bar, 5 + text_width(name, self._small) + 3)
            left = max(0.0, min(left, self.width - wide))
            row = next((i for i, end in enumerate(free) if end <= left), None)
            level = ROWS - 1 if row is None else row  # row 0 is next to the voice
            at = first + (level if side == "user" else ROWS - 1 - level) * ROW
            canvas.drawLine(left + 0.5, lane, left + 0.5, at + ROW / 2, line(color, 1, 120))
            if row is None:
                canvas.drawRect(skia.Rect.MakeXYWH(left, at + ROW - 3, bar, 2), fill(color, 150))
                continue
            free[row] = left + wide + 2
            canvas.drawRoundRect(skia.Rect.MakeXYWH(left, at + 1, wide, ROW - 2), 2, 2, fill(color, 34))
            canvas.drawRoundRect(skia.Rect.MakeXYWH(left, at + 1, bar, ROW - 2), 2, 2, fill(color, 70))
            canvas.drawRect(skia.Rect.MakeXYWH(left, at + 1, 2, ROW - 2), fill(color))
            draw_text(canvas, name, left + 5, at + 8.5, self._small, color)

"""Still pictures of conversations for documents (`world_pictures.py`): PNG, dark ground.

`contact_sheet`   a grid of conversations, each with its user, the agent and what happens in it
`frame_strip`     one conversation over time, with what is said at every moment
"""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import skia

from wan_streamer.data.shards import SIDES, Episode, read_episodes
from wan_streamer.errors import ConfigError
from wan_streamer.files import write_bytes
from wan_streamer.simulation.preview.films import HEIGHT, WIDTH, side_film
from wan_streamer.simulation.preview.timeline import (
    GREY,
    GROUND,
    SIDE_COLORS,
    WHITE,
    camera_off,
    draw_text,
    event_color,
    event_name,
    label_font,
    last_words,
    spoken,
    text_width,
)
from wan_streamer.units import FPS, FRAMES_PER_UNIT

SCALE = 2 / 3  # of the films
CELL_H, CELL_W = round(HEIGHT * SCALE), round(WIDTH * SCALE)
GAP = 10
LINE = 16  # height of a line of text


def contact_sheet(shards: str | Path, path: str | Path, episodes: int = 8, columns: int = 2) -> None:
    """PNG of the first `episodes` conversations of a folder: both sides while the agent speaks, and the scenarios."""
    if episodes < 1 or columns < 1:
        raise ConfigError(f"contact sheet: expected 1 or more, got {episodes} episodes in {columns} columns")
    found = list(islice(_stills(shards), episodes))
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    cell = 2 * CELL_W + GAP
    sheet = _Sheet(GAP + rows * (CELL_H + LINE + 2 * GAP), GAP + columns * (cell + GAP))
    for number, (title, pictures) in enumerate(found):
        left, top = GAP + number % columns * (cell + GAP), GAP + number // columns * (CELL_H + LINE + 2 * GAP)
        for side, picture in enumerate(pictures):
            sheet.picture(picture, left + side * (CELL_W + 2), top)
        sheet.text(title, left, top + CELL_H + LINE, cell, WHITE)
    sheet.save(Path(path))


def _stills(shards: str | Path) -> Any:
    for episode in read_episodes(shards):
        labels = episode.labels
        speech = [e for e in labels["events"] if e["type"] == "speech" and e["side"] == "agent"]
        time = (speech[0]["start"] + speech[0]["end"]) / 2 if speech else episode.units * FRAMES_PER_UNIT / FPS / 2
        what = ", ".join(labels.get("scenarios", ())) or labels.get("recording", "")
        yield f"{episode.key}   {what}", [_still(side_film(episode, side), time) for side in SIDES]


def frame_strip(
    episode: Episode, start: float, end: float, path: str | Path | None = None, frames: int = 6
) -> np.ndarray:
    """`frames` moments from `start` to `end` seconds, the user above the agent: uint8 [H, W, 3], and a PNG at `path`.

    Under every moment stand the words of the sentence so far, the last one of them bright, and the events.
    """
    seconds = episode.units * FRAMES_PER_UNIT / FPS
    if not 0 <= start < end <= seconds or frames < 2:
        raise ConfigError(
            f"frame strip: expected 2 or more frames in 0 to {seconds:.2f} s, got {frames} in {start} to {end}"
        )
    sheet = _Sheet(GAP + 2 * CELL_H + 2 + 4 * LINE + GAP, GAP + frames * (CELL_W + GAP))
    films = {side: side_film(episode, side) for side in SIDES}
    for number, time in enumerate(np.linspace(start, end, frames)):
        left = GAP + number * (CELL_W + GAP)
        below = GAP + 2 * CELL_H + 2 + LINE
        sheet.text(f"{time:.2f} s", left, below, CELL_W, GREY)
        for row, side in enumerate(SIDES):
            sheet.picture(_still(films[side], time), left, GAP + row * (CELL_H + 2))
            sheet.caption(episode.labels["words"][side], time, left, below + (row + 1) * LINE, SIDE_COLORS[side])
        sheet.marks(episode.labels["events"], time, left, below + 3 * LINE)
    if path is not None:
        sheet.save(Path(path))
    return sheet.pixels[:, :, :3].copy()


def _still(film: np.ndarray | None, time: float) -> np.ndarray:
    if film is None:
        return camera_off(HEIGHT, WIDTH)
    return film[min(len(film) - 1, int(time * FPS))]


class _Sheet:
    """A canvas of `height` x `width` pixels, and text that never leaves its cell."""

    def __init__(self, height: int, width: int) -> None:
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self._surface = skia.Surface(self.pixels, colorType=skia.kRGBA_8888_ColorType)
        self._canvas: Any = self._surface.getCanvas()
        self._canvas.clear(skia.Color(*GROUND))
        self._font, self._bold = label_font(11.5), label_font(11.5, bold=True)

    def picture(self, image_HWC: np.ndarray, left: float, top: float) -> None:
        opaque = np.dstack([image_HWC, np.full(image_HWC.shape[:2], 255, np.uint8)])
        image = skia.Image.fromarray(np.ascontiguousarray(opaque), skia.kRGBA_8888_ColorType)
        smooth = skia.SamplingOptions(skia.CubicResampler.Mitchell())
        self._canvas.drawImageRect(image, skia.Rect.MakeXYWH(left, top, CELL_W, CELL_H), smooth)

    def text(self, text: str, left: float, base: float, room: float, color: Any) -> float:
        while len(text) > 1 and text_width(text, self._font) > room:
            text = text[:-2] + "…"
        return draw_text(self._canvas, text, left, base, self._font, color)

    def caption(self, words: list[dict[str, Any]], time: float, left: float, base: float, color: Any) -> None:
        texts, now = spoken(words, time)
        texts = last_words(texts, self._bold, CELL_W - text_width("… ", self._bold))
        for number, text in enumerate(texts):
            last = now and number == len(texts) - 1
            left = draw_text(
                self._canvas, text + " ", left, base, self._bold if last else self._font, color if last else GREY
            )

    def marks(self, events: list[dict[str, Any]], time: float, left: float, base: float) -> None:
        """The events of this moment, without speech: that is what the captions show."""
        end = left + CELL_W
        for event in events:
            shown = event["type"] != "speech" and event["start"] - 0.5 / FPS <= time <= event["end"] + 0.5 / FPS
            if shown and left < end - 20:
                left = self.text(event_name(event), left, base, end - left, event_color(event["type"])) + GAP

    def save(self, path: Path) -> None:
        write_bytes(path, bytes(self._surface.makeImageSnapshot().encodeToData(skia.kPNG, 100)))

"""What a run looks like from outside: its log, TensorBoard if that is installed, and a page of curves.

`Board`         one line of JSON for every log entry in log.jsonl, and the same for TensorBoard
`write_curves`  log.jsonl -> curves.html: a figure per number, training and held-out, and the latest samples
"""

import contextlib
import html
import json
import math
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from wan_streamer.files import parse_json, write_bytes

LOG, PAGE, TENSORBOARD = "log.jsonl", "curves.html", "tensorboard"
WIDTH, HEIGHT, LEFT, BOTTOM = 380, 170, 46, 20  # px of a figure, room for the axes' numbers
MOST_POINTS = 400  # of a line; more are averaged
FIRST = ("loss", "video", "audio", "text")  # figures in front; the others follow by name
STYLE = """
body { font: 14px system-ui, sans-serif; margin: 24px; color: #222; background: #fff }
figure { display: inline-block; margin: 0 18px 18px 0 } figcaption { font-weight: 600 }
.train { fill: none; stroke: #9bb7d4; stroke-width: 1.2 } .valid { fill: none; stroke: #c2410c; stroke-width: 1.8 }
.axis { fill: none; stroke: #bbb } text { font-size: 11px; fill: #666 } circle { fill: #c2410c }
img { max-width: 100%; image-rendering: pixelated } .key b { font-weight: 600 }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #ddd } text { fill: #999 } }
"""


class Board:
    """Writes the log of a run in `out`; appends to what is there, so that a resumed run has one log."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / LOG

    @cached_property
    def writer(self) -> Any:
        """TensorBoard's; None without that optional package. Made when it is needed: a new run clears its folder."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.out / TENSORBOARD))

    def begin(self) -> None:
        """Of a new run: what an earlier one wrote is not its own."""
        if writer := self.__dict__.pop("writer", None):
            writer.close()
        self.path.unlink(missing_ok=True)
        for folder in ("samples", TENSORBOARD):
            shutil.rmtree(self.out / folder, ignore_errors=True)

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """One entry: kind "train" or "valid"."""
        known = {key: value for key, value in numbers.items() if math.isfinite(value)}  # JSON has no "not a number"
        line = {"kind": kind, "step": step, **{key: round(value, 6) for key, value in known.items()}}
        with self.path.open("a") as log:
            log.write(json.dumps(line) + "\n")
        if self.writer is not None:
            for key, value in known.items():
                self.writer.add_scalar(f"{key}/{kind}", value, step)
            self.writer.flush()


def read_log(out: Path) -> list[dict]:
    """The entries of a run by step; where a resumed run went over steps again, what it wrote last."""
    latest: dict[tuple[str, int], dict] = {}
    for line in (out / LOG).read_text().splitlines():
        with contextlib.suppress(ValueError):  # half a line of a run that was killed
            entry = parse_json(line)
            latest[entry["kind"], entry["step"]] = entry
    return sorted(latest.values(), key=lambda entry: entry["step"])


def write_curves(out: Path) -> Path:
    """Draw the log of the run in `out`. Returns the page's path."""
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for entry in read_log(out):
        for name, value in entry.items():
            if name not in ("kind", "step", "seconds") and math.isfinite(value):
                lines.setdefault(name, {}).setdefault(entry["kind"], []).append((entry["step"], value))
    names = [name for name in FIRST if name in lines] + sorted(set(lines) - set(FIRST))
    samples = sorted((out / "samples").glob("*.png"))[-1:] if (out / "samples").is_dir() else []
    body = [
        f"<h1>{html.escape(out.resolve().name)}</h1>",
        '<p class="key"><b style="color:#6b8fb5">training</b> · <b style="color:#c2410c">held out (EMA)</b></p>',
        *(_figure(name, lines[name]) for name in names),
        *(f'<h2>{path.stem}</h2><img src="samples/{path.name}" alt="samples">' for path in samples),
    ]
    page = out / PAGE
    text = (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(out.resolve().name)}</title>'
        f"<style>{STYLE}</style>{''.join(body)}\n"
    )
    write_bytes(page, text.encode())
    return page


def _figure(name: str, lines: Mapping[str, list[tuple[int, float]]]) -> str:
    points = [point for line in lines.values() for point in line]
    steps, values = [step for step, _ in points], sorted(value for _, value in points)
    low, high = values[0], values[min(len(values) - 1, int(0.98 * len(values)))]  # the first losses are off the scale
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(step: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 6) * (step - first) / (last - first)
        y = 6 + (HEIGHT - BOTTOM - 6) * (1 - (min(value, high) - low) / (high - low))
        return f"{x:.1f},{y:.1f}"

    drawn = []
    for kind in ("train", "valid"):
        line = _thin(lines.get(kind, []))
        drawn.append(f'<polyline class="{kind}" fill="none" points="{" ".join(place(*point) for point in line)}"/>')
        if kind == "valid":
            spots = [place(*point).split(",") for point in line]
            drawn += [f'<circle cx="{x}" cy="{y}" r="2"/>' for x, y in spots]
    bottom = HEIGHT - BOTTOM
    axes = (
        f'<path class="axis" fill="none" d="M{LEFT},6V{bottom}H{WIDTH - 6}"/>'
        f'<text x="{LEFT - 4}" y="14" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">{first}</text>'
        f'<text x="{WIDTH - 6}" y="{HEIGHT - 5}" text-anchor="end">step {last}</text>'
    )
    return (
        f"<figure><figcaption>{html.escape(name)}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}">{axes}{"".join(drawn)}</svg></figure>'
    )


def _thin(line: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points, each the mean of its neighbours."""
    size = math.ceil(len(line) / MOST_POINTS) or 1
    groups = [line[i : i + size] for i in range(0, len(line), size)]
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]

"""Figures of the report as inline SVG; colours come from the classes in report.html.jinja.

`interval`      a value with its interval beside the truth and the blind baselines, right is better
`distribution`  one row per system: histogram, or every value if there are few
`drift`         a value over minutes
`timeline`      one conversation: both voices, the mouth, what happens, what is said
`number`        how the report prints a number

Every text is escaped; a value that is None, NaN or infinite is "–" or left out.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
from markupsafe import Markup, escape

from wan_streamer.evaluation.records import Span
from wan_streamer.units import FPS

CHARACTER = 6.0  # px, a generous mean at 11 px
SMALL, GUTTER, RIGHT = 344, 88, 44  # px: width of a small figure, room for names and for medians
FEW = 12  # values that are drawn one by one
QUIET_DB, LOUD_DB = -60.0, -10.0
PER_SECOND, NARROWEST, MARGIN = 84, 1040, 62  # px of a timeline: per second, at least, room for names
PHRASE, PHRASE_PAUSE_S = 44, 1.0  # captions are cut here, in characters and seconds


def known(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and math.isfinite(value)


def number(value: Any) -> str:
    if not known(value):
        return "–"
    size = abs(value)
    if size >= 100:
        text = f"{size:,.0f}".replace(",", "\u202f")
    elif 0 < size < 0.01:
        text = f"{size:.1g}" if size >= 1e-4 else f"{size:.0e}"
    else:
        text = f"{size:.1f}" if size >= 10 else f"{size:.2f}"
    return f"−{text}" if value < 0 and float(text.replace("\u202f", "")) else text


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """An element; `_` at the end of an attribute is dropped, elsewhere it becomes `-`. Numbers get one decimal."""
    parts = [Markup(name)]
    for key, value in attributes.items():
        text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
        parts.append(Markup('{}="{}"').format(key.rstrip("_").replace("_", "-"), text))
    return Markup("<{}>{}</{}>").format(Markup(" ").join(parts), Markup("").join(content), Markup(name))


def text(x: float, y: float, words: str, class_: str = "", **attributes: object) -> Markup:
    return tag("text", escape(words), x=x, y=y, class_=class_, **attributes)


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers from low to high, about as many as wanted."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def interval(metric: dict[str, Any], truth: float | None, blind: dict[str, float | None], best: str | None) -> Markup:
    """As wide as its place. The scale covers the interval, the truth and the best blind baseline; others may lie
    outside and are drawn as arrows."""
    inside = [metric.get("value"), metric.get("low"), metric.get("high"), truth, blind.get(best or "")]
    low, high = _scale([v for v in inside if known(v)], metric.get("unit", ""))
    worst, top = (high, low) if metric.get("better") == "lower" else (low, high)

    def position(value: float) -> tuple[str, float]:
        share = (value - worst) / (top - worst)
        return f"{3 + 94 * min(1.0, max(0.0, share)):.2f}%", share

    def mark(value: float | None, name: str, shape: str, class_: str) -> Markup:
        if not known(value):
            return Markup()
        where, share = position(value)
        if not -0.001 <= share <= 1.001:
            shape = "M-2-3.5 2 0-2 3.5" if share > 1 else "M2-3.5-2 0 2 3.5"
        label = tag("title", escape(f"{name}: {number(value)}"))
        return tag("svg", tag("path", label, d=shape), x=where, y=13, overflow="visible", class_=class_)

    circle = "M-{0} 0a{0} {0} 0 1 0 {1} 0a{0} {0} 0 1 0-{1} 0z"
    parts = [tag("line", x1="3%", x2="97%", y1=13, y2=13, class_="track")]
    parts += [mark(v, k, circle.format(3.5, 7), "blind best" if k == best else "blind") for k, v in blind.items()]
    if known(metric.get("low")) and known(metric.get("high")) and known(metric.get("value")):
        ends = sorted((position(metric["low"])[0], position(metric["high"])[0]), key=lambda x: float(x[:-1]))
        parts.append(tag("line", x1=ends[0], x2=ends[1], y1=13, y2=13, class_="span"))
    parts.append(mark(truth, "truth", "M0-6.5 6.5 0 0 6.5-6.5 0z", "truth"))
    parts.append(mark(metric.get("value"), "agent", circle.format(5, 10), "agent"))
    label = f"agent {number(metric.get('value'))}, truth {number(truth)}, best blind {number(blind.get(best or ''))}"
    return tag("svg", *parts, class_="interval", height=26, role="img", aria_label=label)


def _scale(values: Sequence[float], unit: str) -> tuple[float, float]:
    if not values or (not unit and min(values) >= 0 and max(values) <= 1):
        return 0.0, 1.0
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.06 * (high - low) or 1.0
    return low - (room if low < 0 else 0), high + room


def distribution(groups: dict[str, list[float]]) -> Markup:
    """Histograms over one scale; beyond the middle 98 % values are counted in the outer bins."""
    data = {name: np.array([v for v in values if known(v)], float) for name, values in groups.items()}
    pooled = np.concatenate([*data.values(), []])
    if not len(pooled):
        return Markup('<p class="empty">No values.</p>')
    low, high = (float(x) for x in np.percentile(pooled, [1, 99]))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges, row, width = np.linspace(low, high, 33), 40, SMALL - GUTTER - RIGHT
    height = row * len(data) + 26

    def x(value: float) -> float:
        return GUTTER + width * min(1.0, max(0.0, (float(value) - low) / (high - low)))

    parts = [
        Markup("").join((
            tag("line", x1=x(v), x2=x(v), y1=4, y2=height - 20, class_="grid"),
            text(x(v), height - 6, f"{v:g}".replace("-", "−"), "soft", text_anchor="middle"),
        ))
        for v in ticks(low, high, 5)
    ]  # fmt: skip
    for index, (name, values) in enumerate(data.items()):
        base = row * (index + 1)
        class_ = {"agent": "agent", "truth": "truth", "reference": "truth", "replay": "truth"}.get(name, "blind")
        parts.append(text(GUTTER - 8, base - 8, name.replace("_", " "), f"name {class_}", text_anchor="end"))
        parts.append(tag("line", x1=GUTTER, x2=GUTTER + width, y1=base, y2=base, class_="base"))
        if len(values) > FEW:
            share = np.histogram(np.clip(values, low, high), edges)[0].astype(float)
            tops = base - (row - 10) * share / share.max()
            steps = "".join(
                f"V{top:.1f}H{x(edge):.1f}" for top, edge in zip(tops.tolist(), edges[1:].tolist(), strict=True)
            )
            parts.append(tag("path", d=f"M{GUTTER} {base}{steps}V{base}z", class_=f"fill {class_}"))
        else:
            parts += [tag("circle", cx=x(v), cy=float(base - 6), r=3, class_=f"dot {class_}") for v in values]
        if len(values):
            middle = float(np.median(values))
            parts.append(tag("line", x1=x(middle), x2=x(middle), y1=base - row + 8, y2=base, class_=f"median {class_}"))
            title = tag("title", escape(f"median of {len(values)}"))
            parts.append(tag("text", title, escape(number(middle)), x=SMALL, y=base - 8, class_=f"value {class_}"))
        else:
            parts.append(text(SMALL, base - 8, "–", "value"))
    return tag("svg", *parts, class_="small", viewBox=f"0 0 {SMALL} {height}", role="img")


def drift(points: Iterable[tuple[float, float]]) -> Markup:
    """Points (minute, value), joined."""
    kept = sorted((float(m), float(v)) for m, v in points if known(m) and known(v))
    if not kept:
        return Markup('<p class="empty">No values.</p>')
    left, top, bottom, height = 44, 10, 130, 158
    values = [v for _, v in kept]
    low, high = min(values), max(values)
    room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    low, high, last = low - room, high + room, max(kept[-1][0], 1e-9)

    def x(minute: float) -> float:
        return left + (SMALL - left - 10) * minute / last

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for v in ticks(low, high, 3):
        parts.append(tag("line", x1=left, x2=SMALL, y1=y(v), y2=y(v), class_="grid"))
        parts.append(text(left - 8, y(v) + 4, f"{v:.6g}".replace("-", "−"), "soft", text_anchor="end"))
    for m in ticks(0, last, 5):
        parts.append(text(x(m), height - 10, f"{m:g}", "soft", text_anchor="middle"))
    line = "L".join(f"{x(m):.1f} {y(v):.1f}" for m, v in kept)
    parts.append(tag("path", d=f"M{line}", class_="line"))
    if len(kept) <= 40:
        parts += [tag("circle", cx=x(m), cy=y(v), r=2.5, class_="dot agent") for m, v in kept]
    return tag("svg", *parts, class_="small", viewBox=f"0 0 {SMALL} {height}", role="img")


def phrases(captions: Sequence[tuple[float, str, str]], lane: str) -> list[tuple[float, str]]:
    """Pieces of text, as a lane gives them, joined to what can be read at once. Pieces that carry their own spaces
    are joined without any."""
    pieces = sorted((time, words) for time, of, words in captions if of == lane and words)
    glue = "" if any(words != words.strip() for _, words in pieces) else " "
    found: list[tuple[float, str]] = []
    before = -math.inf
    for time, words in pieces:
        full = found and len(found[-1][1]) >= PHRASE and (glue or words[0].isspace())
        if time - before > PHRASE_PAUSE_S or full:
            found.append((time, words))
        else:
            found[-1] = (found[-1][0], found[-1][1] + glue + words)
        before = time
    return [(time, words.strip()) for time, words in found if words.strip()]


def rows_of(items: Sequence[tuple[float, float]]) -> list[int]:
    """Items (left, right) -> the first row in which each is free."""
    ends: list[float] = []
    chosen = []
    for left, right in items:
        row = next((k for k, end in enumerate(ends) if end <= left), len(ends))
        ends[row : row + 1] = [right]
        chosen.append(row)
    return chosen


class _Canvas:
    """The parts of a timeline, from top to bottom."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(seconds, 1 / FPS)
        self.width = max(NARROWEST, round(PER_SECOND * self.seconds) + MARGIN)
        self.scale = (self.width - MARGIN - 8) / self.seconds
        self.y = 6.0
        self.parts: list[Markup] = []

    def x(self, second: float) -> float:
        return MARGIN + self.scale * min(self.seconds, max(0.0, float(second)))

    def name(self, words: str, y: float, class_: str = "soft") -> None:
        self.parts.append(text(MARGIN - 10, y, words, f"name {class_}", text_anchor="end"))

    def captions(self, said: list[tuple[float, str]], lane: str) -> None:
        if not said:
            return
        most = int((self.width - MARGIN) / CHARACTER) - 2
        short = [words if len(words) <= most else words[:most] + "…" for _, words in said]
        wide = [CHARACTER * len(words) for words in short]
        left = [min(self.x(time), max(MARGIN, self.width - w)) for (time, _), w in zip(said, wide, strict=True)]
        rows = rows_of([(x, x + w + 10) for x, w in zip(left, wide, strict=True)])
        self.name({"user": "says", "agent": "says"}.get(lane, lane), self.y + 12, lane)
        for x, words, row in zip(left, short, rows, strict=True):
            self.parts.append(text(x, self.y + 12 + 15 * row, words, f"caption {lane}"))
        self.y += 15 * (max(rows) + 1) + 5

    def voice(self, loudness: np.ndarray, speech: Sequence[Span], middle: float, up: int, class_: str) -> None:
        """Loudness over (up = -1) or under (up = 1) the middle, faint outside speech, and the spans of speech."""
        base = middle + 8 * up
        levels = np.nan_to_num(np.asarray(loudness, float), nan=QUIET_DB, posinf=LOUD_DB, neginf=QUIET_DB)
        share = np.clip((levels - QUIET_DB) / (LOUD_DB - QUIET_DB), 0, 1)[: math.ceil(self.seconds * FPS)]
        bars = [f"M{self.x((k + 0.5) / FPS):.1f} {base:.1f}v{up * max(0.5, 54 * s):.1f}" for k, s in enumerate(share)]
        speaks = [any(start <= (k + 0.5) / FPS < end for start, end in speech) for k in range(len(bars))]
        for kind in (False, True):
            drawn = "".join(bar for bar, heard in zip(bars, speaks, strict=True) if heard == kind)
            self.parts.append(tag("path", d=drawn or "M0 0", class_=f"bars {class_}{'' if kind else ' faint'}"))
        for start, end in speech:
            wide, y = max(1.5, self.x(end) - self.x(start)), middle + (1 if up > 0 else -6)
            label = tag("title", escape(f"{class_} speaks {start:.2f}–{end:.2f} s"))
            box = {"x": self.x(start), "y": y, "width": wide, "height": 5, "rx": 2.5}
            self.parts.append(tag("rect", label, class_=f"speech {class_}", **box))

    def mouth(self, track: np.ndarray) -> None:
        opening = np.nan_to_num(np.asarray(track, float), nan=0, posinf=0, neginf=0)
        opening = np.clip(opening[: math.ceil(self.seconds * FPS)], 0, None)
        if not len(opening):
            return
        base, peak = self.y + 32, max(1e-9, float(opening.max()))
        points = [f"{self.x((k + 0.5) / FPS):.1f} {base - 28 * v / peak:.1f}" for k, v in enumerate(opening)]
        self.name("mouth", base - 8)
        first, last = points[0].split()[0], points[-1].split()[0]
        self.parts.append(tag("path", d=f"M{first} {base}L{'L'.join(points)}L{last} {base}z", class_="mouth"))
        self.y = base + 10

    def events(self, events: Sequence[dict[str, Any]]) -> None:
        if not events:
            return
        ordered = sorted(events, key=lambda e: (float(e["start"]), float(e["end"])))
        names = [" · ".join(filter(None, (str(e["type"]).replace("_", " "), e.get("label")))) for e in ordered]
        names = [name if len(name) <= 40 else name[:39] + "…" for name in names]
        left = [self.x(event["start"]) for event in ordered]
        wide = [max(3.0, self.x(event["end"]) - x) for event, x in zip(ordered, left, strict=True)]
        room = [CHARACTER * len(name) + 12 for name in names]
        words = [x if x + r <= self.width else max(MARGIN, x - r) for x, r in zip(left, room, strict=True)]
        rows = rows_of([(at, max(x + w, at + r) + 4) for x, w, at, r in zip(left, wide, words, room, strict=True)])
        self.name("events", self.y + 13)
        for event, name, x, w, at, row in zip(ordered, names, left, wide, words, rows, strict=True):
            y, side = self.y + 21 * row, event.get("side")
            class_ = side if side in ("user", "agent") else "both"
            label = tag("title", escape(f"{side}: {name}, {event['start']:.2f}–{event['end']:.2f} s"))
            self.parts.append(tag("rect", label, x=x, y=y, width=w, height=18, rx=4, class_=f"event {class_}"))
            self.parts.append(text(at + 6, y + 13, name, f"happens {class_}"))
        self.y += 21 * (max(rows) + 1) + 6

    def finish(self) -> Markup:
        """The grid of seconds goes behind everything, the cursor before."""
        bottom = self.y + 4
        behind = []
        for second in ticks(0, self.seconds, int(self.seconds) + 1):
            x = self.x(second)
            behind.append(tag("line", x1=x, x2=x, y1=0, y2=bottom, class_="grid"))
            anchor = "end" if x > self.width - 20 else "middle" if second else "start"
            behind.append(text(x, bottom + 15, f"{second:g} s", "soft", text_anchor=anchor))
        cursor = tag("line", x1=0, x2=0, y1=0, y2=bottom, class_="cursor", transform=f"translate({MARGIN} 0)")
        return tag(
            "svg", *behind, *self.parts, cursor, class_="timeline", viewBox=f"0 0 {self.width} {bottom + 22:.0f}",
            style=f"width:max(100%,{self.width}px)", data_left=MARGIN, data_scale=f"{self.scale:.3f}", role="img",
        )  # fmt: skip


def timeline(story: Any) -> Markup:
    """A `report.Story`: the user above the middle, the agent below."""
    canvas = _Canvas(story.seconds)
    canvas.captions(phrases(story.captions, "user"), "user")
    canvas.captions(phrases(story.captions, "heard"), "heard")
    middle = canvas.y + 66
    canvas.name("user", middle - 22, "user")
    canvas.name("agent", middle + 30, "agent")
    canvas.voice(story.user_loudness, story.user_speech, middle, -1, "user")
    canvas.voice(story.agent_loudness, story.agent_speech, middle, 1, "agent")
    canvas.y = middle + 70
    canvas.captions(phrases(story.captions, "agent"), "agent")
    if story.mouth is not None:
        canvas.mouth(story.mouth)
    canvas.events(story.events)
    return canvas.finish()

"""A picture of a report of `wan-streamer bench runtime`: pictures a second by sessions, milliseconds by minute.

`plot`  a report -> SVG, drawn by `result_tables.py`
"""

from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 360, 200  # of a panel
LEFT, TOP = 46, 34
COLOURS = ("#0969da", "#bf5700")
LIVE_MS = 160

Points = Sequence[tuple[float, float]]


def plot(results: dict[str, Any]) -> str:
    """Both panels, side by side."""
    throughput = {"all sessions together": [(row["n"], row["n"] * row["fps"]) for row in results["sessions"]]}
    panels = [
        _panel(0, "pictures a second, by sessions at once", throughput, 25.0, "live, one session"),
        _panel(1, "ms a unit, by minute of the session", results["histories"], LIVE_MS, "live"),
    ]
    size = f'viewBox="0 0 {2 * (WIDTH + LEFT)} {HEIGHT + 2 * TOP}"'
    style = 'font-family="system-ui,sans-serif" font-size="12" fill="#1f2328"'
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} role="img">', background, *panels, "</svg>"]
    return "\n".join(lines) + "\n"


def _panel(number: int, title: str, series: dict[str, Points], limit: float, name: str) -> str:
    """A line for each series, from zero upwards, and a dashed line at `limit`."""
    points = [point for line in series.values() for point in line]
    most_x, most_y = max(x for x, _ in points), 1.1 * max(limit, *(y for _, y in points))

    def place(x: float, y: float) -> tuple[str, str]:
        return f"{LEFT + x / most_x * (WIDTH - 30):.1f}", f"{TOP + HEIGHT * (1 - y / most_y):.1f}"

    (x0, y0), (x1, y1) = place(0, limit), place(most_x, limit)
    base, end = place(0, 0), place(most_x, 0)
    parts = [
        f'<text x="{LEFT}" y="18" font-weight="700">{title}</text>',
        f'<path d="M{base[0]} {TOP}V{base[1]}H{end[0]}" fill="none" stroke="#57606a"/>',
        f'<path d="M{x0} {y0}H{x1}" stroke="#57606a" stroke-dasharray="4 4"/>',
        f'<text x="{end[0]}" y="{float(y1) - 4:.1f}" text-anchor="end" fill="#57606a">{name}</text>',
        f'<text x="{LEFT - 6}" y="{y0}" text-anchor="end">{limit:g}</text>',
        f'<text x="{end[0]}" y="{HEIGHT + TOP + 16}" text-anchor="end">{most_x:g}</text>',
    ]
    for i, (label, line) in enumerate(series.items()):
        places = [place(x, y) for x, y in line]
        colour = COLOURS[i]
        parts.append(f'<path d="M{"L".join(" ".join(p) for p in places)}" fill="none" stroke="{colour}"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(f'<text x="{LEFT + 8}" y="{TOP + HEIGHT - 10 - 16 * i}" fill="{colour}">{label}</text>')
        parts.append(f'<text x="{places[-1][0]}" y="{float(places[-1][1]) - 8:.1f}" fill="{colour}"'
                     f' text-anchor="end">{line[-1][1]:.0f}</text>')  # fmt: skip
    return f'<g transform="translate({number * (WIDTH + LEFT)})">' + "\n".join(parts) + "</g>"

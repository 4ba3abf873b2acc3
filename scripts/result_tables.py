"""The tables of results in the documents, made from the reports in `docs/results`.

    python scripts/result_tables.py           # writes them again; a test compares

`runtime-*.json` is of `wan-streamer bench runtime --json`.

A document holds a table between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
HEAD = "| | processes | p50 ms | p95 ms | p99 ms | pictures a second | late units |"


def runtime(results: dict[str, Any]) -> str:
    """Latency of one session by schedule, and of several at once."""
    lines = [
        "| | processes | p50 ms | p95 ms | p99 ms | pictures a second | late units |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results["schedules"].items():
        latency = " | ".join(f"{row['model_latency_ms'][point]:.0f}" for point in ("p50", "p95", "p99"))
        fps = 25 * (row["units"] - row["held_units"]) / row["units"]
        late = f"{row['deadline_misses']} of {row['units']}"
        lines.append(f"| {name} | {1 + row['device'].count(',')} | {latency} | {fps:.1f} | {late} |")
    for row in results["sessions"]:
        late = f"{row['deadline_misses']} of {row['units']}"
        words = f"{row['n']} at once | 1 | {row['p50_ms']:.0f} | {row['p95_ms']:.0f} | | {row['fps']:.1f} each"
        lines.append(f"| {words} | {late} |")
    return "\n".join(lines)


def stages(results: dict[str, Any]) -> str:
    """Milliseconds of each stage of a unit, one session in one process."""
    lines = ["| stage | p50 ms | p95 ms |", "|---|---|---|"]
    for name, row in results["schedules"]["eager"]["stage_ms"].items():
        lines.append(f"| {name} | {row['p50']:.0f} | {row['p95']:.0f} |")
    return "\n".join(lines)


TABLES: dict[tuple[str, str], tuple[str, Callable[[dict[str, Any]], str]]] = {
    ("docs/performance.md", "runtime-avx2"): ("runtime-avx2.json", runtime),
    ("docs/performance.md", "stages-avx2"): ("runtime-avx2.json", stages),
}


def table(document: str, name: str) -> str:
    """As it has to stand in the document."""
    report, make = TABLES[document, name]
    return make(json.loads((RESULTS / report).read_text(encoding="utf-8")))


def block(text: str, name: str) -> tuple[int, int]:
    """Where a table is: from after the line that opens it to before the one that closes it."""
    opening = f"<!-- {name} -->\n"
    return text.index(opening) + len(opening), text.index(f"\n<!-- /{name} -->")


def main() -> None:
    for document, name in TABLES:
        path = ROOT / document
        text = path.read_text(encoding="utf-8")
        start, end = block(text, name)
        path.write_text(text[:start] + table(document, name) + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()

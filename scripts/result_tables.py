"""The tables and plots of results in the documents, made from the reports in `docs/results`.

    python scripts/result_tables.py           # writes them again; a test compares

`runtime-*.json` is of `wan-streamer bench runtime --json`, `peers-*.json` of `wan-streamer bench peers --json`,
`nano.json` and `nano-standard.json` of `wan-streamer eval --json`.

A document holds a table between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from result_plot import plot
from score_tables import card, scores, standard

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


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
    lines = ["| stage | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|"]
    for name, row in results["schedules"]["eager"]["stage_ms"].items():
        lines.append(f"| {name} | {row['p50']:.0f} | {row['p95']:.0f} | {row['p99']:.0f} |")
    return "\n".join(lines)


def paper(results: dict[str, Any]) -> str:
    """The shape of the paper's table: the side of the model, a network, both."""
    lines = [
        "| | model ms (p50) | network ms | total ms |",
        "|---|---|---|---|",
        "| the paper | about 200 | 350 | 550 |",
    ]
    for name, row in results["schedules"].items():
        ms = row["model_latency_ms"]["p50"]
        lines.append(f"| ours, {name} | {ms:.0f} | 350 | {ms + 350:.0f} |")
    return "\n".join(lines)


def answers(results: dict[str, Any]) -> str:
    """From the end of a spoken question, ours and a cascade's."""
    lines = ["| | first sound ms | first picture ms | sound with 350 ms network | answered |", "|---|---|---|---|---|"]
    for name in ("ours", "cascade"):
        keys = ("first_sound_ms", "first_frame_ms", "with_network_ms")
        figures = ["" if results[key][name] is None else f"{results[key][name]:.0f}" for key in keys]
        answered = f"{results['answered'][name]} of {len(results['questions'])}"
        lines.append(f"| {name} | {' | '.join(figures)} | {answered} |")
    return "\n".join(lines)


def parts(results: dict[str, Any]) -> str:
    """What the parts of the cascade took."""
    stages = [row["cascade"]["stages_ms"] for row in results["questions"]]
    lines = ["| part | median ms |", "|---|---|"]
    for name in max(stages, key=len):
        lines.append(f"| {name} | {median(row[name] for row in stages if name in row):.0f} |")
    return "\n".join(lines)


def steps(results: dict[str, Any]) -> str:
    """A unit of a model alone."""
    lines = ["| model | parameters | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|---|"]
    for name, row in results["steps"].items():
        figures = " | ".join(f"{ms:.0f}" for ms in row["ms_a_unit"].values())
        lines.append(f"| {name.replace('_', '-')} | {row['parameters'] / 1e6:.1f} M | {figures} |")
    return "\n".join(lines)


def made(results: dict[str, Any]) -> str:
    """Where and when a report was made."""
    machine = results["machine"]
    where = f"{machine['cores']} cores of {machine['gpu'] or machine['cpu']} ({machine['capability']})"
    first = f"{results['date'][:10]}, {where}, load {machine['load']}, commit {results['commit']}"
    return f"{first}, {results['weights']} `{results['checkpoint']}`,\n`{results['command']}`."


MACHINES = ("avx2", "avx512")
PERFORMANCE: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "made-runtime": ("runtime", made), "runtime": ("runtime", runtime), "stages": ("runtime", stages),
    "paper": ("runtime", paper), "made-peers": ("peers", made), "answers": ("peers", answers),
    "parts": ("peers", parts), "steps": ("peers", steps),
}  # fmt: skip
TABLES: dict[tuple[str, str], tuple[str, Callable[[dict[str, Any]], str]]] = {
    ("docs/evaluation.md", "scores"): ("nano.json", scores),
    ("docs/evaluation.md", "standard"): ("nano-standard.json", standard),
    ("wan_streamer/checkpoints/nano/README.md", "scores"): ("nano.json", card),
    **{
        ("docs/performance.md", f"{name}-{machine}"): (f"{report}-{machine}.json", make)
        for machine in MACHINES
        for name, (report, make) in PERFORMANCE.items()
    },
}
PLOTS = {"docs/images/runtime-avx2.svg": "runtime-avx2.json"}


def table(document: str, name: str) -> str:
    """As it has to stand in the document."""
    report, make = TABLES[document, name]
    return make(json.loads((RESULTS / report).read_text(encoding="utf-8")))


def picture(name: str) -> str:
    """The SVG of `PLOTS`, as it has to be."""
    return plot(json.loads((RESULTS / PLOTS[name]).read_text(encoding="utf-8")))


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
    for name in PLOTS:
        (ROOT / name).write_text(picture(name), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The page that an evaluation writes: one HTML file without anything from outside.

`Story`         one conversation to show
`encode_clip`   both sides' pictures and voices -> a small film to embed
`write_report`  results, distributions, drift and stories -> the page

The template is report.html.jinja, the figures are in `figures`, other people's numbers in published.json.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import jinja2
import numpy as np

from wan_streamer.data.film import CAMERA_OFF, FilmEncoder, both_voices, fill
from wan_streamer.errors import ShapeError
from wan_streamer.evaluation.records import Span
from wan_streamer.evaluation.report import figures
from wan_streamer.evaluation.report.figures import known, number
from wan_streamer.files import parse_json, write_bytes
from wan_streamer.units import SAMPLES_PER_FRAME, UNIT_MS

HERE = Path(__file__).parent
TRUTH = "replay"  # the baseline that is no baseline: the reference itself
CLIP_SIZE = (192, 336)  # of a side, if neither has a picture
CLIP_OPTIONS = {"preset": "veryfast", "crf": "26", "maxrate": "150k", "bufsize": "300k"}
CLIP_SOUND = 56_000  # bits per second
AXES = {
    "turn_taking": ("Turn-taking", "Does it speak when the user is done, and wait while the user only pauses?"),
    "interruption": (
        "Interruption",
        "Does it stop when interrupted, and go on when it was only a noise or an “mm-hm”?",
    ),
    "backchannel": ("Backchannel", "Does it say “mm-hm” where a listener would?"),
    "sync": ("Sync", "Do the lips move with the voice?"),
    "listening": ("Listening", "Does the face live and react while the user speaks?"),
    "horizon": ("Horizon", "Is it after minutes what it was in the beginning?"),
    "proactive": ("Proactive", "Does it remark on what it sees, and only then?"),
    "content": ("Content", "Is what it says right, and can it be understood?"),
    "voice": ("Voice", "How does it sound?"),
    "picture": ("Picture", "How does it look?"),
    "latency": ("Latency", "How long does it take?"),
}
BOUNDARY = ("accumulation", "model", "decode", "capture", "network", "playout")
STAGES = {
    "settle": "between two units: commit what the agent made; no answer waits for it",
    "observe": "encode what the user did and commit it",
    "text": "what it hears and what it says, token by token",
    "solve": "sound and picture, by flow matching",
    "decode": "latents to samples and pixels",
}


@dataclass(frozen=True)
class Story:
    """One conversation to show. Tracks have one value per video frame (25 per second), times are seconds.

    user_loudness, agent_loudness  dB;   mouth  how far the agent's mouth is open, None without a picture
    events    objects with type, side, start, end, label;   captions  (time, "user" | "heard" | "agent", text)
    clip      MP4 from `encode_clip`, which starts with the conversation
    """

    title: str
    note: str
    seconds: float
    user_loudness: np.ndarray
    agent_loudness: np.ndarray
    mouth: np.ndarray | None = None
    user_speech: list[Span] = field(default_factory=list)
    agent_speech: list[Span] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    captions: list[tuple[float, str, str]] = field(default_factory=list)
    clip: bytes | None = None


def encode_clip(
    user_video: np.ndarray | None, agent_video: np.ndarray | None, user_audio: np.ndarray, agent_audio: np.ndarray
) -> bytes:
    """MP4 at 25 fps: the user left, the agent right, each voice nearer to its side; about 25 kB per second.

    Videos are uint8 [F, H, W, 3], audio float32 [T] at 24 kHz. It is as long as the longer picture, or as the sound
    if there is no picture; a side without a picture is grey. Raises `ShapeError` if there is nothing at all.
    """
    films = [film for film in (agent_video, user_video) if film is not None and len(film)]
    frames = max((len(film) for film in films), default=-(-max(len(user_audio), len(agent_audio)) // SAMPLES_PER_FRAME))
    if not frames:
        raise ShapeError("clip: expected at least one frame, got neither picture nor sound")
    height, width = films[0].shape[1:3] if films else CLIP_SIZE
    height, width = height - height % 2, width - width % 2
    sides = []
    for film in (user_video, agent_video):
        if film is None or not len(film):
            film = np.full((1, height, width, 3), CAMERA_OFF, np.uint8)
        sides.append(fill(film, height, width))
    length = frames * SAMPLES_PER_FRAME
    left, right = (np.pad(x[:length], (0, max(0, length - len(x)))) for x in (user_audio, agent_audio))
    stereo = both_voices(left, right)

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        encoder = FilmEncoder(container, CLIP_OPTIONS, CLIP_SOUND)
        for k in range(frames):
            encoder.picture(np.concatenate([film[min(k, len(film) - 1)] for film in sides], axis=1))
            encoder.sound(stereo[:, k * SAMPLES_PER_FRAME : (k + 1) * SAMPLES_PER_FRAME])
        encoder.finish()
    return buffer.getvalue()


@dataclass(frozen=True)
class Row:
    """A metric as the page shows it. `verdict` is a key of `VERDICTS`, `best` the best blind baseline."""

    name: str
    about: str
    metric: dict[str, Any]
    truth: float | None
    blind: dict[str, float | None]
    best: str | None
    verdict: str

    @property
    def label(self) -> str:
        if self.verdict == "behind":
            first, *others = self.metric["beaten_by"]
            return f"behind {words(first)}" + (f" and {len(others)} more" if others else "")
        return VERDICTS[self.verdict]


VERDICTS = {
    "ahead": "ahead",
    "level": "not clearly ahead",
    "behind": "behind",
    "void": "won by a blind baseline",
    "alone": "nothing to compare",
    "none": "not measured",
}


def _row(name: str, about: str, metric: dict[str, Any]) -> Row:
    values = dict(metric.get("baselines") or {})
    truth = values.pop(TRUTH, None)
    sign = -1 if metric.get("better") == "lower" else 1
    scores = {name: sign * value for name, value in values.items() if known(value)}
    best = max(scores, key=scores.__getitem__, default=None)
    near_end = metric.get("high" if sign < 0 else "low")
    if not known(metric.get("value")):
        verdict = "none"
    elif not metric.get("informative", True):
        verdict = "void"
    elif metric.get("beaten_by"):
        verdict = "behind"
    elif best is None:
        verdict = "alone"
    else:
        verdict = "ahead" if known(near_end) and sign * near_end > scores[best] else "level"
    return Row(name, about, metric, truth, values, best, verdict)


def _main(rows: list[Row]) -> Row:
    """What the scorecard shows of an axis: the first metric that no blind baseline wins, if possible a measured one."""
    informative = [row for row in rows if row.metric.get("informative", True)]
    return next((row for row in informative if row.verdict != "none"), (informative or rows)[0])


def _headline(mains: list[Row]) -> str:
    found = [row.verdict for row in mains]
    ahead, judged = found.count("ahead"), sum(found.count(verdict) for verdict in ("ahead", "level", "behind"))
    if not judged:
        return "Nothing here can be judged yet"
    if ahead == judged:
        return f"Ahead of every blind baseline on all {judged} axes that have one"
    return f"Ahead of every blind baseline on {ahead} of {judged} axes"


def _latency(results: dict[str, Any], published: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table of systems: this agent first. `includes` is in the order of `BOUNDARY`."""
    measured = results.get("latency_ms") or {}
    model, event = ([(measured.get(key) or {}).get(p) for p in ("p50", "p95")] for key in ("model", "event"))
    inside = {name: name in ("model", "decode") for name in BOUNDARY}
    own = {"system": results.get("agent") or "this agent", "duplex": True, "audio_visual": True, "ours": True}

    def milliseconds(values: list[float | None]) -> str:
        return " / ".join(count(round(v)) if known(v) else "–" for v in values)

    ours = [
        {"figure": "model side, p50 / p95", "ms": milliseconds(model), "includes": inside,
         "note": "From the last sample of a unit to the first sample and picture of the answer."},
        {"figure": "event, p50 / p95", "ms": milliseconds(event), "includes": inside | {"accumulation": True},
         "note": f"The same and the 0–{UNIT_MS} ms until the unit is complete, for an event at any moment."},
    ]  # fmt: skip
    rows = [own | row for row in ours] + published
    return [row | {"includes": [row["includes"].get(name) for name in BOUNDARY]} for row in rows]


def words(name: str) -> str:
    return name.replace("_", " ")


def count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    if not known(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def data_uri(clip: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(clip).decode()


def write_report(
    path: Path,
    results: dict[str, Any],
    distributions: dict[str, dict[str, list[float]]],
    drift: dict[str, list[tuple[float, float]]],
    stories: list[Story],
    baselines: dict[str, str],
) -> None:
    """Write the page. `results` is what the command writes as JSON; `baselines` says what each of them does.

    The order of axes and metrics is kept: the first metric of an axis that is informative and measured goes on the
    scorecard.
    """
    descriptions = results.get("descriptions") or {}
    axes = {
        axis: [_row(name, descriptions.get(f"{axis}.{name}", ""), metric) for name, metric in metrics.items()]
        for axis, metrics in results["axes"].items()
        if metrics
    }
    mains = {axis: _main(rows) for axis, rows in axes.items()}
    found = {name for rows in axes.values() for row in rows for name in row.blind}
    published = parse_json((HERE / "published.json").read_bytes())
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number,
        "count": count,
        "words": words,
        "duration": duration,
        "data_uri": data_uri,
    }
    page = environment.get_template("report.html.jinja").render(
        results=results,
        axes=axes,
        titles={axis: AXES.get(axis, (words(axis).capitalize(), "")) for axis in axes},
        mains=mains,
        headline=_headline(list(mains.values())),
        counts=list(_counts(mains)),
        blind=[*(n for n in baselines if n in found), *sorted(found - set(baselines))],
        baselines=baselines,
        distributions=distributions,
        drift=drift,
        stories=stories,
        latency=_latency(results, published["latency"]),
        boundary=BOUNDARY,
        stages=STAGES,
        unit_ms=UNIT_MS,
        published=published["tables"],
        figures=figures,
    )
    write_bytes(path, page.encode())


def _counts(mains: dict[str, Row]) -> Iterator[tuple[str, str, list[str]]]:
    """(verdict, its words, the axes) for every verdict that occurs."""
    for verdict, label in VERDICTS.items():
        if names := [AXES.get(axis, (words(axis), ""))[0] for axis, row in mains.items() if row.verdict == verdict]:
            yield verdict, label, names

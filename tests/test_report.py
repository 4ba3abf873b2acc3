"""The report page: complete, honest, closed to the outside; the clips in it can be played."""

import io
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest

from wan_streamer.errors import ShapeError
from wan_streamer.evaluation.report import figures
from wan_streamer.evaluation.report.page import Story, encode_clip, write_report

HOSTILE = "</script><hostile onclick='x'>\"&amp;"
VOID = {"meta", "link", "br", "img", "input", "hr"}
BASELINES = {"silent": "no sound", "metronome": '"mm-hm"', "replay": "the reference"}


def metric(value: float | None, low: float | None, high: float | None, **more: object) -> dict:
    base = {"value": value, "low": low, "high": high, "n": 40, "better": "higher", "unit": "", "informative": True}
    return base | {"beaten_by": [], "baselines": {"silent": 0.5, "metronome": 0.61, "replay": 0.98}} | more


def results() -> dict:
    """One metric of every kind."""
    axes = {
        "turn_taking": {
            "clearly_better": metric(0.843, 0.8, 0.88),
            "won_by_the_deaf": metric(0.777, 0.7, 0.8, informative=False, beaten_by=["metronome"]),
        },
        "backchannel": {"worse_than_deaf": metric(0.31, 0.2, 0.4, beaten_by=["metronome", "silent"])},
        "interruption": {
            "hardly_better": metric(0.2, 0.1, 0.9, better="lower", unit="s"),
            "faster": metric(0.2, 0.1, 0.3, better="lower", unit="s"),
        },
        "content": {
            "no_trials": metric(None, 0.0, 1.0, n=0, baselines={}),
            "not_a_number": metric(math.nan, None, None),
        },
        "voice": {"alone": metric(1234.5, -2.0, 3000.0, unit="ms", baselines={"silent": None, HOSTILE: None})},
        "nothing": {},
        "new_axis": {"constant": metric(3.0, 3.0, 3.0, baselines={"replay": 3.0, "silent": 3.0})},
    }
    return {
        "axes": axes, "checkpoint": HOSTILE, "suite": "quick", "seeds": [0, 1], "seconds": 61.0,
        "conversation_seconds": 400.0, "agent": "nano", "device": "cpu", "threads": 1, "versions": {"torch": "2.11"},
        "readers": {"mouth": {"mean_error": 0.03}},
        "latency_ms": {
            "model": {"p50": 118.2, "p95": 143.0, "p99": None},
            "event": {"p50": 201.0, "p95": None}, "stages": {"solve": {"p50": 61.0, "p95": None}},
            "deadline_misses": 3, "units": 1000,
        },
        "descriptions": {"turn_taking.clearly_better": f"What it is. {HOSTILE}"},
    }  # fmt: skip


def story(clip: bytes | None) -> Story:
    sway = 30 * np.sin(np.arange(50) / 5) - 40
    events = [{"type": "show", "side": "user", "start": 0.4, "end": 0.9, "label": HOSTILE},
              {"type": "noise", "side": "both", "start": 1.9, "end": 9.0}]  # fmt: skip
    captions = [(0.1, "user", "Hello"), (0.4, "user", "there"), (1.2, "agent", HOSTILE), (0.5, "heard", " hel"),
                (0.7, "heard", "lo")]  # fmt: skip
    mouth = np.array([np.nan, *np.linspace(0, 1, 49)])
    quiet = np.full(50, -np.inf)
    return Story(HOSTILE, "A note.", 2.0, sway, quiet, mouth, [(0.1, 0.9)], [(1.2, 1.9)], events, captions, clip)


@pytest.fixture(scope="module")
def clip() -> bytes:
    rng = np.random.default_rng(0)
    video = np.repeat(rng.integers(0, 255, (1, 48, 64, 3), np.uint8), 25, 0)
    sound = (0.1 * rng.standard_normal(24_000)).astype(np.float32)
    return encode_clip(video, video[:20], sound, sound[:10_000])


@pytest.fixture(scope="module")
def full(clip: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "a" / "report.html"
    numbers = {"agent": [*np.linspace(0, 1, 50), math.nan], "truth": [0.5, 0.5], "timer_0.5": []}
    distributions = {"latency, s": numbers, "nothing": {"agent": []}, "same": {"agent": [2.0] * 30}}
    drift = {"likeness": [(0.0, 0.9), (5.0, 0.8), (6.0, math.nan)], "one": [(1.0, 2.0)], "none": []}
    write_report(path, results(), distributions, drift, [story(clip), story(None)], BASELINES)
    return path


class Page(HTMLParser):
    """The elements, the words, and whether every element is closed in its place."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_nothing_comes_from_outside(full: Path) -> None:
    page = Page(full)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
            value = attributes.get(name) or "#"
            inside = value.startswith(("data:", "#")) and "http://" not in value and "https://" not in value
            assert inside or (tag == "a" and value.startswith("https://")), (tag, name, value)
    text = full.read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest", text)


def test_text_is_harmless(full: Path) -> None:
    page = Page(full)
    assert "hostile" not in {tag for tag, _ in page.elements}
    assert not [attributes for _, attributes in page.elements if "onclick" in attributes]
    assert page.words.count(HOSTILE) >= 8  # checkpoint twice, description, baseline, and twice story, event, caption


def test_every_metric_is_there(full: Path) -> None:
    page = Page(full)
    for metrics in results()["axes"].values():
        for name, values in metrics.items():
            assert name.replace("_", " ") in page.words
            assert figures.number(values["value"]) in page.words
    for words in (
        "New axis",
        "61 s",
        "7 min",
        "118 / 143",
        "201 / –",
        "3 of 1\u202f000",
        "other people’s measurements",
    ):
        assert words in page.words, words
    assert [a["id"] for tag, a in page.elements if tag == "section" and a["id"] == "nothing"] == []


def test_verdicts_are_honest(full: Path) -> None:
    page = Page(full)
    rows = [a["class"] for tag, a in page.elements if tag == "tr" and "class" in a]
    order = ["ahead", "void", "behind", "level", "ahead", "none", "none", "alone", "level"]
    assert [name for name in rows if name not in ("ours", "absent")] == order
    assert "won by a blind baseline" in page.words
    assert "behind metronome and 1 more" in page.words
    assert "Ahead of every blind baseline on 1 of 4 axes" in page.words
    beats = [a["class"] for tag, a in page.elements if tag == "td" and "beats" in (a.get("class") or "")]
    assert len(beats) == 3


def test_the_clip_is_embedded_once(full: Path) -> None:
    films = [a["src"] for tag, a in Page(full).elements if tag == "video"]
    assert len(films) == 1
    assert films[0] is not None
    assert films[0].startswith("data:video/mp4;base64,")


def test_without_anything(tmp_path: Path) -> None:
    empty = {"axes": {}, "suite": "quick", "seeds": [], "agent": "nano", "latency_ms": None, "readers": {}}
    write_report(tmp_path / "report.html", empty, {}, {}, [], {})
    assert "Nothing here can be judged yet" in Page(tmp_path / "report.html").words


def test_right_is_better() -> None:
    def place(better: str) -> float:
        drawn = figures.interval(metric(0.9, 0.8, 1.0, better=better), 0.98, {"silent": 0.5}, "silent")
        return float(re.findall(r'class="agent"', drawn) and re.findall(r'x="([\d.]+)%"', drawn)[-1])

    assert place("higher") > 80
    assert place("lower") < 20


def test_numbers() -> None:
    shown = {None: "–", math.nan: "–", math.inf: "–", 0: "0.00", 0.843: "0.84", -0.5: "−0.50", 0.0031: "0.003",
             12.34: "12.3", 12345.6: "12\u202f346", -1e-12: "−1e-12"}  # fmt: skip
    assert {value: figures.number(value) for value in shown} == shown
    assert figures.number(np.float32(0.25)) == "0.25"


def test_phrases_join_pieces() -> None:
    said = [
        (0.0, "user", "one"),
        (0.3, "user", "two"),
        (3.0, "user", "three"),
        (0.1, "agent", " hel"),
        (0.2, "agent", "lo"),
    ]
    assert figures.phrases(said, "user") == [(0.0, "one two"), (3.0, "three")]
    assert figures.phrases(said, "agent") == [(0.1, "hello")]
    long = [(k / 10, "user", "lalala") for k in range(20)]
    assert all(len(words) < 52 for _, words in figures.phrases(long, "user"))


def decode(film: bytes) -> tuple[np.ndarray, np.ndarray]:
    with av.open(io.BytesIO(film)) as container:
        assert container.streams.video[0].average_rate == 25
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(io.BytesIO(film)) as container:
        assert container.streams.audio[0].rate == 24_000
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    return pictures, sound


def test_clip(clip: bytes) -> None:
    pictures, sound = decode(clip)
    assert pictures.shape == (25, 48, 128, 3)
    assert abs(sound.shape[1] - 24_000) <= 2048
    assert np.abs(sound).max() > 0.02


def test_clip_sides() -> None:
    """The user is left, the agent right; a side without a picture is grey, a shorter one stands still."""
    tone = (0.5 * np.sin(np.arange(24_000) * 0.1)).astype(np.float32)
    white = np.full((25, 48, 64, 3), 250, np.uint8)
    pictures, sound = decode(encode_clip(None, white, np.zeros(0, np.float32), tone))
    assert pictures[:, :, :56].max() < 60
    assert pictures[:, :, 72:].min() > 200
    assert np.abs(sound[1]).mean() > 1.5 * np.abs(sound[0]).mean() > 0
    assert len(decode(encode_clip(None, None, tone, tone))[0]) == 25
    with pytest.raises(ShapeError, match="at least one frame"):
        encode_clip(None, None, tone[:0], tone[:0])


def test_clips_are_small() -> None:
    """Eight seconds of noise, the worst case, stay under the limit."""
    rng = np.random.default_rng(1)
    video = rng.integers(0, 255, (50, 96, 168, 3), np.uint8)
    sound = rng.uniform(-1, 1, 48_000).astype(np.float32)
    assert len(encode_clip(video, video, sound, sound)) < 2 * 250_000 / 8 * 1.5


@pytest.mark.browser
def test_in_a_browser(full: Path) -> None:
    """No error, no request, no sideways scrolling on a phone; a click into the timeline moves the film."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or "/usr/bin/chromium"
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(offline=True, viewport={"width": 390, "height": 800}).new_page()
        problems: list[str] = []
        requests: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("requestfailed", lambda r: problems.append(r.url[:100]))
        page.on("request", lambda r: requests.append(r.url) if not r.url.startswith("data:") else None)
        page.goto(full.as_uri())
        page.wait_for_function("document.querySelector('video').readyState >= 1")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator(".story svg.timeline").first.click(position={"x": 300, "y": 60})
        page.wait_for_function("document.querySelector('video').currentTime > 0.3")
        assert page.locator(".playing").count() == 1
        browser.close()
    assert problems == []
    assert requests == [full.as_uri()]

"""Questions about spans of speech; times in seconds. What a case's labels say about turns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wan_streamer.evaluation.records import Case, Span
from wan_streamer.units import FPS

ANSWER_WITHIN = 1.0  # the reference answers within 0.6 s
PAUSE_AFTER = 1.0  # a recorded user who is silent for so long has finished


def onset_in(spans: Sequence[Span], first: float, last: float) -> float | None:
    """The first span that begins in first..last."""
    return next((start for start, _ in spans if first <= start <= last), None)


def span_at(spans: Sequence[Span], time: float) -> Span | None:
    return next((span for span in spans if span[0] <= time <= span[1]), None)


def frames_in(spans: Sequence[Span], count: int) -> np.ndarray:
    """bool [F]: which of `count` video frames lie in the spans."""
    time_F = (np.arange(count) + 0.5) / FPS
    return np.any([(a <= time_F) & (time_F < b) for a, b in spans] or [np.zeros(count, bool)], axis=0)


def merged(spans: Sequence[Span], gap: float) -> list[Span]:
    """Spans with less than `gap` seconds between them joined."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and start - joined[-1][1] < gap:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


def overlap(spans: Sequence[Span], first: float, last: float) -> float:
    """Seconds of the spans inside first..last."""
    return sum(max(0.0, min(end, last) - max(start, first)) for start, end in spans)


def user_speech(case: Case) -> list[Span]:
    return [(e["start"], e["end"]) for e in case.events("speech", side="user")]


@dataclass(frozen=True)
class Exchange:
    """A turn of the user that calls for an answer, and the answer of the reference (None: a recording without one).

    end       of the user's turn;   intent  of the user, "" if not known
    limit     when the user speaks again, or the end of the recording
    """

    end: float
    intent: str
    answer: dict | None
    limit: float


def exchanges(case: Case) -> list[Exchange]:
    """All of a case. Turns that break in are left out: they are interruptions."""
    breaks_in = {e["start"] for e in case.events("barge_in")}
    spoken = case.events("speech", side="user")
    answers = case.events("speech", side="agent")
    found = []
    for at, turn in enumerate(spoken):
        later = [e["start"] for e in spoken[at + 1 :]]
        limit = later[0] if later else case.seen.seconds
        if turn["start"] in breaks_in or any(start < turn["end"] for start in later[:1]):
            continue
        answer = next((a for a in answers if 0 < a["start"] - turn["end"] <= ANSWER_WITHIN), None)
        silent_after = limit - turn["end"] >= PAUSE_AFTER
        if answer is not None or (case.labels.get("source") == "recorded" and silent_after):
            found.append(Exchange(turn["end"], turn["label"], answer, limit))
    typed = case.events("typed", side="user")
    for event in typed:
        answer = next((a for a in answers if 0 < a["start"] - event["end"] <= 3 * ANSWER_WITHIN), None)
        found.append(Exchange(event["end"], "typed", answer, case.seen.seconds))
    return found

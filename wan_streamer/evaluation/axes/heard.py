"""What an agent hears and keeps, and whether it lets silence be: hearing, recall, quiet.

Every function takes the cases of one agent and returns {metric: `Metric`}. What counts:

    word error   of the transcript lane against all that was said in a trial, pooled over the trials of a kind of voice
    slot words   of people's orders, whose other words nobody wrote down: found in the transcript, each once
    recalled     the answer names the fact that was told so long ago
    unasked      utterances in a call in which the user says nothing, beyond those of the reference
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from wan_streamer.evaluation.axes.talk import SAME_TURN, answered_right
from wan_streamer.evaluation.readers.judges import normalise, word_errors
from wan_streamer.evaluation.records import Case
from wan_streamer.evaluation.spans import exchanges, merged
from wan_streamer.evaluation.stats import Metric, pooled, rate
from wan_streamer.simulation.conversation.facts import FACTS

NATURAL = ("kokoro", "flite")
"""Kinds of voice that stand for natural ones: of a synthesiser that was trained with, and of one that never was."""
AGES = {"recalled_after_20s": (0.0, 45.0), "recalled_after_60s": (45.0, 180.0), "recalled_after_5min": (180.0, 1e9)}
MINUTE = 60.0


def hearing(cases: Sequence[Case]) -> dict[str, Metric]:
    errors: dict[str, list[tuple[int, int]]] = {}
    slots: list[tuple[int, int]] = []
    for case in cases:
        (kind,) = case.labels["scenarios"]
        said = " ".join(word["text"] for word in case.labels["words"]["user"])
        if any(event["label"] for event in case.events("speech", side="user")):  # other words were said as well
            slots.append(_found(said, case.seen.transcript))
        else:
            errors.setdefault(kind, []).append(word_errors(said, case.seen.transcript))
    natural = [row for kind in NATURAL for row in errors.get(kind, [])]
    metrics = {"word_error_natural": _pooled(natural)} if natural else {}
    metrics |= {f"word_error_{kind}": _pooled(rows) for kind, rows in errors.items()}
    if slots:
        metrics["order_slots"] = _pooled(slots, "higher")
    return metrics


def _found(slots: str, transcript: str) -> tuple[int, int]:
    """(slot words that stand in the transcript, slot words)."""
    wanted = Counter(normalise(slots))
    return (wanted & Counter(normalise(transcript))).total(), wanted.total()


def _pooled(rows: Sequence[tuple[int, int]], better: str = "lower") -> Metric:
    return pooled([top for top, _ in rows], [bottom for _, bottom in rows], better)  # type: ignore[arg-type]


def recall(cases: Sequence[Case]) -> dict[str, Metric]:
    kinds = {fact.ask: fact.tell for fact in FACTS.values()}
    found: dict[str, list[bool]] = {name: [] for name in AGES}
    written: list[bool] = []
    for case in cases:
        told = {event["label"]: event["end"] for event in case.events("speech", side="user")}
        for turn in exchanges(case):
            if turn.intent in kinds and turn.answer is not None:
                age = turn.end - told[kinds[turn.intent]]
                name = next(name for name, (low, high) in AGES.items() if low <= age < high)
                found[name].append(answered_right(case, turn))
                written.append(answered_right(case, turn, as_text=True))
    every = [right for rights in found.values() for right in rights]
    ages = {name: rate(rights) for name, rights in found.items()}
    return {"recalled": rate(every), "recalled_as_text": rate(written)} | ages if cases else {}


def quiet(cases: Sequence[Case]) -> dict[str, Metric]:
    unasked: list[float] = []
    for case in cases:
        minutes = max(1, round(case.seen.seconds / MINUTE))
        per_minute = np.zeros(minutes)
        for times, sign in ((case.seen.speech, 1), (case.truth.speech, -1)):
            for start, _ in merged(times, SAME_TURN):
                per_minute[min(int(start / MINUTE), minutes - 1)] += sign
        unasked += np.maximum(per_minute, 0).tolist()
    return {"unasked_per_min": pooled(unasked, [1.0] * len(unasked), "lower")} if cases else {}

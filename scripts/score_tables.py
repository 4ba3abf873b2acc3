"""Tables of scores in the documents, made from what `wan-streamer eval --json` wrote (`scripts/result_tables.py`)."""

from collections.abc import Sequence
from typing import Any

TRUTH = "replay"

MEASURED = (
    "turn_taking.balanced_accuracy", "turn_taking.turn_end_answered", "turn_taking.pause_held",
    "turn_taking.latency_median_s", "interruption.yields_and_resumes", "interruption.yields",
    "interruption.new_answer_right", "interruption.resumes", "backchannel.onset_f1", "proactive.balanced_accuracy",
    "content.right_answers", "content.right_as_text", "content.right_about_what_is_seen", "content.transcript_error",
    "voice.word_error",
    "sync.correlation", "sync.offset_ms", "listening.nods_that_answer", "listening.blink_rate_error",
    "horizon.answered_at_the_end", "horizon.likeness_change",
)  # fmt: skip

STANDARD = (
    "hearing.word_error_natural", "hearing.word_error_kokoro", "hearing.word_error_flite", "hearing.word_error_own",
    "hearing.word_error_espeak", "hearing.word_error_reader", "hearing.order_slots", *MEASURED[:10],
    "proactive.hits", "proactive.false_alarms", *MEASURED[10:13], "content.right_from_memory",
    "content.right_when_typed", "recall.recalled", "recall.recalled_as_text", "recall.recalled_after_20s",
    "recall.recalled_after_60s", "recall.recalled_after_5min", "quiet.unasked_per_min", *MEASURED[13:],
)  # fmt: skip

CARD = {
    "turn ends answered · pauses held": ("turn_taking.turn_end_answered", "turn_taking.pause_held"),
    "interruptions yielded to · gone on after a backchannel": ("interruption.yields", "interruption.resumes"),
    "right answers · about what is seen": ("content.right_answers", "content.right_about_what_is_seen"),
    "error of the transcript": ("content.transcript_error",),
    "word error of a recogniser on its voice": ("voice.word_error",),
    "sync: correlation · offset in ms": ("sync.correlation", "sync.offset_ms"),
    "blinks per minute, error": ("listening.blink_rate_error",),
}


def figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def metric(results: dict[str, Any], name: str) -> dict[str, Any]:
    axis, _, key = name.partition(".")
    return results["axes"][axis][key]


def scores(results: dict[str, Any]) -> str:
    """What is measured, with interval, number of events, the truth replayed and the best blind baseline."""
    return _table(results, MEASURED)


def standard(results: dict[str, Any]) -> str:
    """The same of the suite `standard`, which measures more."""
    return _table(results, STANDARD)


def _table(results: dict[str, Any], names: Sequence[str]) -> str:
    lines = ["| metric | nano | 95 % | n | reference | best blind baseline |", "|---|---|---|---|---|---|"]
    measured = (name for name in names if name.partition(".")[2] in results["axes"].get(name.partition(".")[0], {}))
    for name in measured:  # a result may be older than a metric
        row = metric(results, name)
        blind = {key: value for key, value in row["baselines"].items() if key != TRUTH and value is not None}
        best = ""
        if blind:
            choose = max if row["better"] == "higher" else min
            key = choose(blind, key=lambda baseline: blind[baseline])
            best = f"{figure(blind[key])} {key}" + ("" if row["informative"] else " (uninformative)")
        interval = "" if row["low"] is None else f"{figure(row['low'])} to {figure(row['high'])}"
        truth = figure(row["baselines"].get(TRUTH))
        lines.append(f"| {name} | {figure(row['value'])} | {interval} | {row['n']} | {truth} | {best} |")
    return "\n".join(lines)


def card(results: dict[str, Any]) -> str:
    """The same for the model card, several in a line."""
    lines = ["| metric | nano | reference |", "|---|---|---|"]
    for words, names in CARD.items():
        rows = [metric(results, name) for name in names]
        own = " · ".join(figure(row["value"]) for row in rows)
        lines.append(f"| {words} | {own} | {' · '.join(figure(row['baselines'].get(TRUTH)) for row in rows)} |")
    return "\n".join(lines)

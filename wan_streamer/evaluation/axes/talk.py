"""When the agent speaks and what it says: turn-taking, interruption, backchannel, proactive, content, voice.

Every function takes the cases of one agent and returns {metric: `Metric`}. What counts:

    turn end      answered if speech begins from 0.2 s before to 0.8 s after the user's last sound
    pause         held if the agent is silent from 0.1 s after its begin to 0.1 s after its end
    barge-in      yielded to if the agent was talking, falls silent within 1.0 s, and lets the user finish
    mm-hm, noise  resumed if the agent talks in the next 2 s for at least 0.7 of what the reference does
    backchannel   speech of at most 1.0 s that begins while the user talks; right within 0.2 s of the reference
    remark        hit if speech begins from 0.8 s before to 1.6 s after the reference's
    right answer  every filled slot of the reference's sentence, or 60 % of the words of a fixed sentence, is recognised
"""

import math
from collections.abc import Sequence

import numpy as np

from wan_streamer.evaluation.readers.judges import normalise, word_errors
from wan_streamer.evaluation.records import Case, Span
from wan_streamer.evaluation.spans import Exchange, exchanges, merged, onset_in, overlap, span_at, user_speech
from wan_streamer.evaluation.stats import Metric, average, balanced, pooled, rate, wasserstein
from wan_streamer.simulation.conversation.repertoire import AGENT, REPLIES, slots

EARLY, LATE = 0.2, 0.8
NEVER = 3.0  # seconds that a missing answer counts as
YIELD_WITHIN, QUIET = 1.0, 0.3
SAME_TURN = 0.7  # seconds of silence inside a turn, as between counted numbers
JUST = 0.4  # seconds before a barge-in in which speech still counts as talking
RESUME_WINDOW, RESUME_SHARE = 2.0, 0.7
SHORT, ONSET_ERROR = 1.0, 0.2
REMARKS = ("show", "remove", "wave", "big_smile", "thumb_up")
REMARK_EARLY, REMARK_LATE = 0.8, 1.6
ASKED = ("content", "pairs")  # axes whose trials ask for answers; recordings from outside have their own
KNOWN_SHARE = 0.6
HOMOPHONES = {"to": "two", "too": "two", "for": "four", "ate": "eight", "won": "one", "read": "red", "sex": "six"}


# ---------------------------------------------------------------- turns


def turn_taking(cases: Sequence[Case]) -> dict[str, Metric]:
    answered, held, latencies, reference, early, minutes = [], [], [], [], [], []
    for case in cases:
        speech = case.seen.speech
        for turn in exchanges(case):
            if turn.intent == "typed":
                continue
            answered.append(onset_in(speech, turn.end - EARLY, turn.end + LATE) is not None)
            latencies.append(_latency(speech, turn))
            if turn.answer is not None:
                reference.append(_latency(case.truth.speech, turn))
        for pause in case.events("pause", side="user"):
            held.append(overlap(speech, pause["start"] + 0.1, pause["end"] + 0.1) == 0)
        talk = user_speech(case)
        early.append(sum(_starts_over(span, talk, case) for span in speech))
        minutes.append(sum(end - start for start, end in talk) / 60)

    def distance(rows: np.ndarray) -> float:
        return wasserstein(rows, np.array(reference))

    metrics = {
        "balanced_accuracy": balanced(answered, held),
        "turn_end_answered": rate(answered),
        "pause_held": rate(held),
        "latency_median_s": average(latencies, "lower", statistic=np.median),
        "starts_over_user_per_min": pooled(early, minutes, "lower"),
    }
    if reference:
        metrics["latency_distance_s"] = average(latencies, "lower", statistic=distance)
    return metrics


def _latency(speech: Sequence[Span], turn: Exchange) -> float:
    """Signed: from the end of the user's turn to the agent's next begin; `NEVER` if there is none."""
    onset = onset_in(speech, turn.end - 0.6, min(turn.end + NEVER, max(turn.limit, turn.end)))
    return NEVER if onset is None else onset - turn.end


def _starts_over(span: Span, talk: Sequence[Span], case: Case) -> bool:
    """Whether speech, not a backchannel, begins in the middle of the user's."""
    into = any(start + 0.1 < span[0] < end - EARLY for start, end in talk)
    backchannel = any(abs(span[0] - e["start"]) < 0.5 for e in case.events("backchannel", side="agent"))
    return into and not backchannel and not any(abs(span[0] - start) < 0.1 for start, _ in case.truth.speech)


def interruption(cases: Sequence[Case]) -> dict[str, Metric]:
    yields, stops, responds, response_s, right, resumes = [], [], [], [], [], []
    for case in cases:
        speech = case.seen.speech
        for event in case.events("barge_in", side="user"):
            stop = _stop(speech, event["start"])
            silent_until = max(event["end"] - EARLY, event["start"] + stop + QUIET)
            again = onset_in(speech, event["start"] + stop + 0.01, silent_until)
            yields.append(stop <= YIELD_WITHIN and again is None)
            stops.append(min(stop, NEVER))
            onset = onset_in(speech, event["end"] - EARLY, event["end"] + 1.5)
            responds.append(bool(yields[-1]) and onset is not None)
            response_s.append(NEVER if onset is None else onset - event["end"])
            reply = next((e for e in case.events("speech", side="agent") if e["start"] >= event["end"]), None)
            if reply is not None:
                right.append(answered_right(case, Exchange(event["end"], event["label"], reply, case.seen.seconds)))
        for event in case.events("backchannel", "noise", "side_talk", side="user"):
            window = (event["start"], event["start"] + RESUME_WINDOW)
            wanted = overlap(case.truth.speech, *window)
            if span_at(merged(case.truth.speech, SAME_TURN), event["start"]) and wanted > 0.5:
                resumes.append(overlap(speech, *window) >= RESUME_SHARE * wanted)
    return {
        "yields_and_resumes": balanced(yields, resumes),
        "yields": rate(yields),
        "stop_latency_s": average(stops, "lower", statistic=np.median),
        "responds": rate(responds),
        "response_latency_s": average(response_s, "lower", statistic=np.median),
        "new_answer_right": rate(right),
        "resumes": rate(resumes),
    }


def _stop(speech: Sequence[Span], start: float) -> float:
    """Seconds from a barge-in to the end of what the agent was saying; `NEVER` if it was not talking."""
    talking = [span for span in speech if span[0] < start + 0.1 and span[1] > start - JUST]
    return max(0.0, talking[-1][1] - start) if talking else NEVER


# ---------------------------------------------------------------- listening aloud and speaking first


def backchannel(cases: Sequence[Case]) -> dict[str, Metric]:
    stories = [case for case in cases if case.events("backchannel", side="agent") or case.axis == "backchannel"]
    rows = [_matched(_short(case), _wanted(case)) for case in stories]
    mixed = [
        _matched(_short(case), _wanted(stories[(at + shift) % len(stories)]))
        for at, case in enumerate(stories)
        for shift in range(1, len(stories))
    ]
    minutes = [sum(end - start for start, end in user_speech(case)) / 60 for case in stories]
    gap = _f1(rows) - _f1(mixed) if mixed else math.nan
    return {
        "onset_f1": average(rows, statistic=_f1),
        "shuffle_gap": Metric(gap, gap, gap, len(rows) if mixed else 0),
        "false_alarms_per_min": pooled([found - hits for hits, found, _ in rows], minutes, "lower"),
    }


def _short(case: Case) -> list[float]:
    talk = user_speech(case)
    return [
        start
        for start, end in case.seen.speech
        if end - start <= SHORT and any(first + 0.3 < start < last - 0.2 for first, last in talk)
    ]


def _wanted(case: Case) -> list[float]:
    return [event["start"] for event in case.events("backchannel", side="agent")]


def _matched(found: Sequence[float], wanted: Sequence[float]) -> tuple[int, int, int]:
    """(pairs closer than `ONSET_ERROR`, one to one; found; wanted)."""
    left, hits = list(wanted), 0
    for onset in found:
        near = [time for time in left if abs(time - onset) <= ONSET_ERROR]
        if near:
            left.remove(min(near, key=lambda time: abs(time - onset)))
            hits += 1
    return hits, len(found), len(wanted)


def _f1(rows: Sequence[tuple[int, int, int]] | np.ndarray) -> float:
    hits, found, wanted = np.sum(np.asarray(rows).reshape(-1, 3), axis=0)
    return float(2 * hits / (found + wanted)) if found + wanted else 0.0


def proactive(cases: Sequence[Case]) -> dict[str, Metric]:
    hits, latency, alarms = [], [], []
    for case in cases:
        speech = case.seen.speech
        for event in case.events("remark", side="agent"):
            if event["label"] in REMARKS:
                onset = onset_in(speech, event["start"] - REMARK_EARLY, event["start"] + REMARK_LATE)
                hits.append(onset is not None)
                latency.append(NEVER if onset is None else onset - event["start"])
        for first, last in _nothing_to_say(case):
            alarms.append(onset_in(speech, first, last) is not None)
    return {
        "balanced_accuracy": balanced(hits, [not alarm for alarm in alarms]),
        "hits": rate(hits),
        "false_alarms": rate(alarms, "lower"),
        "latency_to_reference_s": average([abs(seconds) for seconds in latency], "lower", statistic=np.median),
    }


def _nothing_to_say(case: Case) -> list[Span]:
    windows = [(e["start"], e["end"] + 1.0) for e in case.events("decoy", side="user")]
    if case.axis == "proactive" and case.labels["scenarios"] == ["greeting"] and case.truth.speech:
        windows.append((case.truth.speech[-1][1] + 1.0, case.seen.seconds))
    return windows


# ---------------------------------------------------------------- words


def content(cases: Sequence[Case]) -> dict[str, Metric]:
    right: dict[str, list[bool]] = {"seen": [], "memory": [], "typed": [], "other": []}
    errors, words, written = [], [], list[bool]()
    for case in cases:
        wrong, spoken = word_errors(" ".join(w["text"] for w in case.labels["words"]["user"]), case.seen.transcript)
        if spoken and (case.axis == "content" or (case.axis == "pairs" and case.seen.transcript)):
            errors.append(wrong)
            words.append(spoken)
        if case.axis not in ASKED:
            continue
        for turn in exchanges(case):
            if turn.answer is not None:
                right[_topic(case, turn)].append(answered_right(case, turn))
                if case.axis != "pairs":
                    written.append(answered_right(case, turn, as_text=True))
    every = [outcome for outcomes in right.values() for outcome in outcomes]
    return {
        "right_answers": rate(every),
        "right_as_text": rate(written),
        "right_about_what_is_seen": rate(right["seen"]),
        "right_from_memory": rate(right["memory"]),
        "right_when_typed": rate(right["typed"]),
        "transcript_error": pooled(errors, words, "lower"),
    }


def _topic(case: Case, turn: Exchange) -> str:
    if turn.intent in ("colour", "thing", "digit"):
        return "seen"
    if turn.intent.startswith("ask_my_"):
        return "memory"
    return "typed" if turn.intent == "typed" else "other"


def answered_right(case: Case, turn: Exchange, as_text: bool = False) -> bool:
    """Whether what is recognised in the agent's voice, or what it writes itself, answers as the reference does."""
    assert turn.answer is not None
    first = min(turn.end, turn.answer["start"]) - EARLY
    last = min(max(turn.answer["end"] + 1.5, turn.end + 3.0), max(turn.limit, turn.answer["end"]) + 0.5)
    spoken = " ".join(word.text for word in case.seen.words if first <= word.start <= last)
    heard = normalise("".join(text for at, text in case.seen.text if first <= at <= last) if as_text else spoken)
    start, end = turn.answer["start"] - 0.05, turn.answer["end"]
    said = [w["text"] for w in case.labels["words"]["agent"] if start <= w["start"] < end]
    label = turn.answer["label"]
    fixed = set(normalise(AGENT.get(label, "").format_map(_Blank())))
    filled = [word for word in normalise(" ".join(said)) if word not in fixed]
    if slots(AGENT.get(label, "")):
        return bool(filled) and set(filled) <= {*heard, *(HOMOPHONES.get(word, word) for word in heard)}
    options = [AGENT[name] for name, _ in REPLIES.get(turn.intent, ()) if name in AGENT] + [" ".join(said)]
    return any(_share(normalise(option), heard) >= KNOWN_SHARE for option in options)


class _Blank(dict):
    def __missing__(self, key: str) -> str:
        return ""


def _share(wanted: list[str], heard: list[str]) -> float:
    left, hits = list(heard), 0
    for word in wanted:
        if word in left:
            left.remove(word)
            hits += 1
    return hits / max(1, len(wanted))


def voice(cases: Sequence[Case]) -> dict[str, Metric]:
    """How well the voice says what the agent's text lane says."""
    rows = [word_errors(case.seen.said, " ".join(word.text for word in case.seen.words)) for case in cases]
    return {
        "word_error": pooled([wrong for wrong, _ in rows], [words for _, words in rows], "lower"),
        "opinion_score": average([case.seen.mos for case in cases if case.seen.mos is not None], unit="of 5"),
    }

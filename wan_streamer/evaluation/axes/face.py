"""What the agent looks like: lip sync, listening and idle life, the picture itself, and what changes over minutes.

Every function takes the cases of one agent and returns {metric: `Metric`}. An agent without a picture has no values; an
agent that never speaks or never moves scores zero where movement is asked for.
"""

from collections.abc import Sequence

import numpy as np

from wan_streamer.evaluation.axes.sync import sync_offset, sync_scores
from wan_streamer.evaluation.readers.face import blink_times, nod_times
from wan_streamer.evaluation.records import Case, Span
from wan_streamer.evaluation.spans import exchanges, frames_in, onset_in, user_speech
from wan_streamer.evaluation.stats import Metric, average, pooled, rate, wasserstein
from wan_streamer.units import FPS

TALKS = 0.8  # seconds of speech from which on lips are looked at
SAME = 5e-5  # mean change between frames, 0..1, below which nothing moved: faces always breathe
BLACK, FLASH = 0.05, 0.45  # brightness; change between frames (StreamAV-Bench)
NOD_AFTER = 0.8  # seconds after the partner's turn in which a nod still answers it


def _seen(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if len(case.seen.tracks.get("mouth", ()))]


# ---------------------------------------------------------------- lips


def sync(cases: Sequence[Case]) -> dict[str, Metric]:
    shown = _seen(cases)
    talking = [case for case in shown if sum(b - a for a, b in case.seen.speech) >= TALKS]
    pairs = [
        (case.seen.tracks["mouth"], case.seen.audio.astype(np.float32) / 32768)
        for case in talking
        if case.seen.audio.size
    ]
    own = [sync_scores(mouth_F, audio_T) for mouth_F, audio_T in pairs]
    others = [_mixed(pairs, at) for at in range(len(pairs))] if len(pairs) > 1 else [0.0] * len(pairs)
    together = [_number(scores["correlation"]) for scores in own] or [0.0] * len(shown)
    offset_s, peak = sync_offset(pairs)
    worst = 1e3 * offset_s
    return {
        "correlation": average(together),
        "shuffle_gap": average([a - b for a, b in zip(together, others, strict=True)] if others else together),
        "offset_ms": Metric(abs(worst), abs(worst), abs(worst), len(pairs), "lower", "", _side(worst, peak)),
        "aperture_error": average(
            [s["aperture_error"] for s in own if s["aperture_error"] == s["aperture_error"]], "lower"
        ),
    }


def _number(value: float) -> float:
    return value if value == value else 0.0


def _side(offset_ms: float, peak: float) -> str:
    if offset_ms != offset_ms:
        return "no moving mouth with a voice"
    return f"signed {offset_ms:+.0f} ms ({'sound' if offset_ms > 0 else 'picture'} early), peak correlation {peak:.2f}"


def _mixed(pairs: Sequence[tuple[np.ndarray, np.ndarray]], at: int) -> float:
    """The correlation with the sound of another case."""
    mouth_F, audio_T = pairs[at][0], pairs[(at + 1) % len(pairs)][1]
    frames = min(len(mouth_F), len(audio_T) * FPS // 24_000)
    return _number(sync_scores(mouth_F[:frames], audio_T[: frames * 24_000 // FPS])["correlation"])


# ---------------------------------------------------------------- listening and idle


def listening(cases: Sequence[Case]) -> dict[str, Metric]:
    """How a face behaves while its owner does not talk."""
    shown = _seen(cases)
    frozen, gaze, blinks, reference, minutes, in_time, by_chance = [], [], [], [], [], [], []
    speeds: list[np.ndarray] = []
    wanted: list[np.ndarray] = []
    for at, case in enumerate(shown):
        tracks, talk = case.seen.tracks, user_speech(case)
        listens_F = frames_in(talk, len(tracks["mouth"]))
        if not listens_F.any():
            continue
        frozen.append(float((tracks["change"][1:] < SAME)[listens_F[1:]].mean()) if listens_F[1:].any() else 1.0)
        off_F = np.hypot(tracks["gaze_x"], tracks["gaze_y"])[listens_F]
        gaze.append(float(np.nanmean(off_F)) if np.isfinite(off_F).any() else 1.0)
        blinks.append(len(blink_times(tracks["blink"])))
        reference.append(len(blink_times(case.truth.tracks["blink"])) if case.truth.tracks else 0)
        minutes.append(case.seen.seconds / 60)
        nods = nod_times(tracks["pitch"]) if "pitch" in tracks else []
        other = user_speech(shown[(at + 1) % len(shown)])
        in_time.append(_answers(nods, talk))
        by_chance.append(_answers(nods, other))
        speeds.append(_speed(tracks)[listens_F])
        wanted.append(_speed(case.truth.tracks)[listens_F] if case.truth.tracks else np.zeros(0))
    moving = [rows[np.isfinite(rows)] for rows in speeds]
    truth = np.concatenate([rows[np.isfinite(rows)] for rows in wanted]) if wanted else np.zeros(0)
    metrics = {
        "frozen_share": average(frozen, "lower"),
        "gaze_off_camera": average(gaze, "lower"),
        "nods_that_answer": average(np.subtract(in_time, by_chance).tolist()),
    }
    if truth.size:
        metrics["motion_distance"] = average(
            [wasserstein(rows, truth) if len(rows) else float(truth.mean()) for rows in moving], "lower"
        )
        error = pooled(blinks, minutes, "lower", "/min")
        wanted_rate = sum(reference) / max(1e-9, sum(minutes))
        note = f"{error.value:.0f} per minute, reference {wanted_rate:.0f}"
        low, high = sorted(abs(edge - wanted_rate) for edge in (error.low, error.high))
        metrics["blink_rate_error"] = Metric(abs(error.value - wanted_rate), low, high, error.n, "lower", "/min", note)
    return metrics


def _answers(nods: Sequence[float], talk: Sequence[Span]) -> float:
    """Share of the nods that come while the partner talks or just after; 0 without nods."""
    return float(np.mean([any(a < nod < b + NOD_AFTER for a, b in talk) for nod in nods])) if nods else 0.0


def _speed(tracks: dict[str, np.ndarray]) -> np.ndarray:
    """How fast the head moves, in its own units per frame, [F]."""
    return np.hypot(np.diff(tracks["head_x"], prepend=np.nan), np.diff(tracks["head_y"], prepend=np.nan))


# ---------------------------------------------------------------- the picture


def picture(cases: Sequence[Case]) -> dict[str, Metric]:
    shown = _seen(cases)

    def share(frames: list[np.ndarray]) -> Metric:
        return average([float(flags_F.mean()) for flags_F in frames], "lower")

    changes = [case.seen.tracks["change"][1:] for case in shown]

    return {
        "likeness": average([float(np.nanmean(case.seen.tracks["likeness"])) for case in shown]),
        "frozen_share": share([change_F < SAME for change_F in changes]),
        "black_share": share([case.seen.tracks["brightness"] < BLACK for case in shown]),
        "flash_share": share([change_F > FLASH for change_F in changes]),
    }


# ---------------------------------------------------------------- minutes


def horizon(cases: Sequence[Case]) -> dict[str, Metric]:
    """The last conversations of one long session against its first (both a third of it, at least one)."""
    some = max(1, len(cases) // 3)
    first, last = cases[:some], cases[-some:]

    def kept(track: str) -> Metric:
        change = _mean_track(last, track) - _mean_track(first, track)
        return Metric(change, change, change, len(cases))

    def answered(part: Sequence[Case]) -> list[bool]:
        return [
            onset_in(case.seen.speech, turn.end - 0.2, turn.end + 0.8) is not None
            for case in part for turn in exchanges(case) if turn.intent != "typed"
        ]  # fmt: skip

    drift = abs(_mean_track(last, "brightness") - _mean_track(first, "brightness"))
    metrics = {
        "answered_at_the_end": rate(answered(last)),
        "likeness_change": kept("likeness"),
        "brightness_drift": Metric(drift, drift, drift, len(cases), "lower"),
    }
    early, late = (_mean_ms(part) for part in (first, last))
    if early and late:
        growth = late / early - 1
        metrics["cost_growth"] = Metric(growth, growth, growth, len(cases), "lower")
    return metrics


def _mean_track(cases: Sequence[Case], name: str) -> float:
    values = [case.seen.tracks[name] for case in cases if name in case.seen.tracks]
    return float(np.nanmean(np.concatenate(values))) if values else float("nan")


def _mean_ms(cases: Sequence[Case]) -> float:
    units = [sum(stages) for case in cases for stages in zip(*case.seen.stage_ms.values(), strict=True)]
    return float(np.median(units)) if units else 0.0

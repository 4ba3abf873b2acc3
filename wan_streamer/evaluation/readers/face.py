"""From pixels to what a face does: readers of the agent's rendered face, and what they are worth.

`read_face`         frames -> one track per parameter
`blink_times`, `nod_times`   tracks -> events
`read_prop`         a clip of somebody who holds something up -> (colour, what)
`validate_readers`  the error of every reader on films whose truth is known

How it is done is in `model` and `prop`. Correlation with the truth and mean error on the 56 test films
of generator 2.0 and, in brackets, on 8 of them after the round trip of the codecs; the delay is 0 frames:

    mouth .998, 0.11 pixels (.994, 0.20)    blink .999 (.991)    gaze_x .996, .021 (.990, .049)
    gaze_y .971, .037 (.887, .063)    head_x .997, .018 (.997)    head_y .985, .028 (.980)    roll .999 (.999)
    yaw .999 (.996)    pitch .988, .024 (.980)    blinks all found, none invented (the same)
    nods: precision .99, recall .95 (14 of 14)    likeness: the agent .998 (.998), others .04, separated without error
    things: 27 of 27 (20 of 27, the other 7 read as nothing), none invented in 52 clips
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wan_streamer.data.shards import Episode
from wan_streamer.errors import ShapeError
from wan_streamer.evaluation.readers.model import MOUTH_PIXELS, face_reader
from wan_streamer.evaluation.readers.pictures import delayed_correlation
from wan_streamer.evaluation.readers.prop import read_prop
from wan_streamer.simulation.face.motion import RAISE
from wan_streamer.units import FPS

__all__ = ["blink_times", "nod_times", "read_face", "read_prop", "validate_readers"]

READ = ("mouth", "blink", "gaze_x", "gaze_y", "head_x", "head_y", "roll", "yaw", "pitch")
PIECE = 64  # frames that are read at a time
FOUND = 0.55  # of the agent's films at least .8, of noise, walls and blobs at most .45
SHUT = 0.5  # the blink from which on eyes count as shut
NOD_RISE, NOD_SIDE, NOD_AGAIN, NOD_SHARE = 0.45, 6, 14, 0.8
NOD_HALF = 0.22  # seconds from the beginning of a nod to its deepest point
CLIP = 2.0  # seconds of a clip in which nothing is held up
OTHERS = 8  # frames of every user's film


def read_face(frames_THWC: np.ndarray) -> dict[str, np.ndarray]:
    """What the agent's face does, float32 [T] each; every frame is read on its own.

    frames_THWC  uint8 [T, H, W, 3] of any size; stretched to the shape of the agent's picture

    mouth             height of the opening in pixels of the 192 x 336 picture, 0 .. 20
    blink             0 open .. 1 shut
    gaze_x, gaze_y    as in `person.FacePose`, -1 .. 1, without the turn of the head. Shut eyes look nowhere: the
                      reading goes to 0 as they close
    head_x, head_y, roll, yaw, pitch   as in `person.FacePose`
    likeness          0 .. 1: how much the aligned face, hair and shoulders have the agent's colours. Any pose and
                      expression .97 or more, with a waving hand .87; the agent in another shirt .7, with glasses or
                      another hair style .3, hue turned by 30 degrees .9, by 60 .4, 10 % darker .7; other people .0 - .4
    brightness        0 .. 1, mean of all pixels

    Frames without such a face are NaN in all but the last two. The face of somebody else may be found, and is then
    read as if it were the agent's; look at the likeness first. Raises `ShapeError` for anything but frames.
    """
    if frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3 or frames_THWC.dtype != np.uint8 or not frames_THWC[:1].size:
        raise ShapeError(f"frames: expected uint8 [T, H, W, 3], got {frames_THWC.dtype} {list(frames_THWC.shape)}")
    pieces = [_read_piece(frames_THWC[i : i + PIECE]) for i in range(0, len(frames_THWC), PIECE)]
    return {name: np.concatenate([piece[name] for piece in pieces]).astype(np.float32) for name in pieces[0]}


def _read_piece(frames_THWC: np.ndarray) -> dict[str, np.ndarray]:
    raw = face_reader().read(frames_THWC)
    blink = np.clip(raw["blink"], 0, 1)
    tracks = {name: raw[name] for name in READ if name in raw} | {
        "mouth": np.clip(raw["mouth_open"], 0, 1) * MOUTH_PIXELS,
        "blink": blink,
    }
    for name in ("gaze_x", "gaze_y"):
        tracks[name] = np.clip(raw[name], -1, 1) * np.clip(2 * (1 - blink), 0, 1)
    found = raw["found"] > FOUND
    tracks = {name: np.where(found, tracks[name], np.nan) for name in READ}
    return tracks | {name: raw[name] for name in ("likeness", "brightness")}


def blink_times(blink_T: np.ndarray) -> list[float]:
    """Seconds at which eyes shut: the first frame of every time that they are more than half shut."""
    shut_T = np.nan_to_num(np.asarray(blink_T, float)) > SHUT
    starts = np.flatnonzero(shut_T & ~np.concatenate([[False], shut_T[:-1]]))
    return [float(i + 0.5) / FPS for i in starts]


def nod_times(pitch_T: np.ndarray) -> list[float]:
    """Seconds at which nods begin: the head goes down and up again within half a second.

    A smaller second bow right after the first belongs to it. What the head does on stressed words is mostly smaller.
    """
    pitch_T = np.asarray(pitch_T, float)
    nods: list[tuple[int, float]] = []
    for i in range(1, len(pitch_T) - 1):
        before, after = pitch_T[max(0, i - NOD_SIDE) : i], pitch_T[i + 1 : i + 1 + NOD_SIDE]
        rise = pitch_T[i] - np.maximum(before.min(), after.min())  # NaN, so no rise, beside a frame without a face
        if pitch_T[i] >= before[-1] and pitch_T[i] > after[0] and rise >= NOD_RISE:
            second = nods and i - nods[-1][0] <= NOD_AGAIN and rise < NOD_SHARE * nods[-1][1]
            if not second:
                nods.append((i, rise))
    return [max(0.0, (i + 0.5) / FPS - NOD_HALF) for i, _ in nods]


def validate_readers(episodes: Iterable[Episode], films: int, frames: int) -> dict[str, dict[str, float]]:
    """The error of every reader against the labels of simulated episodes; NaN where nothing could be measured.

    films, frames  how many of the agent's films are read, and how much of each. Users' films, for other faces and for
                   things held up, are taken from all episodes.

    each of `READ`  r, mae and n_frames over all frames with a face (gaze: with open eyes too); delay_frames of the best
                    correlation, positive = late; the head drifts too slowly for that number to say much. mouth in
                    pixels, the others on the scale of `person.FacePose`
    blink           also precision and recall of `blink_times` within 2 frames, and n, the true blinks
    nod             precision and recall of `nod_times` within 0.2 s against the planned nods, n, and both for the true
                    pitch, which is what the rule itself costs
    likeness        same, other: means of the agent's and of others' frames; auc: chance that a frame of the agent
                    scores above one of another; found_same, found_other: share of frames in which a face is found
    prop_found, prop_colour, prop_what   accuracy over n clips in which something is held up: whether anything was read,
                    the right colour, the right thing of the right colour
    prop_none       accuracy over n clips in which nothing is held up
    """
    agent: list[_Film] = []
    others: list[np.ndarray] = []
    found_others: list[np.ndarray] = []
    things: list[tuple[str, str]] = []
    for episode in episodes:
        labels, video = episode.labels, episode.user_video
        if video is not None:
            tracks = read_face(video[:: max(1, len(video) // OTHERS)][:OTHERS])
            others.append(tracks["likeness"])
            found_others.append(np.isfinite(tracks["mouth"]))
            things += [(label, " ".join(read_prop(clip) or "")) for clip, label in _clips(video, labels)]
        if len(agent) < films and episode.agent_video is not None and _is_agent(labels):
            nods = [e["start"] for e in labels["events"] if e["type"] == "nod" and e["side"] == "agent"]
            agent.append(_Film(read_face(episode.agent_video[:frames]), _truth(labels, frames), nods))
    report = {name: _track_errors(name, agent) for name in READ}
    report["blink"] |= _events(
        [_hits(blink_times(f.read["blink"]), blink_times(f.truth["blink"]), f, 2.5 / FPS) for f in agent]
    )
    report["nod"] = _events([_hits(nod_times(film.read["pitch"]), film.nods, film, 0.2) for film in agent])
    rule = _events([_hits(nod_times(film.truth["pitch"]), film.nods, film, 0.2) for film in agent])
    report["nod"] |= {f"{key}_of_truth": rule[key] for key in ("precision", "recall")}
    same, other = _joined([film.read["likeness"] for film in agent]), _joined(others)
    report["likeness"] = {
        "same": _mean(same),
        "other": _mean(other),
        "auc": _mean((same[:, None] > other) + 0.5 * (same[:, None] == other)),
        "found_same": _mean(np.isfinite(_joined([film.read["mouth"] for film in agent]))),
        "found_other": _mean(_joined(found_others)),
    }
    held = [(want.partition(" "), got.partition(" ")) for want, got in things if want]
    for name, right in (
        ("prop_found", [any(got) for _, got in held]),
        ("prop_colour", [want[0] == got[0] for want, got in held]),
        ("prop_what", [want == got for want, got in held]),
        ("prop_none", [not got for want, got in things if not want]),
    ):
        report[name] = {"accuracy": _mean(np.array(right, float)), "n": len(right)}
    return report


@dataclass(frozen=True)
class _Film:
    """What was read of one film, what is true, and when nods were planned (seconds)."""

    read: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    nods: list[float]


def _is_agent(labels: dict[str, Any]) -> bool:
    """Whether the film shows the agent himself and every parameter is known."""
    return "face" in labels and not labels["agent"].get("shown")


def _truth(labels: dict[str, Any], frames: int) -> dict[str, np.ndarray]:
    rows = labels["face"]["agent"] | {"mouth": np.asarray(labels["mouth_open"]["agent"]) * MOUTH_PIXELS}
    return {name: np.asarray(rows[name][:frames], np.float32) for name in READ}


def _clips(film_THWC: np.ndarray, labels: dict[str, Any]) -> list[tuple[np.ndarray, str]]:
    """Every clip in which the user holds something up with "colour what", and one in which nothing is held with ""."""
    shows = [
        (e["start"], e["end"], e["label"]) for e in labels["events"] if e["type"] == "show" and e["side"] == "user"
    ]
    spans = [(start + RAISE, end - RAISE, label) for start, end, label in shows if end - start > 2 * RAISE + 0.2]
    for start in np.arange(0, len(film_THWC) / FPS - CLIP, CLIP):
        if all(start + CLIP <= first or start >= last for first, last, _ in shows):
            spans.append((start, start + CLIP, ""))
            break
    return [(film_THWC[round(start * FPS) : round(end * FPS)], label) for start, end, label in spans]


def _hits(got: Sequence[float], want: Sequence[float], film: _Film, tolerance: float) -> tuple[int, int, int]:
    """(events that agree, events read, true events); no event is in two pairs."""
    end = len(film.truth["blink"]) / FPS - 0.5  # what is cut off is neither a hit nor a miss
    rest = got = [time for time in got if time < end]
    want = [time for time in want if time < end]
    for time in want:
        nearest = min(rest, key=lambda other: abs(other - time), default=np.inf)
        if abs(nearest - time) <= tolerance:
            rest = [other for other in rest if other != nearest]
    return len(got) - len(rest), len(got), len(want)


def _events(rows: list[tuple[int, int, int]]) -> dict[str, float]:
    hits, got, want = np.sum([(0, 0, 0), *rows], axis=0, dtype=float)
    return {"precision": hits / got if got else np.nan, "recall": hits / want if want else np.nan, "n": want}


def _track_errors(name: str, films: list[_Film]) -> dict[str, float]:
    got, want = _joined([film.read[name] for film in films]), _joined([film.truth[name] for film in films])
    known = np.isfinite(got)
    delay = delayed_correlation(np.where(known, got, _mean(got[known])), want)[1] if known.sum() > FPS else np.nan
    if name.startswith("gaze"):
        known &= _joined([film.truth["blink"] for film in films]) < SHUT
    got, want = got[known], want[known]
    moves = len(got) > 1 and min(got.std(), want.std()) > 1e-6
    return {
        "r": float(np.corrcoef(got, want)[0, 1]) if moves else np.nan,
        "mae": _mean(np.abs(got - want)),
        "delay_frames": delay,
        "n_frames": len(got),
    }


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *parts])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan

"""The labels of a recorded conversation: words, speech, and where it is cut into episodes.

`read_talk`        transcript and sound of one side -> `Talk`
`plan_episodes`    cuts between words
`episode_labels`   the JSON of one episode (data/schema.json, "source": "recorded")
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from wan_streamer.data.recordings.sources import SIDES, Side
from wan_streamer.data.recordings.transcripts import Transcript, read_speech, read_transcript
from wan_streamer.data.shards import SCHEMA
from wan_streamer.data.voice_activity import GAP_S, HOP_S, find_speech
from wan_streamer.errors import DataError
from wan_streamer.units import FPS, UNIT_S

GENERATOR = "prepare-1"
SHORTEST_UNITS = 13  # 2.08 s: a tail shorter than 2 s is dropped
EDGE_S = 1e-3


@dataclass(frozen=True)
class Talk:
    """What one side says, seconds from the begin of the recording.

    words     [{"text", "start", "end"}];  speech   [(start, end)], which hold all words
    known     whether there is a transcript
    """

    words: list[dict[str, Any]]
    speech: list[tuple[float, float]]
    known: bool


def read_talk(name: str, side: Side, levels_T: np.ndarray, warnings: list[str]) -> Talk:
    """The words of the best transcript; speech from the layout's own file or else from the levels of the sound.

    levels_T   dB of every 10 ms;  warnings   is added to: a bad transcript never costs the recording
    """
    transcript = speech = None
    for path in side.words:
        if transcript is None:
            transcript = _try(read_transcript, path, name, warnings)
    if side.speech is not None:
        speech = _try(read_speech, side.speech, name, warnings)
    words = _words_inside(name, transcript or Transcript([]), len(levels_T) * HOP_S, warnings)
    if speech is None:
        speech = transcript.speech if transcript is not None else None
    if speech is None:
        speech = find_speech(levels_T)
    spans: list[tuple[float, float]] = []
    for start, end in sorted([*speech, *((word["start"], word["end"]) for word in words)]):
        if spans and start - spans[-1][1] < GAP_S:
            start, last = spans.pop()
            end = max(end, last)
        spans.append((start, end))
    if not spans:
        warnings.append(f"{name}: no speech was found")
    return Talk(words, spans, transcript is not None)


def _try(read: Any, path: Any, name: str, warnings: list[str]) -> Any:
    try:
        return read(path)
    except DataError as error:
        warnings.append(f"{name}: a transcript was left out: {error}")
        return None


def _words_inside(name: str, transcript: Transcript, seconds: float, warnings: list[str]) -> list[dict[str, Any]]:
    """The words whose times lie in the recording; a word may reach a little beyond the sound."""
    words = [
        {**word, "end": min(word["end"], seconds)}
        for word in transcript.words
        if word["start"] >= 0 and word["start"] < seconds and word["end"] <= seconds + 0.2
    ]
    if len(words) < len(transcript.words):
        left_out = len(transcript.words) - len(words)
        warnings.append(f"{name}: {left_out} words with times outside of the {seconds:.1f} s of sound were left out")
    if transcript.left_out:
        warnings.append(f"{name}: {transcript.left_out} rows of the transcript without text or times were left out")
    return words


def plan_episodes(first: int, last: int, longest: int, words: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Cut units [first, last) into episodes [(from, to)] of at most `longest` units, never inside a word.

    words   of both sides, seconds from unit 0

    What is left at the end is shorter than 2 s. Where no cut is free of words (one "word" lasts as long as an
    episode), the longest episode is taken and the word is lost.
    """
    episodes = []
    while last - first >= SHORTEST_UNITS:
        end = longest_end = min(first + longest, last)
        while end >= first + SHORTEST_UNITS and count_cut(words, end):
            end -= 1
        if end < first + SHORTEST_UNITS:
            end = longest_end
        episodes.append((first, end))
        first = end
    return episodes


def count_cut(words: list[dict[str, Any]], unit: int) -> int:
    """How many words a cut before `unit` would go through."""
    time = unit * UNIT_S
    return sum(word["start"] < time - EDGE_S and word["end"] > time + EDGE_S for word in words)


def episode_labels(
    recording: str, split: str, index: int, units: tuple[int, int], talks: dict[str, Talk], cameras: dict[str, bool]
) -> dict[str, Any]:
    """Labels of the units [from, to) of a recording."""
    begin, end = units[0] * UNIT_S, units[1] * UNIT_S

    def times(start: float, stop: float) -> dict[str, float]:
        return {"start": round(max(start - begin, 0.0), 3), "end": round(min(stop, end) - begin, 3)}

    words = {
        side: [
            {"text": word["text"], **times(word["start"], word["end"])}
            for word in talks[side].words
            if word["start"] >= begin - EDGE_S and word["end"] <= end + EDGE_S
        ]
        for side in SIDES
    }
    events = [
        {"type": "speech", "side": side, **times(start, stop), "label": ""}
        for side in SIDES
        for start, stop in talks[side].speech
        if min(stop, end) - max(start, begin) > 2 * HOP_S
    ]
    return {
        "schema": SCHEMA,
        "source": "recorded",
        "generator": GENERATOR,
        "split": split,
        "index": index,
        "recording": recording,
        "start": round(begin, 3),
        "units": units[1] - units[0],
        "fps": FPS,
        "user": {"camera": cameras["user"]},
        "agent": {"camera": cameras["agent"]},
        "words": words,
        "transcribed": {side: talks[side].known for side in SIDES},
        "phonemes": {side: [] for side in SIDES},
        "events": sorted(events, key=lambda event: (event["start"], event["side"])),
    }

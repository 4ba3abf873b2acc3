"""Transcripts beside a recording -> timed words.

`read_transcript`   .json, .jsonl, .vtt or .srt -> `Transcript`
`read_speech`       .json or .jsonl -> spans of speech
`Transcript`        words, and spans of speech if the file has them

A caption has one time for many words: its time is shared over them by length.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_streamer.errors import DataError
from wan_streamer.files import parse_json

SUFFIXES = (".json", ".vtt", ".srt")  # of a plain transcript, the better one first
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)"
_CUE = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")


@dataclass(frozen=True)
class Transcript:
    """words   [{"text", "start", "end"}] in order, seconds;  speech   [(start, end)] or None;  left_out   bad rows"""

    words: list[dict[str, Any]]
    speech: list[tuple[float, float]] | None = None
    left_out: int = 0


def share_words(text: str, start: float, end: float) -> list[dict[str, Any]]:
    """The words of a caption, each with a share of its time that grows with its length."""
    parts = text.split()
    total = sum(len(part) for part in parts)
    words, done = [], 0
    for part in parts:
        first = start + (end - start) * done / total
        done += len(part)
        words.append({"text": part, "start": first, "end": start + (end - start) * done / total})
    return words


def read_transcript(path: Path) -> Transcript:
    """The words of one side. Raises `DataError` if the file cannot be read as a transcript."""
    if path.suffix.lower() in (".vtt", ".srt"):
        return _from_captions(_text(path), path)
    return _from_json(_json(path), path)


def read_speech(path: Path) -> list[tuple[float, float]]:
    """Spans of speech from rows of {"start", "end"}. Raises `DataError` if the file cannot be read as such."""
    rows = _json(path)
    if not isinstance(rows, list):
        raise DataError(f'{path.name}: expected rows of {{"start", "end"}}, got {type(rows).__name__}')
    return _spans(rows)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: expected text in UTF-8 ({error.reason} at byte {error.start})") from error


def _json(path: Path) -> Any:
    """The content of a .json file, or the list of the lines of a .jsonl file."""
    text = _text(path)
    try:
        if path.suffix.lower() == ".jsonl":
            return [parse_json(line) for line in text.splitlines() if line.strip()]
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{path.name}: not valid JSON ({error})") from error


def _from_captions(text: str, path: Path) -> Transcript:
    words: list[dict[str, Any]] = []
    cues = left_out = 0
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        found = next(((i, match) for i, line in enumerate(lines) if (match := _CUE.match(line))), None)
        if found is None:
            continue
        cues += 1
        start, end = _seconds(found[1].groups()[:3]), _seconds(found[1].groups()[3:])
        if end < start:
            left_out += 1
            continue
        words += share_words(_TAG.sub("", " ".join(lines[found[0] + 1 :])), start, end)
    if not cues and text.strip() not in ("", "WEBVTT"):
        raise DataError(f"{path.name}: expected captions with lines such as '00:01.000 --> 00:02.500', found none")
    return Transcript(_ordered(words), left_out=left_out)


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float((seconds or "0").replace(",", "."))


def _from_json(content: Any, path: Path) -> Transcript:
    """A list of words or of segments that hold words, bare or under the keys of Seamless Interaction."""
    speech = None
    if isinstance(content, dict):
        if isinstance(content.get("metadata:vad"), list):
            speech = _spans(content["metadata:vad"])
        content = content.get("metadata:transcript", content.get("words"))
        if content is None and speech is not None:
            content = []
    if not isinstance(content, list):
        raise DataError(f'{path.name}: expected a list of {{"text", "start", "end"}}, got {type(content).__name__}')
    words: list[dict[str, Any]] = []
    left_out = 0
    for row in content:
        inner = row.get("words") if isinstance(row, dict) else None
        if isinstance(inner, list) and inner and all(_word(one) for one in inner):
            words += [_word(one) for one in inner]  # type: ignore[misc]
        elif (segment := _word(row)) is not None:
            # a word stands alone; a segment whose words lack times is treated as a caption
            words += share_words(segment["text"], segment["start"], segment["end"])
        else:
            left_out += 1
    return Transcript(_ordered(words), speech, left_out)


def _word(row: Any) -> dict[str, Any] | None:
    """{"text", "start", "end"} of a row with these keys ("word" and "transcript" mean text); None if it is not one."""
    if not isinstance(row, dict):
        return None
    text = next((row[key] for key in ("text", "word", "transcript") if isinstance(row.get(key), str)), None)
    span = _span(row)
    if text is None or span is None or not text.strip():
        return None
    return {"text": text.strip(), "start": span[0], "end": span[1]}


def _span(row: Any) -> tuple[float, float] | None:
    times = [row.get(key) for key in ("start", "end")] if isinstance(row, dict) else []
    try:
        start, end = (float(time) if isinstance(time, int | float) else math.nan for time in times or (None, None))
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return (start, end) if math.isfinite(start) and math.isfinite(end) and start <= end else None


def _spans(rows: list) -> list[tuple[float, float]]:
    """(start, end) of every row that has both."""
    return sorted(span for row in rows if (span := _span(row)) is not None)


def _ordered(words: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(words, key=lambda word: (word["start"], word["end"]))

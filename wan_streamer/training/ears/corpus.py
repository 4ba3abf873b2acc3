"""Distinct speech to learn to hear from, as one growing file of samples per source.

`Clip`          one utterance: where its samples are, who says it, what is said
`CorpusWriter`  appends utterances; a stopped writer goes on where it was
`load_corpus`   the utterances of every source of a folder, of one split
`pieces`        a long utterance as several

`NAME.pcm` holds int16 samples at 24 kHz without a header, `NAME.jsonl` one line per utterance. A line is written after
its samples, so a reader never sees half an utterance, and training may read while a writer still adds.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from wan_streamer.errors import DataError, ShapeError
from wan_streamer.files import parse_json, write_json
from wan_streamer.folders import KINDS
from wan_streamer.units import SAMPLE_RATE

SCALE = 32767
Words = tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Clip:
    """One utterance.

    source   name of the file of samples
    start    first sample in it
    samples  how many, at 24 kHz
    voice    who speaks; "" if unknown
    text     what is said; "" if nobody wrote it down
    split    "train", "valid" or "test"
    slots    of an utterance without text, words that are known to be in it
    words    (word, start, end) in seconds from its first sample; () if unknown
    """

    source: str
    start: int
    samples: int
    voice: str
    text: str
    split: str
    slots: str = ""
    words: Words = ()

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    @property
    def kind(self) -> str:
        """Of voice: the source up to a hyphen, behind which its parts are numbered."""
        return self.source.partition("-")[0]


class CorpusWriter:
    """Appends utterances of one source. `count` is the number of lines so far."""

    def __init__(self, folder: str | Path, source: str) -> None:
        self.source = source
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.pcm, self.index = folder / f"{source}.pcm", folder / f"{source}.jsonl"
        clips = []
        if self.index.exists():
            clips = read_index(self.index)
            whole = [line for line in self.index.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            os.truncate(self.index, sum(map(len, whole)))
        self.count = len(clips)
        self.end = max((clip.start + clip.samples for clip in clips), default=0)
        with self.pcm.open("ab") as file:
            file.truncate(2 * self.end)  # a writer that was stopped may have left a part of an utterance

    def add(self, audio_T: np.ndarray, voice: str, text: str, split: str, slots: str = "", words: Words = ()) -> Clip:
        """Append float32 [T], mono, 24 kHz. Raises `ShapeError`."""
        if audio_T.ndim != 1 or not len(audio_T) or not np.isfinite(audio_T).all():
            raise ShapeError(f"audio_T: expected finite float32 [T], got {audio_T.dtype} {list(audio_T.shape)}")
        clip = Clip(self.source, self.end, len(audio_T), voice, text, split, slots, words)
        with self.pcm.open("ab") as file:
            file.write(np.round(np.clip(audio_T, -1, 1) * SCALE).astype("<i2").tobytes())
        with self.index.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(clip), ensure_ascii=False) + "\n")
        self.count, self.end = self.count + 1, self.end + len(audio_T)
        return clip


def load_corpus(
    folder: str | Path, split: str, sources: Iterable[str] | None = None, heard: bool = False
) -> list[Clip]:
    """Utterances of `split`, sources in the order of their names (or as given). Raises `DataError` if there are none.

    heard  where nobody wrote down what is said, or when, take what the teacher heard (`NAME.heard.json`)
    """
    folder = Path(folder)
    names = sorted(path.stem for path in folder.glob("*.jsonl")) if sources is None else list(sources)
    clips = []
    for name in names:
        known = _heard(folder, name) if heard else {}
        for clip in read_index(folder / f"{name}.jsonl"):
            if clip.split == split:
                words = clip.words or known.get(str(clip.start), ())
                clips.append(replace(clip, text=clip.text or _text(words), words=words))
    if not clips:
        raise DataError(f"{folder}: expected utterances of split {split!r}, found none; {KINDS['corpus'].made}")
    return clips


def read_clip(folder: str | Path, clip: Clip) -> np.ndarray:
    """Its samples, float32 [T], mono, 24 kHz. Raises `DataError`."""
    path = Path(folder) / f"{clip.source}.pcm"
    try:
        pcm = np.fromfile(path, "<i2", clip.samples, offset=2 * clip.start)
    except OSError as error:
        raise DataError(f"{path}: expected samples of a corpus ({error})") from error
    if len(pcm) != clip.samples:
        raise DataError(f"{path}: expected {clip.samples} samples from {clip.start}, found {len(pcm)}; make it again")
    return pcm.astype(np.float32) / SCALE


def pieces(clip: Clip, samples: int) -> list[Clip]:
    """`clip` cut between words into pieces of at most `samples`; none of it if it is longer and has no words.

    A piece is cut in the middle of the widest gap that its second half has. A word that is longer is left out.
    """
    if clip.samples <= samples:
        return [clip]
    cuts = [0, *(round((a + b) / 2 * SAMPLE_RATE) for (_, _, a), (_, b, _) in pairwise(clip.words)), clip.samples]
    gaps = [0.0, *(b - a for (_, _, a), (_, b, _) in pairwise(clip.words)), math.inf]
    made, first = [], 0
    while first < len(clip.words):
        reach = [i for i in range(first + 1, len(cuts)) if cuts[i] - cuts[first] <= samples]
        if not reach:
            first += 1
            continue
        late = [i for i in reach if 2 * (cuts[i] - cuts[first]) >= min(samples, cuts[reach[-1]] - cuts[first])]
        end = max(late, key=lambda i: gaps[i])
        made.append(_piece(clip, cuts[first], cuts[end], clip.words[first:end]))
        first = end
    return made


def _piece(clip: Clip, start: int, end: int, words: Words) -> Clip:
    begin_s, end_s = start / SAMPLE_RATE, end / SAMPLE_RATE
    moved = tuple((word, max(a, begin_s) - begin_s, min(b, end_s) - begin_s) for word, a, b in words)
    return replace(clip, start=clip.start + start, samples=end - start, text=_text(words), words=moved, slots="")


def _text(words: Words) -> str:
    return " ".join(word for word, _, _ in words)


def save_heard(folder: str | Path, source: str, words: Mapping[str, Words]) -> None:
    """What the teacher heard and when, in utterances of which that is not known, by their first sample."""
    write_json(Path(folder) / f"{source}.heard.json", words, indent=0)


def _heard(folder: Path, source: str) -> dict[str, Words]:
    path = folder / f"{source}.heard.json"
    try:
        known = parse_json(path.read_bytes()) if path.exists() else {}
        return {start: tuple((str(word), float(a), float(b)) for word, a, b in words) for start, words in known.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected the words heard and their times as JSON ({error}); remove it") from error


def read_index(path: Path) -> list[Clip]:
    """All utterances of one source, of every split. Raises `DataError`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [parse_json(line) for line in lines if line.endswith("\n")]
        return [Clip(**row | {"words": tuple(map(tuple, row.get("words", ())))}) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected one utterance a line ({error})") from error

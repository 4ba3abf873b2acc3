"""What was said, as lines: for the summary of a run and for the subtitles of its film.

`Heard`      what an agent has heard, as it reads its units
`Line`       what one lane says in one go
`to_lines`   words by unit -> lines
`to_cues`    the lines of both lanes -> subtitles, one after the other
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from wan_streamer.units import AgentUnit

PAUSE_UNITS = 8  # 1.3 s without text ends a line
HOLD_UNITS = 6  # a subtitle stays for a second after its last word
LONGEST = 84  # characters of a subtitle: two rows of 42
SPEAKERS = {"response": "agent", "transcript": "heard"}  # lane -> who


class Heard:
    """What an agent has heard of its user: as it was written piece by piece, or as a whole where it was read again.

    pieces  (unit, text) in order
    """

    def __init__(self) -> None:
        self.pieces: list[tuple[int, str]] = []
        self._turn = 0  # where in them the user's turn begins

    def add(self, index: int, unit: AgentUnit) -> None:
        """The agent's unit with this number."""
        if unit.transcript:
            self.pieces.append((index, unit.transcript))
        if unit.whole:
            first = self.pieces[self._turn][0] if self._turn < len(self.pieces) else index
            self.pieces[self._turn :] = [(first, f" {unit.whole}")]
        if "transcript" in unit.ended:
            self._turn = len(self.pieces)

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces).strip()


class Line(NamedTuple):
    """first, last   units of its first and last words"""

    first: int
    last: int
    lane: str
    text: str


def to_lines(transcript: Iterable[Mapping], longest: int | None = None) -> list[Line]:
    """`transcript` has {unit, lane, text} in order. A line ends at a pause and before it exceeds `longest`."""
    lines: list[Line] = []
    latest: dict[str, int] = {}  # lane -> place of its line
    for entry in transcript:
        unit, lane, text = entry["unit"], entry["lane"], entry["text"]
        place = latest.get(lane)
        if place is not None and unit - lines[place].last < PAUSE_UNITS:
            line = lines[place]
            new_word = text[:1].isspace() or line.text[-1:].isspace()
            if longest is None or not new_word or len(line.text) + len(text) <= longest:
                lines[place] = line._replace(last=unit, text=line.text + text)
                continue
        latest[lane] = len(lines)
        lines.append(Line(unit, unit, lane, text))
    shown = [line._replace(text="".join(filter(str.isprintable, line.text)).strip()) for line in lines]
    return sorted(line for line in shown if line.text)


def to_cues(lines: list[Line], units: int) -> list[tuple[int, int, str]]:
    """(begin, end, text), begin and end in units, in order and without overlap, within a film of `units`.

    Where both sides speak, a subtitle has a row for each.
    """
    spans = []
    for lane in SPEAKERS:
        mine = [line for line in lines if line.lane == lane]
        for line, after in itertools.zip_longest(mine, mine[1:]):
            end = min(line.last + 1 + HOLD_UNITS, after.first if after else units, units)
            spans.append((line.first, end, f"{SPEAKERS[lane]}: {line.text}"))
    edges = sorted({edge for begin, end, _ in spans for edge in (begin, end)})
    cues = []
    for begin, end in itertools.pairwise(edges):
        rows = [text for first, last, text in spans if first <= begin and end <= last]
        if rows:
            cues.append((begin, end, "\n".join(rows)))
    return cues

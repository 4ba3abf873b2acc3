"""How people take turns: gaps, pauses, overlaps and backchannels in the AMI meetings (CC BY 4.0).

    python scripts/ami_timing.py --data DIR

DIR holds `ami/words.tsv.gz`: meeting, speaker, start_s, end_s, kind, text. Only minutes count in which two people say
90 % of the words. A turn = one speaker's words with no pause over 1 s and nobody else's non-backchannel words between.
A backchannel = at most three words, all of them in `LISTENING`, up to 1.5 s, with a pause of 1 s or more on both sides.

The corpus gives most short pauses to the word before: nine in ten words begin where the last one ends. So a pause
inside a turn = what passes from the begin of a word to that of the next, less the median length of that word (of words
said `COMMON` times or more). Lengthened words count too, so pauses look more frequent than they are.

The human row beside our scores of turn-taking (docs/evaluation.md) counts as the scorer does: a turn is answered if
the other begins from 0.2 s before to 0.8 s after its end; a pause of 0.5 to 1.0 s is held if the other does not begin
from 0.1 s after its begin to 0.1 s after its end. Only pauses after which the speaker goes on are seen, so "held" is
the kind side of the truth.

Prints a table; the constants of `wan_streamer.simulation.conversation.timing` come from it.
"""

import argparse
import csv
import gzip
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

LISTENING = frozenset(
    ("mm", "hmm", "mm-hmm", "mmhmm", "uh-huh", "yeah", "yep", "yes", "right", "okay", "ok", "sure", "oh", "ah", "true")
)
PAUSE, BACKCHANNEL, STRETCH, PAIR, COMMON = 1.0, 1.5, 60.0, 0.9, 100
ANSWERED, PAUSED, LATE = (-0.2, 0.8), 0.5, 0.1
HELD = ("and", "but", "so", "or", "because", "that", "the", "a", "to", "of", "i", "um", "uh", "like", "well", "with")


@dataclass(frozen=True)
class Word:
    start: float
    end: float
    text: str
    speaker: str


@dataclass(frozen=True)
class Run:
    """Words of one speaker without a pause over `PAUSE`."""

    words: tuple[Word, ...]

    @property
    def start(self) -> float:
        return self.words[0].start

    @property
    def end(self) -> float:
        return self.words[-1].end

    @property
    def backchannel(self) -> bool:
        known = all(word.text.lower().strip(".,") in LISTENING for word in self.words)
        return known and len(self.words) <= 3 and self.end - self.start <= BACKCHANNEL


def read_meetings(path: Path) -> dict[str, list[Word]]:
    """Meeting -> the words of all its speakers in order of start."""
    meetings: dict[str, list[Word]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["kind"] in ("w", "disfmarker") and row["text"] and row["start_s"] and row["end_s"]:
                start, end = float(row["start_s"]), float(row["end_s"])
                if start < end < start + 3:
                    meetings[row["meeting"]].append(Word(start, end, row["text"], row["speaker"]))
    return {name: sorted(words, key=lambda w: w.start) for name, words in meetings.items()}


def pairs(words: list[Word]) -> list[list[Word]]:
    """The stretches of `STRETCH` seconds in which two speakers have `PAIR` of the words; only their words."""
    found = []
    windows: dict[int, list[Word]] = defaultdict(list)
    for word in words:
        windows[int(word.start // STRETCH)].append(word)
    for inside in windows.values():
        (top, rest) = (Counter(w.speaker for w in inside).most_common(2), len(inside))
        if len(top) == 2 and sum(n for _, n in top) >= PAIR * rest and top[1][1] >= 5:
            found.append([w for w in inside if w.speaker in {name for name, _ in top}])
    return found


def runs_of(words: list[Word]) -> list[Run]:
    """Runs of both speakers in order of start."""
    runs = []
    for speaker in {w.speaker for w in words}:
        own: list[Word] = []
        for word in (w for w in words if w.speaker == speaker):
            if own and word.start - own[-1].end > PAUSE:
                runs.append(Run(tuple(own)))
                own = []
            own.append(word)
        runs.append(Run(tuple(own)))
    return sorted(runs, key=lambda run: run.start)


@dataclass
class Timing:
    """Seconds of everything, over all stretches; `gaps` are negative where the next speaker begins too early."""

    gaps: list[float]
    pauses: list[float]
    held: list[float]
    overlaps: list[float]
    listening: list[float]
    late: list[float]
    turns: list[float]
    waited: list[bool]
    seconds: float = 0.0

    def add(self, words: list[Word], usual: dict[str, float]) -> None:
        runs = runs_of(words)
        talk = [run for run in runs if not run.backchannel]
        self.seconds += STRETCH
        for before, after in pairwise(talk):
            if before.words[0].speaker != after.words[0].speaker and after.end > before.end:
                self.gaps.append(after.start - before.end)
                if after.start < before.end:
                    self.overlaps.append(before.end - after.start)
        for run in talk:
            self.turns.append(run.end - run.start)
            others = [o for o in talk if o.words[0].speaker != run.words[0].speaker]
            for a, b in pairwise(run.words):
                long = usual.get(a.text.lower())
                pause = 0.0 if long is None else b.start - a.start - long
                first = b.start - pause
                if PAUSED <= pause <= PAUSE and not any(o.start < first < o.end for o in others):
                    self.waited.append(not any(first + LATE < o.start < b.start + LATE for o in others))
                if 0.2 <= pause <= PAUSE and not any(o.start < b.start and o.end > b.start - pause for o in others):
                    self.pauses.append(pause)
                    self.held.append(a.text.lower().strip(".,") in HELD)
        for run in runs:
            if run.backchannel:
                own = run.words[0].speaker
                over = [t for t in talk if t.words[0].speaker != own and t.start < run.start < t.end]
                ends = [w.end for turn in over for w in turn.words if w.end <= run.start]
                if ends:
                    self.listening.append(run.end - run.start)
                    self.late.append(run.start - ends[-1])


def usual_lengths(meetings: dict[str, list[Word]]) -> dict[str, float]:
    """Median length of every word that is said often, seconds."""
    lengths: dict[str, list[float]] = defaultdict(list)
    for words in meetings.values():
        for word in words:
            lengths[word.text.lower()].append(word.end - word.start)
    return {text: float(np.median(found)) for text, found in lengths.items() if len(found) >= COMMON}


def row(name: str, values: list[float]) -> str:
    cut = np.percentile(values, (5, 25, 50, 75, 95))
    return f"| {name} | {len(values)} | " + " | ".join(f"{v:.2f}" for v in cut) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    timing = Timing([], [], [], [], [], [], [], [])
    meetings = read_meetings(options.data / "ami" / "words.tsv.gz")
    usual = usual_lengths(meetings)
    for words in meetings.values():
        for stretch in pairs(words):
            timing.add(stretch, usual)
    print("| seconds | count | 5 % | 25 % | 50 % | 75 % | 95 % |\n|---|---|---|---|---|---|---|")
    for name, values in (
        ("gap between turns", timing.gaps), ("pause inside a turn, 0.2 s and more", timing.pauses),
        ("pause inside a turn, 0.4 s and more", [p for p in timing.pauses if p >= 0.4]),
        ("overlap", timing.overlaps), ("turn", timing.turns), ("backchannel", timing.listening),
        ("backchannel after the last word's end", timing.late),
    ):  # fmt: skip
        print(row(name, values))
    logs = np.log([p for p in timing.pauses if p >= 0.4])
    hours = timing.seconds / 3600
    print(f"\n{hours:.1f} hours; backchannels per hour {len(timing.listening) / hours:.0f}")
    print(f"overlap at {np.mean(np.array(timing.gaps) < 0):.0%} of the changes of speaker")
    answered = np.mean([ANSWERED[0] <= gap <= ANSWERED[1] for gap in timing.gaps])
    waited = np.mean(timing.waited)
    print(
        f"turns answered {answered:.2f} of {len(timing.gaps)}, pauses held {waited:.2f} of {len(timing.waited)}", end=""
    )
    print(f", balanced {(answered + waited) / 2:.2f}")
    print(f"log pause of 0.4 s and more: mean {logs.mean():.3f}, deviation {logs.std():.3f}")
    print(f"pauses after one of {', '.join(HELD)}: {np.mean(timing.held):.0%}")


if __name__ == "__main__":
    main()

"""What is said to an agent and what it answers, as text.

`Exchange`        one of each
`own_exchanges`   Joe's, written for this project (`joe.tsv`);   `talk_exchanges`  of people who type to each other
`Conversations`   rows of tokens in which a language model learns to answer
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wan_streamer.errors import DataError
from wan_streamer.speaking.chat import ASSISTANT, SYSTEM, USER, Marks
from wan_streamer.training.ears.texts import TYPED, for_test, rows_of

OWN = Path(__file__).with_name("joe.tsv")
GOOD = ("Good", "Excellent")  # ratings of an answer
WORDS, ASKED = (3, 18), 25  # of an answer; of what it answers, at most
PLAIN = re.compile(r"[A-Za-z ,.!?'-]+")
VALID = 0.1  # share of the exchanges that are held out
SHARES = {"own": 0.62, "topical": 0.23, "chat": 0.15}  # of the answers; the agent's own count twice as much
BEFORE = 0.2  # share of the rows in which another exchange came before
MISHEARD, CUT = 0.25, 0.2  # shares of the rows in which a word is another one, or the last mark is missing
IGNORED = -100


class Exchange(NamedTuple):
    asked: str
    answer: str


def own_exchanges() -> list[Exchange]:
    """What Joe says."""
    return [Exchange(*line.split("\t")) for line in OWN.read_text(encoding="utf-8").splitlines()]


def talk_exchanges(folder: Path) -> dict[str, list[Exchange]]:
    """By kind, of a folder of texts with `talk/*` (docs/hearing.md): short answers of plain words, where they are rated
    of good ones. Raises `DataError`.
    """
    found: dict[str, list[Exchange]] = {}
    for kind in ("topical", "chat"):
        before: dict[str, str] = {}
        for row in rows_of(folder / TYPED[kind], ("speaker", "text")):
            asked, text = before.get("text", ""), row["text"] or ""
            answers = before.get("dialogue") == row.get("dialogue") and before.get("speaker") != row["speaker"]
            plain = PLAIN.fullmatch(text) and PLAIN.fullmatch(asked)
            short = WORDS[0] <= len(text.split()) <= WORDS[1] and len(asked.split()) <= ASKED
            if answers and plain and short and row.get("rating", GOOD[0]) in GOOD:
                found.setdefault(kind, []).append(Exchange(asked, text))
            before = row
        if kind not in found:
            raise DataError(f"{folder / TYPED[kind]}: expected conversations of two, found none")
    return found


class Row(NamedTuple):
    """token_BN   int64;   target_BN  those to foretell, `IGNORED` elsewhere;   weight_BN  how much each counts"""

    token_BN: Tensor
    target_BN: Tensor
    weight_BN: Tensor


class Conversations:
    """marks    how a language model writes turns;   system  what it is told about itself
    talk     folder of texts, or None: the agent's own exchanges alone
    """

    def __init__(self, marks: Marks, system: str, talk: Path | None) -> None:
        self.marks, self.system = marks, system
        kinds = {"own": own_exchanges(), **({} if talk is None else talk_exchanges(talk))}
        self.train = {kind: [one for one in all_ if not for_test(one.asked, VALID)] for kind, all_ in kinds.items()}
        self.valid = {kind: [one for one in all_ if for_test(one.asked, VALID)] for kind, all_ in kinds.items()}
        share = np.array([SHARES[kind] for kind in kinds])
        self.shares = share / share.sum()

    def row(self, rng: np.random.Generator) -> tuple[list[int], list[int], float]:
        """Tokens, which of them are the answer, and what it counts."""
        kind = str(rng.choice([*self.train], p=self.shares))
        tokens = self.marks.turn(SYSTEM, self.system)
        if rng.random() < BEFORE:
            earlier = self._any(str(rng.choice([*self.train], p=self.shares)), rng)
            tokens += self.marks.turn(USER, earlier.asked) + self.marks.turn(ASSISTANT, earlier.answer)
        now = self._any(kind, rng)
        return *self._answered(tokens, self._heard(now.asked, rng), now.answer), 1.0 if kind == "own" else 0.5

    def _any(self, kind: str, rng: np.random.Generator) -> Exchange:
        return self.train[kind][int(rng.integers(len(self.train[kind])))]

    def _heard(self, asked: str, rng: np.random.Generator) -> str:
        """As an agent may write it down."""
        words = asked.split()
        if rng.random() < MISHEARD and len(words) > WORDS[0]:
            words[int(rng.integers(len(words)))] = str(rng.choice(self._any("own", rng).asked.split()))
        return " ".join(words).rstrip(".?!") if rng.random() < CUT else " ".join(words)

    def _answered(self, tokens: list[int], asked: str, answer: str) -> tuple[list[int], list[int]]:
        tokens = [*tokens, *self.marks.turn(USER, asked), *self.marks.opening(ASSISTANT)]
        said = [*self.marks.text.encode(answer), self.marks.stop]
        return tokens + said, [0] * len(tokens) + [1] * len(said)

    def held_out(self, kind: str, most: int) -> Row:
        """The first exchanges of a kind that nothing is learned from."""
        begin = self.marks.turn(SYSTEM, self.system)
        return padded([(*self._answered(begin, *one), 1.0) for one in self.valid[kind][:most]])


def padded(rows: list[tuple[list[int], list[int], float]]) -> Row:
    """As one batch, with nothing to foretell behind a row's end."""
    N = max(len(tokens) for tokens, _, _ in rows)
    token_BN, weight_BN = torch.zeros(len(rows), N, dtype=torch.long), torch.zeros(len(rows), N)
    target_BN = torch.full((len(rows), N), IGNORED)
    for i, (tokens, answers, weight) in enumerate(rows):
        row_N = torch.tensor(tokens)
        token_BN[i, : len(row_N)] = row_N
        # what a token foretells is the next one
        is_next_N = torch.tensor(answers[1:], dtype=torch.bool)
        target_BN[i, : len(row_N) - 1] = torch.where(is_next_N, row_N[1:], IGNORED)
        weight_BN[i, : len(row_N) - 1] = is_next_N * weight
    return Row(token_BN, target_BN, weight_BN)

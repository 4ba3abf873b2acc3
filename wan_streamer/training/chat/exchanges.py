"""What is said to an agent and what it answers, as text.

`own_talks`       Joe's, written for this project (`joe.tsv`);   `talk_exchanges`  of people who type to each other
`Conversations`   rows of tokens in which a language model learns to answer
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wan_streamer.errors import DataError
from wan_streamer.speaking.turns import ASSISTANT, SYSTEM, USER, Marks, noted
from wan_streamer.training.chat.world import Exchange, world_exchanges
from wan_streamer.training.ears.texts import TYPED, for_test, rows_of

OWN = Path(__file__).with_name("joe.tsv")
GOOD = ("Good", "Excellent")  # ratings of an answer
WORDS, ASKED = (3, 18), 25  # of an answer; of what it answers, at most
PLAIN = re.compile(r"[A-Za-z ,.!?'-]+")
VALID = 0.1  # share of the exchanges that are held out
SHARES = {"own": 0.5, "world": 0.3, "topical": 0.14, "chat": 0.06}  # of the rows
WEIGHTS = {"topical": 0.5, "chat": 0.5}  # of an answer; 1 of others
TALKS, WORLD = (1, 4), (2, 8)  # of Joe's in a row; exchanges of the world
MISHEARD, CUT = 0.2, 0.2  # shares of what is asked in which a word is another one, or the last mark is missing
HELD_OUT = 100  # talks of the world that are held out
IGNORED = -100


def own_talks() -> list[list[Exchange]]:
    """What is said to Joe and what he says, one exchange or several that belong together."""
    rows = [line.split("\t") for line in OWN.read_text(encoding="utf-8").splitlines()]
    return [[Exchange(*pair) for pair in zip(row[::2], row[1::2], strict=True)] for row in rows]


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
    talk     folder of texts, or None: without what people type to each other
    """

    def __init__(self, marks: Marks, system: str, talk: Path | None) -> None:
        self.marks, self.system = marks, system
        found = {} if talk is None else talk_exchanges(talk)
        kinds = {"own": own_talks(), **{kind: [[one] for one in all_] for kind, all_ in found.items()}}
        self.train = {kind: [one for one in all_ if not for_test(one[0].asked, VALID)] for kind, all_ in kinds.items()}
        self.valid = {kind: [one for one in all_ if for_test(one[0].asked, VALID)] for kind, all_ in kinds.items()}
        self.valid["world"] = [world_exchanges(np.random.default_rng((HELD_OUT, n)), WORLD[0]) for n in range(HELD_OUT)]
        self.others = [word for one in self.train["own"] for word in one[0].asked.split()]
        share = np.array([SHARES[kind] for kind in (*kinds, "world")])
        self.shares = share / share.sum()

    def row(self, rng: np.random.Generator) -> tuple[list[int], list[int], float]:
        """Tokens, which of them are answers, and what these count."""
        kind = str(rng.choice([*self.train, "world"], p=self.shares))
        if kind == "world":
            said = world_exchanges(rng, int(rng.integers(*WORLD)))
            said.insert(int(rng.integers(len(said) + 1)), self._any("own", rng)[0])
        else:
            talks = int(rng.integers(*TALKS)) if kind == "own" else 1
            said = [one for _ in range(talks) for one in self._any(kind, rng)]
        heard = [one._replace(asked=self._heard(one, rng)) for one in said]
        return *self._tokens(heard), WEIGHTS.get(kind, 1.0)

    def _any(self, kind: str, rng: np.random.Generator) -> list[Exchange]:
        return self.train[kind][int(rng.integers(len(self.train[kind])))]

    def _heard(self, one: Exchange, rng: np.random.Generator) -> str:
        """As an agent may write it down; words that are answered with are heard."""
        words = one.asked.split()
        number = int(rng.integers(len(words)))
        if rng.random() < MISHEARD and len(words) > WORDS[0] and words[number].strip(".,?!") not in one.answer:
            words[number] = str(rng.choice(self.others))
        return " ".join(words).rstrip(".?!") if rng.random() < CUT else " ".join(words)

    def _tokens(self, said: list[Exchange]) -> tuple[list[int], list[int]]:
        tokens = self.marks.turn(SYSTEM, self.system)
        answers = [0] * len(tokens)
        stop, *behind = self.marks.closing()
        for one in said:
            asked = [*self.marks.turn(USER, noted(one.asked, one.seen)), *self.marks.opening(ASSISTANT)]
            answer = [*self.marks.text.encode(one.answer), stop]
            tokens += [*asked, *answer, *behind]
            answers += [0] * len(asked) + [1] * len(answer) + [0] * len(behind)
        last = len(tokens) - len(behind)
        return tokens[:last], answers[:last]

    def asked(self, said: list[Exchange]) -> list[int]:
        """Tokens up to where the last answer begins."""
        tokens, answers = self._tokens(said)
        return tokens[: len(answers) - answers[::-1].index(0)]

    def held_out(self, kind: str, most: int) -> Row:
        """The first talks of a kind that nothing is learned from."""
        return padded([(*self._tokens(one), 1.0) for one in self.valid[kind][:most]])


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

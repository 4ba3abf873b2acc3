"""Independent tasks -> batches: whole tasks, from their first unit, with others of about their length.

`TaskClips`   one split of encoded tasks: batches, and a score for every task and stream that is its target
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wan_streamer.errors import DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.folders import KINDS
from wan_streamer.training.examples.augment import vary
from wan_streamer.training.examples.clips import MADE, ClipReader, Example, hide, stack
from wan_streamer.training.loop.means import mean_of

LENGTHS = (16, 24, 32, 40)  # units of a batch; a task goes with the shortest that holds it
TEXT_HIDDEN, USER_HIDDEN, HISTORY_HIDDEN, ALL_HIDDEN = 0.1, 0.1, 0.05, 0.05  # of tasks that make sound or pictures
VALID_TASKS = 6  # held-out tasks of each name; a batch each


class TaskClips:
    """The tasks of `reader`. Raises `DataError` for an episode that is no task or too long."""

    def __init__(self, reader: ClipReader, where: Path) -> None:
        self.reader = reader
        for labels in reader.store.labels:
            if "task" not in labels:
                raise DataError(f"{where}: expected tasks, got a conversation; {KINDS['tasks'].made}")
            if labels["units"] > LENGTHS[-1]:
                raise DataError(f"{where}: expected tasks of at most {LENGTHS[-1]} units, got {labels['units']}")
        self.names = np.array([labels["task"] for labels in reader.store.labels])
        self.fit = np.array(LENGTHS)[np.searchsorted(LENGTHS, reader.length)]  # units of the batch of each task

    def batch(self, seed: int, step: int, rows: range) -> Example:
        """These rows of the batch of `step`. Tasks are drawn in proportion to their length."""
        lengths = self.reader.length
        units = int(np.random.default_rng((seed, step)).choice(self.fit, p=lengths / lengths.sum()))
        return stack(self._draw(np.random.default_rng((seed, step, row)), units) for row in rows)

    def _draw(self, rng: np.random.Generator, units: int) -> Example:
        weight = self.reader.length * (self.fit == units)
        number = int(rng.choice(len(weight), p=weight / weight.sum()))
        example = vary(self.reader.read(number, 0, units=units), rng)
        chance = rng.random()
        if not MADE & set(self.reader.store.labels[number]["targets"]):
            return example  # guidance is for sound and pictures; an answer without its question is a guess
        for share, hidden in (
            (TEXT_HIDDEN, {"text": True}),
            (USER_HIDDEN, {"user": True}),
            (HISTORY_HIDDEN, {"history": True}),
            (ALL_HIDDEN, {"text": True, "user": True, "history": True}),
        ):
            if chance < share:
                return hide(example, **hidden)
            chance -= share
        return example

    def samples(self, task: str, count: int) -> list[Example]:
        """The first `count` tasks of a name, each as long as its batch would be."""
        numbers = np.flatnonzero(self.names == task)[:count]
        return [self.reader.read(int(i), 0, units=int(self.fit[i])) for i in numbers]

    def fullest(self, count: int) -> list[Example]:
        """The shortest task of each of `count` names, those with most targets first."""
        targets = [len(labels["targets"]) for labels in self.reader.store.labels]
        order = sorted(range(len(targets)), key=lambda i: (-targets[i], self.reader.length[i]))
        first = {str(self.names[i]): i for i in reversed(order)}
        chosen = sorted(first.values(), key=order.index)[:count]
        return [self.reader.read(i, 0, units=int(self.reader.length[i])) for i in chosen]

    def validate(self, errors: Callable[[Example, RowNoise], dict[str, float]]) -> dict[str, float]:
        """The numbers of the first tasks of every name: "tts/audio", "asr/transcript", "asr/transcript_right", ...

        errors  the numbers of one batch; only those of a task's targets are kept
        """
        scores: dict[str, float] = {}
        for task in sorted(set(self.names.tolist())):
            targets = self.reader.store.labels[self.names.tolist().index(task)]["targets"]
            rows = [
                errors(example, RowNoise(1, number, range(1)))
                for number, example in enumerate(self.samples(task, VALID_TASKS))
            ]
            for stream in targets:
                scores[f"{task}/{stream}"] = mean_of(row[stream if stream in MADE else "text"] for row in rows)
                if stream not in MADE:
                    scores[f"{task}/{stream}_right"] = mean_of(row[f"{stream}_right"] for row in rows)
        return {name: value for name, value in scores.items() if math.isfinite(value)}

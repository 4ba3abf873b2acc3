"""Encoded conversations -> batches: clips of one length from anywhere in them.

`ConversationClips`   one split of encoded conversations
"""

from pathlib import Path

import numpy as np

from wan_streamer.errors import ConfigError, DataError
from wan_streamer.training.examples.augment import vary
from wan_streamer.training.examples.clips import ClipReader, Example, hide, stack
from wan_streamer.units import UNIT_S

TYPED_SHARE = 0.1  # of clips in which the user types instead of speaking
MICROPHONE_OFF_SHARE = 0.5  # of the clips in which the user types
CAMERA_OFF_SHARE = 0.1  # of clips, on top of those recorded without a camera
FROM_START_SHARE = 0.15  # of clips that begin where the session begins
FORGOTTEN_SHARE = 0.1  # of clips without what was said before, as after a lost connection
EVENT_SHARE = 0.4  # of clips around one of `EVENTS` of the user, if there are any
EVENTS = (("barge_in",), ("backchannel",), ("side_talk", "noise"), ("pause",))  # as often each
BEFORE = (1 / 6, 2 / 3)  # of a clip's units before the event


class ConversationClips:
    """The conversations of `reader`. Clips to train on are from anywhere, or around what the user does (`EVENTS`).

    What the agent does is not chosen from: where it says "mm-hm" it might as well have said nothing.

    Raises `DataError` for one that is shorter than a clip, or if there is no film; `ConfigError` for clips in which
    words would have to enter the memory.
    """

    def __init__(self, reader: ClipReader, where: Path) -> None:
        cache = reader.config.cache
        if cache.memory_tokens and reader.units > cache.text_units:
            raise ConfigError(
                f"clips: expected at most cache.text_units = {cache.text_units} units in a model with a memory, got"
                f" {reader.units}"
            )
        self.reader = reader
        short = int(reader.length.min())
        if short < reader.units:
            raise DataError(f"{where}: a conversation of {short} units is shorter than the clips of {reader.units}")
        self.filmed = np.array(["video" in labels.get("targets", ("video",)) for labels in reader.store.labels])
        if not self.filmed.any():
            raise DataError(f"{where}: expected a conversation with the agent's film to learn; make some")
        self.events = {filmed: self._events(filmed) for filmed in (True, False)}

    def _events(self, filmed: bool) -> list[list[tuple[int, int]]]:
        """(conversation, unit) of the `EVENTS` that there are, kind by kind."""
        found = [
            [
                (number, int(event["start"] / UNIT_S))
                for number, has_film in enumerate(self.filmed)
                if has_film or not filmed
                for event in self.reader.store.labels[number].get("events", ())
                if event["type"] in kinds and event["side"] == "user"
            ]
            for kinds in EVENTS
        ]  # fmt: skip
        return [places for places in found if places]

    def batch(self, seed: int, step: int, rows: range, text_hidden: float = 0.0, filmed: bool = True) -> Example:
        """These rows of the batch of `step`; each without the agent's text with a probability of `text_hidden`.

        filmed  only of conversations in which the agent's face is a target
        """
        return stack(self._varied(np.random.default_rng((seed, step, row)), text_hidden, filmed) for row in rows)

    def valid(self, number: int, rows: range) -> Example:
        """Rows of a held-out batch, the same at every validation."""
        return stack(self._draw(np.random.default_rng((1, number, row)), 0.0) for row in rows)

    def _place(self, rng: np.random.Generator, filmed: bool, events: bool) -> tuple[int, int]:
        """A conversation in proportion to its length, and a first unit in it; or those of a clip around an event."""
        K, kinds = self.reader.units, self.events[filmed] if events else []
        if kinds and rng.random() < EVENT_SHARE:
            places = kinds[int(rng.integers(len(kinds)))]
            number, at = places[int(rng.integers(len(places)))]
            first = at - int(rng.integers(int(K * BEFORE[0]), int(K * BEFORE[1]) + 1))
            return number, max(0, min(first, int(self.reader.length[number]) - K))
        length = self.reader.length * (self.filmed if filmed else 1)
        number = int(rng.choice(len(length), p=length / length.sum()))
        first = int(rng.integers(0, self.reader.length[number] - K + 1))
        return number, 0 if rng.random() < FROM_START_SHARE else first

    def _varied(self, rng: np.random.Generator, text_hidden: float, filmed: bool) -> Example:
        example = vary(self._draw(rng, text_hidden, filmed, events=True), rng)
        if self.reader.config.cache.memory_tokens and rng.random() < FORGOTTEN_SHARE:
            return hide(example, memory=True)
        return example

    def _draw(self, rng: np.random.Generator, text_hidden: float, filmed: bool = True, events: bool = False) -> Example:
        number, first = self._place(rng, filmed, events)
        typed = rng.random() < TYPED_SHARE
        microphone = not typed or rng.random() >= MICROPHONE_OFF_SHARE
        example = self.reader.read(number, first, typed, microphone, camera=rng.random() >= CAMERA_OFF_SHARE)
        return hide(example, text=rng.random() < text_hidden)

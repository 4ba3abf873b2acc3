"""Encoded conversations -> batches: clips of one length from anywhere in them.

`ConversationClips`   one split of encoded conversations
"""

from pathlib import Path

import numpy as np

from wan_streamer.errors import ConfigError, DataError
from wan_streamer.training.examples.augment import vary
from wan_streamer.training.examples.clips import ClipReader, Example, hide, stack

TYPED_SHARE = 0.1  # of clips in which the user types instead of speaking
MICROPHONE_OFF_SHARE = 0.5  # of the clips in which the user types
CAMERA_OFF_SHARE = 0.1  # of clips, on top of those recorded without a camera
FROM_START_SHARE = 0.15  # of clips that begin where the session begins
FORGOTTEN_SHARE = 0.1  # of clips without what was said before, as after a lost connection


class ConversationClips:
    """The conversations of `reader`.

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

    def batch(self, seed: int, step: int, rows: range, text_hidden: float = 0.0, filmed: bool = True) -> Example:
        """These rows of the batch of `step`; each without the agent's text with a probability of `text_hidden`.

        filmed  only of conversations in which the agent's face is a target
        """
        return stack(self._varied(np.random.default_rng((seed, step, row)), text_hidden, filmed) for row in rows)

    def valid(self, number: int, rows: range) -> Example:
        """Rows of a held-out batch, the same at every validation."""
        return stack(self._draw(np.random.default_rng((1, number, row)), 0.0) for row in rows)

    def _varied(self, rng: np.random.Generator, text_hidden: float, filmed: bool) -> Example:
        example = vary(self._draw(rng, text_hidden, filmed), rng)
        if self.reader.config.cache.memory_tokens and rng.random() < FORGOTTEN_SHARE:
            return hide(example, memory=True)
        return example

    def _draw(self, rng: np.random.Generator, text_hidden: float, filmed: bool = True) -> Example:
        length = self.reader.length * (self.filmed if filmed else 1)
        number = int(rng.choice(len(length), p=length / length.sum()))
        first = int(rng.integers(0, self.reader.length[number] - self.reader.units + 1))
        if rng.random() < FROM_START_SHARE:
            first = 0
        typed = rng.random() < TYPED_SHARE
        microphone = not typed or rng.random() >= MICROPHONE_OFF_SHARE
        example = self.reader.read(number, first, typed, microphone, camera=rng.random() >= CAMERA_OFF_SHARE)
        return hide(example, text=rng.random() < text_hidden)

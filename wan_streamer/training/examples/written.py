"""Conversations that are only words -> batches in which the model learns what to say.

`WrittenClips`   planned as simulated conversations are, one after another without end; nothing is heard or seen

What is said to whom takes more examples than there are hours of sound and pictures, and none of either.
"""

import numpy as np
import torch
from torch import Tensor

from wan_streamer.codecs.text import SILENCE, TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.model.layout import LANES, ClipBatch
from wan_streamer.model.memory import latest, spoken
from wan_streamer.simulation.conversation.partners import written_conversation
from wan_streamer.training.examples.clips import Example, stack, told

CLIPS = 4  # of a row, all from one conversation: most of the time goes into planning it
BEFORE = (4, 20)  # units of the clip before an utterance of the agent
LATER = (1, 3)  # units: without sound, a question is known only when it is written down
RESPONSE = LANES.index("response")


class WrittenClips:
    """Clips of `units` units around what the agent says; ears, eyes and all that is drawn are left out."""

    def __init__(self, split: str, config: StreamerConfig, text: TextCodec, units: int) -> None:
        self.split, self.config, self.text, self.units = split, config, text, units

    def batch(self, seed: int, step: int, rows: range) -> Example:
        """These rows of the batch of `step`, `CLIPS` clips each."""
        return stack(clip for row in rows for clip in self._clips(seed, step, row))

    def _clips(self, seed: int, step: int, row: int) -> list[Example]:
        rng = np.random.default_rng((seed, step, row))
        labels = written_conversation(seed, self.split, (step << 16) + row)
        typed, lanes = map(torch.from_numpy, conversation_lanes(labels, self.config.text, self.text))
        later = int(rng.integers(LATER[0], LATER[1] + 1))
        lanes[..., RESPONSE] = torch.cat([lanes[:later, :, RESPONSE] * 0, lanes[:-later, :, RESPONSE]])
        said = torch.cat([lanes, typed[..., None]], dim=2)
        silent_K = (lanes[..., RESPONSE] == SILENCE).all(1)
        begins = (~silent_K[1:] & silent_K[:-1]).nonzero()[:, 0].tolist() or [0]
        chosen = [int(rng.choice(begins)) - int(rng.integers(*BEFORE)) for _ in range(CLIPS)]
        return [self._example(said, max(0, min(first, len(said) - self.units)), labels["before"]) for first in chosen]

    def _example(self, said_KSs: Tensor, first: int, before: list[dict]) -> Example:
        K, config = self.units, self.config
        lanes, typed = said_KSs[first : first + K, :, : len(LANES)], said_KSs[first : first + K, :, -1]
        on = torch.ones(1, K, dtype=torch.bool)
        memory = torch.cat([told(before, self.text), spoken(said_KSs[:first])])
        clips = ClipBatch(
            torch.zeros(1, K + 1, 0, config.patch_dim),
            torch.zeros(1, K + 1, config.audio_tokens, config.audio_vae.latent_dim),
            torch.zeros(1, 0),
            on,
            torch.zeros(1, 0, config.perception.video_height, config.perception.video_width, 3, dtype=torch.uint8),
            ~on,
            typed[None],
            lanes[None],
            on,
            latest(memory, config.cache.memory_tokens)[None],
        )
        targets = torch.tensor([float(name == "response") for name in LANES]).expand(1, K, -1)
        return Example(clips, torch.zeros(1, K), torch.zeros(1, K), targets, ~on)

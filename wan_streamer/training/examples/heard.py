"""Speech of a corpus -> batches in which the model writes down what it hears, and does nothing else.

`HeardClips`   streams as the ears are trained on (`training/ears/data.py`), with the words of their clips
`labels_of`    what is said in such a stream
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from wan_streamer.codecs.text import SILENCE, TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.model.layout import LANES, ClipBatch
from wan_streamer.model.memory import latest, spoken
from wan_streamer.speaking.sounds import no_sounds
from wan_streamer.training.ears.data import Stream, StreamConfig, StreamMaker
from wan_streamer.training.examples.clips import Example, stack
from wan_streamer.units import SAMPLES_PER_UNIT

EASIER: dict[str, Any] = {"degraded": 0.6, "babble": 0.1, "echo": 0.15, "noisy": 0.1}
"""Than what the ears learn from: they know noise already, and here it is the words that are new."""


class HeardClips:
    """Clips of `units` units; the eyes are left out, the agent is idle and its past hidden. Raises `DataError`."""

    def __init__(self, folder: Path, split: str, config: StreamerConfig, text: TextCodec, units: int) -> None:
        self.config, self.text, self.units = config, text, units
        self.lead = config.perception.lead_units
        self.streams = StreamMaker(folder, split, StreamConfig(units=self.lead + units, timed=True, **EASIER), 0)

    def batch(self, seed: int, step: int, rows: range) -> Example:
        """These rows of the batch of `step`."""
        return stack(self._example(self.streams.make(step + (seed << 32), row)) for row in rows)

    def _example(self, stream: Stream) -> Example:
        K, config = self.units, self.config
        typed, lanes = map(torch.from_numpy, conversation_lanes(labels_of(stream), config.text, self.text))
        said = torch.cat([lanes, typed[..., None]], dim=2)[: self.lead]
        size = (config.perception.video_height, config.perception.video_width, 3)
        off = torch.zeros(1, K, dtype=torch.bool)
        clips = ClipBatch(
            torch.zeros(1, K + 1, config.video_tokens, config.patch_dim),
            torch.zeros(1, K + 1, config.audio_tokens, config.audio_vae.latent_dim),
            torch.from_numpy(stream.audio_T)[None],
            ~off,
            torch.zeros(1, 0, *size, dtype=torch.uint8),
            off,
            torch.full((1, K, config.text.slots), SILENCE),
            lanes[None, self.lead :],
            ~off,
            latest(spoken(said), config.cache.memory_tokens)[None],
            no_sounds(1, K + 2),
        )
        targets = np.array([float(name == "transcript") for name in LANES], np.float32)
        lane_BKL = torch.from_numpy(targets).expand(1, K, -1)
        return Example(clips, torch.zeros(1, K), torch.zeros(1, K), lane_BKL, off)


def labels_of(stream: Stream) -> dict[str, Any]:
    """A stream as a conversation in which the user alone speaks: what `conversation_lanes` asks for."""
    words = [{"text": w, "start": a, "end": b} for one in stream.placed for w, a, b in one.words]
    events = [
        {"type": "speech", "side": "user", "start": one.words[0][1], "end": one.words[-1][2]} for one in stream.placed
    ]
    units = len(stream.audio_T) // SAMPLES_PER_UNIT
    return {"units": units, "words": {"user": words, "agent": []}, "events": events}

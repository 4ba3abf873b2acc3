"""What a live session of the model carries from unit to unit."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wan_streamer.model.cache import KVCache
from wan_streamer.perception.audio import AudioPerceptionState
from wan_streamer.perception.ears import EarsState
from wan_streamer.perception.reading import Expected
from wan_streamer.perception.video import VideoPerceptionState


@dataclass
class LiveState:
    """Everything of it.

    told_N2  int64 [N, 2]: memory tokens that the next block is the first to read
    said     int64 [S, sources] of each unit in the text window, oldest first; stays empty in a model without memory
    heard    what a reader looks at of the latest units (`live_hints`)
    expected what it expects in the unit, of which words are being written
    sounds   [4] of the last unit whose words are chosen, in a model that chooses sounds; None where none are told
    settled  the next block is open and has the last latents
    """

    cache: KVCache
    hearing: AudioPerceptionState | EarsState | None = None
    seeing: VideoPerceptionState | None = None
    told_N2: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.long))
    said: deque[Tensor] = field(default_factory=deque)
    heard: deque[Tensor] = field(default_factory=deque)
    expected: Expected | None = None
    sounds: Tensor | None = None
    settled: bool = False

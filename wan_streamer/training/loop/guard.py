"""Telling when a run diverges."""

import json
import math

from wan_streamer.files import parse_json
from wan_streamer.training.loop.stage import TrainConfig


class Guard:
    """Watches a moving mean of the loss and tells when it has been far above its best for too long.

    high   steps in a row above `limit`
    limit  `config.diverged` times the best mean so far
    """

    def __init__(self, config: TrainConfig, text: str = "") -> None:
        self.config, self.high = config, 0
        self.mean: float
        self.best: float
        self.mean, self.best = parse_json(text) if text else (math.inf, math.inf)

    @property
    def limit(self) -> float:
        return self.config.diverged * self.best

    def diverges(self, loss: float) -> bool:
        if not self.config.diverged:
            return False
        self.mean = loss if math.isinf(self.mean) else 0.9 * self.mean + 0.1 * loss
        self.best = min(self.best, self.mean)
        self.high = self.high + 1 if self.mean > self.limit else 0
        return self.high >= self.config.patience

    def text(self) -> str:
        """What `__init__` goes on from."""
        return json.dumps([self.mean, self.best])

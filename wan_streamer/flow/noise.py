"""Random numbers that belong to the rows of a batch."""

from collections.abc import Iterable

import torch
from torch import Tensor


class RowNoise:
    """Noise of one training step, every row of the batch from a generator of its own.

    A row sees the same numbers however the batch is split over processes and micro-batches, so that their gradients
    add up to those of one process. Small numbers are drawn on the CPU, so that devices compare; `like` draws on the
    device, because the CPU takes as long for the noise of a batch as a GPU for the whole step.

    generators  one per row, for what draws numbers row by row
    """

    def __init__(self, seed: int, step: int, rows: Iterable[int]) -> None:
        self.generators = [torch.Generator().manual_seed((seed * 1_000_003 + step) * 65_537 + row) for row in rows]
        self._there: list[torch.Generator] = []  # the same on the device

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers; `shape` begins with the number of rows, or a multiple: so many for each in turn."""
        return self._draw(torch.randn, shape)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers in [0, 1); `shape` as for `normal`."""
        return self._draw(torch.rand, shape)

    def like(self, z_B: Tensor) -> Tensor:
        """Standard normal numbers in the shape of `z_B` and on its device; its first axis is as for `normal`."""
        if z_B.device.type == "cpu":
            return self.normal(tuple(z_B.shape))
        if not self._there:
            seeds = [generator.initial_seed() for generator in self.generators]
            self._there = [torch.Generator(z_B.device).manual_seed(seed) for seed in seeds]
        each = len(z_B) // len(self._there)
        return torch.cat([torch.randn((each, *z_B.shape[1:]), generator=g, device=z_B.device) for g in self._there])

    def _draw(self, make, shape: tuple[int, ...]) -> Tensor:
        each, left = divmod(shape[0], len(self.generators))
        assert not left, f"expected a multiple of {len(self.generators)} rows, got {shape[0]}"
        return torch.cat([make((each, *shape[1:]), generator=generator) for generator in self.generators])

"""Numbers with confidence: `rate` (Wilson); `average`, `balanced`, `pooled` (bootstrap over trials); `wasserstein`.

A trial that failed counts as zero or as the worst value; it is never left out. Without trials a metric is NaN.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Better = Literal["higher", "lower"]
Z = 1.959964  # two-sided 95 %
RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """value with its 95 % interval low..high from n trials; which direction is better; a unit and a note to print.

    perfect  what an agent without fault gets, where that is known
    """

    value: float
    low: float
    high: float
    n: int
    better: Better = "higher"
    unit: str = ""
    note: str = ""
    perfect: float = math.nan


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson score interval of a share, 95 %. Without trials it is 0..1."""
    if n == 0:
        return 0.0, 1.0
    share, square = hits / n, Z * Z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def rate(outcomes: Sequence[bool], better: Better = "higher") -> Metric:
    """Share of true outcomes."""
    hits, n = sum(map(bool, outcomes)), len(outcomes)
    perfect = 1.0 if better == "higher" else 0.0
    return Metric(hits / n if n else math.nan, *wilson(hits, n), n, better, perfect=perfect)


def average(
    values: Sequence[float] | Sequence[tuple[int, ...]],
    better: Better = "higher",
    unit: str = "",
    statistic: Callable[..., float] = np.mean,
    seed: int = 0,
) -> Metric:
    """A statistic of one value (or row of counts) per trial, with a percentile bootstrap interval."""
    data = np.asarray(values, float)
    if not len(data):
        return Metric(math.nan, math.nan, math.nan, 0, better, unit)
    picks = np.random.default_rng(seed).integers(0, len(data), (RESAMPLES, len(data)))
    by_row = statistic in (np.mean, np.median)  # a thousand calls of a statistic take longer than a short trial
    spread = statistic(data[picks], axis=1) if by_row else [float(statistic(data[row])) for row in picks]
    low, high = np.percentile(spread, [2.5, 97.5])
    return Metric(float(statistic(data)), float(low), float(high), len(data), better, unit)


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples of any sizes, in their unit."""
    a, b = np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))
    every = np.sort(np.concatenate([a, b]))
    share_a = np.searchsorted(a, every[:-1], "right") / len(a)
    share_b = np.searchsorted(b, every[:-1], "right") / len(b)
    return float(np.sum(np.abs(share_a - share_b) * np.diff(every)))


def balanced(a: Sequence[bool], b: Sequence[bool], seed: int = 0) -> Metric:
    """Mean of two rates, so that a bias to one side gains nothing; bootstrap over both."""
    if not len(a) or not len(b):
        return Metric(math.nan, math.nan, math.nan, len(a) + len(b))
    rng, pair = np.random.default_rng(seed), (np.asarray(a, float), np.asarray(b, float))
    spread = sum(side[rng.integers(0, len(side), (RESAMPLES, len(side)))].mean(1) for side in pair) / 2
    low, high = np.percentile(spread, [2.5, 97.5])
    return Metric(float(sum(side.mean() for side in pair) / 2), float(low), float(high), len(a) + len(b), perfect=1.0)


def pooled(
    counts: Sequence[float], sizes: Sequence[float], better: Better = "higher", unit: str = "", seed: int = 0
) -> Metric:
    """Sum of counts over sum of sizes (errors over words, events over minutes), bootstrap over trials."""
    top, bottom = np.asarray(counts, float), np.asarray(sizes, float)
    if not bottom.sum():
        return Metric(math.nan, math.nan, math.nan, 0, better, unit)
    picks = np.random.default_rng(seed).integers(0, len(top), (RESAMPLES, len(top)))
    spread = top[picks].sum(1) / np.maximum(bottom[picks].sum(1), 1e-9)
    low, high = np.percentile(spread, [2.5, 97.5])
    return Metric(float(top.sum() / bottom.sum()), float(low), float(high), len(top), better, unit)

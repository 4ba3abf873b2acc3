"""Means of numbers that not every batch has: a batch says "not a number" for what its data does not have.

`mean_of`   of some values;   `means`   of rows of named numbers
"""

import math
from collections.abc import Iterable, Mapping, Sequence


def mean_of(values: Iterable[float]) -> float:
    """The mean of the finite ones, not a number if there is none."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Name -> mean over the rows that have it, by name; what no row has is left out, so that nothing shows a "nan"."""
    names = sorted({name for row in rows for name in row})
    found = {name: mean_of(row[name] for row in rows if name in row) for name in names}
    return {name: value for name, value in found.items() if math.isfinite(value)}

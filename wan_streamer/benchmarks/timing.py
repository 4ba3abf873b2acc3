"""Fair timings on one machine: contenders take turns, so that what disturbs one disturbs all.

`Contender`    one codec in streaming use: it keeps its state from unit to unit
`take_turns`   rounds of A B C A B C after a warm-up -> seconds of every call
`spread`       p50 and p95 in ms;   `gflop`   floating point operations of one unit
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

WARMUP_UNITS = 3
HEAVY_SECONDS = 1.0  # a contender that needs longer for a unit plays `HEAVY_UNITS` rounds only
HEAVY_UNITS = 4


class Contender(Protocol):
    """Encodes and decodes the next unit of a stream at every call."""

    @property
    def parameters(self) -> int:
        """Number of weights of encoder and decoder together."""

    def encode(self) -> Any:
        """The code of the next unit."""

    def decode(self, code: Any) -> Any:
        """Sound or pictures of that code."""


@dataclass
class Seconds:
    """Seconds of every measured call, in order."""

    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


@torch.inference_mode()
def take_turns(
    contenders: dict[str, Contender], units: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Seconds]:
    """Every contender's seconds for `units` units each, fewer for heavy ones."""
    rounds = {}
    for name, contender in contenders.items():
        for _ in range(WARMUP_UNITS):
            last = _one_unit(contender, clock)
            if sum(last) > HEAVY_SECONDS:
                break
        rounds[name] = min(units, HEAVY_UNITS) if sum(last) > HEAVY_SECONDS else units
    measured = {name: Seconds() for name in contenders}
    for turn in range(units):
        for name, contender in contenders.items():
            if turn < rounds[name]:
                encode, decode = _one_unit(contender, clock)
                measured[name].encode.append(encode)
                measured[name].decode.append(decode)
    return measured


def _one_unit(contender: Contender, clock: Callable[[], float]) -> tuple[float, float]:
    start = clock()
    code = contender.encode()
    middle = clock()
    contender.decode(code)
    return middle - start, clock() - middle


def spread(seconds: list[float]) -> dict[str, float]:
    """{"p50": ms, "p95": ms}."""
    p50, p95 = np.percentile(np.asarray(seconds) * 1000, (50, 95))
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


@torch.inference_mode()
def gflop(contender: Contender) -> float:
    """10^9 floating point operations (two for a multiply-add) of one unit's matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        contender.decode(contender.encode())
    return round(counter.get_total_flops() / 1e9, 3)


def ratio(ours: dict, peer: dict) -> float:
    """How many times longer the peer's median unit takes, encode and decode together."""

    def total(row: dict) -> float:
        return row["encode_ms"]["p50"] + row["decode_ms"]["p50"]

    return round(total(peer) / total(ours), 2)

"""A stimulus meets an agent.

`Agent`     anything with `step(UserUnit) -> AgentUnit`
`play`      one trial from begin to end -> `Recording`; both sides are on the clock of the units
`Pieces`    collects what an agent does; `play` uses it, and long conversations take it piece by piece
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from wan_streamer.evaluation.records import UNIT_S, Recording
from wan_streamer.units import AgentUnit, UserUnit


class Agent(Protocol):
    """What can be evaluated. One call per 160 ms, in order; it must not look at anything but its argument."""

    def step(self, user: UserUnit) -> AgentUnit: ...


class Pieces:
    """The agent's side, unit by unit."""

    def __init__(self) -> None:
        self._units: list[AgentUnit] = []

    def add(self, unit: AgentUnit) -> None:
        self._units.append(unit)

    def recording(self) -> Recording:
        """Everything so far."""
        units = self._units
        said: list[tuple[float, str]] = []
        heard: list[tuple[float, str]] = []
        for k, unit in enumerate(units):
            for text, pieces in ((unit.text, said), (unit.transcript, heard)):
                if text:
                    pieces.append((round(k * UNIT_S, 3), text))
        stages = {name: [unit.stage_ms.get(name, 0.0) for unit in units] for name in units[0].stage_ms} if units else {}
        return Recording(
            np.concatenate([unit.audio for unit in units]) if units else np.zeros(0, np.float32),
            np.concatenate([unit.video for unit in units]) if units else None,
            said,
            heard,
            stages,
        )


def play(agent: Agent, units: Iterable[UserUnit]) -> Recording:
    """What the agent does while it hears and sees these units, as fast as it can (simulated time)."""
    pieces = Pieces()
    for unit in units:
        pieces.add(agent.step(unit))
    return pieces.recording()

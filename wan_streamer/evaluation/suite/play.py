"""A stimulus meets an agent.

`play`      one trial from begin to end -> `Recording`; both sides are on the clock of the units
"""

from collections.abc import Iterable

import numpy as np

from wan_streamer.evaluation.records import Recording
from wan_streamer.runtime.clock import Session
from wan_streamer.units import UNIT_S, UserUnit


def play(session: Session, user: Iterable[UserUnit]) -> Recording:
    """What the agent does while it hears and sees these units, as fast as it can (simulated time)."""
    units = [session.step(unit) for unit in user]
    said: list[tuple[float, str]] = []
    heard: list[tuple[float, str]] = []
    for k, unit in enumerate(units):
        for text, pieces in ((unit.text, said), (unit.transcript, heard)):
            if text:
                pieces.append((round(k * UNIT_S, 3), text))
    return Recording(
        np.concatenate([unit.audio for unit in units]) if units else np.zeros(0, np.float32),
        np.concatenate([unit.video for unit in units]) if units else None,
        said,
        heard,
        {name: [unit.stage_ms.get(name, 0.0) for unit in units] for name in units[0].stage_ms} if units else {},
    )

"""A stimulus meets an agent.

`play`      one trial from begin to end -> `Recording`; both sides are on the clock of the units
"""

from collections.abc import Iterable

import numpy as np

from wan_streamer.evaluation.records import Recording
from wan_streamer.runtime.clock import Session
from wan_streamer.units import UNIT_S, UserUnit


def play(session: Session, user: Iterable[UserUnit], pictures: bool = True) -> Recording:
    """What the agent does while it hears and sees these units, as fast as it can (simulated time).

    pictures  False: nobody looks, so long trials fit into memory
    """
    said: list[tuple[float, str]] = []
    heard: list[tuple[float, str]] = []
    sound, film, stage_ms = [np.zeros(0, np.float32)], [], list[dict[str, float]]()
    turn = 0  # where in what it heard the user's turn begins
    for k, unit in enumerate(map(session.step, user)):
        for text, pieces in ((unit.text, said), (unit.transcript, heard)):
            if text:
                pieces.append((round(k * UNIT_S, 3), text))
        if unit.whole:
            heard[turn:] = [(heard[turn][0], f" {unit.whole}")]
        turn = len(heard) if "transcript" in unit.ended else turn
        sound.append(unit.audio)
        stage_ms.append(unit.stage_ms)
        if pictures:
            film.append(unit.video)
    names = stage_ms[0] if stage_ms else ()
    return Recording(
        np.concatenate(sound),
        np.concatenate(film) if film else None,
        said,
        heard,
        {name: [ms.get(name, 0.0) for ms in stage_ms] for name in names},
    )

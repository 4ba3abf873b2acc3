"""A stimulus meets an agent.

`play`      one trial from begin to end -> `Recording`; both sides are on the clock of the units
"""

from collections.abc import Iterable

import numpy as np

from wan_streamer.data.captions import Heard
from wan_streamer.evaluation.records import Recording
from wan_streamer.runtime.clock import Session
from wan_streamer.units import UNIT_S, UserUnit


def play(session: Session, user: Iterable[UserUnit], pictures: bool = True) -> Recording:
    """What the agent does while it hears and sees these units, as fast as it can (simulated time).

    pictures  False: nobody looks, so long trials fit into memory
    """
    said: list[tuple[float, str]] = []
    heard = Heard()
    sound, film, stage_ms = [np.zeros(0, np.float32)], [], list[dict[str, float]]()
    for k, unit in enumerate(map(session.step, user)):
        if unit.text:
            said.append((round(k * UNIT_S, 3), unit.text))
        heard.add(k, unit)
        sound.append(unit.audio)
        stage_ms.append(unit.stage_ms)
        if pictures:
            film.append(unit.video)
    names = stage_ms[0] if stage_ms else ()
    return Recording(
        np.concatenate(sound),
        np.concatenate(film) if film else None,
        said,
        [(round(k * UNIT_S, 3), text) for k, text in heard.pieces],
        {name: [ms.get(name, 0.0) for ms in stage_ms] for name in names},
    )

"""The shipped agents do what they are for, on a recording that no training has met."""

from pathlib import Path

import numpy as np
import pytest
from tiny import EMBEDDED_AGENTS

from wan_streamer import UserUnit, WanStreamer
from wan_streamer.data.media import read_units

HELLO = Path(__file__).parent.parent / "examples" / "hello.mp4"
GREETING = 14  # units, in the middle of which "Hello." is said


@pytest.fixture(scope="module", params=EMBEDDED_AGENTS)
def agent(request: pytest.FixtureRequest) -> WanStreamer:
    return WanStreamer.from_pretrained(request.param)


def heard(agent: WanStreamer, units: list[UserUnit]) -> str:
    session = agent.session(seed=0)
    return "".join(session.step(unit).transcript for unit in units)


def test_a_shipped_agent_hears(agent: WanStreamer) -> None:
    """What it writes down follows the user's sound and nothing else: not the picture, not the passing of time."""
    units = [unit for _, unit in zip(range(GREETING), read_units(HELLO), strict=False)]
    mute = [UserUnit(np.zeros_like(unit.audio), unit.video) for unit in units]
    assert heard(agent, units).strip() == "Hello."
    assert heard(agent, mute) == ""

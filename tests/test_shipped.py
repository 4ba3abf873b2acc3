"""The shipped agents do what they are for, on a recording that no training has met."""

from pathlib import Path

import numpy as np
import pytest
from tiny import EMBEDDED_AGENTS

from wan_streamer import UserUnit, WanStreamer
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.data.media import read_units
from wan_streamer.flow.joint import each
from wan_streamer.flow.live import UnitDecoder

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


def test_the_light_decoder_draws_the_same_face_in_motion(agent: WanStreamer) -> None:
    weights, session = agent.weights, agent.session(seed=0)
    latents = []
    for _, unit in zip(range(2 * GREETING), read_units(HELLO), strict=False):
        session.step(unit)
        latents.append(session.last)

    def film(vae: VideoVAE) -> np.ndarray:
        decoder = UnitDecoder(agent.config, weights.audio_vae, vae)
        return np.concatenate([decoder.decode(each(lambda z: z[None], z))[1] for z in latents]).astype(np.float32)

    def decibels(one: np.ndarray, other: np.ndarray) -> float:
        return float(10 * np.log10(255**2 / ((one - other) ** 2).mean()))

    assert weights.light_vae is not None
    full, light = film(weights.video_vae), film(weights.light_vae)
    assert decibels(light, full) > 34
    assert decibels(light, full) > decibels(full[:1], full) + 2, "a still picture is no film"

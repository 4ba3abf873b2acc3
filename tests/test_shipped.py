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
from wan_streamer.model.inspect import BESIDE, describe_checkpoint
from wan_streamer.model.layout import Latents

HELLO = Path(__file__).parent.parent / "examples" / "hello.mp4"
GREETING, QUESTION = 14, 40  # units, by whose ends "Hello." and "What is your name?" have been said


@pytest.fixture(scope="module", params=EMBEDDED_AGENTS)
def agent(request: pytest.FixtureRequest) -> WanStreamer:
    return WanStreamer.from_pretrained(request.param)


def units(count: int) -> list[UserUnit]:
    return [unit for _, unit in zip(range(count), read_units(HELLO), strict=False)]


def talk(agent: WanStreamer, given: list[UserUnit]) -> tuple[list[str], list[Latents]]:
    """What it writes down of every unit, and what it answers before it is decoded."""
    session, heard, latents = agent.session(seed=0), [], []
    for unit in given:
        heard.append(session.step(unit).transcript)
        latents.append(session.last)
    return heard, latents


@pytest.fixture(scope="module")
def greeted(agent: WanStreamer) -> tuple[list[str], list[Latents]]:
    return talk(agent, units(QUESTION))


def test_a_shipped_agent_hears(agent: WanStreamer, greeted: tuple[list[str], list[Latents]]) -> None:
    """What it writes down follows the user's sound and nothing else: not the picture, not the passing of time."""
    mute = [UserUnit(np.zeros_like(unit.audio), unit.video) for unit in units(QUESTION)]
    assert "".join(greeted[0][:GREETING]).strip()
    assert "".join(greeted[0][GREETING:]).strip() == "What is your name?"
    assert "".join(talk(agent, mute)[0]) == ""


def test_the_light_decoder_draws_the_same_face_in_motion(
    agent: WanStreamer, greeted: tuple[list[str], list[Latents]]
) -> None:
    weights, latents = agent.weights, greeted[1][: 2 * GREETING]

    def film(vae: VideoVAE) -> np.ndarray:
        decoder = UnitDecoder(agent.config, weights.audio_vae, vae)
        return np.concatenate([decoder.decode(each(lambda z: z[None], z))[1] for z in latents]).astype(np.float32)

    def decibels(one: np.ndarray, other: np.ndarray) -> float:
        return float(10 * np.log10(255**2 / ((one - other) ** 2).mean()))

    assert weights.light_vae is not None
    full, light = film(weights.video_vae), film(weights.light_vae)
    assert decibels(light, full) > 34
    assert decibels(light, full) > decibels(full[:1], full) + 2, "a still picture is no film"


@pytest.mark.parametrize("name", EMBEDDED_AGENTS)
def test_it_can_be_looked_at(name: str) -> None:
    """`inspect` knows its parts without loading it; they are those that it has."""
    parts = describe_checkpoint(name)["parameters"]
    agent = WanStreamer.from_pretrained(name)
    streamer = agent.weights.streamer
    assert parts["total"] > sum(p.numel() for p in streamer.parameters())
    for part in BESIDE:
        own = getattr(streamer, part)
        assert parts.get(part, 0) == (0 if own is None else sum(p.numel() for p in own.parameters()))

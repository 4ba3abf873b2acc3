"""A session that is saved and loaded, or taken over by another, goes on bit for bit."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_memory_data import remembering
from test_session import all_same, user_units
from tiny import SAYING, TALKER, tiny_weights

from wan_streamer import WanStreamer
from wan_streamer.cli.app import main
from wan_streamer.config import StreamerConfig, TextConfig
from wan_streamer.errors import CheckpointError, DataError
from wan_streamer.model.pretrained import Weights
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.state import (
    STATES,
    describe_session,
    load_session,
    resume_session,
    save_session,
    session_state,
)
from wan_streamer.tensors import flatten, rebuild

DRAWING = dataclasses.replace(TALKER, text=TextConfig(vocab_size=272, temperature=1.0, start_bias=3.0))


@pytest.mark.parametrize(
    "config", [TALKER, DRAWING, remembering(), SAYING], ids=["plain", "drawing", "memory", "sounds"]
)
@pytest.mark.parametrize("at", [0, 1, 11])
@pytest.mark.parametrize("settled", [False, True])
def test_a_file_goes_on_bit_for_bit(config: StreamerConfig, at: int, settled: bool, tmp_path: Path) -> None:
    weights, units = WanStreamer(tiny_weights(config=config), "tiny").weights, user_units(3, 18)
    session = Session(weights, seed=5, steps=1, start_bias=0.5)
    for unit in units[:at]:
        session.step(unit)
    if settled:
        session.settle()
    save_session(session, weights, tmp_path / "s.safetensors")
    expected = [session.step(unit) for unit in units[at:]]
    again = load_session(weights, tmp_path / "s.safetensors")
    assert (again.seed, again.index) == (5, at)
    assert all_same([again.step(unit) for unit in units[at:]], expected)


def test_a_state_is_not_changed_by_the_session_it_was_taken_of() -> None:
    weights, units = WanStreamer(tiny_weights(), "tiny").weights, user_units(4, 16)
    session = Session(weights, seed=1)
    for unit in units[:8]:
        session.step(unit)
    state = session_state(session)
    expected = [session.step(unit) for unit in units[8:]]
    for _ in range(2):
        other = Session(weights)
        resume_session(other, state)
        assert all_same([other.step(unit) for unit in units[8:]], expected)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Weights, Path]:
    weights = WanStreamer(tiny_weights(), "tiny").weights
    session = Session(weights)
    session.step(user_units()[0])
    save_session(session, weights, tmp_path / "s.safetensors")
    return weights, tmp_path / "s.safetensors"


def test_other_weights_are_refused(saved: tuple[Weights, Path]) -> None:
    with pytest.raises(CheckpointError, match="other weights"):
        load_session(WanStreamer(tiny_weights(seed=1), "tiny").weights, saved[1])


def test_what_is_no_session_is_refused(saved: tuple[Weights, Path], tmp_path: Path) -> None:
    weights, path = saved
    with pytest.raises(CheckpointError, match="not found"):
        load_session(weights, tmp_path / "none")
    half, other = tmp_path / "half", tmp_path / "other"
    half.write_bytes(path.read_bytes()[:-100])
    save_file(load_file(path), other)
    for file, words in ((half, "damaged"), (other, "version 10, got None")):
        with pytest.raises(CheckpointError, match=words):
            load_session(weights, file)


def test_records_hold_what_they_were_made_of() -> None:
    weights = WanStreamer(tiny_weights(), "tiny").weights
    session = Session(weights)
    session.step(user_units()[0])
    state = session_state(session)
    outline, tensors = flatten(state)
    again = rebuild(outline, tensors, STATES)
    assert flatten(again)[0] == outline
    assert all(a is b for a, b in zip(flatten(again)[1], tensors, strict=True))
    plain = {"a": [1, None, (2.5, "x")], "b": b"\0\xff"}
    assert rebuild(*flatten(plain), ()) == plain
    for wrong in (["record", "Unknown", {}], ["tensor", 9], ["list"], ["record", "Latents", {"x": 1}]):
        with pytest.raises(DataError):
            rebuild(wrong, [torch.zeros(1)], STATES)
    with pytest.raises(TypeError, match="set"):
        flatten({1, 2})


def test_a_file_is_described(saved: tuple[Weights, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    weights, path = saved
    session = load_session(weights, path)
    described = describe_session(path)
    assert described["weights"] == weights.fingerprint
    assert described["units"] == session.index
    assert described["history"]["tokens"] == session.live.cache.length
    assert described["bytes"] <= path.stat().st_size
    monkeypatch.setattr(sys, "argv", ["wan-streamer", "inspect", str(path)])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert weights.fingerprint in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="damaged"):
        describe_session(Path(__file__))

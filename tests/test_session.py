"""A live session: deterministic, causal, and the same after a round trip through a checkpoint folder."""

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TALKER, assert_close, tiny_weights
from tiny_world import save_codecs

from wan_streamer import AgentUnit, UserUnit, WanStreamer
from wan_streamer.codecs.text import END, SILENCE
from wan_streamer.config import FlowConfig, TextConfig
from wan_streamer.errors import CheckpointError, ConfigError, ShapeError
from wan_streamer.flow.joint import stack
from wan_streamer.flow.live import UnitDecoder
from wan_streamer.flow.sampler import TokenSampler
from wan_streamer.model.cache import LiveState
from wan_streamer.model.inspect import describe_checkpoint
from wan_streamer.model.layout import LANES, Latents
from wan_streamer.runtime import session as session_module
from wan_streamer.runtime.clock import UnitDriver
from wan_streamer.units import SAMPLES_PER_UNIT

UNITS = 8  # more than any window of the tiny agent


def user_units(seed: int = 0, count: int = UNITS) -> list[UserUnit]:
    """Sound, pictures and typed text, with the microphone and the camera off now and then."""
    rng = np.random.default_rng(seed)
    units = []
    for number in range(count):
        audio = (rng.standard_normal(SAMPLES_PER_UNIT) * 0.2).astype(np.float32)
        video = rng.integers(0, 256, (4, 50, 70, 3), dtype=np.uint8)
        text = "hello" if number % 4 == 1 else ""
        units.append(UserUnit(audio if number % 5 != 3 else None, video if number % 3 != 2 else None, text))
    return units


def talk(agent: WanStreamer, units: Iterable[UserUnit], seed: int = 0, steps: int | None = None) -> list[AgentUnit]:
    session = agent.session(seed=seed)
    return [session.step(unit, steps) for unit in units]


def same(a: AgentUnit, b: AgentUnit) -> bool:
    words = (a.index, a.text, a.transcript) == (b.index, b.text, b.transcript)
    return words and np.array_equal(a.audio, b.audio) and np.array_equal(a.video, b.video)


def all_same(a: list[AgentUnit], b: list[AgentUnit]) -> bool:
    return all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def agent() -> WanStreamer:
    return WanStreamer(tiny_weights(), "tiny")


def test_answer_has_the_promised_types(agent: WanStreamer) -> None:
    answers = talk(agent, user_units())
    assert [answer.index for answer in answers] == list(range(UNITS))
    for answer in answers:
        assert (answer.audio.dtype, answer.audio.shape) == (np.float32, (SAMPLES_PER_UNIT,))
        assert (answer.video.dtype, answer.video.shape) == (np.uint8, (4, *agent.frame_size, 3))
        assert np.abs(answer.audio).max() <= 1
        assert list(answer.stage_ms) == ["observe", "text", "solve", "decode"]
        assert not answer.held
    assert np.std([answer.audio for answer in answers]) > 1e-3
    assert any(answer.text for answer in answers)
    assert any(answer.transcript for answer in answers)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_seed_decides(temperature: float) -> None:
    config = dataclasses.replace(TALKER, text=dataclasses.replace(TALKER.text, temperature=temperature))
    agent = WanStreamer(tiny_weights(config=config), "tiny")
    first = talk(agent, user_units(), seed=3)
    assert all_same(first, talk(agent, user_units(), seed=3))
    other = talk(agent, user_units(), seed=4)
    assert not any(np.array_equal(a.audio, b.audio) for a, b in zip(first, other, strict=True))
    assert not any(np.array_equal(a.video, b.video) for a, b in zip(first, other, strict=True))


def with_options(text: dict | None = None, flow: dict | None = None) -> WanStreamer:
    changed = {
        "text": TextConfig(vocab_size=TALKER.text.vocab_size, **(text or {})),
        "flow": FlowConfig(**(flow or {})),
    }
    return WanStreamer(tiny_weights(config=dataclasses.replace(TALKER, **changed)), "tiny")


def test_the_checkpoint_holds_the_default_seed() -> None:
    agent = with_options(text={"temperature": 1.0}, flow={"seed": 7})
    sessions = agent.session(), agent.session(7), agent.session(8)
    default, named, other = (session.step(UserUnit()) for session in sessions)
    assert np.array_equal(default.audio, named.audio)
    assert not np.array_equal(default.audio, other.audio)


def test_start_bias_decides_who_speaks_up() -> None:
    """Only the agent's own words, and only between its utterances."""
    for bias, silent, expected in ((-1e3, True, {True}), (1e3, True, {False}), (-1e3, False, {True, False})):
        session = with_options(text={"temperature": 1.0, "start_bias": bias}).session(seed=3)
        sampler = TokenSampler(session.config.text, session.noise)
        tokens = []
        for _ in range(60):
            sampler.silent = silent
            tokens.append(sampler(torch.zeros(2, 4)).tolist())
        assert {response == SILENCE for response, _ in tokens} == expected
        assert {transcript for _, transcript in tokens} == {0, 1, 2, 3}
    session = with_options(text={"start_bias": -1e3}).session()
    assert not any(session.step(unit).text for unit in user_units())
    assert session.sampler.silent


def test_what_is_emitted_is_what_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The history of a unit begins with the latents that the unit before sent out; the first one with silence."""
    agent = WanStreamer(tiny_weights(), "tiny")
    streamer, committed = agent.weights.streamer, []
    settle = streamer.settle

    def noting(live: LiveState, last: Latents) -> None:
        if not live.settled:
            committed.append(last)
        settle(live, last)

    monkeypatch.setattr(streamer, "settle", noting)
    session, emitted = agent.session(seed=0), [streamer.silence()]
    decoder = UnitDecoder(agent.config, agent.audio_vae, agent.video_vae)
    for unit in user_units():
        answer = session.step(unit)
        emitted.append(session.last)
        sound, frames = decoder.decode(stack([session.last]))
        assert np.array_equal(sound, answer.audio)
        assert np.array_equal(frames, answer.video)
    assert len(committed) == UNITS
    for before, after in zip(committed, emitted, strict=False):
        assert_close(before, after, 0)
    assert (emitted[1].audio - emitted[2].audio).abs().max() > 0.1


def test_what_is_done_between_two_units_changes_none(agent: WanStreamer) -> None:
    units, session = user_units(), agent.session(seed=1)
    answers = []
    for number, unit in enumerate(units):
        for _ in range(number % 3):
            session.settle()
        if number % 3:
            cache = session.live.cache
            assert cache.block == number
            assert int((cache.block_M[: cache.length] == number).sum()) == session.streamer.layout.clean.stop
        answers.append(session.step(unit))
        assert session.live.cache.block == number
    assert all_same(answers, talk(agent, units, seed=1))


def test_sessions_side_by_side_do_not_meet(agent: WanStreamer) -> None:
    alone = talk(agent, user_units(0), seed=1), talk(agent, user_units(9), seed=2)
    one, two = agent.session(seed=1), agent.session(seed=2)
    together = [(one.step(a), two.step(b)) for a, b in zip(user_units(0), user_units(9), strict=True)]
    assert all_same([pair[0] for pair in together], alone[0])
    assert all_same([pair[1] for pair in together], alone[1])


@pytest.mark.parametrize("what", ["audio", "video", "text", "everything"])
@pytest.mark.parametrize("k", [0, 1, 6])
def test_what_the_user_does_cannot_reach_earlier_units(agent: WanStreamer, k: int, what: str) -> None:
    """The future cannot alter the past, from the user's senses to what leaves the session, bit for bit."""
    units, others = user_units(0), user_units(1)
    if what == "text":
        others = [dataclasses.replace(unit, text=f"stop {unit.text}") for unit in units]
    elif what != "everything":
        others = [dataclasses.replace(a, **{what: getattr(b, what)}) for a, b in zip(units, others, strict=True)]
    before, after = talk(agent, units), talk(agent, units[:k] + others[k:])
    assert all_same(before[:k], after[:k])
    assert not any(np.array_equal(a.audio, b.audio) for a, b in zip(before[k:], after[k:], strict=True))


def test_long_text_arrives_over_several_units(agent: WanStreamer) -> None:
    """Two tokens fit into a unit; the rest waits and nothing is dropped. A message ends with END, as in training."""
    session = agent.session()
    session.step(UserUnit(text="xyzxyz"))
    assert len(session.typed) == 5
    assert session.typed[-1] == END
    session.step(UserUnit(text="q"))
    assert len(session.typed) == 5
    for _ in range(3):
        session.step(UserUnit())
    assert not session.typed


def test_number_of_solver_steps(agent: WanStreamer) -> None:
    units = user_units()[:3]
    assert all_same(talk(agent, units), talk(agent, units, steps=agent.default_steps))
    assert not same(talk(agent, units)[0], talk(agent, units, steps=1)[0])
    with pytest.raises(ConfigError, match=r"flow\.steps: expected 1 to 1000, got 0"):
        agent.session().step(UserUnit(), steps=0)


@pytest.mark.parametrize(
    "bad",
    [
        {"audio": np.zeros(SAMPLES_PER_UNIT - 1, np.float32)},
        {"audio": np.zeros(SAMPLES_PER_UNIT, np.int16)},
        {"audio": np.full(SAMPLES_PER_UNIT, np.nan, np.float32)},
        {"video": np.zeros((3, 50, 70, 3), np.uint8)},
        {"video": np.zeros((4, 50, 70), np.uint8)},
    ],
    ids=["short", "int16", "nan", "three frames", "grey"],
)
def test_bad_units_are_refused(bad: dict) -> None:
    with pytest.raises(ShapeError, match="expected"):
        UserUnit(**bad)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (48, 48), (97, 31)])
def test_pictures_of_any_size(agent: WanStreamer, size: tuple[int, int]) -> None:
    video = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    assert talk(agent, [UserUnit(video=video)])[0].video.shape == (4, 96, 96, 3)


def test_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu"):
        WanStreamer(tiny_weights(), "tiny", device="toaster")


# ---- checkpoints


@pytest.fixture
def folder(agent: WanStreamer, tmp_path: Path) -> Path:
    agent.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_checkpoint_round_trip(agent: WanStreamer, folder: Path, tmp_path: Path) -> None:
    loaded = WanStreamer.from_pretrained(folder)
    assert loaded.config == agent.config
    assert loaded.name == "tiny"
    assert all_same(talk(agent, user_units()), talk(loaded, user_units()))
    loaded.save_pretrained(tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_codecs_of_another_agent_are_refused(folder: Path) -> None:
    other = tiny_weights(seed=1)
    save_codecs(other.audio_vae, other.video_vae, folder)
    with pytest.raises(CheckpointError, match="trained on codecs"):
        WanStreamer.from_pretrained(folder)
    assert describe_checkpoint(str(folder))["codecs"]["belong_together"].startswith("NO")


def test_a_model_that_does_not_name_its_codecs_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors")  # without metadata
    with pytest.raises(CheckpointError, match="trained on codecs unknown"):
        WanStreamer.from_pretrained(folder)


def test_the_hash_of_codecs_is_that_of_both() -> None:
    weights = tiny_weights()
    hashes = {weights.codec_hash}
    for codec in (weights.audio_vae, weights.video_vae):
        for name in ("stats.mean_C", "dec_in.weight", "enc_out.bias"):
            value = codec.state_dict()[name].view(-1)
            value[0] += 1
            hashes.add(weights.codec_hash)
            value[0] -= 1
    assert len(hashes) == 7
    assert weights.codec_hash == tiny_weights().codec_hash


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["backbone"]["mlp_dim"] += 16
    (folder / "config.json").write_text(json.dumps(config))
    for read in (WanStreamer.from_pretrained, lambda name: describe_checkpoint(str(name))):
        with pytest.raises(CheckpointError, match=r"mlp.*expected \[.*got \["):
            read(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "audio_vae.safetensors", "tokenizer.json", "config.json"])
def test_damaged_checkpoints_are_refused(name: str, folder: Path) -> None:
    data = (folder / name).read_bytes()
    for damaged in (data[: len(data) // 2], b"", None):
        (folder / name).unlink()
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        with pytest.raises((CheckpointError, ConfigError), match=name):
            WanStreamer.from_pretrained(folder)
        (folder / name).write_bytes(data)
    assert WanStreamer.from_pretrained(folder).name == "tiny"


def test_missing_checkpoint_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found nothing.*built-in one \(nano\)"):
        WanStreamer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="found an empty folder"):
        WanStreamer.from_pretrained(tmp_path)


def test_pickled_weights_are_never_loaded(folder: Path, tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    shutil.copy(folder / "model.safetensors", tmp_path)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="damaged"):
        WanStreamer.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_end_at_their_unit(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture rests, the sound fades, the unit is counted, and the session goes on with what it had."""
    session = WanStreamer(tiny_weights(), "tiny").session()
    users, whole = user_units(), session._draw

    def draw(*args: Any) -> Latents:
        latents = whole(*args)
        if session.index == 3:
            latents.audio[0, 0] = wrong
        return latents

    monkeypatch.setattr(session, "_draw", draw)
    driver = UnitDriver(session, 2, (96, 96), policy=False)
    units = [driver.step(user, 0.0) for user in users]
    assert [unit.broken for unit in units] == [k == 3 for k in range(len(units))]
    assert driver.summary()["broken_units"] == 1
    assert (units[3].video == units[2].video[-1]).all()
    assert not units[3].audio[240:].any(), "the sound has faded"
    assert abs(units[3].audio[0] - units[2].audio[-1]) <= abs(units[2].audio[-1]) / 2 + 1e-6
    for unit in units:
        assert np.isfinite(unit.audio).all()
    assert not (units[5].video == units[3].video).all(), "it goes on"


def test_a_unit_says_whose_turn_has_ended(agent: WanStreamer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's token for the end of a turn, of either lane."""
    ends = {1: ("response",), 3: ("transcript",), 4: ("response", "transcript")}
    session, live_unit = agent.session(seed=0), session_module.live_unit

    def forced(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, Latents]:
        token_SL, latents = live_unit(*args, **kwargs)
        token_SL = torch.full_like(token_SL, SILENCE)
        for lane in ends.get(session.index, ()):
            token_SL[-1, LANES.index(lane)] = END
        return token_SL, latents

    monkeypatch.setattr(session_module, "live_unit", forced)
    assert {k: out.ended for k in range(6) if (out := session.step(UserUnit())).ended} == ends

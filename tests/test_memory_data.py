"""The text memory in data, stages, sessions and checkpoints."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import TALKER, tiny_text, tiny_weights
from tiny_world import make_latents

from wan_streamer import UserUnit, WanStreamer, presets
from wan_streamer.codecs.text import END
from wan_streamer.config import CacheConfig, StreamerConfig, from_dict, to_dict
from wan_streamer.errors import CheckpointError, ConfigError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.inspect import describe_preset
from wan_streamer.model.memory import PADDING, SOURCES, latest
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.clips import ClipReader, Example, hide, stack
from wan_streamer.training.examples.conversations import ConversationClips
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.duplex import DuplexStage

SIZE, UNITS = 12, 5
RESPONSE, TRANSCRIPT, TYPED = range(len(SOURCES))


def remembering(size: int = SIZE) -> StreamerConfig:
    return dataclasses.replace(TALKER, cache=dataclasses.replace(TALKER.cache, memory_tokens=size))


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=16)


def duplex_stage(latents: Path, config: StreamerConfig, **options: float) -> DuplexStage:
    numbers = TrainConfig(steps=10, lr=5e-3, batch=2, warmup=20, clip_units=UNITS, precision="fp32")
    torch.manual_seed(0)
    return DuplexStage(Streamer(config), tiny_text(), latents, dataclasses.replace(numbers, **options))


@pytest.fixture
def reader(latents: Path) -> ClipReader:
    return duplex_stage(latents, remembering()).train_clips


def said_in(example: Example) -> dict[str, str]:
    """What each source says in the memory of one clip."""
    rows = example.clips.memory_BM2[0].tolist()
    return {name: tiny_text().decode([t for s, t in rows if s == i]) for i, name in enumerate(SOURCES)}


def test_memory_of_a_clip_is_what_was_said_before(reader: ClipReader) -> None:
    """The user has said "hello", then the agent "one two"; 12 tokens, of which the ends of their turns are two."""
    nothing, whole = (reader.read(0, first) for first in (0, 11))
    assert nothing.clips.memory_BM2.tolist() == [[[PADDING, PADDING]] * SIZE]
    assert said_in(whole) == {"response": "one two", "transcript": "hello", "typed": ""}
    ends = whole.clips.memory_BM2[0]
    assert sorted(ends[ends[:, 1] == END, 0].tolist()) == [RESPONSE, TRANSCRIPT]
    text, lanes = (torch.from_numpy(part) for part in reader.lanes(0, False))
    assert not (text > 1).any()
    pairs = [
        [source, int(lanes[k, slot, source])]
        for k in range(4)
        for slot in range(2)
        for source in (RESPONSE, TRANSCRIPT)
        if lanes[k, slot, source] > 1
    ]
    assert len(pairs) > 2
    assert torch.equal(reader.read(0, 4).clips.memory_BM2[0], latest(torch.tensor(pairs), SIZE))
    assert said_in(reader.read(0, 11, typed=True)) == {"response": "one two", "transcript": "", "typed": "hello"}


def test_no_memory_without_a_memory(latents: Path) -> None:
    stage = duplex_stage(latents, TALKER)
    assert stage.batch(0, range(2)).clips.memory_BM2.shape == (2, 0, 2)


def test_hide(reader: ClipReader) -> None:
    spoken, typed = reader.read(0, 11), reader.read(0, 11, typed=True)
    for example in (spoken, typed):
        assert said_in(hide(example, user=True)) == {"response": "one two", "transcript": "", "typed": ""}
        assert not any(said_in(hide(example, memory=True)).values())
        assert said_in(hide(example, history=True)) == said_in(example)
    assert not hide(spoken, text=True).clips.written_BK.any()  # `tests/test_memory.py` shows that this hides its words


def test_some_clips_have_forgotten(latents: Path) -> None:
    """A tenth, and none of those that are held out. Nothing else of a batch depends on the memory."""
    stage, plain = duplex_stage(latents, remembering()), duplex_stage(latents, TALKER)
    rows = range(400)
    reader = stage.train_clips
    talks, others = stage.train_talks, plain.train_talks
    reader.read = lambda number, first, *rest, **named: ClipReader.read(reader, number, 11, *rest, **named)  # type: ignore[method-assign]
    forgotten = (talks.batch(0, 0, rows).clips.memory_BM2[..., 0] == PADDING).all(1)
    assert forgotten.float().mean() == pytest.approx(0.1, abs=0.05)
    del reader.read
    for one, other in ((talks.batch(0, 1, range(8)), others.batch(0, 1, range(8))),):
        for name in ("user_audio", "user_video", "slot_BKSL", "written_BK"):
            assert torch.equal(getattr(one.clips, name), getattr(other.clips, name)), name
    valid = ConversationClips(stage.valid_clips, latents).valid(0, range(100)).clips
    assert ((valid.memory_BM2[..., 0] == PADDING).all(1) == False).any()  # noqa: E712


def test_clips_longer_than_the_text_window_are_refused(latents: Path) -> None:
    duplex_stage(latents, TALKER, clip_units=UNITS + 1)
    with pytest.raises(ConfigError, match=r"at most cache\.text_units = 5 units in a model with a memory, got 6"):
        duplex_stage(latents, remembering(), clip_units=UNITS + 1)


def test_a_step_trains_the_memory(latents: Path) -> None:
    stage = duplex_stage(latents, remembering())
    example = stack(stage.train_clips.read(0, first) for first in (0, 11))
    loss, _ = stage.loss(example, 9, RowNoise(0, 0, range(2)))
    loss.backward()
    used = stage.streamer.memory_in.grad.abs().amax(1) > 0
    assert used.tolist() == [True, True, False], "nothing was typed"


def test_config(tmp_path: Path) -> None:
    old = to_dict(StreamerConfig())
    assert old["cache"].pop("memory_tokens") == 0
    assert from_dict(StreamerConfig, old) == StreamerConfig()
    assert from_dict(StreamerConfig, to_dict(remembering())) == remembering()
    for wrong in ({"memory_tokens": -1}, {"memory_tokens": 3, "policy": "full"}, {"memory_tokens": 3, "text_units": 0}):
        with pytest.raises(ConfigError, match=r"cache\.memory_tokens: expected"):
            CacheConfig(**wrong)
    with pytest.raises(ConfigError, match=r"cache\.memory_span: expected at most memory_tokens, 3, got 4"):
        CacheConfig(memory_tokens=3, memory_span=4)
    with pytest.raises(ConfigError, match=r"unknown key 'memory_token'"):
        from_dict(CacheConfig, {"memory_token": 3})


def test_session_and_checkpoint(tmp_path: Path) -> None:
    """What was typed is remembered once it has left the window, through a checkpoint as well."""
    weights = tiny_weights(config=remembering())
    WanStreamer(weights, "tiny").save_pretrained(tmp_path)
    agents = (WanStreamer(weights, "tiny"), WanStreamer.from_pretrained(tmp_path))
    units = [UserUnit(text="hello" if number == 0 else "") for number in range(8)]
    sessions = [agent.session(seed=0) for agent in agents]
    for session in sessions:
        embedded = []
        embed = session.streamer._embed_memory
        session.streamer._embed_memory = lambda memory: embedded.extend(memory.tolist()) or embed(memory)  # noqa: B023
        for unit in units:
            session.step(unit)
        del session.streamer._embed_memory
        assert tiny_text().decode([token for source, token in embedded if source == TYPED]) == "hello"
    rows = [session.live.cache.memory(SIZE) for session in sessions]
    assert rows[0].shape[2] > 0
    assert torch.equal(rows[0], rows[1])
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('_tokens": 12', '_tokens": 0'))
    with pytest.raises(CheckpointError, match="memory_in is unknown"):
        WanStreamer.from_pretrained(tmp_path)


def test_memory_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: remembering())
    monkeypatch.setitem(presets.PRESETS, "plain", lambda: TALKER)
    described, plain = describe_preset("tiny"), describe_preset("plain")
    sinks_of_text = TALKER.cache.sink_units * 8
    expected = plain["history"]["visible_tokens"] - sinks_of_text + SIZE
    assert described["history"]["visible_tokens"] == expected
    assert described["parameters"]["total"] == plain["parameters"]["total"] + 3 * TALKER.backbone.dim
    assert described["gflop"]["unit"] != plain["gflop"]["unit"]

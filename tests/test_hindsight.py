"""Hindsight: what a turn is read from once it is over; how it learns."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reader_training import UNITS, talks_of
from test_reading import CONFIG as READING
from test_reading import FRAMES, livened, resumed
from test_wording import SMALL as WORDING
from tiny import tiny_text, tiny_weights
from tiny_ears import SMALL, said_corpus
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.errors import CheckpointError, ConfigError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.packing import PackedLinear
from wan_streamer.model.pretrained import Weights, load_weights, save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.hindsight import Hindsight
from wan_streamer.perception.reading import latest_sound
from wan_streamer.runtime.formats import Formats, apply_formats
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.state import resume_session, session_state
from wan_streamer.training.ears import teacher as teachers
from wan_streamer.training.loop.alone import AloneOptions
from wan_streamer.training.reader import hindsight as stages
from wan_streamer.training.reader import streams
from wan_streamer.training.reader.hindsight import CONFIG as NUMBERS
from wan_streamer.training.reader.hindsight import FOLDER, HindsightStage, train_hindsight
from wan_streamer.units import SAMPLES_PER_UNIT, UserUnit

MOST = 8
LOOKS_BACK = dataclasses.replace(
    READING, wording=WORDING, perception=dataclasses.replace(READING.perception, reading_again=MOST, hindsight=2)
)


def looking_back() -> Hindsight:
    """One whose layers do something."""
    made = Hindsight(SMALL, 2)
    g = torch.Generator().manual_seed(3)
    for p in made.parameters():
        if p.ndim == 2:
            p.data.copy_(torch.randn(p.shape, generator=g) * p.shape[1] ** -0.5)
    return made.eval().requires_grad_(False)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**16))
def test_every_frame_knows_what_comes_behind_it_and_no_other_turn(units: int, more: int, seed: int) -> None:
    """Not what stands behind the end of a shorter turn, whatever it is."""
    made, g = looking_back(), torch.Generator().manual_seed(seed)
    turn = torch.randn(1, units * FRAMES, SMALL.width, generator=g)
    alone = made(turn)
    padded = torch.cat([turn, 100 * torch.randn(1, more * FRAMES, SMALL.width, generator=g)], 1)
    real = torch.arange(padded.shape[1])[None] < turn.shape[1]
    torch.testing.assert_close(made(padded, real)[:, : turn.shape[1]], alone, atol=1e-4, rtol=1e-3)
    turn[0, -1, :5] += 1
    assert not torch.allclose(made(turn)[0, 0], alone[0, 0], atol=1e-4)


def test_it_begins_with_what_the_ears_made() -> None:
    torch.manual_seed(0)
    heard = torch.randn(2, 3 * FRAMES, SMALL.width)
    assert torch.equal(Hindsight(SMALL, 3)(heard), heard)
    assert torch.equal(Streamer(LOOKS_BACK).hindsight(heard), heard)


def test_it_needs_turns_that_are_read_again() -> None:
    with pytest.raises(ConfigError, match=r"perception\.hindsight: expected 0 where no turn is read as a whole"):
        dataclasses.replace(READING.perception, hindsight=1)
    with pytest.raises(ConfigError, match=r"perception\.hindsight"):
        dataclasses.replace(LOOKS_BACK.perception, reading=0)


def agent() -> Weights:
    torch.manual_seed(0)
    model = Streamer(LOOKS_BACK).eval()
    livened(model.reading)
    model.hindsight.load_state_dict(looking_back().state_dict())
    return dataclasses.replace(tiny_weights(), config=LOOKS_BACK, streamer=model, text=tiny_text())


def units_of_sound(count: int) -> list[UserUnit]:
    g = torch.Generator().manual_seed(4)
    return [UserUnit(0.1 * torch.randn(SAMPLES_PER_UNIT, generator=g).numpy(), None) for _ in range(count)]


def test_a_turn_is_read_from_what_it_makes_of_its_units() -> None:
    """Of the latest ones and no others, from what the ears made of them."""
    weights, heard = agent(), []
    model, session = weights.streamer, Session(weights, seed=3)
    model.hearing.register_forward_hook(lambda _, __, made: heard.append(made[0]))
    for unit in units_of_sound(MOST + 3):
        session.step(unit)
    assert len(session.live.features) == MOST
    assert len(session.live.heard) == READING.perception.reading_units  # more is not looked at
    for units in (1, MOST):
        sound = model._sound(session.live, units)
        expected = model.reading.sound(model.hindsight(torch.cat(heard[-units:], 1)))
        plain = model.reading.sound(torch.cat(heard[-units:], 1))
        for pair, other, without in zip(sound, expected, plain, strict=True):
            for one, two, three in zip(pair, other, without, strict=True):
                torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
                assert not torch.allclose(one, three, atol=1e-2)
    model.hindsight = None
    for pair, other in zip(model._sound(session.live, 2), latest_sound(session.live.heard, 2), strict=True):
        assert all(torch.equal(one, two) for one, two in zip(pair, other, strict=True))


def test_a_turn_is_heard_again_once_in_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is asked what was said."""
    weights, heard, asked = agent(), [], []
    model = weights.streamer
    model.hindsight.register_forward_hook(lambda _, __, made: heard.append(made.shape[1] // FRAMES))
    whole = model._whole
    monkeypatch.setattr(model, "_whole", lambda *given: asked.append(len(heard)) or whole(*given))
    odds = torch.full((READING.text.vocab_size,), np.log(0.9 / READING.text.vocab_size))
    monkeypatch.setattr(model, "_settled", lambda *_: odds)  # it may speak
    session, slots = Session(weights, seed=3), iter([[SILENCE, 9], [SILENCE, HOLD]] * 6)
    monkeypatch.setattr(session, "sampler", lambda _: torch.tensor(next(slots)))
    for unit in units_of_sound(6):
        session.step(unit)
    assert heard == [*range(1, 7)]  # all of the turn, also where the reader looks back less in a unit
    assert READING.perception.reading_units < 6
    assert len(asked) > len(heard)


def test_what_it_needs_is_part_of_a_session() -> None:
    first = resumed(agent())
    assert len(first.live.features) == 7
    other = Session(agent(), seed=9)
    for unit in units_of_sound(2):
        other.step(unit)
    resume_session(other, session_state(first))
    assert all(torch.equal(one, two) for one, two in zip(first.live.features, other.live.features, strict=True))


def test_its_weights_are_packed_as_those_of_the_ears() -> None:
    weights = agent()
    apply_formats(weights, Formats("half", "float32"))
    linear = [part for part in weights.streamer.hindsight.modules() if isinstance(part, torch.nn.Linear)]
    assert linear
    assert all(isinstance(part, PackedLinear) for part in linear)


# ---- training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return said_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def reads_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent that reads turns as a whole, without hindsight."""
    folder = tmp_path_factory.mktemp("agent")
    perception = dataclasses.replace(READING.perception, reading_again=MOST)
    weights = tiny_weights(config=dataclasses.replace(READING, perception=perception))
    livened(weights.streamer.reading)
    save_weights(weights, folder)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short streams, and a small teacher with weights of its own."""
    monkeypatch.setattr(streams, "UNITS", UNITS)

    def teacher() -> teachers.Teacher:
        torch.manual_seed(8)
        return teachers.Teacher(teachers.Ears(SMALL).state_dict(), SMALL)

    monkeypatch.setattr(stages, "Teacher", teacher)


def stage(corpus: Path, agent: Path, talks: tuple[Path, ...] = ()) -> HindsightStage:
    return HindsightStage(corpus, agent, dataclasses.replace(NUMBERS, batch=2, precision="fp32"), talks, layers=1)


def test_what_the_teacher_hears_stands_where_the_clips_are(corpus: Path, reads_again: Path) -> None:
    training = stage(corpus, reads_again)
    batch = training.batch(5, range(2))
    again = stage(corpus, reads_again).batch(5, range(2))
    assert all(torch.equal(one, other) for one, other in zip(batch, again, strict=True))
    counted = 0
    for row in range(2):
        stream = training.train_streams.streams.make(5, row)
        rest = torch.ones(UNITS * FRAMES, dtype=torch.bool)
        for one in stream.placed:
            here = slice(one.first * FRAMES, (one.first + one.units) * FRAMES)
            (*_, taught) = training.teacher(torch.from_numpy(one.clean_T)[None])
            torch.testing.assert_close(batch.target_BTD[row, here].float(), taught[0], atol=2e-2, rtol=1e-2)
            assert batch.trust_BT[row, here].tolist() == pytest.approx([0.4] * (here.stop - here.start))
            rest[here] = False
            counted += 1
        assert not batch.trust_BT[row, rest].any()
        heard, _ = training.ears(torch.from_numpy(stream.audio_T)[None])
        torch.testing.assert_close(batch.heard_BTD[row].float(), heard[0], atol=2e-2, rtol=1e-2)
    assert counted > 2


def test_what_is_heard_comes_again(corpus: Path, reads_again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same streams; which texts of them, and how much of those is heard, is new."""
    monkeypatch.setattr(stages, "POOL", 3)
    training, made = stage(corpus, reads_again), []
    monkeypatch.setattr(training, "_made", None)
    assert training.batch(1, range(2)) is training.batch(4, range(2))
    assert training.batch(1, range(2)) is not training.batch(2, range(2))
    texts = stages.whole_texts
    monkeypatch.setattr(stages, "whole_texts", lambda *given: made.append(texts(*given)) or made[-1])
    for step in (1, 4):
        training.loss(training.batch(step, range(2)), step, RowNoise(0, step, range(2)))
    assert not torch.equal(made[0].near_BEK, made[1].near_BEK)


def test_steps_lower_the_loss_and_make_texts_readable(corpus: Path, reads_again: Path) -> None:
    training = stage(corpus, reads_again)
    optimiser = torch.optim.AdamW(training.hindsight.parameters(), lr=1e-2)
    batch, found = training.batch(0, range(2)), []
    for _ in range(60):
        loss, numbers = training.loss(batch, 0, RowNoise(0, 0, range(2)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append({name: float(value.detach()) for name, value in numbers.items()} | {"loss": loss.item()})
    assert found[-1]["loss"] < 0.6 * found[0]["loss"]
    assert found[-1]["text"] < 0.6 * found[0]["text"]
    assert found[-1]["cosine"] < 0.8 * found[0]["cosine"]
    assert found[-1]["right"] > found[0]["right"]
    assert all(weight.grad is None for part in (training.reader, training.ears) for weight in part.parameters())


def test_a_text_is_read_from_its_own_sound(corpus: Path, reads_again: Path) -> None:
    """What is heard elsewhere in the stream changes nothing."""
    training = stage(corpus, reads_again)
    training.hindsight.load_state_dict(
        {k: v for k, v in looking_back().state_dict().items() if k in training.hindsight.state_dict()}
    )
    batch = training.batch(0, range(2))
    texts = stages.whole_texts(batch.written_BKS, stages.TEXTS, torch.Generator().manual_seed(0))
    heard = (texts.near_BEK & (texts.text_BEN[..., 1:2] > END)).any(1).repeat_interleave(FRAMES, 1)
    assert heard.any()
    assert not heard.all()
    changed = batch._replace(heard_BTD=torch.where(heard[..., None], batch.heard_BTD, 9.0))
    other = batch._replace(heard_BTD=torch.where(heard[..., None], 9.0, batch.heard_BTD))
    losses = [training.loss(one, 0, RowNoise(0, 0, range(2)))[0].item() for one in (batch, changed, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] != pytest.approx(losses[0], rel=1e-2)


def test_of_conversations_the_text_is_learned(corpus: Path, reads_again: Path, tmp_path: Path) -> None:
    """In every second batch, and a stretch without any text is no step at all."""
    folder = talks_of(tmp_path / "talks", reads_again)
    training = stage(corpus, reads_again, (folder,))
    assert [bool(training.batch(step, range(2)).trust_BT.any()) for step in range(4)] == [True, False] * 2
    batch = training.batch(1, range(4))
    loss, numbers = training.loss(batch, 1, RowNoise(0, 1, range(4)))
    assert float(numbers["cosine"]) == float(numbers["square"]) == 0
    assert loss.item() == pytest.approx(stages.PARTS.text * float(numbers["text"]))
    silent = batch._replace(written_BKS=torch.zeros_like(batch.written_BKS))
    loss, _ = training.loss(silent, 1, RowNoise(0, 1, range(4)))
    loss.backward()
    assert loss.item() == 0
    assert {"text", "right", "talks/text", "talks/right"} <= training.validate().keys()


def test_a_run_changes_the_hindsight_alone_and_goes_on_exactly(corpus: Path, reads_again: Path, tmp_path: Path) -> None:
    options = AloneOptions(steps=4, batch=2, device="cpu")
    train_hindsight(corpus, reads_again, tmp_path / "whole", options)
    train_hindsight(corpus, reads_again, tmp_path / "parts", dataclasses.replace(options, minutes=0.0))
    train_hindsight(corpus, reads_again, tmp_path / "parts", dataclasses.replace(options, resume=True))
    whole, parts = (load_weights(tmp_path / name / FOLDER) for name in ("whole", "parts"))
    started = load_weights(reads_again)
    perception = dataclasses.replace(started.config.perception, hindsight=stages.LAYERS)
    assert whole.config == dataclasses.replace(started.config, perception=perception)
    before, mine, theirs = (one.streamer.state_dict() for one in (started, whole, parts))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert {name for name, value in mine.items() if name not in before} == {
        name for name in mine if name.startswith("hindsight.")
    }
    assert all(torch.equal(value, mine[name]) for name, value in before.items())
    assert mine["hindsight.layers.0.out.weight"].abs().sum() > 0


def test_an_agent_that_reads_no_turns_has_nothing_to_learn(corpus: Path, tmp_path: Path) -> None:
    weights = tiny_weights(config=READING)
    save_weights(weights, tmp_path / "once")
    line = ["train", "hindsight", "--data", str(corpus), "--from", str(tmp_path / "once"), "--out", str(tmp_path / "r")]
    result = CliRunner().invoke(app, line)
    assert isinstance(result.exception, CheckpointError)
    assert "expected an agent that reads turns as a whole" in str(result.exception)

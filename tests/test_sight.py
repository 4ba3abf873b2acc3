"""Names of what is seen: a read-out of the eyes; what it tells, what it changes, what a run leaves."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reading import CONFIG as READING
from test_reading import livened
from test_wording import SMALL as WORDING
from tiny import tiny_text, tiny_weights
from tiny_clips import heard_clip, noisy_latents, one_pass, unit_by_unit
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.codecs.text import END
from wan_streamer.config import SightConfig, StreamerConfig
from wan_streamer.errors import CheckpointError, ConfigError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import ClipBatch
from wan_streamer.model.memory import TRANSCRIPT
from wan_streamer.model.pretrained import load_weights, save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.sight import LEAST, Sight, described
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.state import resume_session, session_state
from wan_streamer.speaking.wording import Likely, how_sure
from wan_streamer.training.eyes.labels import CLASSES
from wan_streamer.training.loop.alone import AloneOptions
from wan_streamer.training.sight import stage as stages
from wan_streamer.training.sight.stage import CONFIG as NUMBERS
from wan_streamer.training.sight.stage import FOLDER, SightStage, names_of, train_sight
from wan_streamer.training.stages.adopt import adopt
from wan_streamer.units import UserUnit

COLOURS, THINGS = (10, 11, 12), (20, 21)
SMALL = SightConfig(colours=COLOURS, things=THINGS, dim=8, keep=0.5, weight=2.0)
EYED = dataclasses.replace(READING, perception=dataclasses.replace(READING.perception, seeing="eyes"), wording=WORDING)
CONFIG = dataclasses.replace(EYED, sight=SMALL)
VOCAB, FEATURES, TOKENS = CONFIG.text.vocab_size, 7, 3


def sight() -> Sight:
    torch.manual_seed(1)
    return Sight(SMALL, FEATURES, VOCAB).eval()


def logs(*p: float) -> torch.Tensor:
    return torch.tensor(p).log()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_what_is_seen_adds_up_and_fades(cameras: list[bool]) -> None:
    """A unit counts half as much in the next one; while the camera is off, nothing is added."""
    made, g = sight(), torch.Generator().manual_seed(0)
    units = torch.randn(len(cameras), TOKENS, FEATURES, generator=g)
    evidence = made.begin()
    for seen, camera in zip(units, cameras, strict=True):
        evidence = made.follow(evidence, seen, torch.tensor(camera))
    age = torch.arange(len(cameras) - 1, -1, -1)
    shares = 0.5**age * torch.tensor(cameras)
    torch.testing.assert_close(evidence, (shares[:, None] * made(units)).sum(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made(units)[:, :3].exp().sum(1), torch.ones(len(cameras)))
    torch.testing.assert_close(made(units)[:, 3:].exp().sum(1), torch.ones(len(cameras)))


def test_one_token_tells_what_it_is() -> None:
    """The order of the tokens means nothing, since a thing may be anywhere."""
    made, seen = sight(), torch.randn(TOKENS, FEATURES, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(made(seen), made(seen.flip(0)))
    assert not torch.allclose(made(seen), made(seen.roll(1, dims=1)), atol=1e-3)


def test_names_that_are_not_seen_become_unlikely() -> None:
    made = sight()
    evidence = torch.cat([logs(0.7, 0.2, 0.1), logs(0.1, 0.3, 0.6)])
    words = made.words(evidence)
    held = 0.9
    assert words[10] == 0  # the likeliest colour, and the likeliest thing
    assert words[21] == 0
    torch.testing.assert_close(words[11], held * logs(0.2 / 0.7)[0])
    torch.testing.assert_close(words[20], held * logs(0.5)[0])
    others = torch.ones(VOCAB, dtype=torch.bool)
    others[[*COLOURS, *THINGS]] = False
    assert not words[others].any()
    sure = torch.cat([logs(1.0, 1e-12, 1e-12), logs(1e-12, 1e-12, 1.0)])
    torch.testing.assert_close(made.words(sure)[[11, 20]], torch.full((2,), LEAST))
    nothing = torch.cat([logs(0.7, 0.2, 0.1), logs(1.0, 1e-12, 1e-9)])
    torch.testing.assert_close(made.words(nothing), torch.zeros(VOCAB), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.words(made.begin()), torch.zeros(VOCAB))  # before anything is seen


def test_what_is_held_up_has_a_name() -> None:
    named = Sight(dataclasses.replace(SMALL, names=("red", "blue", "green", "cup", "hat")), FEATURES, VOCAB).eval()
    assert named.held(logs(0.1, 0.2, 0.7, 0.3, 0.1, 0.6)) == "green hat"
    assert named.held(logs(0.8, 0.1, 0.1, 0.3, 0.6, 0.1)) == "red cup"
    assert named.held(logs(0.8, 0.1, 0.1, 0.6, 0.3, 0.1)) == ""
    assert named.held(logs(0.8, 0.1, 0.1, 0.2, 0.4, 0.4)) == ""  # which one?
    assert named.held(named.begin()) == ""  # while the camera is off
    assert sight().held(logs(0.8, 0.1, 0.1, 0.4, 0.5, 0.1)) == ""  # one that has no names
    with pytest.raises(ConfigError, match="expected 5 names or none, got 1"):
        dataclasses.replace(CONFIG, sight=dataclasses.replace(SMALL, names=("red",)))


def test_it_counts_where_the_wording_cannot_know() -> None:
    logits, words = torch.zeros(2, VOCAB), torch.zeros(2, VOCAB)
    words[:, 11] = -1.0
    told = described(logits, words, torch.tensor([0.0, 1.0]), SMALL)
    assert told[0, 11] == -2.0
    assert not told[1].any()
    word = torch.full((2, VOCAB), 1e-6)
    word[0, 11] = word[0, END] = 0.5  # half of it is that nothing is said
    word[1, 11] = word[1, 12] = 0.25
    sure = how_sure(Likely(word.log(), torch.zeros(2)))
    torch.testing.assert_close(sure, torch.tensor([1.0, 0.5]), atol=1e-2, rtol=0)


def model_and_clip() -> tuple[Streamer, ClipBatch]:
    torch.manual_seed(0)
    model = Streamer(CONFIG).eval()
    livened(model.reading)
    for part in (model.sight.inner, *model.sight.what):
        torch.nn.init.normal_(part.weight)
    torch.nn.init.normal_(model.video_out.weight, std=0.2)
    torch.nn.init.normal_(model.audio_out.weight, std=0.2)
    return model, heard_clip(CONFIG)


def test_training_pass_equals_cached_rollout() -> None:
    model, clip = model_and_clip()
    noisy, tau = noisy_latents(clip)
    logits, live_logits = one_pass(model, clip, noisy, tau)[1], unit_by_unit(model, clip, noisy, tau)[1]
    torch.testing.assert_close(logits, live_logits, atol=1e-4, rtol=0)
    model.config = dataclasses.replace(CONFIG, sight=dataclasses.replace(SMALL, weight=0.0))
    plain = one_pass(model, clip, noisy, tau)[1]
    torch.testing.assert_close(logits[..., TRANSCRIPT, :], plain[..., TRANSCRIPT, :])
    changed = (logits - plain).abs().amax((0, 1, 2, 3)) > 1e-3
    named = set(changed.nonzero()[:, 0].tolist())
    assert named  # those that are always the likeliest do not change
    assert named < {*COLOURS, *THINGS}


def test_a_session_goes_on_with_what_was_seen() -> None:
    weights = dataclasses.replace(tiny_weights(), config=CONFIG, streamer=model_and_clip()[0], text=tiny_text())
    session, again = (Session(weights, seed=3) for _ in range(2))
    g = torch.Generator().manual_seed(4)
    for number in range(7):
        frames = torch.randint(0, 256, (4, 192, 336, 3), dtype=torch.uint8, generator=g).numpy()
        if number == 4:
            resume_session(again, session_state(session))
        outs = [one.step(UserUnit(None, frames)) for one in (session, again)[: 1 + (number > 3)]]
        assert len({out.text for out in outs}) == 1
    assert torch.equal(session.live.sight, again.live.sight)
    assert session.live.sight.abs().max() > 0


def test_an_agent_of_another_shape_keeps_a_sight_that_fits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = dataclasses.replace(tiny_weights(), config=CONFIG, streamer=Streamer(CONFIG), text=tiny_text())
    save_weights(weights, tmp_path)
    other = dataclasses.replace(CONFIG, sight=dataclasses.replace(SMALL, things=(20, 21, 22)))
    for config, kept in ((CONFIG, True), (EYED, False), (other, False)):
        torch.manual_seed(1)
        model = Streamer(config)
        fresh = None if model.sight is None else model.sight.inner.weight.clone()
        adopt(model, tmp_path, tiny_text())
        torch.testing.assert_close(model.text_in.weight, weights.streamer.text_in.weight, atol=1e-2, rtol=1e-2)
        if model.sight is not None:
            assert torch.equal(model.sight.inner.weight, fresh) != kept


def test_a_sight_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="sight: expected eyes that are trained before, and a wording"):
        StreamerConfig(sight=SMALL)
    with pytest.raises(ConfigError, match="sight: expected tokens below"):
        dataclasses.replace(CONFIG, sight=dataclasses.replace(SMALL, things=(VOCAB,)))


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    torch.manual_seed(0)
    save_weights(dataclasses.replace(tiny_weights(config=EYED), text=tiny_text()), folder)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "VALIDATED", 4)


def test_every_name_begins_with_its_own_token() -> None:
    text = tiny_text()
    names = names_of(text)
    assert len(names.colours) == len(CLASSES["colour"])
    assert len(names.things) == len(CLASSES["thing"]) - 1
    three = names.things[CLASSES["thing"].index("3") - 1]
    whole = text.encode("It is three")
    assert three == whole[len(text.encode("It is"))]
    assert names.names[len(names.colours) + CLASSES["thing"].index("3") - 1] == "three"
    assert len(names.names) == names.size


def test_most_clips_show_something_that_has_a_name(agent: Path) -> None:
    training = SightStage(agent, dataclasses.replace(NUMBERS, precision="fp32"))
    batch = training.batch(0, range(40))
    assert all(torch.equal(a, b) for a, b in zip(batch, training.batch(0, range(40)), strict=True))
    colour, thing = batch.names_B2.unbind(1)
    assert 20 < (thing > 0).sum() < 40
    assert ((colour >= 0) == (thing > 0)).all()
    assert not torch.equal(batch.frames_BTHWC[:4], training.batch(1, range(4)).frames_BTHWC)


def test_steps_lower_the_loss(agent: Path) -> None:
    training = SightStage(agent, dataclasses.replace(NUMBERS, precision="fp32"))
    optimiser = torch.optim.AdamW(training.sight.parameters(), lr=3e-2)
    batch, losses = training.batch(0, range(6)), []
    for _ in range(60):
        loss, numbers = training.loss(batch, 0, RowNoise(0, 0, range(6)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert {"colour", "thing"} == numbers.keys()


def test_a_run_resumes_exactly_and_changes_the_sight_alone(agent: Path, tmp_path: Path) -> None:
    before = load_weights(agent).streamer.state_dict()
    options = AloneOptions(steps=4, lr=3e-3, batch=2, device="cpu")
    train_sight(agent, tmp_path / "whole", options)
    train_sight(agent, tmp_path / "parts", dataclasses.replace(options, minutes=0.0))
    scores = train_sight(agent, tmp_path / "parts", dataclasses.replace(options, resume=True))
    assert {"right/thing"} <= scores.keys()
    whole, parts = (load_weights(tmp_path / name / FOLDER) for name in ("whole", "parts"))
    assert whole.config.sight == names_of(tiny_text())
    for name, value in whole.streamer.state_dict().items():
        assert torch.equal(value, parts.streamer.state_dict()[name]), name
        if not name.startswith("sight."):
            assert torch.equal(value, before[name]), name


def test_the_command_trains_an_agent(agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "CONFIG", dataclasses.replace(NUMBERS, batch=2))
    line = ["train", "sight", "--from", str(agent), "--out", str(tmp_path / "run"), "--steps", "2"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert load_weights(tmp_path / "run" / FOLDER).streamer.sight is not None


def test_an_agent_without_a_wording_has_nothing_to_name(tmp_path: Path) -> None:
    save_weights(tiny_weights(), tmp_path / "plain")
    with pytest.raises(CheckpointError, match="expected an agent with eyes and a wording"):
        train_sight(tmp_path / "plain", tmp_path / "run")

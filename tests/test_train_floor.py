"""A floor that learns whose turn it is: what it is told, what counts, what a run leaves."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_floor import SMALL
from test_reader_training import talks_of
from test_reading import CONFIG
from test_wording import SMALL as WORDING
from tiny import tiny_text, tiny_weights
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.errors import DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.pretrained import grown, load_weights, save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.speaking.floor import BRIEF, NOTHING, STOP, WORDS
from wan_streamer.training.examples.clips import told
from wan_streamer.training.examples.misheard import Heard
from wan_streamer.training.floor import stage as stages
from wan_streamer.training.floor import stretches
from wan_streamer.training.floor.stage import CONFIG as NUMBERS
from wan_streamer.training.floor.stage import FOLDER, FloorStage, train_floor
from wan_streamer.training.floor.stretches import IGNORED, RESPONSE, TRANSCRIPT, Stretches, stacked
from wan_streamer.training.loop.alone import AloneOptions

UNITS = 24


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    torch.manual_seed(0)
    save_weights(dataclasses.replace(tiny_weights(config=CONFIG), text=tiny_text()), folder)
    return folder


@pytest.fixture(scope="module")
def talks(agent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two conversations of 30 units in train, heard by the agent's ears."""
    return talks_of(tmp_path_factory.mktemp("talks"), agent)


@pytest.fixture(scope="module")
def heard(talks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those for training, held out, too."""
    folder = tmp_path_factory.mktemp("heard")
    for split in ("train", "valid"):
        (folder / split).symlink_to(talks / "train")
    for codec in talks.glob("*_vae.safetensors"):
        (folder / codec.name).symlink_to(codec)
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "UNITS", UNITS)
    monkeypatch.setattr(stages, "FloorConfig", lambda: SMALL)


def stage(agent: Path, *folders: Path, shown: tuple[Path, ...] = ()) -> FloorStage:
    return FloorStage(folders, shown, agent, dataclasses.replace(NUMBERS, batch=4, precision="fp32"))


def part_of(agent: Path, folder: Path, shown: bool = False) -> Stretches:
    weights = load_weights(agent)
    return Stretches(folder / "train", weights.streamer, weights.text, shown)


def test_a_stretch_is_what_was_heard_and_written(agent: Path, talks: Path) -> None:
    part = part_of(agent, talks)
    whole, stretch = part.row(0, 0, 30), part.row(0, 4, UNITS)
    lanes = torch.from_numpy(conversation_lanes(part.store.labels[0], CONFIG.text, tiny_text())[1])
    assert torch.equal(whole.before_BKSL[1:], lanes[:-1])
    assert not whole.before_BKSL[0].any()
    assert torch.equal(stretch.before_BKSL, lanes[3 : 3 + UNITS])
    assert torch.equal(whole.slot_BKS, lanes[..., RESPONSE])
    assert torch.equal(whole.heard, part.store.heard(0, 0, 30))
    assert torch.equal(stretch.heard, whole.heard[4 : 4 + UNITS])
    assert whole.there_BK3.tolist() == [[True, False, False]] * 30  # eyes that learn with the model see nothing here
    kinds = torch.where(lanes[..., RESPONSE] > END, WORDS, (lanes[..., RESPONSE] == END) * STOP)
    assert torch.equal(whole.kind_BKS, kinds)
    assert {NOTHING, STOP, WORDS} <= set(kinds.flatten().tolist())
    longer = part.row(0, 10, UNITS)
    assert (longer.kind_BKS[20:] == IGNORED).all()
    assert (longer.kind_BKS[:20] != IGNORED).all()
    assert not part_of(agent, talks, shown=True).row(0, 0, 30).there_BK3.any()


def test_words_of_a_listener_are_of_their_own_kind(agent: Path, talks: Path) -> None:
    part = part_of(agent, talks)
    labels = part.store.labels[0]
    said = next(event for event in labels["events"] if event["type"] == "speech" and event["side"] == "agent")
    turns = part.row(0, 0, 30).kind_BKS
    part.lanes.cache_clear()
    said["type"] = "backchannel"
    briefs = part.row(0, 0, 30).kind_BKS
    assert (briefs == BRIEF).any()
    assert torch.equal(torch.where(briefs == BRIEF, WORDS, briefs), turns)


def test_in_calls_words_are_misread_typed_and_microphones_off(
    agent: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, rng = part_of(agent, talks), np.random.default_rng(0)
    names, clean = ("TYPED", "DEAF", "MISREAD"), part.row(0, 0, 30)
    monkeypatch.setattr(stretches, "LATE", 0.0)
    for name in names:
        for other in names:
            monkeypatch.setattr(stretches, other, float(other == name))
        row = part.row(0, 0, 30, rng)
        transcript, was = row.before_BKSL[..., TRANSCRIPT], clean.before_BKSL[..., TRANSCRIPT]
        assert torch.equal(row.slot_BKS, clean.slot_BKS)
        assert torch.equal(row.before_BKSL[..., RESPONSE], clean.before_BKSL[..., RESPONSE])
        assert row.there_BK3[:, 0].all() == (name == "MISREAD")
        assert row.there_BK3[:, 2].any() == (name == "TYPED")
        if name == "MISREAD":
            assert ((transcript > END) == (was > END)).all()
            assert (transcript[was > END] != was[was > END]).float().mean() > 0.8
        elif name == "TYPED":
            assert (transcript == SILENCE).all()
        else:
            assert torch.equal(transcript, was)


def test_some_yield_late(agent: Path, talks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent has not stopped where it does in the conversation; what was written before stays the same."""
    for name, share in (("TYPED", 0.0), ("DEAF", 0.0), ("MISREAD", 0.0), ("LATE", 1.0)):
        monkeypatch.setattr(stretches, name, share)
    part = part_of(agent, talks)
    clean = part.row(0, 0, 30)
    flat = clean.slot_BKS.flatten()
    (end,) = (flat == END).nonzero()[:1, 0].tolist()
    part.store.labels[0]["events"].append({"type": "yield", "start": end // 2 * 0.16 + 0.01})
    monkeypatch.setattr(stretches, "VARIANTS", 40)
    monkeypatch.setattr(stretches, "MISHEARD", 0.0)
    found = set()
    for seed in range(80):
        late = part.row(0, 0, 30, np.random.default_rng(seed))
        words = late.slot_BKS.flatten()
        later = int((words == END).nonzero()[0])
        found.add(later - end)
        assert torch.equal(words[:end], flat[:end])
        assert (words[end:later] == HOLD).all()
        assert torch.equal(words[later + 1 :], flat[later + 1 :])
        assert torch.equal(late.before_BKSL[1:, :, RESPONSE], late.slot_BKS[:-1])
    assert found == {2 * units for units in range(1, max(found) // 2 + 1)}


def test_what_is_learned_is_what_a_session_is_told(agent: Path, heard: Path) -> None:
    """The loss of each slot is that of the odds that a session gets unit by unit; what is behind the end is none."""
    training = stage(agent, heard)
    torch.nn.init.normal_(training.floor.out.weight)
    row = stacked([training.train_parts[0].row(0, 0, UNITS)])
    row.kind_BKS[:, 20:] = IGNORED
    errors, brief, _ = training._errors(row, 0.0)
    past, before, expected = training.floor.begin(), row.before_BKSL[0, 0, -1, 0], []
    for unit in range(UNITS):
        sensed = (row.heard, row.there_BK3[..., 0], row.seen, row.there_BK3[..., 1], row.there_BK3[..., 2])
        odds, past = training.floor(*(x[:, unit : unit + 1] for x in (*sensed, row.before_BKSL)), past)
        for slot in range(2):
            kind = int(row.kind_BKS[0, unit, slot])
            told = odds.of(slot, before.view(1, 1))[0, 0]
            expected.append(-told[kind] if kind != IGNORED else torch.zeros(()))
            before = row.slot_BKS[0, unit, slot]
    torch.testing.assert_close(errors.flatten(), torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert brief == 0
    kinds = torch.where(row.kind_BKS == WORDS, BRIEF, row.kind_BKS)
    _, brief, before = training._errors(row._replace(kind_BKS=kinds), 0.0)
    begins = (kinds == BRIEF) & ((before == SILENCE) | (before == END))
    told = training.floor.brief[END + 1 :].log_softmax(-1)
    torch.testing.assert_close(brief, -told[row.slot_BKS[begins] - END - 1].sum())
    assert begins.any()


@pytest.fixture(scope="module")
def worded(agent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent with a wording."""
    folder, config = tmp_path_factory.mktemp("worded"), dataclasses.replace(CONFIG, wording=WORDING)
    save_weights(grown(load_weights(agent), config), folder)
    return folder


def test_a_wording_tells_what_it_has_read_before_every_unit(worded: Path, heard: Path) -> None:
    """As in a session, of which this is the floor's part; in calls of what was misheard."""
    training = stage(worded, heard)
    assert training.weights.config.floor == dataclasses.replace(SMALL, told_dim=stages.TOLD)
    (part,), wording = training.train_parts, training.weights.streamer.wording
    row = part.row(0, 0, 30)
    user, lanes = conversation_lanes(part.store.labels[0], CONFIG.text, tiny_text())
    talk = wording.read(wording.begin(), told(part.store.labels[0].get("before", ()), tiny_text()))
    for unit in range(30):
        torch.testing.assert_close(row.told_BKD[unit], talk.last_D, atol=2e-3, rtol=2e-3)
        for slot in range(2):
            said = [(source, int(token)) for source, token in enumerate(lanes[unit, slot]) if token > HOLD]
            talk = wording.read(talk, torch.tensor(said, dtype=torch.long).view(-1, 2))
    assert not (user > HOLD).any()
    assert torch.equal(part.row(0, 4, UNITS).told_BKD, row.told_BKD[4 : 4 + UNITS])
    training.floor.told.weight.data.mul_(5)
    torch.nn.init.normal_(training.floor.out.weight)
    batch = stacked([row])
    errors = training._errors(batch, 0.0)[0]
    assert not torch.allclose(training._errors(batch._replace(told_BKD=batch.told_BKD * 0), 0.0)[0], errors)
    loss, _ = training.loss(batch, 0, RowNoise(0, 0, range(1)))
    loss.backward()
    assert training.floor.told.weight.grad.abs().sum() > 0
    assert wording.words.weight.grad is None


def test_a_floor_that_nobody_told_begins_anew_where_it_does_not_fit(worded: Path, heard: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, wording=WORDING, floor=dataclasses.replace(SMALL, stop=0.5))
    save_weights(grown(load_weights(worded), config), tmp_path)
    before, training = load_weights(tmp_path).streamer.floor, stage(tmp_path, heard)
    assert training.weights.config.floor == dataclasses.replace(SMALL, stop=0.5, told_dim=stages.TOLD)
    assert torch.equal(training.floor.words.weight, before.words.weight)
    assert training.floor.enter.weight.shape[1] == before.enter.weight.shape[1] + stages.TOLD
    training.export(tmp_path / "out")
    assert stage(tmp_path / "out" / FOLDER, heard).floor.told.weight.equal(
        load_weights(tmp_path / "out" / FOLDER).streamer.floor.told.weight
    )


def test_in_calls_the_user_is_misheard(worded: Path, heard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reader: what is written, and what the wording makes of it, are of the same words."""
    (part,) = stage(worded, heard).train_parts
    for name in ("TYPED", "DEAF", "MISREAD", "LATE"):
        monkeypatch.setattr(stretches, name, 0.0)
    heard_words = []
    monkeypatch.setattr(
        Heard, "labels", lambda self, labels: heard_words.append(self.scale) or labels | {"words": _others(labels)}
    )
    monkeypatch.setattr(stretches, "MISHEARD", 1.0)
    clean, row = part.row(0, 0, 30), part.row(0, 0, 30, np.random.default_rng(0))
    transcript, was = row.before_BKSL[..., TRANSCRIPT], clean.before_BKSL[..., TRANSCRIPT]
    assert heard_words[0] > 0
    assert (was > END).any()
    assert not torch.equal(transcript, was)
    assert torch.equal(row.slot_BKS, clean.slot_BKS)
    assert not torch.allclose(row.told_BKD, clean.told_BKD, atol=1e-2)


def _others(labels: dict) -> dict:
    return labels["words"] | {"user": [word | {"text": "eight"} for word in labels["words"]["user"]]}


def test_every_step_is_of_one_folder_and_made_from_the_seed(agent: Path, heard: Path) -> None:
    training = stage(agent, heard, shown=(heard,))
    batches = [training.batch(step, range(3)) for step in range(12)]
    for step, batch in enumerate(batches):
        assert all(torch.equal(a, b) for a, b in zip(batch, training.batch(step, range(3)), strict=True))
    hears = {bool(batch.there_BK3[..., 0].any()) for batch in batches}
    assert hears == {True, False}
    assert {"loss", "quiet", "talking", "begin", "end", "wait"} <= training.validate().keys()


def test_steps_lower_the_loss(agent: Path, heard: Path) -> None:
    training = stage(agent, heard)
    optimiser = torch.optim.AdamW(training.floor.parameters(), lr=1e-2)
    batch, losses = training.batch(0, range(4)), []
    for _ in range(60):
        loss, numbers = training.loss(batch, 0, RowNoise(0, 0, range(4)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert {"quiet", "talking"} == numbers.keys()


def test_a_run_resumes_exactly_and_changes_the_floor_alone(agent: Path, heard: Path, tmp_path: Path) -> None:
    before = load_weights(agent).streamer.state_dict()
    options = AloneOptions(steps=6, lr=3e-3, batch=3, device="cpu")
    train_floor([heard], agent, tmp_path / "whole", options)
    train_floor([heard], agent, tmp_path / "parts", dataclasses.replace(options, minutes=0.0))
    train_floor([heard], agent, tmp_path / "parts", dataclasses.replace(options, resume=True))
    whole, parts = (load_weights(tmp_path / name / FOLDER) for name in ("whole", "parts"))
    assert whole.config.floor == SMALL
    for name, value in whole.streamer.state_dict().items():
        assert torch.equal(value, parts.streamer.state_dict()[name]), name
        if not name.startswith("floor."):
            assert torch.equal(value, before[name]), name


def test_the_command_trains_an_agent(agent: Path, heard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "CONFIG", dataclasses.replace(NUMBERS, batch=2))
    line = ["train", "floor", "--data", str(heard), "--shown", str(heard), "--from", str(agent)]
    result = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "run"), "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert load_weights(tmp_path / "run" / FOLDER).streamer.floor is not None


def test_conversations_of_other_ears_are_refused(heard: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = tiny_weights(config=CONFIG)
    save_weights(dataclasses.replace(other, streamer=Streamer(CONFIG)), tmp_path / "other")
    with pytest.raises(DataError, match="encode it with the agent's own"):
        stage(tmp_path / "other", heard)


def test_what_is_kept_as_it_sounded_is_heard_by_the_agent(agent: Path, talks: Path) -> None:
    training = stage(agent, talks)
    (part,) = training.valid_parts
    sound = part.store.heard(0, 0, 30)
    heard = training.weights.streamer.hearing(sound[None])[0][0]
    torch.testing.assert_close(part.row(0, 0, 30).heard.flatten(0, 1), heard)
    assert training.validate()["loss"] > 0

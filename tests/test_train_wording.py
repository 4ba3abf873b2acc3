"""A wording that learns what to say: what it reads, what counts, what a run leaves."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_wording import CONFIG, SMALL
from tiny import tiny_text, tiny_weights
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.codecs.text import END
from wan_streamer.errors import CheckpointError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.memory import PADDING, RESPONSE, TRANSCRIPT
from wan_streamer.model.pretrained import load_weights, save_weights
from wan_streamer.simulation.conversation.facts import QUIZ, quiz
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.partners import written_conversation
from wan_streamer.simulation.conversation.repertoire import AGENT
from wan_streamer.training.examples import misheard as hearing
from wan_streamer.training.examples.misheard import Heard, Misheard, mishearings, taken_for
from wan_streamer.training.loop.alone import AloneOptions
from wan_streamer.training.wording import stage as stages
from wan_streamer.training.wording import texts as made
from wan_streamer.training.wording.stage import CONFIG as NUMBERS
from wan_streamer.training.wording.stage import FOLDER, GOES_ON, WordingStage, train_wording, within_words
from wan_streamer.training.wording.texts import Texts, response_places, turn_places

LONG = made.LONG_EVERY - 1  # a step of long texts
PLAIN = dataclasses.replace(CONFIG, wording=None)
HEARD_RIGHT = Heard(0.0, np.random.default_rng(0))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    save_weights(dataclasses.replace(tiny_weights(config=PLAIN), text=tiny_text()), folder)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "WordingConfig", lambda: dataclasses.replace(SMALL, window=300))
    monkeypatch.setattr(made, "TOKENS", 64)
    monkeypatch.setattr(made, "LONG_TOKENS", 96)
    monkeypatch.setattr(stages, "VALID_ROWS", 4)


def stage(agent: Path) -> WordingStage:
    return WordingStage(agent, dataclasses.replace(NUMBERS, batch=4, precision="fp32"))


def test_texts_are_made_from_the_seed_and_of_one_split() -> None:
    train, valid = (Texts(split, CONFIG, tiny_text()) for split in ("train", "valid"))
    rows = range(12)
    batch = train.batch(3, 0, rows)
    assert torch.equal(batch, train.batch(3, 0, rows))
    assert torch.equal(train.batch(3, 0, range(4, 5))[0], batch[4][: len(train.batch(3, 0, range(4, 5))[0])])
    assert not torch.equal(batch[:, :20], valid.batch(3, 0, rows)[:, :20])
    assert batch.shape[1] <= made.TOKENS
    assert train.batch(3, LONG, rows).shape[0] == 3
    assert ((batch[..., 0] == PADDING) == (batch[..., 1] == PADDING)).all()
    assert (batch[..., 1][batch[..., 0] != PADDING] >= END).all()


def test_who_types_sends_whole_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their words stand where the last of them is known, and none between those of an utterance."""
    monkeypatch.setattr(made, "TYPED", 1.0)
    for number in range(6):
        labels = written_conversation(1, "train", number)
        said_N2 = Texts("train", CONFIG, tiny_text())._said(labels, np.random.default_rng(number), HEARD_RIGHT)
        assert TRANSCRIPT not in said_N2[:, 0]
        inside = False
        for who, token in said_N2.tolist():
            assert not inside or who == made.USERS
            inside = who == made.USERS and token != END


def test_what_is_misheard_is_nothing_that_the_agent_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "WRONG", 1.0)
    source, token = np.array([1, 1, 1, 0, 0, 0, 2]), np.array([50, 60, END, 60, 61, END, 51])
    heard = Heard(1.0, np.random.default_rng(0)).tokens(source, token, 90)
    assert heard[[1, 2, 3, 4, 5]].tolist() == [60, END, 60, 61, END]
    assert (heard[[0, 6]] > END).all()
    assert heard[0] != 50 or heard[6] != 51
    assert token[0] == 50
    assert HEARD_RIGHT.tokens(source, token, 90).tolist() == token.tolist()


def test_words_are_taken_for_others_as_a_reader_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In drills and in timed conversations, and only words of the user's that the agent does not say."""
    table = Misheard({"count": [(("count", "up"), "can't", 1.0)], "pete": [(("pete",), "beat", 1.0)]})
    monkeypatch.setattr(hearing, "mishearings", lambda: table)
    heard = Heard(3.0, np.random.default_rng(0))
    turns = [{"side": "user", "text": f"Count up, Pete. {n}"} for n in range(40)]
    said = [turn["text"] for turn in heard.turns(turns)]
    assert sum(text.startswith("can't ") for text in said) > 25
    assert sum("beat" in text for text in said) > 25
    kept = heard.turns([*turns, {"side": "agent", "text": "Hello, Pete."}])
    assert not any("beat" in turn["text"] for turn in kept)
    assert kept[-1]["text"] == "Hello, Pete."
    assert Heard(0.0, np.random.default_rng(0)).turns(turns) == turns
    words = [{"text": text, "start": n, "end": n + 1} for n, text in enumerate(("Count", "up,", "Pete."))] * 30
    labels = {"words": {"user": words, "agent": [{"text": "Pete!", "start": 0, "end": 1}]}}
    found = [word["text"] for word in heard.labels(labels)["words"]["user"]]
    assert found.count("can't") > 20
    assert found.count("Count") + found.count("can't") == found.count("Pete.") == 30
    assert found.count("up,") == found.count("Count")


def test_what_a_reader_takes_words_for_is_found_and_happens_as_often() -> None:
    said, heard = ["please", "count", "up", "to", "three", "now"], ["please", "can't", "to", "tree", "now"]
    assert list(taken_for(said, heard)) == [(("count", "up"), "can't"), (("three",), "tree")]
    assert list(taken_for(said, ["please"])) == []  # too long to be of one another
    table = Misheard({"three": [(("three",), "tree", 0.2), (("three", "two"), "through", 0.1)]})
    rng = np.random.default_rng(0)
    once, all_of = ([table.words(["Three.", "four"], rng, scale) for _ in range(2000)] for scale in (1.0, 100.0))
    assert 340 < sum(words == ["tree", "four"] for words in once) < 460
    assert 1700 < sum(words == ["tree", "four"] for words in all_of) < 1900
    assert table.words(["three", "four"], rng, 100.0, {"three"}) == ["three", "four"]
    heard_words = [share for pairs in mishearings().heard.values() for *_, share in pairs]
    assert len(heard_words) > 500
    assert all(0 < share <= 1 for share in heard_words)


def test_pieces_within_words_are_known_from_the_tokenizer(agent: Path) -> None:
    text = tiny_text()
    within, made = within_words(text, CONFIG.text.vocab_size), stage(agent).wording
    torch.testing.assert_close(made.goes_on, GOES_ON * within)
    tokens = text.encode("Hello, extraordinarily blue.")
    spelled = [text.decode([t]) for t in tokens]
    begins = [text.decode([*text.encode("a"), t])[1:2] == " " for t in tokens]
    letters = [piece.strip()[:1].isalpha() for piece in spelled]
    assert within[tokens].tolist() == [letter and not begin for letter, begin in zip(letters, begins, strict=True)]
    assert 0 < within.sum() < len(within)
    assert not within[: END + 1].any()


def test_a_wording_of_before_says_words_to_their_end_no_likelier(agent: Path, tmp_path: Path) -> None:
    """It has not learned that, and loads; nothing else may be missing."""
    stage(agent).export(tmp_path)
    path = tmp_path / FOLDER / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert tensors.pop("wording.goes_on").any()
    save_file(tensors, path, about)
    assert not load_weights(tmp_path / FOLDER).streamer.wording.goes_on.any()
    del tensors["wording.chain"]
    save_file(tensors, path, about)
    with pytest.raises(CheckpointError, match=r"wording\.chain is missing"):
        load_weights(tmp_path / FOLDER)


def test_in_a_quiz_all_is_asked_and_answered() -> None:
    turns = quiz(400, np.random.default_rng(0), MANY)
    said = {turn["text"] for turn in turns if turn["side"] == "agent"}
    assert AGENT["sun"] in said
    assert AGENT["tea_please"] in said
    assert any(text.startswith("That is ") for text in said)
    assert len(QUIZ) - 3 <= len(said)
    assert [turn["side"] for turn in turns[:4]] == ["user", "agent", "user", "agent"]


def test_first_words_of_utterances_and_behind_words_of_the_user() -> None:
    a, u = RESPONSE, TRANSCRIPT
    said = torch.tensor([[[u, 9], [a, 5], [a, 6], [a, 7], [u, 9], [a, 8], [a, END], [a, 4], [PADDING, PADDING]]])
    own, first = response_places(said)
    assert own[0].tolist() == [False, True, True, True, False, True, True, True, False]
    assert first[0].tolist() == [False, True, True, False, False, True, True, True, False]


def test_what_is_learned_is_what_is_likely_in_a_session(agent: Path) -> None:
    """The loss of each word is the one that `likely` would give it there."""
    training = stage(agent)
    said = training.batch(0, range(2))
    own, first = response_places(said)
    torch.nn.init.normal_(training.wording.turns.weight)
    errors, _, turns = training._errors(said, own, first)
    wording, expected, whose = training.wording, [], []
    after, agents = turn_places(said)
    for row in range(2):
        talk = wording.begin()
        for place, ((who, token), asked) in enumerate(zip(said[row].tolist(), own[row].tolist(), strict=True)):
            if asked:
                expected.append(-wording.likely(talk, torch.empty(0, 2, dtype=torch.long)).word[token])
            if who != PADDING:
                talk = wording.read(talk, torch.tensor([[who, token]]))
            if place < after.shape[1] and after[row, place]:
                odds = wording.likely(talk, torch.empty(0, 2, dtype=torch.long)).turn
                whose.append(-torch.nn.functional.logsigmoid(odds if agents[row, place] else -odds))
    torch.testing.assert_close(errors, torch.stack(expected), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(turns, torch.stack(whose), atol=1e-3, rtol=1e-3)


def test_whose_turn_it_is_behind_words_of_the_user() -> None:
    a, u, t = RESPONSE, TRANSCRIPT, made.USERS
    said = torch.tensor([[[u, 9], [u, END], [a, 5], [u, 8], [a, END], [t, 7], [t, END], [u, 7], [PADDING, PADDING]]])
    after, agents = turn_places(said)
    assert after[0].tolist() == [True, True, False, False, False, True, True, False]
    assert agents[0, after[0]].tolist() == [False, True, False, False]


def test_steps_lower_the_loss(agent: Path) -> None:
    training = stage(agent)
    optimiser = torch.optim.AdamW(training.wording.parameters(), lr=1e-2)
    batch, losses = training.batch(0, range(4)), []
    for _ in range(60):
        loss, numbers = training.loss(batch, 0, RowNoise(0, 0, range(4)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert "first" in numbers


def test_a_run_resumes_exactly_and_changes_the_wording_alone(agent: Path, tmp_path: Path) -> None:
    before = load_weights(agent).streamer.state_dict()
    options = AloneOptions(steps=6, lr=3e-3, batch=4, device="cpu")
    train_wording(agent, tmp_path / "whole", options)
    train_wording(agent, tmp_path / "parts", dataclasses.replace(options, minutes=0.0))
    scores = train_wording(agent, tmp_path / "parts", dataclasses.replace(options, resume=True))
    assert {"loss", "first", "turn", "right"} <= scores.keys()
    whole, parts = (load_weights(tmp_path / name / FOLDER) for name in ("whole", "parts"))
    assert whole.config.wording is not None
    for name, value in whole.streamer.state_dict().items():
        assert torch.equal(value, parts.streamer.state_dict()[name]), name
        if not name.startswith("wording."):
            assert torch.equal(value, before[name]), name


def test_the_command_trains_an_agent(agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "CONFIG", dataclasses.replace(NUMBERS, batch=4))
    line = ["train", "wording", "--from", str(agent), "--out", str(tmp_path / "run"), "--steps", "2"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert load_weights(tmp_path / "run" / FOLDER).streamer.wording is not None

"""A language model that learns to answer as the agent does: what from, what changes, what a run leaves."""

import dataclasses
import gzip
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_lm import make_reference, random_tokens, save_reference, train_tokenizer
from safetensors.torch import load_file
from test_chat import OWN
from tokenizers import AddedToken
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.errors import CheckpointError, DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.language import PlainText, chat_model, load_language_model
from wan_streamer.simulation.conversation.repertoire import AGENT
from wan_streamer.speaking.adapter import Added, adapt, begin_at, fingerprint, load_adapter, save_adapter
from wan_streamer.speaking.chat import WORDS
from wan_streamer.speaking.turns import START, STOP, SYSTEM, Marks
from wan_streamer.training.chat import stage as stages
from wan_streamer.training.chat.exchanges import IGNORED, Conversations, own_talks, padded, talk_exchanges
from wan_streamer.training.chat.stage import CONFIG, FILE, ChatStage
from wan_streamer.training.chat.world import Exchange, world_exchanges

TOPICAL = "split\tdialogue\tspeaker\trating\tsentiment\ttext\n"
CHAT = "speaker\ttext\n"
QUESTIONS = Path(__file__).parent.parent / "scripts" / "open_questions.txt"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = save_reference(make_reference("llama-gqa"), tmp_path_factory.mktemp("lm"))
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens([AddedToken(START, normalized=False, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts" / "talk"
    folder.mkdir(parents=True)
    rows = [
        "a\t1\t1\tGood\tHappy\tDo you like tea?",
        "a\t1\t2\tGood\tHappy\tYes, I like it very much.",
        "a\t1\t1\tPoor\tHappy\tThat is not so good.",
        "a\t1\t2\tExcellent\tHappy\tWhy 3 not?",
        "a\t2\t1\tGood\tHappy\tWe are somewhere else now.",
        "a\t2\t1\tGood\tHappy\tNobody has answered me yet.",
    ]
    (folder / "topical.tsv.gz").write_bytes(gzip.compress((TOPICAL + "\n".join(rows) + "\n").encode()))
    (folder / "chat.tsv").write_text(CHAT + "1\tHello you!\n2\tHello to you, too.\n")
    return folder.parent


def test_what_joe_says_can_be_said() -> None:
    talks = own_talks()
    assert len(talks) > 500
    assert len({one.asked for one, *_ in talks if not _}) == sum(len(talk) == 1 for talk in talks)
    assert any(len(talk) > 1 for talk in talks)
    for asked, answer, _ in itertools.chain(*talks):
        assert asked == asked.strip()
        assert answer[-1] in ".?!"
        assert 1 <= len(answer.split()) <= WORDS
        assert not any(letter.isdigit() for letter in asked + answer)


def test_people_answer_each_other(texts: Path) -> None:
    found = talk_exchanges(texts)
    assert found == {
        "topical": [("Do you like tea?", "Yes, I like it very much.", "")],
        "chat": [("Hello you!", "Hello to you, too.", "")],
    }
    (texts / "talk" / "chat.tsv").write_text(CHAT + "1\tHello you!\n")
    with pytest.raises(DataError, match="expected conversations of two"):
        talk_exchanges(texts)
    (texts / "talk" / "chat.tsv").unlink()
    with pytest.raises(DataError, match="found nothing"):
        talk_exchanges(texts)


def test_open_questions_of_the_evaluation_are_not_learned_from() -> None:
    def words(text: str) -> frozenset[str]:
        return frozenset(re.findall("[a-z']+", text.lower()))

    questions = {words(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()}
    assert not questions & {words(one.asked) for one in itertools.chain(*own_talks())}


def test_answers_are_foretold_and_nothing_else(model: str) -> None:
    text = load_language_model(model).text
    data = Conversations(Marks(text, model), "Be brief", None)
    rows = [data.row(np.random.default_rng(n)) for n in range(20)]
    assert rows == [data.row(np.random.default_rng(n)) for n in range(20)]
    batch = padded(rows)
    begin = data.marks.turn(SYSTEM, "Be brief")
    assert (batch.token_BN[:, : len(begin)] == torch.tensor(begin)).all()
    own, said_by_joe, counts = {one.answer for one in itertools.chain(*own_talks())}, 0, set()
    for n, (tokens, answers, weight) in enumerate(rows):
        target_N, known = batch.target_BN[n], batch.target_BN[n] != IGNORED
        assert torch.equal(target_N[known], batch.token_BN[n, 1:][known[:-1]])
        said = [text.decode([*run]) for run in runs(target_N[known].tolist(), data.marks.stop)]
        whole = text.decode(tokens)
        assert all(f"assistant\n{answer}" in whole for answer in said)
        assert len(said) == whole.count("assistant\n")
        said_by_joe += bool(own & set(said))
        counts.add(len(said))
        assert tokens[-1] == data.marks.stop
        assert sum(answers) == known.sum()
        assert (batch.weight_BN[n] == known * weight).all()
    assert said_by_joe > 15
    assert len(counts) > 3
    held = {talk[0].asked for talk in data.valid["own"]}
    assert 0.05 < len(held) / len(own_talks()) < 0.15
    assert not held & {talk[0].asked for talk in data.train["own"]}
    assert data.held_out("own", 3).token_BN.shape[0] == 3
    talk = [Exchange("a?", "b.", "red cup"), Exchange("c?", "d.")]
    expected = "system\nBe brief\nuser\na? (In my hand: red cup)\nassistant\nb.\nuser\nc?\nassistant\n"
    assert text.decode(data.asked(talk)) == expected


def runs(tokens: list[int], stop: int) -> list[list[int]]:
    """Parts in front of each `stop`, which is the last token, too."""
    assert tokens[-1] == stop
    ends = [n for n, token in enumerate(tokens) if token == stop]
    return [tokens[first:end] for first, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]


def test_the_world_is_remembered_and_seen() -> None:
    made = [one for n in range(40) for one in world_exchanges(np.random.default_rng(n), 8)]
    assert len(made) == 320
    assert made[:8] == world_exchanges(np.random.default_rng(0), 8)
    seen = [one for one in made if one.answer.startswith(("It is ", "That is a", "I can see a "))]
    assert len(seen) > 30
    for one in seen:
        colour, thing = one.seen.split()
        assert one.answer.rstrip(".").split()[-1] in (colour, thing)
    empty = [one for one in made if one.answer == AGENT["nothing"]]
    assert empty
    assert not any(one.seen for one in empty)
    assert any(one.seen for one in made if one.answer == AGENT["will_remember"])  # it does not always matter
    for n in range(20):
        talk = world_exchanges(np.random.default_rng(n), 8)
        for number, one in enumerate(talk):
            if one.answer.startswith("Your name is"):
                name = one.answer.rstrip(".").split()[-1]
                assert any(name in earlier.asked for earlier in talk[:number])


def test_only_what_is_added_learns(model: str) -> None:
    stage = ChatStage(model, None, None, dataclasses.replace(CONFIG, precision="fp32"))
    before = {name: value.clone() for name, value in stage.plain.state_dict().items() if "added" not in name}
    plain = PlainText(load_language_model(model), load_language_model(model).tensors).eval()
    token_BN = random_tokens(rows=1, length=12)
    torch.testing.assert_close(stage.plain(token_BN)[0], plain(token_BN)[0])  # nothing, to begin with
    learned = [p for one in stage.models.values() for p in one.parameters()]
    assert {id(p) for p in stage.plain.parameters() if p.requires_grad} == {id(p) for p in learned}
    assert not any(name.startswith("backbone.layers.0") for name in stage.added)
    optimizer, batch, losses = torch.optim.Adam(learned, 0.02), stage.batch(0, range(4)), []
    for step in range(25):
        loss, _ = stage.loss(batch, step, RowNoise(0, step, range(4)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, value in before.items():
        assert torch.equal(stage.plain.state_dict()[name], value)


def test_an_adapter_changes_the_weights_that_it_is_of(model: str, tmp_path: Path) -> None:
    language = load_language_model(model)
    plain = PlainText(language, language.tensors)
    added = adapt(plain, ["backbone.layers.1", "backbone.layers.2"], 3)
    for one in added.values():
        torch.nn.init.normal_(one.up, std=0.1)
    path = tmp_path / FILE
    save_adapter(added, fingerprint(language.tensors), path)
    count = sum(p.numel() for one in added.values() for p in one.parameters())
    assert sum(value.nbytes for value in load_file(path).values()) < 1.2 * count
    changed = load_adapter(path, language.tensors)
    token_BN = random_tokens(rows=1, length=12)
    expected, found = plain(token_BN)[0], PlainText(language, changed)(token_BN)[0]
    assert (found - PlainText(language, language.tensors)(token_BN)[0]).abs().max() > 0.2
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    other = language.tensors | {"backbone.norm.weight": language.tensors["backbone.norm.weight"] + 1}
    assert load_adapter(path, other) is None
    save_adapter({"backbone.layers.9": next(iter(added.values()))}, fingerprint(language.tensors), path)
    with pytest.raises(CheckpointError, match="expected changes of layers"):
        load_adapter(path, language.tensors)
    path.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="damaged"):
        load_adapter(path, language.tensors)


def test_the_command_line(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on where it stopped, and a persona that names it needs no examples."""
    monkeypatch.setattr(stages, "SAMPLED", 1)
    monkeypatch.setattr(stages, "VALIDATED", 2)
    out = tmp_path / "run"
    command = ["train", "chat", "--from", model, "--out", str(out), "--batch", "2", "--device", "cpu"]
    for arguments in (["--steps", "1"], ["--steps", "2", "--resume"]):
        result = CliRunner().invoke(app, [*command, *arguments])
        assert result.exit_code == 0, result.output
    assert len(list((out / "samples").glob("*.tsv"))) == 2
    path = tmp_path / "p.json"
    path.write_text(f'{{"system": "x", "exchanges": [["a", "b"]], "adapter": "run/{FILE}"}}')
    tuned = chat_model(model, OWN, path, torch.device("cpu"), "float32")
    assert tuned.prefix == tuned.marks.turn(SYSTEM, "x")
    path.write_text('{"system": "x", "adapter": "none.safetensors"}')
    with pytest.raises(CheckpointError, match="not found"):
        chat_model(model, OWN, path, torch.device("cpu"), "float32")
    assert STOP in tuned.text.tokenizer.get_vocab()


def adapted(model: str, parts: list[str], rank: int) -> tuple[PlainText, dict[str, Added], str]:
    language = load_language_model(model)
    plain = PlainText(language, language.tensors)
    return plain, adapt(plain, parts, rank), fingerprint(language.tensors)


def test_an_adapter_goes_on_from_a_smaller_one(model: str, tmp_path: Path) -> None:
    """Says the same to begin with; what it has more of can learn."""
    upper, path = ["backbone.layers.1", "backbone.layers.2"], tmp_path / FILE
    plain, added, base = adapted(model, upper[1:], 3)
    for one in added.values():
        torch.nn.init.normal_(one.up, std=0.1)
    save_adapter(added, base, path)
    larger, more, _ = adapted(model, upper, 5)
    token_BN = random_tokens(rows=1, length=12)
    before = larger(token_BN)[0]
    begin_at(more, base, path)
    found = larger(token_BN)[0]
    assert (found - before).abs().max() > 0.2
    torch.testing.assert_close(found, plain(token_BN)[0], atol=0.05, rtol=0)
    found.square().mean().backward()
    grads = [one.up.grad for one in more.values()]
    assert all(grad is not None and (grad.abs().sum(1) > 0).all() for grad in grads)

    def refused(parts: list[str], rank: int, base: str, match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            begin_at(adapted(model, parts, rank)[1], base, path)

    stage = ChatStage(model, None, path, dataclasses.replace(CONFIG, precision="fp32"))
    torch.testing.assert_close(stage.plain(token_BN)[0], found, atol=0.05, rtol=0)
    out = ["train", "chat", "--from", model, "--out", str(tmp_path / "run"), "--steps", "1"]
    result = CliRunner().invoke(app, [*out, "--adapter", str(tmp_path / "none")])
    assert isinstance(result.exception, CheckpointError)
    refused(upper, 2, base, "expected at most")
    refused(upper[:1], 5, base, "expected changes of layers that learn")
    refused(upper, 5, "another", "those of others")

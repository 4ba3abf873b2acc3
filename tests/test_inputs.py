"""Every folder that a command reads: what is wrong with it is told first, with the command that makes a right one."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.errors import OutputError, WanStreamerError
from wan_streamer.folders import AGENT_FILES, ARRAYS, KINDS, describe, need
from wan_streamer.tensors import save_atomically

TORN = "an agent without config.json"
CODEC_FILES = ("audio_vae.safetensors", "video_vae.safetensors")


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def encoded(folder: Path, labels: dict) -> Path:
    touched(folder, *CODEC_FILES, "valid/shard-00000-ep000000.safetensors")
    (folder / "train").mkdir()
    path = folder / "train" / "shard-00000-ep000000.safetensors"
    save_atomically({"audio": torch.zeros(1)}, path, {"labels": json.dumps(labels)})
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every kind, by its files' names: what an error calls it -> where it is."""
    root = tmp_path_factory.mktemp("there")
    (root / "empty").mkdir()
    touched(root, "file")
    return {
        "nothing": root / "nowhere",
        "a file": root / "file",
        "an empty folder": root / "empty",
        "other files (a.txt, b, c, ...)": touched(root / "other", "a.txt", "b", "c", "d"),
        "a run that has not ended": touched(root / "run", "trainer.safetensors", "tokenizer.json", "config.json"),
        "a run whose ears are in": touched(
            root / "hearing", "trainer.safetensors", "ears/config.json", "ears/model.safetensors"
        ),
        "shards in train only": touched(root / "half", "train/shard-00000.tar"),
        "shards of one split": touched(root / "split", "shard-00000.tar"),
        "encoded conversations of one split": touched(root / "latents", "shard-00000-ep000000.safetensors"),
        "encoded conversations in train and valid without codecs": touched(
            root / "bare", "train/a.safetensors", "valid/a.safetensors"
        ),
        KINDS["conversations"].words: encoded(root / "conversations", {}),
        KINDS["tasks"].words: encoded(root / "tasks", {"task": "tts"}),
        KINDS["shards"].words: touched(root / "shards", "train/shard-00000.tar", "valid/shard-00000.tar"),
        KINDS["codec data"].words: touched(root / "arrays", *ARRAYS),
        "7 of 8 arrays": touched(root / "most-arrays", *ARRAYS[1:]),
        KINDS["agent"].words: touched(root / "agent", *AGENT_FILES),
        TORN: touched(root / "torn", *AGENT_FILES[1:]),
        KINDS["ears"].words: touched(root / "ears", "config.json", "model.safetensors"),
        "a run whose eyes are in": touched(
            root / "seeing", "trainer.safetensors", "eyes/config.json", "eyes/eyes.safetensors"
        ),
        KINDS["eyes"].words: touched(root / "eyes", "config.json", "eyes.safetensors"),
        KINDS["codec"].words: touched(root / "codec", "audio_vae.safetensors", "audio_vae.json"),
        KINDS["corpus"].words: touched(root / "corpus", "kokoro.jsonl", "kokoro.pcm"),
    }  # fmt: skip


# command line, with DIR for what is wrong and a word of `KINDS` in capitals for a right folder -> what DIR should be
COMMANDS = {
    "encode DIR OUT --codecs CODEC": "shards",
    "encode SHARDS OUT --codecs DIR": "codec",
    "simulate OUT --hours 1 --encode DIR": "codec",
    "train codec --codec audio --data DIR --out OUT": "codec data",
    "train codec --codec video --data DIR --out OUT": "codec data",
    "train codec --codec video --data CODEC_DATA --out OUT --from DIR": "codec for video",
    "train ears --data DIR --out OUT": "corpus",
    "train ears --data CORPUS --out OUT --from DIR": "ears",
    "train eyes --out OUT --from DIR": "eyes",
    "train pretrain --data DIR --out OUT": "tasks",
    "train pretrain --data TASKS --out OUT --talks DIR": "conversations",
    "train pretrain --data TASKS --out OUT --ears DIR": "ears",
    "train pretrain --data TASKS --out OUT --eyes DIR": "eyes",
    "train pretrain --data TASKS --out OUT --heard DIR": "corpus",
    "train pretrain --data TASKS --out OUT --from DIR": "agent",
    "train pretrain --data TASKS --out OUT --language-model DIR": "language model",
    "train duplex --data DIR --out OUT": "conversations",
    "train duplex --data CONVERSATIONS --out OUT --tasks DIR": "tasks",
    "train duplex --data CONVERSATIONS --out OUT --eyes DIR": "eyes",
    "train duplex --data CONVERSATIONS --out OUT --from DIR": "agent",
    "train distill --method consistency --teacher nano --data DIR --out OUT": "conversations",
    "train distill --method consistency --teacher DIR --data CONVERSATIONS --out OUT": "agent",
    "train distill --method matching --teacher nano --from DIR --data CONVERSATIONS --out OUT": "agent",
    "inspect DIR": "agent",
    "bench codecs --checkpoint DIR": "agent",
    "eval --checkpoint DIR --json OUT": "agent",
    "eval --pairs DIR --json OUT": "recordings",
    "prepare DIR OUT": "recordings",
    "simulate OUT --codecs --speech DIR": "sound files",
}  # fmt: skip
# What else has in it what is asked for, or is told what it lacks by what loads it.
HOLDS_CODECS = (*(KINDS[kind].words for kind in ("agent", "conversations", "tasks")), TORN)
ALSO = {
    "codec": HOLDS_CODECS,
    "codec for video": HOLDS_CODECS,
    "language model": (*(KINDS[kind].words for kind in ("agent", "ears", "eyes")), "a run that has not ended"),
}
ANY = ("recordings", "sound files")  # any folder may hold some


def filled_in(line: str, there: dict[str, Path], **places: Path) -> list[str]:
    """The words of a command, with folders for the kinds in capitals."""
    known = {name.upper().replace(" ", "_"): there[kind.words] for name, kind in KINDS.items()} | places
    return [str(known.get(word, word)) for word in line.split()]


@pytest.mark.parametrize("line", COMMANDS)
def test_what_is_wrong_is_told_first(line: str, there: dict[str, Path], tmp_path: Path) -> None:
    wanted, out = COMMANDS[line], tmp_path / "new" / "out"
    right = (*ALSO.get(wanted, ()), *(kind.words for name, kind in KINDS.items() if name == wanted))
    for found, folder in there.items():
        if found in right or (wanted in ANY and found not in ("nothing", "a file")):
            continue
        error = CliRunner().invoke(app, filled_in(line, there, DIR=folder, OUT=out)).exception
        assert isinstance(error, WanStreamerError), (found, error)
        for part in (str(folder), f"found {found}", f"expected {KINDS[wanted].words}" if wanted in KINDS else wanted):
            assert part in str(error), (part, str(error))
        if wanted in KINDS:
            assert KINDS[wanted].made in str(error)
            assert "wan-streamer " in str(error)
        assert not (tmp_path / "new").exists(), str(error)


def test_a_right_folder_is_right(there: dict[str, Path]) -> None:
    for name, kind in KINDS.items():
        need(there[kind.words], name)
    assert describe(there["a file"]) == "a file"


@pytest.mark.parametrize(
    "line",
    [
        "simulate FILE --hours 1",
        "prepare FOLDER FILE",
        "encode SHARDS FILE --codecs CODEC",
        "train duplex --data CONVERSATIONS --out FILE",
        "eval --checkpoint nano --json FOLDER",
        "bench codecs --json FILE/r.json",
    ],
)
def test_where_nothing_can_be_written_is_told_first(line: str, there: dict[str, Path]) -> None:
    file = there["a file"]
    places = {"FILE": file, "FILE/r.json": file / "r.json", "FOLDER": there["an empty folder"]}
    error = CliRunner().invoke(app, filled_in(line, there, **places)).exception
    assert isinstance(error, OutputError), error
    assert "found a f" in str(error) or "which is no folder" in str(error), error

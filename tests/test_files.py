"""Files that appear whole or not at all."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

import wan_streamer
from wan_streamer.data.encode import read_labels
from wan_streamer.data.shards import write_samples
from wan_streamer.errors import CheckpointError, DataError, OutputError, TrainingError
from wan_streamer.files import parse_json, replacing, write_bytes, write_json
from wan_streamer.perception.ears import Ears, EarsConfig, save_ears
from wan_streamer.tensors import load_tensors, packed, save_atomically
from wan_streamer.training.distill.run import SETTINGS, _remember
from wan_streamer.training.loop.state import INDEX, load_state
from wan_streamer.training.stages.run import RunOptions

DEEP = "[" * 100_000 + "]" * 100_000


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "report.json"
    for value in ({"grüße": [1, 2.5, None]}, {}):
        write_json(path, value)
        assert json.loads(path.read_text(encoding="utf-8")) == value
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_told_and_leaves_no_rest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file/report\.json: cannot be written \(.+\)"):
        write_json(tmp_path / "file" / "report.json", {})
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OutputError, match="directory"):
        write_json(tmp_path / "report.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "report.json"]


def test_the_mode_is_the_usual_one(tmp_path: Path) -> None:
    """Of tensors too, whose library makes its files for the owner alone."""
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(umask)
        try:
            save_atomically({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
            write_bytes(tmp_path / "b", b"")
        finally:
            os.umask(before)
        for name in ("a.safetensors", "b"):
            assert (tmp_path / name).stat().st_mode & 0o777 == mode, name


def test_matrices_in_8_bits_come_back_close(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"w": torch.randn(5, 3, 7) * torch.logspace(-4, 3, 5)[:, None, None], "b": torch.randn(9)}
    tensors |= {"zero": torch.zeros(2, 3), "count": torch.arange(6).view(2, 3)}
    path = tmp_path / "a.safetensors"
    save_atomically(packed(tensors), path)
    back = load_tensors(path)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in ("b", "zero", "count"))
    largest = tensors["w"].abs().amax((1, 2), keepdim=True)
    assert ((back["w"] - tensors["w"]).abs() <= largest / 253).all()
    save_atomically(packed(back), path)
    assert all(torch.allclose(value, back[name], rtol=1e-6, atol=0) for name, value in load_tensors(path).items())


def test_a_scale_without_its_matrix_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for tensors in ({"w|scale": torch.ones(2)}, {"w": torch.zeros(2, 3), "w|scale": torch.ones(3)}):
        save_atomically(tensors, path)
        with pytest.raises(CheckpointError, match="damaged"):
            load_tensors(path)


def test_two_processes_do_not_write_to_one_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    with replacing(path) as mine:
        mine.write_text("mine")
        monkeypatch.setattr("wan_streamer.files.os.getpid", lambda: 1)
        with replacing(path) as other:
            assert other != mine
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_no_half(tmp_path: Path) -> None:
    def damaged():
        raise DataError("no sample")
        yield

    with pytest.raises(DataError):
        write_samples(tmp_path / "shard-00000.tar", damaged())
    assert list(tmp_path.iterdir()) == []


def test_shape_of_ears_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ears = Ears(EarsConfig())
    save_ears(ears, tmp_path)
    before = (tmp_path / "config.json").read_bytes()

    def full(path: Path, data: bytes) -> None:
        if path.name.startswith((".config.json", "config.json")):
            path.open("wb").close()
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", lambda path, text: full(path, b""))
    with pytest.raises(OutputError, match="No space left"):
        save_ears(ears, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


# ---------------------------------------------------------------- JSON


def test_lists_without_end_are_a_typed_error_wherever_json_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
    save_atomically({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"labels": DEEP})
    with pytest.raises(DataError, match="labels are not valid"):
        read_labels(tmp_path / "a.safetensors")
    (tmp_path / SETTINGS).write_text(DEEP)
    with pytest.raises(TrainingError, match=SETTINGS):
        _remember(RunOptions(tmp_path, resume=True), {})
    (tmp_path / INDEX).write_text(DEEP)
    with pytest.raises(TrainingError, match="nested too deeply"):
        load_state(tmp_path, lambda name, shape: torch.empty(shape))


def test_json_is_read_in_one_place() -> None:
    package = Path(wan_streamer.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\bjson\.loads?\(|from json import|\.json\(\)", path.read_text(encoding="utf-8"))
    }
    assert found == {"files.py"}

"""Files that appear whole or not at all."""

import json
from pathlib import Path

import pytest

from wan_streamer.errors import OutputError
from wan_streamer.files import write_json


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

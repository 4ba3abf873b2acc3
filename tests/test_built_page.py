"""The page in the wheel: it belongs to its sources, and it says what the agent understands."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from wan_streamer.errors import CheckpointError
from wan_streamer.serving.about import FILE, read_about
from wan_streamer.serving.app import web_root

WEB = Path(__file__).parent.parent / "web"
SOURCES = ("index.html", "package-lock.json", "package.json", "public", "src", "tsconfig.json", "vite.config.ts")
RECORD = json.loads((web_root() / "build.json").read_text())
STALE = "the page in wan_streamer/serving/web is not that of web/: run `make web` and commit what it writes"


def test_the_page_was_built_from_the_sources_beside_it() -> None:
    paths = [path for name in SOURCES for path in ((WEB / name).rglob("*") if (WEB / name).is_dir() else [WEB / name])]
    hashed = hashlib.sha256()
    for name in sorted(path.relative_to(WEB).as_posix() for path in paths if path.is_file()):
        hashed.update(f"{name}\n".encode() + (WEB / name).read_bytes())
    assert RECORD["sources"] == hashed.hexdigest(), STALE


def test_nobody_has_changed_the_built_page() -> None:
    built = [path for path in web_root().iterdir() if path.name != "build.json"]
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in built} == RECORD["files"], STALE


def test_the_page_asks_no_other_host_and_has_nothing_inline() -> None:
    page = (web_root() / "index.html").read_text()
    for path in web_root().iterdir():
        named = re.findall(r"\w+://\w[\w.]*", path.read_text())
        assert set(named) <= {"http://www.w3.org"}, path  # a namespace
    assert " style=" not in page
    assert "<style" not in page
    assert page.count("<script") == page.count('<script type="module" crossorigin src="static/')
    assert '="/' not in page  # relative, so that a sub-path works


@pytest.mark.skipif(not (shutil.which("npm") and (WEB / "node_modules").is_dir()), reason="needs node and `npm ci`")
def test_the_sources_have_no_type_errors_and_make_the_same_page(tmp_path: Path) -> None:
    command = ["npx", "--no-install", "vite", "build", "--logLevel", "warn", "--outDir", str(tmp_path), "--emptyOutDir"]
    for line in (["npx", "--no-install", "tsc", "--noEmit"], command):
        result = subprocess.run(line, cwd=WEB, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((tmp_path / "build.json").read_text()) == RECORD, STALE


def test_what_the_agent_understands() -> None:
    about = read_about("nano")
    assert about is not None
    assert list(about.examples) == ["Hello!", "What is your name?"]  # what it was seen to answer rightly when typed
    assert read_about("no such checkpoint") is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"name": "Ann", "about": ""}', "about"),
        ('{"name": "Ann", "about": "all", "examples": ["a", "b", "c", "d"]}', "examples"),
        ('{"name": "Ann", "about": "all", "colour": "red"}', "colour"),
        ("[", "expected JSON"),
    ],
)
def test_a_bad_description_is_refused_by_name(tmp_path: Path, text: str, names: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match=names):
        read_about(tmp_path)

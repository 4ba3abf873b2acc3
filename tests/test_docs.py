"""The documents tell the truth: their links lead somewhere and the names they use exist."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wan_streamer.cli.app import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("wan_streamer/**/*.md")]
)
COMMAND = re.compile(r"wan-streamer ((?:(?:train|bench) )?[a-z]+)")


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_links(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    local = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith(("#", "mailto:"))]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_paths(document: Path) -> None:
    paths = re.findall(
        r"`((?:wan_streamer|tests|docs|examples|scripts)/[\w./-]+)`", document.read_text(encoding="utf-8")
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_names(document: Path) -> None:
    """`wan_streamer.a.b.Name` in backticks can be imported."""
    for name in set(re.findall(r"`(wan_streamer(?:\.\w+)+)[`(]", document.read_text(encoding="utf-8"))):
        parts = name.split(".")
        found = import_module(parts[0])
        for depth, part in enumerate(parts[1:], start=2):
            found = getattr(found, part) if hasattr(found, part) else import_module(".".join(parts[:depth]))
        assert found is not None, name


def test_commands_exist() -> None:
    """Every command that a document shows, and that it has the options shown with it."""
    shown = {}
    for document in DOCUMENTS:
        for line in document.read_text(encoding="utf-8").splitlines():
            if match := COMMAND.search(line):
                options = re.findall(r"(?<!\S)(--[a-z]+)", line[match.end() :])
                shown.setdefault(match[1], set()).update(options)
    assert {"serve", "talk"} <= set(shown)
    for command, options in sorted(shown.items()):
        result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0, f"wan-streamer {command}: {result.output}"
        assert [option for option in options if option not in result.stdout] == [], command

"""The shape of the code: imports go one way, modules and folders stay small, the map in the documents is true."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = ROOT / "wan_streamer"
PACKAGES = sorted(path.parent for path in CODE.rglob("__init__.py"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)})


def test_imports_go_one_way() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("imports", "words"),
    [
        ({"training.loop.stage": "runtime.clock"}, ("training.loop.stage", "runtime.clock")),
        ({"perception.audio": "perception.video", "perception.video": "perception.audio"}, ("audio", "video")),
    ],
    ids=["upwards", "circle"],
)
def test_a_forbidden_import_is_found(imports: dict[str, str], words: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(CODE, tmp_path / "wan_streamer", ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    for module, imported in imports.items():
        path = tmp_path / "wan_streamer" / f"{module.replace('.', '/')}.py"
        path.write_text(f"{path.read_text()}\nimport wan_streamer.{imported}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert [word for word in words if word not in result.stdout] == []


def test_modules_and_folders_are_small() -> None:
    lengths = {path.relative_to(CODE): len(path.read_text().splitlines()) for path in CODE.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 350} == {}
    modules = {package: [path for path in package.glob("*.py") if path.stem != "__init__"] for package in PACKAGES}
    assert {package: len(names) for package, names in modules.items() if len(names) > 13} == {}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_say_what_lives_in_them(package: Path) -> None:
    doc = import_module(".".join(package.relative_to(ROOT).parts)).__doc__
    assert doc
    assert len(doc.strip().splitlines()) <= 8


def test_the_map_is_the_territory() -> None:
    """Files and folders that the document names exist, and it names every folder of the code."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text[text.index("## Map") : text.index("## Words")]
    names = set(re.findall(r"`([\w/]+(?:/|\.(?:py|js)))`", section))
    assert [name for name in sorted(names) if not (CODE / name).exists()] == []
    folders = {f"{package.relative_to(CODE)}/" for package in PACKAGES if package != CODE}
    assert sorted(folders - names) == []

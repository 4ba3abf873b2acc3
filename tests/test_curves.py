"""What a training shows: only numbers that the data has, in log, table and curves; and curves that look like curves."""

import json
import math
import re
import shutil
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors import safe_open
from tiny import TALKER
from tiny_world import make_latents

from wan_streamer import presets
from wan_streamer.tensors import load_tensors, save_atomically
from wan_streamer.training.codecs.video import VideoCodecStage
from wan_streamer.training.loop.curves import LOG, write_curves
from wan_streamer.training.loop.means import means
from wan_streamer.training.stages import duplex
from wan_streamer.training.stages.duplex import train_duplex
from wan_streamer.training.stages.run import RunOptions

PICTURE = Path(__file__).parent / "pictures" / "curves.png"  # 1/10 of the size; made by `coarse` below
DOCS = Path(__file__).parents[1] / "docs" / "images"


def numbers_of(out: Path) -> set[str]:
    entries = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    assert entries
    return {name for entry in entries for name in entry}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings of sound alone: nobody was filmed, nothing was written down."""
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)
    monkeypatch.setattr(duplex, "VALIDATION", (2, 2))
    folder = make_latents(tmp_path / "latents", units=8)
    for path in folder.glob("*/*.safetensors"):
        with safe_open(path, "np") as file:
            metadata = dict(file.metadata())
        labels = json.loads(metadata["labels"]) | {"transcribed": {"user": False, "agent": False}}
        tensors = {name: value for name, value in load_tensors(path).items() if not name.endswith("video")}
        save_atomically(tensors, path, metadata | {"labels": json.dumps(labels)})
    return folder


def test_what_the_data_does_not_have_is_left_out(bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = RunOptions(out, "tiny", steps=10, batch=2, clip_units=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # "Mean of empty slice" and its like
        scores = train_duplex(bare, options, "cpu")
    assert {"loss", "audio"} <= set(scores)
    assert all(math.isfinite(value) for value in scores.values())
    for names in (set(scores), numbers_of(out)):
        assert not names & {"video", "text", "response_right", "transcript_right"}
    page = write_curves(out).read_text()
    assert "nan" not in page
    assert ">video<" not in page


def test_a_film_without_movement_has_no_score_of_movement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_streamer.training.codecs.video.PIECE", 8)
    stage = VideoCodecStage.__new__(VideoCodecStage)
    stage.valid_data = [np.full((16, 96, 96, 3), 100, np.uint8)] * 2
    monkeypatch.setattr(VideoCodecStage, "_rebuilt", lambda self, frames: frames + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = stage.validate()
    assert set(scores) == {"agent_psnr", "other_psnr"}


def test_means_of_what_is_known() -> None:
    nan = math.nan
    assert means([{"a": 1.0, "b": nan}, {"a": nan, "b": nan, "c": math.inf}, {"a": 3.0}]) == {"a": 2.0}
    assert means([]) == {}


# ---------------------------------------------------------------- curves


@pytest.mark.parametrize("path", sorted(DOCS.glob("*curves*.svg")), ids=lambda path: path.stem)
def test_lines_of_drawn_curves_are_not_filled(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    unfilled = set(re.findall(r"\.(\w+)\{[^}]*fill:none", text.replace(" ", "")))
    lines = re.findall(r"<(?:path|polyline) [^>]*>", text)
    assert lines
    for line in lines:
        kind = re.search(r'class="(\w+)"', line)
        assert 'fill="none"' in line or (kind and kind[1] in unfilled), line


def draw(out: Path) -> Path:
    """The page of a run that learns."""
    out.mkdir()
    rng = np.random.default_rng(0)
    with (out / LOG).open("w") as log:
        for step in range(10, 2001, 10):
            loss = 3 * math.exp(-step / 500) + 0.3
            entries = [
                {"kind": "train", "step": step, "loss": loss + 0.1 * rng.random(), "grad_norm": 1 + rng.random()}
            ]
            entries += [{"kind": "valid", "step": step, "loss": loss}] * (step % 250 == 0)
            log.writelines(json.dumps(entry) + "\n" for entry in entries)
    return write_curves(out)


def coarse(png: Path) -> np.ndarray:
    """Grey float32 [H / 10, W / 10]."""
    with av.open(str(png)) as container:
        grey = next(container.decode(video=0)).to_ndarray(format="gray").astype(np.float32)
    height, width = (size // 10 for size in grey.shape)
    return grey[: height * 10, : width * 10].reshape(height, 10, width, 10).mean((1, 3))


@pytest.mark.browser
def test_the_page_looks_as_it_did(tmp_path: Path) -> None:
    """Fonts may differ a little; a filled axis would be a dark triangle."""
    playwright = pytest.importorskip("playwright.sync_api")
    page, shot = draw(tmp_path / "run"), tmp_path / "shot.png"
    with playwright.sync_playwright() as running:
        path = shutil.which("chromium") or "/usr/bin/chromium"
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_context(viewport={"width": 840, "height": 320}, color_scheme="light").new_page()
        tab.goto(page.as_uri())
        tab.screenshot(path=shot)
        browser.close()
    with av.open(str(PICTURE)) as container:
        before = next(container.decode(video=0)).to_ndarray(format="gray").astype(np.float32)
    now = coarse(shot)
    assert now.shape == before.shape
    assert np.abs(now - before).mean() < 2
    assert now.mean() > 240, "most of it is paper"

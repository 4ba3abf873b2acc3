"""Numbers in the documents are those of the code and of the shipped checkpoint."""

import re
from pathlib import Path

import pytest
from result_tables import PLOTS, TABLES, block, picture, table

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import load_config
from wan_streamer.model.layout import unit_layout
from wan_streamer.model.streamer import Streamer
from wan_streamer.presets import PRESETS, get_preset
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.repertoire import USER, agent_texts
from wan_streamer.simulation.conversation.scenarios import SCENARIO_NAMES

ROOT = Path(__file__).parent.parent
SHIPPED = load_config(ROOT / "wan_streamer" / "checkpoints" / "nano" / "config.json")
NANO = get_preset("nano")
LAYOUT = unit_layout(NANO)
WORDS = ("zero", "one", "two", "three", "four", "five", "six")
DRAWN = LAYOUT.noisy_audio.stop - LAYOUT.noisy_video.start


def millions(module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f}"


FACTS = {
    "README.md": [(r"(\d+) scenarios", len(SCENARIO_NAMES))],
    "docs/simulation.md": [
        (r"There are (\d+) scenarios", len(SCENARIO_NAMES)),
        (r"(\d+) sentences \(`wan_streamer.simulation.conversation.repertoire.AGENT`", len(agent_texts())),
        (r"and (\d+) intents", len(USER)),
        (r"in (\d+) wordings", sum(map(len, MANY.user.values()))),
        (r"(\d+) of them, `repertoire.USER`", sum(map(len, USER.values()))),
    ],
    "docs/architecture.md": [
        (r"3\. \*\*solve\*\*\. (\w+) Euler steps", WORDS[NANO.flow.steps].capitalize()),
        (r"each a pass over (\d+) tokens. They only peek", DRAWN),
        (r"A unit is (\d \+ \d) passes", f"{2 + NANO.text.slots} + {NANO.flow.steps}"),
        (r"One pass over (\d+) tokens commits", LAYOUT.lane_start.stop - LAYOUT.clean.stop),
        (r"one pass over (\d+) tokens commits", LAYOUT.clean.stop),
    ],
    "docs/images/data-flow.svg": [
        (r"(\d+) Euler steps of \d+ tokens", NANO.flow.steps),
        (r"Euler steps of (\d+) tokens", DRAWN),
        (r"(\d+) tokens, one pass", LAYOUT.lane_start.stop - LAYOUT.clean.stop),
        (r"in one pass of (\d+) tokens", LAYOUT.clean.stop),
    ],
    "wan_streamer/checkpoints/nano/README.md": [
        (r"the solver makes (\w+) plain steps", WORDS[SHIPPED.flow.steps]),
        (r"user's sound and picture \| ([\d.]+) M", millions(Streamer(SHIPPED))),
        (r"look-ahead beyond 40 ms \| ([\d.]+) M", millions(AudioVAE(SHIPPED.audio_vae))),
        (r"12x21x16, strictly causal \| ([\d.]+) M", millions(VideoVAE(SHIPPED.video_vae))),
        (r"(\d+) layers, width", SHIPPED.backbone.layers),
        (r"layers, width (\d+)", SHIPPED.backbone.dim),
    ],
}


@pytest.mark.parametrize("document", FACTS)
def test_numbers_of_the_code(document: str) -> None:
    text = " ".join((ROOT / document).read_text(encoding="utf-8").split())
    for pattern, value in FACTS[document]:
        found = re.findall(pattern, text)
        assert found, f"{document} does not say {pattern!r}"
        assert set(found) == {str(value)}, f"{document}: {pattern!r}"


@pytest.mark.parametrize(("document", "name"), TABLES)
def test_tables_of_results(document: str, name: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    start, end = block(text, name)
    assert text[start:end] == table(document, name), "run scripts/result_tables.py"


@pytest.mark.parametrize("name", PLOTS)
def test_plots_of_results(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == picture(name), "run scripts/result_tables.py"


def test_presets_are_named() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in PRESETS if not name.startswith("paper-3") and f"`{name}`" not in text] == []

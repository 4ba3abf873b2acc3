"""`wan-streamer bench devices`: live units of several sizes on the devices at hand, one process and two, many sessions.

`bench_devices`   all of it, as one report;   `print_devices`   the same for people
`random_folder`   a checkpoint of a preset with random weights: what a size costs does not depend on what it has learned
"""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from wan_streamer.benchmarks.machine import where_and_when
from wan_streamer.benchmarks.runtime import INCLUDES, real_time, together
from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.text import TextCodec
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import StreamerConfig
from wan_streamer.errors import ConfigError
from wan_streamer.model.pretrained import EMBEDDED, Weights, save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.presets import get_preset
from wan_streamer.runtime.split.agents import Schedule, open_agent

SESSIONS = (1, 2, 4, 8)


def bench_devices(
    presets: Sequence[str] = ("nano", "smol", "paper-192p"),
    devices: Sequence[str] = ("cuda:0",),
    units: int = 60,
    limit_s: float = 420.0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Each preset on each device: eager in one process, eager and paced in two, and sessions at once.

    presets  names; those that are not embedded get random weights
    devices  "cpu", "cuda:0"; with two or more, thinker and performer are on the first two as well
    limit_s  after so long no run is begun but the first; what was left out is listed

    Raises `ConfigError`.
    """
    console, began = console or Console(stderr=True), time.monotonic()
    sizes = {name: get_preset(name) for name in presets}
    if not devices or any("," in device for device in devices):
        raise ConfigError(f"devices: expected names such as cuda:0 cuda:1, got {list(devices)}")
    runs: list[tuple[str, Schedule]] = [(device, "eager") for device in devices]
    runs += [(",".join(pair), schedule) for pair in pairs(devices) for schedule in ("eager", "paced")]  # type: ignore[misc]
    report: dict[str, Any] = {"sizes": {}, "left_out": []}
    for name, config in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            embedded = (EMBEDDED / name).is_dir()
            checkpoint = name if embedded else str(random_folder(config, Path(folder) / name))
            row: dict[str, Any] = {"weights": "shipped" if embedded else "random", "runs": [], "sessions": []}
            for where, schedule in runs:
                if "machine" in report and time.monotonic() - began > limit_s:
                    report["left_out"].append(f"{name} {schedule} on {where}")
                    continue
                with console.status(f"{name}, {schedule} on {where} …"):
                    agent = open_agent(checkpoint, where, schedule)
                    with closing(agent):
                        row["runs"].append({"device": where, "schedule": schedule} | real_time(agent, units, schedule))
                        if "," not in where and where == devices[0]:
                            row["sessions"] = [together(agent, n, units) for n in SESSIONS]
                            row["parameters"] = sum(p.numel() for p in agent.weights.streamer.parameters())
                            report = where_and_when(agent) | report
            report["sizes"][name] = row
    return report | {"includes": {key: INCLUDES[key] for key in ("schedules", "sessions")}}


def pairs(devices: Sequence[str]) -> list[tuple[str, str]]:
    """Thinker and performer: two processes on the first device, and on the first two if there are so many."""
    found = [(devices[0], devices[0])]
    return [*found, (devices[0], devices[1])] if len(devices) > 1 else found


@torch.no_grad()
def random_folder(config: StreamerConfig, folder: Path) -> Path:
    """Write a checkpoint folder of `config` with random weights and returns it. Its tokenizer is nano's, or smaller."""
    config = dataclasses.replace(config, name=folder.name)
    text = TextCodec.load(EMBEDDED / "nano" / "tokenizer.json")
    if config.text.vocab_size < text.tokenizer.get_vocab_size():
        text = TextCodec.train(["one two three"], config.text.vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codecs = AudioVAE(config.audio_vae), VideoVAE(config.video_vae)
        save_weights(Weights(config, Streamer(config), *codecs, text), folder)
    return folder


def print_devices(report: dict[str, Any], console: Console) -> None:
    """One table: a row for each run."""
    table = Table(title=report["machine"]["gpu"] or report["machine"]["cpu"], title_justify="left")
    for name in ("size", "weights", "devices", "schedule", "p50 ms", "p95 ms", "late"):
        table.add_column(name)
    for name, row in report["sizes"].items():
        for run in row["runs"]:
            latency = [f"{run['model_latency_ms'][point]:.0f}" for point in ("p50", "p95")]
            late = f"{run['deadline_misses']} of {run['units']}"
            table.add_row(name, row["weights"], run["device"], run["schedule"], *latency, late)
        for run in row["sessions"]:
            late = f"{run['deadline_misses']} of {run['units']}"
            table.add_row(name, "", f"{run['n']} at once", "", f"{run['p50_ms']:.0f}", f"{run['p95_ms']:.0f}", late)
    console.print(table)
    for left in report["left_out"]:
        console.print(f"no time left for {left}", markup=False)

"""`where_and_when`: what a reader has to know to repeat a measurement."""

import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from wan_streamer.benchmarks.codecs import cpu_name
from wan_streamer.model.pretrained import EMBEDDED
from wan_streamer.runtime.agent import WanStreamer

ROOT = Path(__file__).parents[2]


def where_and_when(agent: WanStreamer) -> dict[str, Any]:
    """Machine, commit, date, command and weights of a report. commit: None outside a checkout, "+" behind changed files

    load: cores that were busy during the last minute, those of the measurement among them
    """
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": psutil.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "gpu": torch.cuda.get_device_name(agent.device) if agent.device.type == "cuda" else None,
            "load": round(os.getloadavg()[0], 2),
        },
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["wan-streamer", *sys.argv[1:]]),
        "checkpoint": agent.name,
        "weights": "shipped" if (EMBEDDED / agent.name).is_dir() else "of a folder",
        "formats": agent.formats.as_dict(),
        "solver_steps": agent.default_steps,
        "torch": torch.__version__,
    }


def _commit() -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        line = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

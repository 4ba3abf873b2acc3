"""`wan-streamer bench codecs`: our codecs and their peers side by side, in one process, on the same input.

A unit is 160 ms: 3 840 samples, or four frames in the checkpoint's size. Ours runs as it runs in a call: sound in
float32, pictures in bfloat16 and channels-last, one unit at a time with its state carried over.
"""

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wan_streamer.benchmarks.peers import PEERS, count_parameters
from wan_streamer.benchmarks.timing import Contender, gflop, ratio, spread, take_turns
from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.errors import ConfigError
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
OURS = "ours"


class Streaming:
    """Our codec as a contender."""

    def __init__(self, vae: AudioVAE | VideoVAE, unit: Tensor) -> None:
        self.vae: Any = vae
        self.unit, self.parameters = unit, count_parameters(vae)
        self.encoder_state = self.decoder_state = None

    def encode(self) -> Tensor:
        latent, self.encoder_state = self.vae.encode(self.unit, self.encoder_state)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        out, self.decoder_state = self.vae.decode(latent.to(self.unit.dtype), self.decoder_state)
        return out


def check_peers(names: list[str]) -> None:
    """Raises `ConfigError` if a name is not a key of `PEERS`."""
    for name in names:
        if name not in PEERS:
            raise ConfigError(f"unknown peer {name!r}; known peers are {', '.join(PEERS)}")


def bench_codecs(
    checkpoint: str | Path = "nano",
    peers: list[str] | None = None,
    units: int = 50,
    threads: int | None = None,
    dtype: str | None = None,
) -> dict:
    """Time encode and decode of every codec.

    peers    names from `PEERS`; None is all of them. One that is not installed is reported as skipped
    units    measured units of each codec; a peer that needs over a second for one plays fewer rounds
    threads  of torch; None keeps its number
    dtype    "bfloat16" or "float32" for the pictures; None as served. Sound always runs in float32

    Raises `ConfigError` for an unknown peer or dtype, `CheckpointError` for a bad checkpoint.
    """
    names = list(PEERS) if peers is None else peers
    check_peers(names)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    agent = WanStreamer.from_pretrained(checkpoint)
    if dtype is not None:
        agent.video_vae.to(DTYPES[dtype])
    pictures = agent.video_vae.dtype
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        skipped: dict[str, str] = {}
        height, width = agent.frame_size
        noise = torch.Generator().manual_seed(0)
        sound_BT = torch.randn(1, SAMPLES_PER_UNIT, generator=noise) * 0.1
        video_BTCHW = torch.rand(1, FRAMES_PER_UNIT, 3, height, width, generator=noise) * 2 - 1
        streams: dict[str, tuple[AudioVAE | VideoVAE, Tensor]] = {
            "audio": (agent.audio_vae, sound_BT),
            "video": (agent.video_vae, video_BTCHW.to(pictures)),
        }
        report: dict[str, Any] = {}
        for modality, (vae, unit) in streams.items():
            contenders: dict[str, Contender] = {OURS: Streaming(vae, unit)}
            for name in names:
                if PEERS[name].modality == modality:
                    _enter(contenders, name, unit, skipped)
            report[modality] = _measure(contenders, units)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    return report | {
        "threads": used,
        "dtype": {"audio": "float32", "video": str(pictures).removeprefix("torch.")},
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "units": units,
        "frame": [height, width],
        "skipped": skipped,
        "notes": {name: PEERS[name].note for name in names if name not in skipped},
    }


def _enter(contenders: dict[str, Contender], name: str, unit: Tensor, skipped: dict[str, str]) -> None:
    """Build a peer, or write down why it cannot take part."""
    peer = PEERS[name]
    try:
        contenders[name] = peer.build(unit)
    except ImportError as error:
        skipped[name] = f"{error}; to measure it: {peer.install}"
    except Exception as error:  # a version whose interface differs must not stop our own measurement
        skipped[name] = f"does not run here ({type(error).__name__}: {error}); tested with: {peer.install}"


def _measure(contenders: dict[str, Contender], units: int) -> dict:
    seconds = take_turns(contenders, units)
    rows = {
        name: {
            "encode_ms": spread(seconds[name].encode),
            "decode_ms": spread(seconds[name].decode),
            "parameters": contender.parameters,
            "gflop": gflop(contender),
        }
        for name, contender in contenders.items()
    }
    ours = rows.pop(OURS)
    return {"ours": ours, "peers": rows, "ratio": {name: ratio(ours, row) for name, row in rows.items()}}


def cpu_name() -> str:
    """The processor's name as the system knows it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_codecs(report: dict, console: Console) -> None:
    """The report as a table for sound and one for pictures, and a line for every peer that is missing."""
    for modality in ("audio", "video"):
        part = report[modality]
        title = f"{modality}: {report['dtype'][modality]}, {report['threads']} threads, ms for a unit of 160 ms"
        table = Table(title=title, title_justify="left")
        for column in ("codec", "encode p50", "p95", "decode p50", "p95", "parameters", "GFLOP", "times ours"):
            table.add_column(column, justify="left" if column == "codec" else "right")
        for name, row in {OURS: part["ours"], **part["peers"]}.items():
            times = [f"{row[way][p]:.1f}" for way in ("encode_ms", "decode_ms") for p in ("p50", "p95")]
            slower = "" if name == OURS else f"{part['ratio'][name]:.1f}"
            table.add_row(name, *times, f"{row['parameters'] / 1e6:.1f} M", f"{row['gflop']:.1f}", slower)
        console.print(table)
    for name, reason in report["skipped"].items():
        console.print(f"skipped {name}: {reason}", highlight=False, markup=False)

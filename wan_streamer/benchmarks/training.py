"""`wan-streamer bench training`: units per second and FLOP utilisation of a training step, beside a plain Transformer.

The peer is PyTorch's `nn.TransformerEncoder` of the same depth, width, heads and number of weights, with a causal mask
over the same number of tokens: what somebody would write who has no windows, encoders or flow. Both take turns in one
process, with the same precision and optimiser, on made-up clips that are on the device already.

Utilisation = operations of the step (matrix products and convolutions, forward and backward) / time / what a large
matrix product reaches on this machine in the same run.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from wan_streamer.benchmarks.codecs import cpu_name
from wan_streamer.benchmarks.peers import count_parameters
from wan_streamer.benchmarks.timing import spread
from wan_streamer.config import BackboneConfig, StreamerConfig
from wan_streamer.device import find_device, has_bfloat16, working_dtype
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import LANES, ClipBatch
from wan_streamer.model.memory import SOURCES
from wan_streamer.model.streamer import Streamer
from wan_streamer.presets import get_preset
from wan_streamer.speaking.sounds import SOUNDS, SOUNDS_PER_UNIT
from wan_streamer.training.examples.clips import Example
from wan_streamer.training.stages.objective import streamer_loss
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT

WARMUP_STEPS = 2
PEAK_SIZE = 2048  # rows and columns of the matrix product that sets the peak
LEARNING_RATE = 1e-4


def random_example(config: StreamerConfig, units: int, rows: int, seed: int = 0) -> Example:
    """Clips of noise in the shapes of real ones, every stream a target."""
    g, B, K = torch.Generator().manual_seed(seed), rows, units
    seen, slots = config.perception, config.text.slots
    on = torch.ones(B, K, dtype=torch.bool)
    clips = ClipBatch(
        torch.randn(B, K + 1, config.video_tokens, config.patch_dim, generator=g),
        torch.randn(B, K + 1, config.audio_tokens, config.audio_vae.latent_dim, generator=g),
        torch.randn(B, K * SAMPLES_PER_UNIT, generator=g) * 0.1,
        on,
        torch.randint(
            0, 256, (B, K * FRAMES_PER_UNIT, seen.video_height, seen.video_width, 3), generator=g, dtype=torch.uint8
        ),
        on,
        torch.randint(0, config.text.vocab_size, (B, K, slots), generator=g),
        torch.randint(0, config.text.vocab_size, (B, K, slots, len(LANES)), generator=g),
        on,
        torch.randint(0, len(SOURCES), (B, config.cache.memory_tokens, 2), generator=g),
        torch.randint(0, SOUNDS, (B, K + 2, SOUNDS_PER_UNIT), generator=g),
    )
    return Example(clips, torch.ones(B, K), torch.ones(B, K), torch.ones(B, K, len(LANES)), on)


class PlainTransformer(nn.Module):
    """Pre-norm encoder layers with a causal mask; its feed-forward width gives it the weights of our backbone."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        ours = config.dim * config.head_dim * (2 * config.heads + 2 * config.kv_heads) + 3 * config.dim * config.mlp_dim
        hidden = (ours - 4 * config.dim**2) // (2 * config.dim)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.dim // config.head_dim, hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x_BND.shape[1], x_BND.device)
        return self.layers(x_BND, mask=mask, is_causal=True)


def bench_training(
    presets: list[str],
    units: int = 24,
    rows: int = 4,
    steps: int = 10,
    threads: int | None = None,
    device: str = "auto",
    compiled: bool = False,
) -> dict[str, Any]:
    """Time training steps of every preset and of its peer.

    units, rows  size of a batch;   steps  measured steps, after two to warm up
    compiled     both fused by torch.compile

    Raises `ConfigError` for an unknown preset or a device that is not there.
    """
    where = find_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        peak = _peak_gflops(where)
        report = {name: _measure(get_preset(name), units, rows, steps, where, compiled, peak) for name in presets}
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    return {
        "presets": report,
        "peak_gflops": round(peak, 1),
        "units": units,
        "rows": rows,
        "steps": steps,
        "compiled": compiled,
        "dtype": str(working_dtype(where)).removeprefix("torch."),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else cpu_name(),
        "threads": used,
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _measure(
    config: StreamerConfig, units: int, rows: int, steps: int, device: torch.device, compiled: bool, peak: float
) -> dict[str, Any]:
    torch.manual_seed(0)
    streamer, plain = Streamer(config).to(device), PlainTransformer(config.backbone).to(device)
    tokens = units * len(streamer.layout.kind_N)
    example = random_example(config, units, rows).map(lambda part: part.to(device))
    x_BND = torch.randn(rows, tokens, config.backbone.dim, device=device)

    def our_loss() -> Tensor:
        return streamer_loss(
            streamer, example, RowNoise(0, 0, range(rows)), lambda part: part.to(device), _autocast(device)
        )[0]

    def plain_loss() -> Tensor:
        with _autocast(device):
            return F.mse_loss(plain(x_BND).float(), x_BND)

    losses = {"ours": (streamer, our_loss), "plain": (plain, plain_loss)}
    contenders = {name: (_Step(model, loss), count_parameters(model)) for name, (model, loss) in losses.items()}
    operations = {name: _operations(step) for name, (step, _) in contenders.items()}  # before anything is fused
    if compiled:
        streamer.backbone.compile_training()
        plain.compile(dynamic=False)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(WARMUP_STEPS + steps):
        for name, (step, _) in contenders.items():
            taken = _timed(step, device)
            if number >= WARMUP_STEPS:
                seconds[name].append(taken)
    rows_of: dict[str, Any] = {}
    for name, (_, parameters) in contenders.items():
        step_ms = spread(seconds[name])
        rate = 1000 * units * rows / step_ms["p50"]
        used = operations[name] / 1e9 / (step_ms["p50"] / 1000) / peak
        rows_of[name] = {
            "step_ms": step_ms, "units_per_s": round(rate, 2), "tokens_per_s": round(rate * tokens / units),
            "gflop_per_step": round(operations[name] / 1e9, 2), "utilisation": round(used, 3), "parameters": parameters,
        }  # fmt: skip
    ratio = rows_of["plain"]["step_ms"]["p50"] / rows_of["ours"]["step_ms"]["p50"]
    return {**rows_of, "ratio": round(ratio, 3), "tokens_per_unit": tokens // units}


class _Step:
    """Forward, backward and optimiser."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        self.loss = loss
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        self.loss().backward()
        self.optimiser.step()


def _operations(step: _Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step.loss().backward()
    return counter.get_total_flops()


def _timed(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def _peak_gflops(device: torch.device) -> float:
    """10^9 operations per second of a large matrix product in the format of training."""
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device).to(working_dtype(device)) for _ in range(2))
    best = min(_timed(lambda: a @ b, device) for _ in range(10))
    return 2 * PEAK_SIZE**3 / best / 1e9


def print_training(report: dict[str, Any], console: Console) -> None:
    """The report as a table: every preset, and below it the plain Transformer of its size."""
    where = f"{report['device']}, {report['threads']} threads, peak {report['peak_gflops']:.0f} GFLOP/s"
    title = f"training steps of {report['rows']} x {report['units']} units; {where}"
    table = Table(title=title, title_justify="left")
    for column in ("model", "step p50", "p95 ms", "units/s", "GFLOP/step", "utilisation", "parameters"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, part in report["presets"].items():
        for who, label in (("ours", name), ("plain", "plain")):
            row = part[who]
            table.add_row(
                label, f"{row['step_ms']['p50']:.0f}", f"{row['step_ms']['p95']:.0f}", f"{row['units_per_s']:.1f}",
                f"{row['gflop_per_step']:.0f}", f"{row['utilisation']:.0%}", f"{row['parameters'] / 1e6:.1f} M",
            )  # fmt: skip
    console.print(table)

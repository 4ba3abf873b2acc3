"""The commands under `wan-streamer bench`: how fast the parts are."""

from pathlib import Path
from typing import Annotated

import typer

from wan_streamer.cli.options import Checkpoint, Compiled, Device, ModelThreads, NumberFormats
from wan_streamer.cli.outputs import check_file
from wan_streamer.files import write_json

bench_app = typer.Typer(help="Measure how fast the parts are on this machine.")

Report = Annotated[Path | None, typer.Option("--json", metavar="R.json", help="Report to write.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads at work; PyTorch's choice if not given.")]


@bench_app.command("codecs")
def bench_codecs(
    json_path: Report = None,
    checkpoint: Checkpoint = "nano",
    threads: Threads = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the pictures: bfloat16 or float32; as in a call if not given.")
    ] = None,
    peers: Annotated[
        str, typer.Option(help="Other codecs beside ours, with commas; an empty text for none.")
    ] = "mimi,wan2.1,taesd",
    units: Annotated[int, typer.Option(min=1, help="Units of 160 ms to measure.")] = 50,
) -> None:
    """Time our codecs beside others, on the same input and in turns.

    Example: [b]wan-streamer bench codecs --json codecs.json --threads 2[/b]
    """
    check_file(json_path)
    from rich.console import Console

    from wan_streamer.benchmarks.codecs import bench_codecs as run
    from wan_streamer.benchmarks.codecs import print_codecs

    report = run(checkpoint, _names(peers), units, threads, dtype)
    if json_path is not None:
        write_json(json_path, report)
    print_codecs(report, Console())


@bench_app.command("training")
def bench_training(
    json_path: Report = None,
    presets: Annotated[str, typer.Option(help="Sizes to measure, with commas.")] = "nano",
    units: Annotated[int, typer.Option(min=2, help="Units of 160 ms in a clip.")] = 24,
    rows: Annotated[int, typer.Option(min=1, help="Clips in a step.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps to measure.")] = 10,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto takes CUDA if there is one.")] = "auto",
    compiled: Compiled = False,
) -> None:
    """Time training steps, beside a plain Transformer of the same size.

    Example: [b]wan-streamer bench training --presets nano,smol --json training.json[/b]
    """
    check_file(json_path)
    from rich.console import Console

    from wan_streamer.benchmarks.training import bench_training as run
    from wan_streamer.benchmarks.training import print_training

    report = run(_names(presets), units, rows, steps, threads, device, compiled)
    if json_path is not None:
        write_json(json_path, report)
    print_training(report, Console())


@bench_app.command("runtime")
def bench_runtime(
    json_path: Report = None,
    checkpoint: Checkpoint = "nano",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    threads: ModelThreads = None,
    formats: NumberFormats = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Under five minutes: shorter, and without the hour.")] = False,
    minutes: Annotated[int, typer.Option(min=4, help="Length of the long session.")] = 60,
) -> None:
    """Time live units: alone and beside other sessions, in one process and in two, after two minutes and an hour.

    Example: [b]wan-streamer bench runtime --quick --json runtime.json[/b]
    """
    check_file(json_path)
    from rich.console import Console

    from wan_streamer.benchmarks.runtime import bench_runtime as run
    from wan_streamer.benchmarks.runtime import print_runtime

    report = run(checkpoint, device, quick, minutes)
    if json_path is not None:
        write_json(json_path, report)
    print_runtime(report, Console())


@bench_app.command("devices")
def bench_devices(
    json_path: Report = None,
    presets: Annotated[str, typer.Option(help="Sizes to measure, with commas.")] = "nano,smol,paper-192p",
    devices: Annotated[str, typer.Option(help="With commas: cpu, cuda:0 or cuda:0,cuda:1.")] = "cuda:0",
    units: Annotated[int, typer.Option(min=1, help="Units of 160 ms in a run.")] = 60,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which no run is begun.")] = 420.0,
) -> None:
    """Time live units of several sizes on GPUs: one process and two, sessions at once. Most sizes have random weights.

    Example: [b]wan-streamer bench devices --devices cuda:0,cuda:1 --json devices.json[/b]
    """
    check_file(json_path)
    from rich.console import Console

    from wan_streamer.benchmarks.devices import bench_devices as run
    from wan_streamer.benchmarks.devices import print_devices

    report = run(_names(presets), _names(devices), units, limit)
    if json_path is not None:
        write_json(json_path, report)
    print_devices(report, Console())


@bench_app.command("peers")
def bench_peers(
    json_path: Report = None,
    checkpoint: Checkpoint = "nano",
    device: Device = "cpu",
    threads: ModelThreads = None,
    formats: NumberFormats = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Under two minutes: three questions.")] = False,
) -> None:
    """Ask spoken questions, and time the first sound and picture of the answer: ours, and a cascade's.

    Example: [b]wan-streamer bench peers --quick --json peers.json[/b]
    """
    check_file(json_path)
    from rich.console import Console

    from wan_streamer.benchmarks.answers import bench_peers as run
    from wan_streamer.benchmarks.answers import print_peers

    report = run(checkpoint, device, quick)
    if json_path is not None:
        write_json(json_path, report)
    print_peers(report, Console())


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]

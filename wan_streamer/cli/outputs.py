"""Folders that commands fill: nothing is lost by accident, nothing half made stays, Ctrl-C tells what comes next."""

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from wan_streamer.errors import ConfigError, OutputError
from wan_streamer.folders import RUN, holds_run


@contextlib.contextmanager
def filling(out: Path, whole: Sequence[str], resume: Sequence[str] = ()) -> Iterator[None]:
    """What a command does in the folder `out`.

    whole   patterns of what is worth keeping if the command fails or is stopped; a new folder without any is removed
    resume  what to add to the command, so that it goes on after Ctrl-C

    Raises `OutputError` if there is a file in the place of the folder.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: expected a folder to fill, found a file; choose another name")
    first = os.environ.get("RANK", "0") == "0"
    new = [folder for folder in out.parents if not folder.exists()]
    if not out.exists() or not any(out.iterdir()):
        new = [out, *new]
    try:
        yield
    except BaseException as error:
        kept = any(any(out.glob(pattern)) for pattern in whole)
        if first and kept and isinstance(error, KeyboardInterrupt):
            typer.echo(f"stopped; what is finished is kept in {out}. Go on with: {_line(resume)}", err=True)
        if first and new and not kept:
            shutil.rmtree(out, ignore_errors=True)
            for folder in new[1:]:
                with contextlib.suppress(OSError):  # something else is in it by now
                    folder.rmdir()
        raise


@contextlib.contextmanager
def training_in(out: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """A run in the folder `out`.

    Raises `ConfigError` if the folder holds a run and nobody said what should become of it.
    """
    if resume and overwrite:
        raise ConfigError("train: expected --resume or --overwrite, and not both")
    if holds_run(out) and not (resume or overwrite):
        raise ConfigError(
            f"{out}: expected a new folder, found a run; --resume goes on with it, --overwrite begins anew, or choose"
            " another --out"
        )
    with filling(out, RUN, ["--resume"]):
        yield


def _line(more: Sequence[str]) -> str:
    """The command that is running, with `more`, to be typed again."""
    before = "the torchrun command, with " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--overwrite")]
    return before + shlex.join(["wan-streamer", *arguments, *more])


def check_file(path: Path | None) -> None:
    """Raise `OutputError` if a file that is written at the end of the work could not be written there."""
    if path is None:
        return
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not above.is_dir():
        found = "a folder" if path.is_dir() else f"{above}, which is no folder"
        raise OutputError(f"{path}: expected a place for a file, found {found}")

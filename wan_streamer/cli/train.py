"""The commands under `wan-streamer train`: one for each stage."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from wan_streamer.cli.options import Compiled, ModelThreads, Preset, expand
from wan_streamer.cli.outputs import training_in
from wan_streamer.folders import need

train_app = typer.Typer(help="Train an agent, one stage after the other: first the two codecs, then the conversation.")
Codec = Literal["audio", "video"]
Method = Literal["consistency", "matching"]
Talks = Annotated[Path, typer.Option("--data", metavar="DIR", help="Conversations, from [b]encode[/b].")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for progress and result.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run in the folder --out stopped.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Stop after this many steps instead of the stage's number.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin anew where the folder --out holds a run.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Stop after this much time; --resume goes on later.")]
Shown = Annotated[Path | None, typer.Option(metavar="DIR", help="Of [b]simulate --shown[/b], three steps in twenty.")]
Spoken = Annotated[Path | None, typer.Option(metavar="DIR", help="Of [b]simulate --spoken[/b], six steps in twenty.")]
Asked = Annotated[Path | None, typer.Option(metavar="DIR", help="Of [b]simulate --asked[/b], a fifth of the steps.")]
ClipUnits = Annotated[
    int | None,
    typer.Option(min=2, help="Units of 160 ms in a clip, one more than the longest window of the model (24)."),
]
Rate = Annotated[float | None, typer.Option(min=0, help="Learning rate; Muon's is scaled with it.")]
Device = Annotated[
    str, typer.Option("--device", help="Where to train: cpu, cuda or cuda:1; auto takes CUDA if there is one.")
]


@dataclass(frozen=True)
class Start:
    """What a new run begins with. This and the next two have the names of fields of `RunOptions`."""

    out: Out
    preset: Preset = "nano"
    start: Annotated[
        str | None, typer.Option("--from", metavar="DIR", help="Begin from this agent: a folder, or a built-in one.")
    ] = None
    language: Annotated[
        str | None,
        typer.Option(
            "--language-model", metavar="DIR", help="Begin from this Llama, Qwen2 or Qwen3 (folder, hub id, GGUF)."
        ),
    ] = None


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model learns."""

    resume: Resume = False
    steps: Steps = None
    minutes: Minutes = None
    batch: Annotated[int | None, typer.Option(min=1, help="Clips of a step, over all processes.")] = None
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Parts of a step, one after the other, to save memory.")
    ] = None
    lr: Rate = None
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, order of data and noise.")] = None


@dataclass(frozen=True)
class ModelRun(Schedule, Start):
    """A run of stage 1 or 2: the fields of `Start`, then those of `Schedule`, then these."""

    spelled: Annotated[
        bool, typer.Option("--spelled", help="Learn what a word sounds like from its letters, too; resume with it.")
    ] = False
    lora: Annotated[
        int,
        typer.Option(min=0, metavar="RANK", help="Learn corrections of this rank instead of all weights of --from."),
    ] = 0
    new_codecs: Annotated[
        bool, typer.Option("--new-codecs", help="The data may come from other codecs than those of --from; learn them.")
    ] = False
    compiled: Compiled = False
    ears: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Hear with these ears, from [b]train ears[/b]; the rest is --from's."),
    ] = None
    eyes: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="See with these eyes, from [b]train eyes[/b]; they stay as they are."),
    ] = None
    heard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Speech to write down, the corpus of [b]train ears[/b]: half of the steps."),
    ] = None


@dataclass(frozen=True)
class DuplexRun(ModelRun):
    """A run of stage 2."""

    clip_units: ClipUnits = None
    draw_every: Annotated[
        int | None,
        typer.Option(min=1, help="Learn pictures, too, in every such step of conversation (1); else words and sound."),
    ] = None
    written: Annotated[bool, typer.Option("--written", help="Conversations that are only words: some steps.")] = False


@dataclass(frozen=True)
class Distillation:
    """Numbers of stage 3; None leaves that of `DistillConfig`."""

    solver_steps: Annotated[int | None, typer.Option(min=1, max=4, help="Steps of the student's solver (2).")] = None
    guide_video: Annotated[
        float | None, typer.Option(min=0, help="How strongly the text guides the teacher's picture (1.5).")
    ] = None
    guide_audio: Annotated[float | None, typer.Option(min=0, help="The same for its sound (2.5).")] = None
    grid: Annotated[
        int | None, typer.Option(min=2, help="Consistency: times of the teacher's path (48); fewer learn sooner.")
    ] = None
    context: Annotated[
        int | None, typer.Option(min=0, help="Matching: the most real units before the student's own (8).")
    ] = None
    ratio: Annotated[
        int | None, typer.Option(min=1, help="Matching: updates of the critic for one of the student (5).")
    ] = None


@train_app.command("codec")
def train_codec(
    codec: Annotated[Codec, typer.Option(help="Which of the two codecs.")],
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Sounds and faces, from [b]simulate --codecs[/b].")
    ],
    out: Out,
    preset: Preset = "nano",
    resume: Resume = False,
    overwrite: Overwrite = False,
    steps: Steps = None,
    minutes: Minutes = None,
    device: Device = "auto",
    threads: ModelThreads = None,
    lr: Rate = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="DIR", help="Begin from this codec: the folder of a run, an agent, or a built-in one."
        ),
    ] = None,
    decoder_only: Annotated[
        bool, typer.Option("--decoder-only", help="Of --from, train the decoder alone: latents stay as they are.")
    ] = False,
    light: Annotated[
        bool, typer.Option("--light", help="Train a second, light decoder of pictures for slow machines; see --from.")
    ] = False,
) -> None:
    """Stage 0: teach a codec to turn sound or pictures into a few numbers and back.

    Example: [b]wan-streamer train codec --codec audio --data data/codecs --out runs/audio[/b]
    """
    need(data, "codec data")
    from wan_streamer.codecs.folder import LIGHT
    from wan_streamer.training.codecs.run import train_codec as run

    with training_in(out, resume, overwrite):
        scores = run(
            codec, preset, data, out, resume=resume, steps=steps, minutes=minutes, device=device, lr=lr, start=start,
            decoder_only=decoder_only, light=light,
        )  # fmt: skip
    print_scores(scores)
    if light:
        typer.echo(f"for slow machines, an agent with the same codec takes it from its folder: {out / LIGHT}")
        return
    other = "video" if codec == "audio" else "audio"
    typer.echo(f"samples are in {out / 'samples'}; with a codec for {other}, encode conversations:")
    typer.echo(f"  wan-streamer encode SHARDS OUT_DIR --codecs {shlex.quote(str(out))} --codecs {other.upper()}_DIR")


@train_app.command("pretrain")
@expand
def train_pretrain(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Tasks, from [b]simulate --tasks[/b] and [b]encode[/b].")
    ],
    options: ModelRun,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: ModelThreads = None,
    talks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Conversations of a later [b]train duplex[/b], whose words it should know."),
    ] = None,
) -> None:
    """Stage 1: teach the model to understand and to make things one at a time: speech, pictures, sounds, words.

    Example: [b]wan-streamer train pretrain --data data/task-latents --out runs/pretrain[/b]
    """
    need_all(tasks=data, conversations=talks, ears=options.ears, eyes=options.eyes, corpus=options.heard)
    from wan_streamer.training.stages.pretrain import train_pretrain as run
    from wan_streamer.training.stages.run import RunOptions

    with training_in(options.out, options.resume, overwrite):
        scores = run(data, RunOptions(**vars(options)), device, talks)
    print_scores(scores, options.out)


@train_app.command("duplex")
@expand
def train_duplex(
    data: Talks,
    options: DuplexRun,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: ModelThreads = None,
    tasks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Tasks of [b]train pretrain[/b] that join in, one step in five.")
    ] = None,
    shown: Shown = None,
    spoken: Spoken = None,
    asked: Asked = None,
) -> None:
    """Stage 2: teach the model to hold a conversation: when to listen, what to say, how to look.

    Example: [b]wan-streamer train duplex --data data/latents --out runs/duplex[/b]
    """
    need_all(conversations=data, tasks=tasks, ears=options.ears, eyes=options.eyes, corpus=options.heard)
    for folder in (shown, spoken, asked):
        need_all(conversations=folder)
    from wan_streamer.training.stages.duplex import train_duplex as run
    from wan_streamer.training.stages.run import RunOptions

    with training_in(options.out, options.resume, overwrite):
        scores = run(data, RunOptions(**vars(options)), device, tasks, shown, spoken, asked)
    print_scores(scores, options.out)


@train_app.command("distill")
@expand
def train_distill(
    data: Talks,
    out: Out,
    teacher: Annotated[str, typer.Option(metavar="DIR", help="The agent to learn from: a folder, or a built-in one.")],
    method: Annotated[Method, typer.Option(help="First consistency, then, from its result, matching.")],
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="DIR", help="Begin from this student; needed for matching, else the teacher."),
    ] = None,
    settings: Distillation = Distillation(),
    schedule: Schedule = Schedule(),
    overwrite: Overwrite = False,
    clip_units: ClipUnits = None,
    compiled: Compiled = False,
    device: Device = "auto",
    threads: ModelThreads = None,
) -> None:
    """Stage 3: teach an agent to draw in one or two steps what another draws in many.

    Example: [b]wan-streamer train distill --method consistency --teacher runs/duplex --data data/latents
    --out runs/student[/b]
    """
    need(data, "conversations")
    from wan_streamer.flow.joint import Guidance
    from wan_streamer.training.distill.run import train_distill as run
    from wan_streamer.training.distill.student import DistillConfig
    from wan_streamer.training.stages.run import RunOptions

    numbers = {name: value for name, value in vars(settings).items() if value is not None}
    weights = {name: numbers.pop(f"guide_{name}") for name in ("video", "audio") if f"guide_{name}" in numbers}
    config = DistillConfig(guidance=Guidance(**weights), **numbers)
    options = RunOptions(out, start=start, compiled=compiled, clip_units=clip_units, **vars(schedule))
    with training_in(out, schedule.resume, overwrite):
        scores = run(data, teacher, options, method, config, device)
    print_scores(scores, out)


def need_all(**folders: Path | None) -> None:
    """Every folder that is given must hold its kind: nothing is loaded or written before all are there."""
    for kind, folder in folders.items():
        if folder is not None:
            need(folder, kind)


def print_scores(scores: dict[str, float], agent: Path | None = None) -> None:
    """The last held-out numbers and, if it is an agent that was trained, how to try it."""
    for name, value in scores.items():
        typer.echo(f"{name}: {value:.4g}")
    if agent is not None:
        folder = shlex.quote(str(agent))
        typer.echo(f"talk to it: wan-streamer serve --checkpoint {folder}")
        typer.echo(f"or let it answer a film: wan-streamer talk FILM --checkpoint {folder} --out reply.mp4")

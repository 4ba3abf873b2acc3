"""The commands that make data: simulate, prepare, encode. `wan_streamer.cli.app` puts them on the command line."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_streamer.cli.options import OutDir, Preset, Workers, expand
from wan_streamer.cli.outputs import filling
from wan_streamer.errors import CheckpointError, ConfigError, DataError
from wan_streamer.files import replacing
from wan_streamer.folders import CODECS, LATENTS, SPLITS, need

if TYPE_CHECKING:
    from wan_streamer.config import StreamerConfig

PREVIEWS = 4  # conversations to film
Ears = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Frozen ears: keep what they make of the user's sound, instead of it."),
]
Eyes = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Frozen eyes: keep what they make of the user's pictures, instead of them."),
]
MADE = ("shard-*", "*.npy", "voice_cache/*")  # by `simulate`, and whole


@dataclass(frozen=True)
class Recordings:
    """The fields of `PrepareOptions`."""

    units: Annotated[int, typer.Option(min=13, help="Longest conversation, in units of 160 ms.")] = 375
    user_channel: Annotated[int, typer.Option(min=0, max=1, help="Channel of the user: 0 left, 1 right.")] = 0
    split_picture: Annotated[
        bool, typer.Option("--split-picture", help="Dual-channel films show the user left and the agent right.")
    ] = False
    both_ways: Annotated[
        bool, typer.Option("--both-ways", help="Use every recording twice, with either side as the agent.")
    ] = False
    audio_only: Annotated[
        bool, typer.Option("--audio-only", help="Accept recordings without pictures of the agent.")
    ] = False
    split: Annotated[
        str | None, typer.Option(help="Put all into train, valid or test instead of choosing by name.")
    ] = None


@expand
def simulate(
    out_dir: OutDir,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same data.")] = 0,
    hours: Annotated[float | None, typer.Option(help="Hours of conversation to make.")] = None,
    split: Annotated[str, typer.Option(help="train, valid or test; they share no voice and no face.")] = "train",
    codecs: Annotated[
        bool, typer.Option("--codecs", help="Make the sounds and faces for [b]train codec[/b] instead.")
    ] = False,
    tasks: Annotated[
        bool, typer.Option("--tasks", help="Make the independent tasks for [b]train pretrain[/b] instead.")
    ] = False,
    shown: Annotated[
        bool,
        typer.Option("--shown", help="Make conversations about what is seen, without sound, for --shown of training."),
    ] = False,
    spoken: Annotated[
        bool,
        typer.Option("--spoken", help="Make conversations in which only the agent is heard, for --spoken of training."),
    ] = False,
    asked: Annotated[
        bool,
        typer.Option("--asked", help="Make conversations in which only the user is heard, for --asked of training."),
    ] = False,
    natural: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with Kokoro: half of the users get a natural voice.")
    ] = None,
    speech: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --codecs: real recordings that join the other voices.")
    ] = None,
    encode: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep no films: encode at once with the codecs of this agent or folder, which go beside OUT_DIR.",
        ),
    ] = None,
    preset: Preset = "nano",
    ears: Ears = None,
    eyes: Eyes = None,
    film_every: Annotated[
        int,
        typer.Option(
            min=1, help="With --encode: film the agent in one conversation of so many; the rest teach words and voice."
        ),
    ] = 1,
    device: Annotated[str, typer.Option(help="Where the codecs of --encode run: cpu, cuda or cuda:1.")] = "cpu",
    workers: Workers = Workers(),
    preview: Annotated[
        bool, typer.Option("--preview", help="Also film the first conversations of OUT_DIR, in OUT_DIR/preview.")
    ] = False,
) -> None:
    """Make conversations between simulated people and the agent: training data with exact ground truth.

    Example: [b]wan-streamer simulate data/world/train --hours 2 --seed 1[/b]
    """
    if (hours is not None) == codecs and not (preview and hours is None):
        raise ConfigError("simulate: expected --hours or --codecs, and not both")
    if tasks + codecs + shown + spoken + asked > 1:
        raise ConfigError("simulate: expected one of --tasks, --codecs, --shown, --spoken and --asked")
    if codecs and (preview or natural):
        raise ConfigError("simulate: --preview and --natural go with --hours, not with --codecs")
    if speech and not codecs:
        raise ConfigError("simulate: --speech goes with --codecs")
    if encode and (codecs or preview):
        raise ConfigError("simulate: --encode goes with --hours, and keeps no films that --preview could show")
    if not encode and (ears or eyes or film_every > 1):
        raise ConfigError("simulate: --ears, --eyes and --film-every go with --encode")
    if tasks and film_every > 1:
        raise ConfigError("simulate: --film-every is for conversations; a task without its film would be none")
    from rich.progress import Progress

    from wan_streamer.presets import get_preset
    from wan_streamer.simulation import make_codec_data
    from wan_streamer.simulation import simulate as run
    from wan_streamer.simulation.generate import check_request

    kinds = {"tasks": tasks, "shown": shown, "spoken": spoken, "asked": asked, "conversations": True}
    engine, kind = workers.open(), next(name for name, wanted in kinds.items() if wanted)
    if hours is not None:
        check_request(hours, seed, split, kind, natural)
    latents = None
    if encode is not None:
        from wan_streamer.model.pretrained import find_checkpoint
        from wan_streamer.perception.senses import load_senses
        from wan_streamer.simulation.generate import Latents

        above, config = out_dir.resolve().parent, get_preset(preset)
        try:
            codecs_in = find_checkpoint(encode)
        except CheckpointError:  # a folder with nothing but codecs will do
            codecs_in = Path(encode)
            need(codecs_in, "codec")
        copy_codecs(config, [codecs_in], above)
        load_senses(ears, eyes, config.perception)  # before anything is made
        latents = Latents(above, config, device, ears, eyes, film_every)
    with filling(out_dir, MADE), Progress(transient=True) as progress:
        task = progress.add_task("simulating", total=None)
        if codecs:
            make_codec_data(out_dir, seed=seed, processes=engine.processes, recordings=speech)
        if hours is not None:
            update = partial(progress.update, task)
            run(
                out_dir, hours, seed, split, engine, natural=natural, kind=kind, latents=latents,
                progress=lambda done, all_: update(completed=done, total=all_),
            )  # fmt: skip
        if preview:
            from wan_streamer.simulation.preview.films import preview_shards

            films = progress.add_task("filming", total=PREVIEWS)
            show = partial(progress.update, films)
            preview_shards(out_dir, out_dir / "preview", PREVIEWS, lambda done, all_: show(completed=done, total=all_))


@expand
def corpus(
    out_dir: OutDir,
    texts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What synthesised voices say: ami/words.tsv.gz and talk/*.tsv*.")
    ] = None,
    people: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Recorded people: commands/ and reader/, see docs/hearing.md.")
    ] = None,
    natural: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder with Kokoro.")] = None,
    extra: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Sound files of a few seconds each, whatever is said in them.")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0.01, help="Of the fast natural voices (5).")] = None,
    workers: Workers = Workers(),
) -> None:
    """Make speech to learn to hear from: synthesised voices, and recorded people where there are some.

    Example: [b]wan-streamer corpus data/corpus --texts data/texts --people data/people[/b]
    """
    from rich.progress import Progress

    from wan_streamer.training.ears.speakers import Folders, make_plan, whole_plan

    folders, engine = Folders(texts, people, natural, extra), workers.open()
    plan = whole_plan(folders, hours)
    if not plan:
        raise ConfigError("corpus: expected a folder of texts, people or other recordings; see docs/hearing.md")
    with filling(out_dir, ["*.jsonl"]), Progress(transient=True) as progress:
        task = progress.add_task("speaking", total=len(plan))
        for part, made in make_plan(out_dir, plan, folders, engine):
            progress.update(task, advance=1)
            progress.console.print(f"{part.name}: {made:.1f} minutes")
    typer.echo(f"teach ears with it: wan-streamer train ears --data {shlex.quote(str(out_dir))} --out DIR")


@expand
def prepare(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of two-sided recordings, films or sound.")],
    out_dir: OutDir,
    options: Recordings = Recordings(),
) -> None:
    """Turn your own two-sided recordings into training data, in the form that [b]simulate[/b] writes.

    Example: [b]wan-streamer prepare recordings data/mine[/b]
    """
    from rich.console import Console
    from rich.progress import Progress

    from wan_streamer.data.recordings.ledger import report_tables
    from wan_streamer.data.recordings.prepare import PrepareOptions
    from wan_streamer.data.recordings.prepare import prepare as run

    with filling(out_dir, ["report.json"]), Progress(transient=True) as progress:
        task = progress.add_task("preparing", total=None)
        report = run(
            source,
            out_dir,
            PrepareOptions(**vars(options)),
            progress=lambda done, all_, name: progress.update(task, completed=done, total=all_, description=name),
        )
    console = Console()
    for table in report_tables(report):
        console.print(table)
    if not report["accepted"]:
        raise DataError(f"{source}: no recording could be used; the reasons are in {out_dir / 'report.json'}")


@expand
def encode(
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder with the folders train and valid.")],
    out_dir: OutDir,
    codecs: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Result of [b]train codec[/b], once for sound and once for pictures."),
    ] = None,
    preset: Preset = "nano",
    ears: Ears = None,
    eyes: Eyes = None,
    workers: Workers = Workers(),
) -> None:
    """Turn conversations into what [b]train duplex[/b] reads. The codecs are kept beside them.

    Example: [b]wan-streamer encode data/world data/latents --codecs runs/audio --codecs runs/video[/b]
    """
    need(shards, "shards")
    for folder in codecs or []:
        need(folder, "codec")
    from rich.progress import Progress

    from wan_streamer.data.latents import encode_shards
    from wan_streamer.perception.senses import Senses, load_senses
    from wan_streamer.presets import get_preset

    config, engine = get_preset(preset), workers.open()
    senses = load_senses(ears, eyes, config.perception)
    with filling(out_dir, [f"*/{LATENTS}"]):
        audio_vae, video_vae = copy_codecs(config, codecs or [], out_dir)
        for split in SPLITS:
            with Progress(transient=True) as progress:
                update = partial(progress.update, progress.add_task(f"encoding {split}", total=None))
                written = encode_shards(
                    shards / split,
                    out_dir / split,
                    audio_vae,
                    video_vae,
                    config.perception,
                    engine,
                    progress=lambda done, all_, update=update: update(completed=done, total=all_),  # type: ignore[misc]
                    senses=senses if split == "train" else Senses(),  # what is held out is also called, and watched
                )
            typer.echo(f"{split}: {written} conversations encoded")


def copy_codecs(config: "StreamerConfig", folders: Sequence[Path], out_dir: Path) -> list[Any]:
    """Keep the codecs beside what they encode; they are loaded first, so that none is replaced by what does not fit.

    Raises `CheckpointError` if one of the two is neither in `folders` nor in `out_dir`.
    """
    from wan_streamer.codecs.folder import LIGHT, load_codec

    found: dict[str, Path] = {}
    for kind in CODECS:
        holders = [folder for folder in (out_dir, *folders) if (folder / f"{kind}_vae.safetensors").is_file()]
        if not holders:
            raise CheckpointError(
                f"expected a codec for {kind} ({kind}_vae.safetensors), found none; make one with 'wan-streamer train"
                f" codec --codec {kind} --data DIR --out DIR' and name it with --codecs"
            )
        found[kind] = holders[-1]
    loaded = [load_codec(folder, kind, getattr(config, f"{kind}_vae")) for kind, folder in found.items()]
    out_dir.mkdir(parents=True, exist_ok=True)
    for kind, folder in found.items():
        light = folder.glob(LIGHT) if kind == "video" else ()
        for path in (*folder.glob(f"{kind}_vae.*"), *light):
            if path.resolve() != (out_dir / path.name).resolve():
                with replacing(out_dir / path.name) as part:
                    shutil.copyfile(path, part)
    return loaded

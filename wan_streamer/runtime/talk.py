"""A recording talks to the agent: film in, film and report out. No browser needed.

`talk`            runs the whole conversation
`captions`        the transcript as lines
`print_summary`   the latency table and the captions, for people
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from wan_streamer.data.captions import SPEAKERS, to_lines
from wan_streamer.data.film import ReplyWriter, check_film_path
from wan_streamer.data.media import UnitReader, read_units
from wan_streamer.errors import MediaError
from wan_streamer.files import write_json
from wan_streamer.runtime.clock import UnitDriver, why_late
from wan_streamer.runtime.split.agents import Schedule, open_agent
from wan_streamer.runtime.trace import Trace
from wan_streamer.threads import Threads
from wan_streamer.units import FPS, UNIT_MS, UNIT_S, AgentUnit, UserUnit

Pace = Literal["realtime", "fast"]
AHEAD_UNITS = 16  # the recording is decoded up to 2.5 s before it is heard


def talk(
    user_path: Path,
    out: Path,
    report: Path | None = None,
    checkpoint: str = "nano",
    pace: Pace = "realtime",
    seed: int | None = None,
    device: str = "cpu",
    schedule: Schedule = "eager",
    console: Console | None = None,
    typed: Mapping[int, str] | None = None,
    trace: Path | None = None,
) -> dict:
    """Let the agent answer the recording `user_path`; write the film `out` and the report `report` (JSON).

    realtime   unit k is released when a live user would have finished it, (k + 1) x 160 ms after the start
    fast       each unit is released when the one before it is answered; nothing is held or solved with fewer steps
    device     "cpu", "cuda:1"; two, with a comma, are those of thinker and performer;  schedule  see `open_agent`
    typed      what the user types besides, by the unit in which it is sent
    trace      file to write: when each stage of each unit ran, for ui.perfetto.dev

    Model and recording are loaded, and the model is warm, before the clock starts. Ctrl-C keeps what there is (film and
    report, with `"interrupted": true`) and is then raised again. What is wrong with the recording is left out and told,
    on `console` and in `warnings` of the report. Returns the report; docs/architecture.md defines its figures, and
    `realtime_factor` is seconds of recording per second of wall clock: 1.0 keeps pace.
    Raises MediaError, CheckpointError, ConfigError, OutputError.
    """
    console = console or Console(stderr=True)
    check_film_path(out, user_path)
    if report is not None and report.is_dir():
        raise MediaError(f"{report}: expected the name of a report, got a folder")
    with read_units(user_path) as reader:
        with console.status(f"loading {checkpoint} …"):
            agent = open_agent(checkpoint, device, schedule)
            agent.warmup()
            threads = Threads()
            threads.measure(agent.warmup)
        writer = ReplyWriter(out, *agent.frame_size)
        session = agent.session(seed)
        live = pace == "realtime"
        noted = None if trace is None else Trace()
        driver = UnitDriver(session, agent.default_steps, agent.frame_size, policy=live, threads=threads, trace=noted)
        run = _Run(reader, driver, writer, pace, console, typed or {})
        try:
            run.play()
        except KeyboardInterrupt:
            run.interrupted = True
        except BaseException:
            writer.abort()
            raise
        finally:
            agent.close()
        writer.close()
    for warning in reader.warnings:
        console.print(f"warning: {user_path}: {warning}", markup=False, highlight=False, soft_wrap=True)
    result = run.result() | {
        "checkpoint": agent.name,
        "device": device,
        "schedule": schedule,
        "formats": agent.formats.as_dict(),
        "chat": agent.chat,
        "seed": session.seed,
        "pace": pace,
    }
    if report is not None:
        write_json(report, result)
    if trace is not None and noted is not None:
        noted.write(trace)
    if run.interrupted:
        kept = f"kept {result['seconds']:.1f} s in {out}" if result["units"] else "nothing to keep yet"
        console.print(f"interrupted: {kept}", markup=False, highlight=False)
        raise KeyboardInterrupt
    return result


class _Run:
    """One conversation with the clock running."""

    def __init__(
        self,
        reader: UnitReader,
        driver: UnitDriver,
        writer: ReplyWriter,
        pace: Pace,
        console: Console,
        typed: Mapping[int, str],
    ) -> None:
        self.reader, self.driver, self.writer, self.pace, self.console = reader, driver, writer, pace, console
        self.typed = typed
        self.transcript: list[dict] = []
        self.turn: list[dict] = []  # what is in it of the user's turn
        self.late_reads = 0  # units that the recording delivered after their time
        self.elapsed_s = 0.0
        self.interrupted = False

    def play(self) -> None:
        with _progress(self.console) as progress, _Ahead(self.reader) as units:
            task = progress.add_task("talking", total=self.reader.units)
            start = 0.0
            for index, (user, ready) in enumerate(units):
                start = start or time.monotonic()  # the first unit is decoded: the recording begins
                t_in = self._release(start + (index + 1) * UNIT_S, ready)
                if index in self.typed:
                    user = replace(user, text=self.typed[index])
                answer = self.driver.step(user, t_in)
                self.elapsed_s = time.monotonic() - start
                self.writer.write(user, answer)
                self._note(index, answer)
                self.driver.settle()
                progress.update(task, completed=index + 1)
            progress.update(task, total=self.driver.stats.units)

    def _release(self, due: float, ready: float) -> float:
        """Wait until a unit is complete, which is at `due` unless it was decoded later; returns that moment."""
        if self.pace == "fast":
            return time.monotonic()
        self.late_reads += ready > due
        time.sleep(max(0.0, due - time.monotonic()))
        return max(due, ready)

    def _note(self, index: int, answer: AgentUnit) -> None:
        for lane, text in (("transcript", answer.transcript), ("response", answer.text)):
            if text:
                self.transcript.append({"unit": index, "lane": lane, "text": text})
        if answer.transcript:
            self.turn.append(next(entry for entry in reversed(self.transcript) if entry["lane"] == "transcript"))
        if answer.whole and self.turn:
            self.turn[0]["text"] = answer.whole
            gone = [id(entry) for entry in self.turn[1:]]
            self.transcript = [entry for entry in self.transcript if id(entry) not in gone]
        if "transcript" in answer.ended:
            self.turn = []

    def result(self) -> dict:
        stats = self.driver.stats
        seconds = stats.units * UNIT_S
        return {
            "units": stats.units,
            "unit_ms": UNIT_MS,
            "seconds": round(seconds, 3),
            "fps": FPS,
            "realtime_factor": round(seconds / self.elapsed_s, 3) if self.elapsed_s else 0.0,
            **self.driver.summary(),
            "late_reads": self.late_reads,
            "transcript": self.transcript,
            "warnings": self.reader.warnings,
            "interrupted": self.interrupted,
        }


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, refresh_per_second=4, transient=True)  # 4: leave the cores to the model


class _Ahead:
    """Reads on a thread of its own, so that decoding does not delay the model: (unit, when it was ready)."""

    def __init__(self, reader: UnitReader) -> None:
        self._reader = reader
        self._queue: queue.Queue[tuple[UserUnit, float] | Exception | None] = queue.Queue(AHEAD_UNITS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="recording", daemon=True)

    def _read(self) -> None:
        last: Exception | None = None
        try:
            for unit in self._reader:
                if not self._put((unit, time.monotonic())):
                    return
        except Exception as error:
            last = error
        self._put(last)

    def _put(self, item: tuple[UserUnit, float] | Exception | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def __enter__(self) -> Iterator[tuple[UserUnit, float]]:
        self._thread.start()
        return self._units()

    def _units(self) -> Iterator[tuple[UserUnit, float]]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def captions(transcript: list[dict]) -> list[tuple[int, str, str]]:
    """Lines (first unit, lane, text) of a report's transcript, in order of their begin."""
    return [(line.first, line.lane, line.text) for line in to_lines(transcript)]


def print_summary(report: dict, film: Path, console: Console) -> None:
    """The figures of a run and what was said."""
    table = Table(title=f"{report['checkpoint']} on {report['device']}, {report['pace']}", title_justify="left")
    for name in ("milliseconds", "p50", "p95", "p99"):
        table.add_column(name, justify="left" if name == "milliseconds" else "right")
    rows = {"model latency": report["model_latency_ms"], "event latency": report["event_latency_ms"]}
    rows |= {f"  {name}": figures for name, figures in report["stage_ms"].items()}
    for name, figures in rows.items():
        table.add_row(name, *(f"{figures[key]:.0f}" if key in figures else "" for key in ("p50", "p95", "p99")))
    console.print(table)
    share = 100 * report["deadline_misses"] / max(1, report["units"])
    console.print(
        f"{report['seconds']:.1f} s in {report['units']} units · {report['realtime_factor']:.2f}x real time · "
        f"{report['deadline_misses']} deadlines missed ({share:.1f} %), {report['held_units']} units held",
        highlight=False,
        soft_wrap=True,
    )
    machine = report["machine"]
    threads = " and ".join(f"{number} ({units} units)" for number, units in machine["threads"].items())
    console.print(
        f"{machine['cores']} cores, {machine['others_cores']['mean']:.1f} of them taken by other programs · threads:"
        f" {threads}",
        highlight=False,
        soft_wrap=True,
    )
    if report["held_units"]:
        console.print(why_late(report), highlight=False, soft_wrap=True)
    for unit, lane, text in captions(report["transcript"]):
        line = f"{unit * UNIT_S:6.1f} s  {SPEAKERS[lane]}: {text}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"film: {film}", markup=False, highlight=False, soft_wrap=True)

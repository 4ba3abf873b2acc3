"""From a suite that ran to files: the JSON, one line per trial, and the page."""

import json
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from wan_streamer.evaluation.records import Case
from wan_streamer.evaluation.report.page import write_report
from wan_streamer.evaluation.spans import exchanges, onset_in
from wan_streamer.evaluation.suite.baselines import DESCRIPTIONS
from wan_streamer.evaluation.suite.run import AGENT, SuiteResult, conversation_seconds, run_suite, score_pairs
from wan_streamer.evaluation.suite.stimuli import SUITES, Sources
from wan_streamer.files import parse_json, write_bytes, write_json
from wan_streamer.units import UNIT_MS, UNIT_S

# The readers' own errors, written by scripts/validate_readers.py.
VALIDATION = Path(__file__).parents[1] / "readers" / "readers.json"
LINES = 20  # of progress, where no bars are drawn


@dataclass(frozen=True)
class Asked:
    """What is measured: `checkpoint` in a suite, or the recordings in the folder `pairs`.

    seeds      instead of the suite's;   limit  only so many trials, without the long conversation
    mos        also predict opinion scores
    processes  at work; one per core if None
    sources    natural voices and people's speech
    axes       only trials that are for one of these, without the long conversation
    """

    checkpoint: str | None = None
    pairs: Path | None = None
    suite: str = "quick"
    seeds: list[int] | None = None
    limit: int | None = None
    mos: bool = False
    processes: int | None = None
    sources: Sources = field(default_factory=Sources)
    axes: list[str] | None = None

    @property
    def name(self) -> str:
        return self.checkpoint or str(self.pairs)


def run_and_write(asked: Asked, json_path: Path, html_path: Path | None = None) -> dict[str, Any]:
    """Run, write, print a table. Returns what was written as JSON. Raises `WanStreamerError`s."""
    console, load = Console(stderr=True), os.getloadavg()[0]
    cores = max(1, len(os.sched_getaffinity(0)))
    workers = asked.processes or cores
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bars:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], completed=done, total=total)
            if not console.is_terminal and done % max(1, total // LINES) == 0:  # where bars are not drawn
                console.print(f"{name}: {done} of {total}")

        if asked.pairs is not None:
            result = score_pairs(asked.pairs, progress)
        else:
            result = run_suite(
                asked.name,
                asked.suite,
                asked.seeds,
                asked.limit,
                workers,
                asked.mos,
                asked.sources,
                asked.axes,
                progress,
            )
    axes, left_out = result.axes()
    results = {
        "axes": axes,
        "left_out": left_out,
        "checkpoint": asked.name,
        "suite": asked.suite if asked.pairs is None else "pairs",
        "seeds": list(asked.seeds or SUITES[asked.suite].seeds) if asked.pairs is None else [],
        "seconds": round(result.seconds, 1),
        "conversation_seconds": round(conversation_seconds(result), 1),
        "trials": len(result.cases[AGENT]),
        "agent": asked.name,
        "device": f"cpu, {platform.processor() or platform.machine()}, {workers} processes",
        "threads": torch.get_num_threads(),
        "machine": {"cores": cores, "load_start": round(load, 2), "load_end": round(os.getloadavg()[0], 2)},
        "versions": {name: metadata.version(name) for name in ("wan-streamer", "torch", "numpy")},
        "readers": parse_json(VALIDATION.read_bytes()) if VALIDATION.exists() else {},
        "latency_ms": result.latency,
        "descriptions": DESCRIBED,
    }
    write_json(json_path, results)
    lines = json_path.with_suffix(".jsonl")
    write_bytes(lines, "".join(json.dumps(_line(case)) + "\n" for case in result.cases[AGENT]).encode())
    if html_path is not None:
        write_report(html_path, results, distributions(result), drift(result), result.stories, DESCRIPTIONS)
    print_table(results, console)
    console.print(
        f"figures: {json_path}, per trial: {lines}" + (f", page: {html_path}" if html_path else ""), soft_wrap=True
    )
    return results


def _line(case: Case) -> dict[str, Any]:
    seen = case.seen
    return {
        "trial": case.name,
        "axis": case.axis,
        "scenarios": case.labels.get("scenarios", []),
        "seconds": round(seen.seconds, 2),
        "speech": [[round(edge, 2) for edge in span] for span in seen.speech],
        "reference": [[round(edge, 2) for edge in span] for span in case.truth.speech],
        "heard": " ".join(word.text for word in seen.words),
        "said": seen.said,
        "transcript": seen.transcript,
    }


def _latencies(cases: list[Case], truth: bool = False) -> list[float]:
    found = []
    for case in cases:
        for turn in exchanges(case):
            onset = onset_in((case.truth if truth else case.seen).speech, turn.end - 0.6, turn.end + 3.0)
            if onset is not None and turn.intent != "typed":
                found.append(onset - turn.end)
    return found


def distributions(result: SuiteResult) -> dict[str, dict[str, list[float]]]:
    """What the page draws as histograms: name -> contender -> values."""
    shown = [name for name in (AGENT, "timer_0.5", "metronome") if name in result.cases]
    latency = {name: _latencies(result.cases[name]) for name in shown} | {
        "reference": _latencies(result.cases[AGENT], truth=True)
    }
    lengths = {name: [b - a for case in result.cases[name] for a, b in case.seen.speech] for name in shown}
    lengths["reference"] = [b - a for case in result.cases[AGENT] for a, b in case.truth.speech]
    found = {
        "from the user's last sound to the agent's first, s": latency,
        "length of the agent's utterances, s": lengths,
    }
    steps = [sum(stages) for case in result.cases[AGENT] for stages in zip(*case.seen.stage_ms.values(), strict=True)]
    if steps:
        found["one unit on one core, ms"] = {AGENT: steps}
    return found


def drift(result: SuiteResult) -> dict[str, list[tuple[float, float]]]:
    """Means of every ten seconds or so of the long conversation: name -> (minute, value)."""
    curves: dict[str, list[tuple[float, float]]] = {}
    start = 0.0
    for case in result.long.get(AGENT, []):
        tracks = case.seen.tracks
        for part in range(0, len(tracks.get("likeness", ())), 250):
            minute = (start + part / 25) / 60
            for name in ("likeness", "brightness"):
                piece = tracks[name][part : part + 250]
                if np.isfinite(piece).any():
                    curves.setdefault(name, []).append((minute, float(np.nanmean(piece))))
        steps = [sum(stages) for stages in zip(*case.seen.stage_ms.values(), strict=True)]
        for part in range(0, len(steps), 63):
            curves.setdefault("ms per unit", []).append(
                ((start + part * UNIT_S) / 60, float(np.median(steps[part : part + 63])))
            )
        start += case.seen.seconds
    return curves


def print_table(results: dict[str, Any], console: Console) -> None:
    """Every figure with its interval, the truth's and the best blind baseline's, and how busy the machine was.

    Names are never cut; in a narrow terminal the other columns wrap.
    """
    table = Table(
        title=f"{results['checkpoint']}, suite {results['suite']}", title_justify="left", box=box.SIMPLE_HEAD,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    for name in ("agent", "95 %", "truth", "best blind", "n"):
        table.add_column(name, justify="right", overflow="fold")
    for axis, metrics in results["axes"].items():
        table.add_section()
        if metrics:
            table.add_row(axis.replace("_", " "), style="bold")
        for metric, row in metrics.items():
            blind = {name: value for name, value in row["baselines"].items() if name != "replay" and value is not None}
            best = (max if row["better"] == "higher" else min)(blind.items(), key=lambda pair: pair[1], default=None)
            style = "dim" if not row["informative"] else "red" if row["beaten_by"] else None
            interval = f"{_short(row['low'])} … {_short(row['high'])}"
            shown = f"{_short(best[1])} {best[0]}" if best else "–"
            truth = _short(row["baselines"].get("replay"))
            table.add_row(metric, _short(row["value"]), interval, truth, shown, str(row["n"]), style=style)
    console.print(table)
    console.print(
        "dim: a blind baseline does as well as the reference;  red: a blind baseline does as well as the agent"
    )
    if results["left_out"]:
        console.print(f"left out, since the reference itself fails: {', '.join(results['left_out'])}", highlight=False)
    for line in machine_lines(results):
        console.print(line, highlight=False)


def machine_lines(results: dict[str, Any]) -> list[str]:
    """How busy the machine was, and how the agent kept its deadlines on it: no score means much without them."""
    machine, latency = results["machine"], results["latency_ms"]
    load = f"{machine['load_start']} at the start, {machine['load_end']} at the end"
    lines = [f"load of the machine: {load}, with {machine['cores']} cores"]
    if latency is not None:
        model, late = latency["model"], f"{latency['deadline_misses']} of {latency['units']}"
        lines.append(
            f"against the clock: {late} units later than {UNIT_MS} ms; model latency p50 {model['p50']:.0f} ms,"
            f" p95 {model['p95']:.0f} ms"
        )
    return lines


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


DESCRIBED: dict[str, str] = {
    "turn_taking.balanced_accuracy": "Mean of the two below: an agent that always or never speaks gets 0.5.",
    "turn_taking.turn_end_answered": "Speech begins from 0.2 s before to 0.8 s after the user's turn ends.",
    "turn_taking.pause_held": "Silent during a pause of 0.5 to 1.0 s inside the user's turn.",
    "turn_taking.latency_median_s": "Signed time from the user's last sound to the agent's first; never counts as 3 s.",
    "turn_taking.latency_distance_s": "Wasserstein-1 distance of these times to the reference's.",
    "turn_taking.starts_over_user_per_min": "Speech that begins in the middle of the user's, per minute of it.",
    "interruption.yields_and_resumes": "Mean of the rates of yielding to barge-ins and resuming after mm-hm and noise.",
    "interruption.yields": "Was talking when the user broke in, and is silent within 1 s.",
    "interruption.stop_latency_s": "From the first sound of the barge-in to the agent's last; never counts as 3 s.",
    "interruption.responds": "Yielded, and speaks again within 1.5 s after the user.",
    "interruption.response_latency_s": "From the user's last sound to the agent's next; never counts as 3 s.",
    "interruption.new_answer_right": "What is recognised in the voice answers the barge-in.",
    "interruption.resumes": "Goes on talking through mm-hm, noises and side talk.",
    "backchannel.onset_f1": "“Mm-hm” within 0.2 s of the reference's, one to one.",
    "backchannel.shuffle_gap": "The same minus what another partner's truth would give.",
    "backchannel.false_alarms_per_min": "Short utterances elsewhere in the user's speech.",
    "sync.correlation": "Mouth opening with the opening the sound calls for, no shift.",
    "sync.shuffle_gap": "The same minus the correlation with the sound of another trial.",
    "sync.offset_ms": "Size of the shift at which mouth and sound fit best.",
    "sync.aperture_error": "Difference of mouth and called-for mouth, in standard deviations.",
    "listening.frozen_share": "Frames without any change while the user speaks.",
    "listening.gaze_off_camera": "How far the eyes are off the camera while the user speaks.",
    "listening.nods_that_answer": "Share of nods during or just after the user's speech, minus another partner's.",
    "listening.motion_distance": "Distance of the speeds of the head to the reference's.",
    "listening.blink_rate_error": "Blinks per minute against the reference.",
    "proactive.balanced_accuracy": "Mean of hits and of silence where nothing calls for a remark.",
    "proactive.hits": "Speaks when something is shown, waved or smiled.",
    "proactive.false_alarms": "Speaks when nothing, or a meaningless movement, happens.",
    "proactive.latency_to_reference_s": "Time between its remark and the reference's; never counts as 3 s.",
    "content.right_answers": "What is recognised in the voice answers the question.",
    "content.right_as_text": "What the agent writes itself answers it, whatever is recognised.",
    "content.right_about_what_is_seen": "Colours, numbers and things that are held up.",
    "content.right_from_memory": "The user's name, told before.",
    "content.right_when_typed": "Questions that are typed.",
    "content.transcript_error": "Word errors of the transcript lane against the user's words.",
    "recall.recalled": "Facts that the user told are known when asked for, whatever their age.",
    "recall.recalled_as_text": "What the agent writes itself names them.",
    "recall.recalled_after_20s": "Told 20 to 40 seconds before.",
    "recall.recalled_after_60s": "Told one minute before.",
    "recall.recalled_after_5min": "Told five minutes before.",
    "hearing.word_error_natural": "Word errors of the transcript lane: free sentences, voices of Kokoro and flite.",
    "hearing.word_error_own": "An unseen speaker of the simulator, sentences of the training world.",
    "hearing.word_error_espeak": "An unseen speaker of the simulator, free sentences.",
    "hearing.word_error_kokoro": "Natural voices that are kept out, free sentences.",
    "hearing.word_error_flite": "A synthesiser that is never trained with, free sentences.",
    "hearing.word_error_reader": "A person who reads.",
    "hearing.order_slots": "Slot words of people's drink orders that stand in the transcript.",
    "quiet.unasked_per_min": "Utterances in ten minutes in which nobody says anything, beyond one greeting.",
    "voice.word_error": "Word errors of a recogniser on the voice against the agent's own text.",
    "voice.opinion_score": "Predicted mean opinion score of the voice.",
    "picture.likeness": "How much the picture looks like the agent it should be.",
    "picture.frozen_share": "Frames equal to the one before.",
    "picture.black_share": "Frames that are almost black.",
    "picture.flash_share": "Sudden jumps of the whole picture.",
    "horizon.likeness_change": "Likeness in the last third of the long conversation minus the first.",
    "horizon.brightness_drift": "Change of the mean brightness from the first third to the last.",
    "horizon.answered_at_the_end": "Turn ends answered in the last third.",
    "horizon.cost_growth": "Growth of the time per unit from the first third to the last.",
}

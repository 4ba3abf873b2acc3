"""The evaluation from end to end, through the command line, and what it says about known agents."""

import dataclasses
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from wan_streamer.cli.app import main
from wan_streamer.evaluation.records import Case, Observation
from wan_streamer.evaluation.stats import Metric
from wan_streamer.evaluation.suite import run as suite_run
from wan_streamer.evaluation.suite import stimuli
from wan_streamer.evaluation.suite.results import DESCRIBED, print_table
from wan_streamer.evaluation.suite.run import SuiteResult, _entry, run_suite
from wan_streamer.evaluation.suite.stimuli import SUITES, TrialSpec, make_trial, trial_list

pytest.importorskip("faster_whisper")


def run(*arguments: str | Path) -> int:
    """The exit code of the command line in this process: another one would load for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["wan-streamer", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


# Of every axis what a blind agent fails at; test_stimuli.py makes all kinds.
FEW = ("pause", "pause", "stop", "mhm", "story", "show", "decoy", "idle", "colour", "typed")


@pytest.fixture(scope="module")
def timer(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A silence timer, measured as if it were an agent, on a few trials."""
    folder = tmp_path_factory.mktemp("eval")
    outputs = ("--json", folder / "r.json", "--html", folder / "r.html")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stimuli, "VARIANTS", 1)  # a rendering of a sentence takes the synthesiser half a second
        patch.setitem(SUITES, "quick", dataclasses.replace(SUITES["quick"], trials=Counter(FEW)))
        patch.setattr(suite_run, "STORIES", 2)
        limit = ("--limit", str(len(FEW)), "--processes", "1")  # this process
        assert run("eval", "--checkpoint", "timer_0.5", *limit, *outputs) == 0
    return json.loads((folder / "r.json").read_text()), folder


@pytest.mark.slow
def test_the_reference_wins_and_blind_agents_fail_where_they_should(timer: tuple[dict[str, Any], Path]) -> None:
    axes = timer[0]["axes"]

    def of(axis: str, metric: str, name: str) -> float:
        return axes[axis][metric]["baselines"][name]

    main = {
        "turn_taking": "balanced_accuracy", "interruption": "yields_and_resumes", "backchannel": "onset_f1",
        "proactive": "balanced_accuracy", "content": "right_answers",
    }  # fmt: skip
    for axis, metric in main.items():
        assert of(axis, metric, "replay") >= 0.95, axis
        for name in ("silent", "always_talking", "metronome", "timer_0.5", "timer_1.0", "frozen_frame", "looped_video"):
            highest = 0.97 if name.startswith("timer") and axis == "turn_taking" else 0.85  # one pause is luck
            assert of(axis, metric, name) <= highest, (axis, name)
        assert axes[axis][metric]["informative"]
    assert of("interruption", "resumes", "always_talking") == 1
    assert not axes["interruption"]["resumes"]["informative"]  # talking on is no art
    assert not axes["turn_taking"]["pause_held"]["informative"]  # nor is silence
    assert of("sync", "correlation", "replay") > 0.6
    assert abs(of("sync", "correlation", "looped_video")) < 0.2
    assert of("picture", "frozen_share", "frozen_frame") == pytest.approx(1, abs=0.01)
    assert of("picture", "black_share", "silent") == 1
    assert of("picture", "likeness", "silent") < 0.3 < of("picture", "likeness", "replay")


@pytest.mark.slow
def test_what_the_command_writes(timer: tuple[dict[str, Any], Path]) -> None:
    results, folder = timer
    assert {"axes", "checkpoint", "suite", "seeds", "seconds"} <= set(results)
    for metrics in results["axes"].values():
        for entry in metrics.values():
            assert {"value", "low", "high", "n", "better", "informative", "baselines"} <= set(entry)
    lines = [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()]
    assert len(lines) == results["trials"] == len(FEW)
    assert set(results["machine"]) == {"cores", "load_start", "load_end"}
    page = (folder / "r.html").read_text()
    assert f"{results['machine']['load_start']} at the start" in page
    assert "timer_0.5" in page
    assert "data:video/mp4;base64," in page


def test_bad_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--json", tmp_path / "r.json"], "expected --checkpoint or --pairs"),
        (["--checkpoint", "nobody", "--json", tmp_path / "r.json"], "nobody"),
        (["--pairs", tmp_path / "nowhere", "--json", tmp_path / "r.json"], "nowhere"),
    ):
        assert run("eval", *arguments) == 2
        said = capsys.readouterr().err
        assert expected in said
        assert "Traceback" not in said


# ---------------------------------------------------------------- verdicts


def metric(value: float, better: str = "higher") -> Metric:
    return Metric(value, value, value, 10, better)  # type: ignore[arg-type]


def test_a_metric_that_a_blind_baseline_wins_is_marked() -> None:
    won = _entry({"agent": metric(0.4), "silent": metric(0.99), "replay": metric(1.0)})
    assert (won["informative"], won["won_by"]) == (False, ["silent"])
    lower = _entry({"agent": metric(0.4, "lower"), "silent": metric(0.0, "lower"), "replay": metric(0.0, "lower")})
    assert not lower["informative"]
    fair = _entry({"agent": metric(0.4), "silent": metric(0.5), "metronome": metric(0.2), "replay": metric(1.0)})
    assert (fair["informative"], fair["beaten_by"]) == (True, ["silent"])


def test_what_cannot_be_measured_is_null() -> None:
    entry = _entry({"agent": Metric(float("nan"), float("nan"), float("nan"), 0), "silent": metric(0.0)})
    assert (entry["value"], entry["low"], entry["n"], entry["beaten_by"]) == (None, None, 0, [])


def test_an_empty_result_has_every_axis() -> None:
    nothing = Observation(1.0, [], [], "", "", np.zeros(25, np.float32), {}, np.zeros(24_000, np.int16))
    labels = {"events": [], "words": {"user": [], "agent": []}, "scenarios": []}
    axes = SuiteResult({"agent": [Case("a", "content", labels, nothing, nothing)]}).axes()[0]
    assert all(entry["value"] is None or entry["n"] for metrics in axes.values() for entry in metrics.values())
    with pytest.raises(Exception, match="expected one of quick, full, standard"):
        run_suite("nano", "huge")


# ---------------------------------------------------------------- at a glance


def test_names_are_whole_in_eighty_columns_and_the_machine_is_told() -> None:
    baselines = {"looped_video": -1234.5, "replay": -1234.5}
    row = {"value": -1234.5, "low": -0.00123, "high": -12345.6, "n": 12345, "better": "higher", "informative": True,
           "beaten_by": [], "baselines": baselines}  # fmt: skip
    axes: dict[str, dict] = {}
    for name in DESCRIBED:
        axis, metric = name.split(".")
        axes.setdefault(axis, {})[metric] = row
    results = {
        "axes": axes, "left_out": [], "checkpoint": "runs/a-rather-long-name", "suite": "quick",
        "machine": {"cores": 2, "load_start": 0.25, "load_end": 1.5},
        "latency_ms": {"model": {"p50": 67.2, "p95": 172.0}, "deadline_misses": 3, "units": 58},
    }  # fmt: skip
    text = io.StringIO()
    print_table(results, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    starts = [line.strip().split(" ")[0] for line in lines]
    for name in DESCRIBED:
        assert name.split(".")[1] in starts, name
    for words in ("0.25 at the start, 1.5 at the end, with 2 cores", "3 of 58 units later than 160 ms", "p95 172 ms"):
        assert words in " ".join(text.getvalue().split())
    results["latency_ms"] = None
    print_table(results, Console(file=io.StringIO(), width=80))


def test_a_first_look_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the agent's time: one trial, and once against the clock. Nothing of the long conversation."""
    played: list[int] = []

    def jobs(job: Any, numbers: range, engine: Any) -> Any:
        assert isinstance(job, suite_run._Task)
        for number in numbers:
            played.append(make_trial(job.specs[number]).episode.units)
            yield number, {name: None for name in ("agent", *suite_run.BLIND, "replay")}, None

    def latency(checkpoint: str, trial: Any, rounds: int) -> dict:
        played.append(rounds * trial.episode.units)
        return {}

    monkeypatch.setattr(suite_run, "run_jobs", jobs)
    monkeypatch.setattr(suite_run, "_open", lambda *_: None)
    monkeypatch.setattr(suite_run, "measure_latency", latency)
    result = run_suite("nano", "quick", limit=1)
    assert result.long == {}
    assert len(played) == 2
    assert sum(played) <= 140
    assert trial_list("quick")[0] == TrialSpec("pause", 0, 0)


def test_each_trial_is_played_with_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def opened(name: str, checkpoint: str, seed: int, pictures: bool) -> None:
        asked.append(seed)
        raise InterruptedError

    monkeypatch.setattr(suite_run, "_open", opened)
    monkeypatch.setattr(suite_run, "_observer", lambda _: lambda *_, **named: None)
    monkeypatch.setattr(suite_run, "play", lambda *_: None)
    specs = tuple(trial_list("quick")[:2])
    for number in range(2):
        with pytest.raises(InterruptedError):
            suite_run._Task("nano", specs, stimuli.Sources(), False, frozenset())(number)
    assert asked == [spec.noise for spec in specs]
    assert asked[0] != asked[1]

"""Spoken questions: when an answer counts, what its time is made of, and what is said where a part is missing."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from test_benchmarks import Clock
from tiny import tiny_weights

from wan_streamer.benchmarks import answers, cascade, runtime
from wan_streamer.benchmarks.answers import answer_live, begins, compare
from wan_streamer.benchmarks.cascade import CHUNK, RATE, SILENCE_S, Answer, Cascade, Parts
from wan_streamer.benchmarks.machine import where_and_when
from wan_streamer.benchmarks.moshi import CODEBOOKS, STEPS, MoshiStep, bench_steps
from wan_streamer.cli.app import main
from wan_streamer.errors import ConfigError
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.simulation.voice.speech import Speech, TimedPhoneme
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_S, AgentUnit, UserUnit

END_S = 2.0  # of the question
SPEECH = Speech("Yes.", np.zeros(SAMPLE_RATE, np.float32), (), (TimedPhoneme("j", 0.04, 0.2),))


def question() -> np.ndarray:
    """Sound until `END_S`, then silence."""
    sound_T = np.zeros(4 * SAMPLE_RATE, np.float32)
    sound_T[: int(END_S * SAMPLE_RATE)] = np.random.default_rng(0).standard_normal(int(END_S * SAMPLE_RATE)) * 0.2
    return sound_T


def parts(clock: Clock, reply: str = "Yes.", hears: bool = True) -> Parts:
    """Parts that take 1 ms a chunk, and 0.2, 0.4, 0.1 and 0.01 s."""

    def takes(seconds: float, result: object):
        def part(given: object) -> object:
            clock.now += seconds
            return result

        return part

    def is_speech(chunk_T: np.ndarray) -> float:
        clock.now += 0.001
        return float(hears and np.abs(chunk_T).max() > 0.1)

    return Parts(
        is_speech, lambda: None, takes(0.2, "Is it?"), takes(0.4, reply), takes(0.1, SPEECH), takes(0.01, np.zeros(3))
    )


def test_time_of_a_cascade_is_the_sum_of_its_parts() -> None:
    clock = Clock()
    answer = Cascade(parts(clock), clock).answer(question(), END_S)
    stages = answer.stages_ms
    assert stages is not None
    assert list(stages) == ["silence", "vad", "recogniser", "language model", "voice", "picture"]
    assert stages["silence"] == pytest.approx(1000 * SILENCE_S, abs=2 * 1000 * CHUNK / RATE)
    assert [stages[name] for name in ("vad", "recogniser", "language model", "voice", "picture")] == pytest.approx(
        [1, 200, 400, 100, 10]
    ), "chunks before the last are computed while the user speaks"
    assert answer.first_sound_ms == pytest.approx(stages["silence"] + 701 + 40), "the voice begins 40 ms into its sound"
    assert answer.first_frame_ms == pytest.approx(answer.first_sound_ms + 10)
    assert (answer.heard, answer.said) == ("Is it?", "Yes.")


@pytest.mark.parametrize(("reply", "hears"), [("", True), ("Yes.", False)])
def test_no_answer_is_no_number(reply: str, hears: bool) -> None:
    clock = Clock()
    answer = Cascade(parts(clock, reply, hears), clock).answer(question(), END_S)
    assert answer.first_sound_ms is None
    assert answer.first_frame_ms is None


def test_where_sound_begins() -> None:
    sound_T = np.zeros(SAMPLES_PER_UNIT, np.float32)
    sound_T[SAMPLE_RATE // 20 :] = 0.1
    assert begins(sound_T, loud=False) == ([0.05], True)
    assert begins(np.full(SAMPLES_PER_UNIT, 0.1, np.float32), loud=True) == ([], True), "it goes on"
    assert begins(np.zeros(SAMPLES_PER_UNIT, np.float32), loud=True) == ([], False)


class Talker:
    """A session that is loud in these units, from 80 ms in."""

    def __init__(self, loud: set[int]) -> None:
        self.loud, self.index = loud, 0

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        k, self.index = self.index, self.index + 1
        audio = np.zeros(SAMPLES_PER_UNIT, np.float32)
        if k in self.loud:
            audio[SAMPLES_PER_UNIT // 2 :] = 0.1
        return AgentUnit(k, audio, np.zeros((FRAMES_PER_UNIT, 8, 8, 3), np.uint8), "yes " if k in self.loud else "")


class Sleepless:
    """The time, without waiting for it; the time to compute is none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        fake = types.SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(answers, "time", fake)
        monkeypatch.setattr(
            answers, "UnitDriver", lambda *args, **kw: types.SimpleNamespace(step=self.step, settle=lambda: None)
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def step(self, user: UserUnit, due: float) -> AgentUnit:
        return self.session.step(user)


@pytest.mark.parametrize(
    ("loud", "unit"),
    [({1, 8, 11}, 8), ({2}, None), (set(), None)],
    ids=["the first after the question", "before its end", "silent"],
)
def test_ours_is_timed_from_the_end_of_the_question(
    loud: set[int], unit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Sleepless(monkeypatch)
    clock.session = Talker(loud)
    agent = types.SimpleNamespace(session=lambda seed: None, default_steps=1, frame_size=(96, 96))
    answer = answer_live(agent, np.zeros(16 * SAMPLES_PER_UNIT, np.float32), 1.0)  # type: ignore[arg-type]
    if unit is None:
        assert (answer.first_sound_ms, answer.first_frame_ms) == (None, None)
    else:
        expected = 1000 * ((unit + 1) * UNIT_S + 0.08 - 1.0)
        assert answer.first_sound_ms == pytest.approx(expected)
        assert answer.first_frame_ms == pytest.approx(expected, abs=40)


def test_medians_are_of_what_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = WanStreamer(tiny_weights(), "tiny")
    ours = iter([Answer(300.0, 320.0), Answer(None, None), Answer(500.0, 520.0)])
    monkeypatch.setattr(answers, "answer_live", lambda *_: next(ours))
    monkeypatch.setattr(answers.VOICE.__class__, "speak", lambda self, text: SPEECH)
    never = types.SimpleNamespace(answer=lambda *_: Answer(None, None))
    report = compare(agent, never, ["a", "b", "c"])  # type: ignore[arg-type]
    assert report["first_sound_ms"] == {"ours": 400.0, "cascade": None}
    assert report["first_frame_ms"] == {"ours": 420.0, "cascade": None}
    assert report["with_network_ms"] == {"ours": 750.0, "cascade": None}
    assert report["answered"] == {"ours": 2, "cascade": 0}
    assert [row["question"] for row in report["questions"]] == ["a", "b", "c"]


def test_a_missing_part_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "moonshine_voice", None)
    monkeypatch.setattr(sys, "argv", ["wan-streamer", "bench", "peers", "--json", str(tmp_path / "r.json")])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert cascade.MOONSHINE in error
    assert list(tmp_path.iterdir()) == []


def test_without_a_cascade_the_runtime_report_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(size: tuple[int, int]) -> Cascade:
        raise ConfigError("a part is missing: pip install it")

    monkeypatch.setattr(Cascade, "load", missing)
    found = runtime._peers(types.SimpleNamespace(frame_size=(96, 96)), quick=True)  # type: ignore[arg-type]
    assert found["first_sound_ms"] == found["first_frame_ms"] == {"ours": None, "cascade": None}
    assert "pip install it" in found["peers"]["missing"]


@pytest.mark.parametrize("options", [["--device", "toaster"], ["--checkpoint", "nobody"], ["--formats", "float7,half"]])
@pytest.mark.parametrize("command", ["peers", "runtime"])
def test_bad_options(command: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["wan-streamer", "bench", command, "--quick", *options])
    with pytest.raises(SystemExit, match="2"):
        main()


def test_a_moshi_like_model_takes_turns_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = WanStreamer(tiny_weights(), "tiny")
    moshi = MoshiStep(agent.config.backbone)
    assert len(moshi.step()) == len(moshi.step()) == STEPS * CODEBOOKS
    assert moshi._past.get_seq_length() == 2 * STEPS
    rows = bench_steps(agent, 2)
    assert rows["ours"]["ms_a_unit"]["p50"] > 0
    assert rows["moshi_like"]["ms_a_unit"]["p50"] > 0
    assert rows["moshi_like"]["parameters"] == moshi.parameters
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install" in bench_steps(agent, 1)["moshi_like"]["skipped"]


def test_a_report_says_where_it_was_made() -> None:
    where = where_and_when(WanStreamer(tiny_weights(), "tiny"))
    assert {"machine", "commit", "date", "command", "weights"} <= set(where)
    assert {"cpu", "cores", "capability", "load"} <= set(where["machine"])
    assert where["weights"] == "of a folder"
    assert where_and_when(WanStreamer(tiny_weights(), "nano"))["weights"] == "shipped"

"""`wan-streamer bench peers`: a spoken question, and when its answer is first heard and seen, ours and a cascade's.

`bench_peers`   every question to both, in turns, as one report;   `compare`  the same for a loaded agent
`answer_live`   one question to the agent, in real time

The event is the end of the question's last sound. Ours: the moment when the first unit with sound that begins after it
is decoded, and how far inside the unit the sound begins; waiting for the end of the user's unit is in it. A cascade:
see `wan_streamer.benchmarks.cascade`. Neither has a microphone, a network or a loudspeaker in it.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from wan_streamer.benchmarks.cascade import Answer, Cascade
from wan_streamer.benchmarks.machine import where_and_when
from wan_streamer.benchmarks.moshi import bench_steps
from wan_streamer.data.captions import Heard
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.runtime.clock import UnitDriver
from wan_streamer.runtime.split.agents import open_agent
from wan_streamer.simulation.face.person import FaceIdentity, FacePose
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.voice.speech import Speech
from wan_streamer.simulation.voice.users import UserVoice
from wan_streamer.threads import Threads
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_S, UserUnit

QUESTIONS = (
    "Hello, how are you?", "What is your name?", "Can you tell me a story?", "Can you count to five?",
    "What can you do?", "Do you like music?",
)  # fmt: skip
QUICK_QUESTIONS = 3
STEPS, QUICK_STEPS = 100, 30  # units of a model alone
VOICE = UserVoice("en-us", "m3")
LEAD_S = 1.0  # silence before a question
WAIT_S = 4.0  # and behind it: an answer that begins later is none
BLOCK = SAMPLE_RATE // 100
AUDIBLE = 0.01  # root mean square of 10 ms, about -40 dBFS
NETWORK_MS = 350.0  # the paper's budget of a round trip
PAPER_TOTAL_MS = 550.0  # what the paper reports with it, for the side of the model and not from a question
SYSTEMS = ("ours", "cascade")


def bench_peers(checkpoint: str = "nano", device: str = "cpu", quick: bool = False) -> dict[str, Any]:
    """Raises `ConfigError` or `CheckpointError` with the command that installs what a cascade needs and is missing."""
    agent = open_agent(checkpoint, device)
    cascade = Cascade.load(agent.frame_size)
    report = compare(agent, cascade, QUESTIONS[:QUICK_QUESTIONS] if quick else QUESTIONS)
    return report | {"steps": bench_steps(agent, QUICK_STEPS if quick else STEPS)} | where_and_when(agent)


def compare(agent: WanStreamer, cascade: Cascade, questions: Sequence[str]) -> dict[str, Any]:
    """Medians over the questions that were answered, None if none was, and every answer."""
    agent.warmup()
    threads = Threads()
    threads.measure(agent.warmup)
    rows: list[dict[str, Any]] = []
    for text in questions:
        sound_T, end_s = _asked(VOICE.speak(text))
        answers = answer_live(agent, sound_T, end_s, threads), cascade.answer(sound_T, end_s)
        rows.append({"question": text, **{name: _row(a) for name, a in zip(SYSTEMS, answers, strict=True)}})
    sound = {name: _median(row[name]["first_sound_ms"] for row in rows) for name in SYSTEMS}
    return {
        "first_sound_ms": sound,
        "first_frame_ms": {name: _median(row[name]["first_frame_ms"] for row in rows) for name in SYSTEMS},
        "answered": {name: sum(row[name]["first_sound_ms"] is not None for row in rows) for name in SYSTEMS},
        "with_network_ms": {name: None if ms is None else round(ms + NETWORK_MS, 1) for name, ms in sound.items()},
        "paper_total_ms": PAPER_TOTAL_MS,
        "questions": rows,
    }


def answer_live(agent: WanStreamer, sound_T: np.ndarray, end_s: float, threads: Threads | None = None) -> Answer:
    """Play a question to a fresh session in real time, before a face that does not move.

    sound_T  float32 at 24 kHz, whole units;   end_s  when the question's last sound ends
    """
    driver = UnitDriver(agent.session(seed=0), agent.default_steps, agent.frame_size, threads=threads)
    frame = FaceRenderer(FaceIdentity(), *agent.frame_size).render(FacePose())
    video = np.broadcast_to(frame, (FRAMES_PER_UNIT, *frame.shape)).copy()
    heard, said = Heard(), ""
    loud = False
    found: tuple[float, float] | None = None
    start = time.monotonic()
    for k, audio in enumerate(sound_T.reshape(-1, SAMPLES_PER_UNIT)):
        due = start + (k + 1) * UNIT_S
        time.sleep(max(0.0, due - time.monotonic()))
        out = driver.step(UserUnit(audio, video), due)
        out_s = time.monotonic() - start
        driver.settle()
        heard.add(k, out)
        said += out.text
        onsets, loud = begins(out.audio, loud)
        onset_s = next((out_s + at for at in onsets if out_s + at > end_s), None)
        if found is None and onset_s is not None:
            found = onset_s, out_s + int((onset_s - out_s) * FPS) / FPS
    if found is None:
        return Answer(None, None, heard.text, said)
    return Answer((found[0] - end_s) * 1000, (found[1] - end_s) * 1000, heard.text, said)


def begins(audio_T: np.ndarray, loud: bool) -> tuple[list[float], bool]:
    """Seconds at which sound begins in `audio_T`, and whether there is sound at its end. loud: whether before it"""
    block_NT = audio_T[: len(audio_T) // BLOCK * BLOCK].reshape(-1, BLOCK)
    loud_N = np.sqrt(np.square(block_NT).mean(1)) > AUDIBLE
    rises_N = loud_N & ~np.concatenate([[loud], loud_N[:-1]])
    return [float(block) * BLOCK / SAMPLE_RATE for block in np.flatnonzero(rises_N)], bool(loud_N[-1])


def _asked(speech: Speech) -> tuple[np.ndarray, float]:
    """Sound of whole units with silence around the question, and when the question ends."""
    end_s = LEAD_S + speech.phonemes[-1].end
    sound_T = np.zeros(round((end_s + WAIT_S) / UNIT_S + 0.5) * SAMPLES_PER_UNIT, np.float32)
    first = round(LEAD_S * SAMPLE_RATE)
    sound_T[first : first + len(speech.audio)] = speech.audio
    return sound_T, end_s


def _row(answer: Answer) -> dict[str, Any]:
    def rounded(ms: float | None) -> float | None:
        return None if ms is None else round(ms, 1)

    return {
        "first_sound_ms": rounded(answer.first_sound_ms),
        "first_frame_ms": rounded(answer.first_frame_ms),
        "heard": answer.heard.strip(),
        "said": answer.said.strip(),
        "stages_ms": {name: rounded(ms) for name, ms in (answer.stages_ms or {}).items()},
    }


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 1) if known else None


def print_peers(report: dict[str, Any], console: Console) -> None:
    """A table of the medians, what a cascade's parts took, and a unit of models alone."""
    table = Table(title="from the end of a spoken question, median ms", title_justify="left")
    for name in ("", "first sound", "first picture", f"sound + {NETWORK_MS:.0f} ms network", "answered"):
        table.add_column(name, justify="right" if name else "left")
    for name in SYSTEMS:
        figures = [report[key][name] for key in ("first_sound_ms", "first_frame_ms", "with_network_ms")]
        answered = f"{report['answered'][name]} of {len(report['questions'])}"
        table.add_row(name, *("" if ms is None else f"{ms:.0f}" for ms in figures), answered)
    console.print(table)
    for row in report["questions"]:
        parts = " · ".join(f"{name} {ms:.0f}" for name, ms in row["cascade"]["stages_ms"].items())
        console.print(f"{row['question']} → {row['cascade']['said']} ({parts})", markup=False, highlight=False)
    for name, row in report["steps"].items():
        if "skipped" in row:
            console.print(f"skipped {name}: {row['skipped']}", markup=False, highlight=False)
        else:
            ms = row["ms_a_unit"]
            size = f"{row['parameters'] / 1e6:.1f} M parameters"
            console.print(
                f"{name}, no codecs: {ms['p50']:.0f} ms a unit (p95 {ms['p95']:.0f}), {size}", highlight=False
            )

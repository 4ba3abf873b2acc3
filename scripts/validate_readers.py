"""How far the readers of the evaluation can be trusted: writes wan_streamer/evaluation/readers/readers.json.

    wan-streamer simulate data/world/test --hours 0.4 --seed 3 --split test
    python scripts/validate_readers.py data/world/test --codecs wan_streamer/checkpoints/nano

Every reader meets films whose truth is known, as rendered and after the round trip of a video codec.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from wan_streamer.codecs.folder import load_codec
from wan_streamer.data.shards import Episode, read_episodes
from wan_streamer.evaluation.codecs.score import rebuild
from wan_streamer.evaluation.readers.face import validate_readers
from wan_streamer.evaluation.suite.results import VALIDATION
from wan_streamer.files import write_json

KEPT = {"r", "mae", "precision", "recall", "accuracy", "auc", "same", "other", "n"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--codecs", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=24, help="whose users are read: other faces, things held up")
    parser.add_argument("--films", type=int, default=8, help="of the agent")
    parser.add_argument("--frames", type=int, default=200)
    options = parser.parse_args()
    video_vae = load_codec(options.codecs, "video").to(torch.bfloat16, memory_format=torch.channels_last)

    def coded() -> Iterator[Episode]:
        for episode in islice(read_episodes(options.shards), options.films):
            assert episode.agent_video is not None
            film = rebuild(video_vae, episode.agent_video[: options.frames // 4 * 4])
            yield dataclasses.replace(episode, agent_video=film)

    clean = validate_readers(islice(read_episodes(options.shards), options.episodes), options.films, options.frames)
    after = validate_readers(coded(), options.films, options.frames)
    merged = {
        name: {key: value for key, value in errors.items() if key in KEPT}
        | {f"coded_{key}": value for key, value in after.get(name, {}).items() if key in KEPT - {"n"}}
        for name, errors in clean.items()
    }
    rounded = {name: {key: round(float(value), 4) for key, value in errors.items()} for name, errors in merged.items()}
    write_json(VALIDATION, rounded)
    print(json.dumps(rounded, indent=2))


if __name__ == "__main__":
    main()

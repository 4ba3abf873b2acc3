"""Give an agent another picture decoder: python scripts/new_decoder.py nano runs/video out/nano

The decoder is what `wan-streamer train codec --codec video --from AGENT --decoder-only` wrote. The encoder and the
statistics of the latents have to be the agent's own: then what its model has learned stays true.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from wan_streamer.codecs.folder import load_codec
from wan_streamer.errors import CheckpointError, WanStreamerError
from wan_streamer.model.pretrained import find_checkpoint, load_weights, save_weights


def exchange(agent: str, video: Path, out: Path) -> None:
    """Write `agent` with the decoder of `video` to `out`. Raises `CheckpointError` if they do not fit."""
    weights, codec = load_weights(find_checkpoint(agent)), load_codec(video, "video")
    before, after = weights.video_vae.state_dict(), codec.state_dict()
    for name in sorted(name for name in before.keys() | after.keys() if not name.startswith("dec_")):
        if name not in before or name not in after or not torch.equal(before[name], after[name]):
            raise CheckpointError(f"{video}: expected the encoder of {agent}, but {name} differs; use --decoder-only")
    config = dataclasses.replace(weights.config, video_vae=codec.config)
    save_weights(dataclasses.replace(weights, config=config, video_vae=codec), out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", help="a folder, or the name of a built-in agent")
    parser.add_argument("video", type=Path, help="folder that train codec wrote")
    parser.add_argument("out", type=Path, help="where the new agent goes")
    options = parser.parse_args()
    try:
        exchange(options.agent, options.video, options.out)
    except WanStreamerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

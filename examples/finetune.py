"""Your own two-sided recordings teach an agent: `.venv/bin/python examples/finetune.py recordings runs/mine`.

The folder `recordings` holds NAME.user.mp4 and NAME.agent.mp4 (docs/recordings.md), at least ten, so that some are kept
for validation. The same as commands: `prepare`, `encode`, `train duplex --from nano --lora 8`.
"""

import shutil
import sys
from pathlib import Path

from wan_streamer import WanStreamer
from wan_streamer.data.latents import encode_shards
from wan_streamer.data.recordings.prepare import prepare
from wan_streamer.model.pretrained import find_checkpoint, load_weights
from wan_streamer.training.stages.duplex import train_duplex
from wan_streamer.training.stages.run import RunOptions


def main(recordings: str, out: str = "runs/mine", start: str = "nano", steps: str = "300") -> None:
    folder, base = Path(out), find_checkpoint(start)
    report = prepare(recordings, folder / "shards")
    print(f"{report['accepted']} recordings accepted; why others were not is in {folder / 'shards' / 'report.json'}")
    weights = load_weights(base)
    for split in ("train", "valid"):
        shards, latents = folder / "shards" / split, folder / "latents" / split
        encode_shards(shards, latents, weights.audio_vae, weights.video_vae, weights.config.perception)
    for codec in base.glob("*_vae.safetensors"):  # what is encoded stays together with its codecs
        shutil.copy(codec, folder / "latents")
    train_duplex(folder / "latents", RunOptions(folder / "agent", start=str(base), steps=int(steps), lora=8))
    WanStreamer.from_pretrained(folder / "agent")
    print(f"wan-streamer talk me.mp4 --out reply.mp4 --checkpoint {folder / 'agent'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

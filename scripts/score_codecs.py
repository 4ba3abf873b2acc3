"""Quality of the codecs on held-out voices and faces: python scripts/score_codecs.py --data data --json scores.json.

Takes the codecs of a checkpoint, or of folders that `train codec` wrote (--audio, --video). Needs the extras simulate
and eval, and for the opinion scores: pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0

    data/codec/voice_cache   where the agent's sentences are kept
    data/sim/test            made by `wan-streamer simulate data/sim/test --hours 0.05 --seed 3 --split test`
    --voices DIR             recordings of unseen voices, text of a.wav in a.txt
    --footage DIR            films of anything, such as vtest.avi and tree.avi of the Debian package opencv-doc
    --human DIR              / if asterisk-core-sounds-en-g722 and pocketsphinx-testdata are installed, or where
                             `dpkg-deb -x` unpacked them
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from wan_streamer import WanStreamer
from wan_streamer.codecs.folder import load_codec
from wan_streamer.errors import WanStreamerError
from wan_streamer.evaluation.codecs.score import score_codecs
from wan_streamer.files import write_json

ALL = ("audio", "video")


def print_tables(report: dict, console: Console) -> None:
    for part, rows in report.items():
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        table = Table("", *rows, title=part, title_justify="left")
        for name in columns:
            table.add_row(name, *(f"{row[name]:g}" if name in row else "" for row in rows.values()))
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="whose codecs to score, as they are served; nano if no folder is given")
    parser.add_argument("--audio", type=Path, help="folder with audio_vae.json and audio_vae.safetensors")
    parser.add_argument("--video", type=Path, help="folder with video_vae.json and video_vae.safetensors")
    parser.add_argument("--only", choices=ALL, help="leave the other codec out")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--voices", type=Path)
    parser.add_argument("--human", type=Path)
    parser.add_argument("--footage", type=Path, help="folder of real films")
    parser.add_argument("--count", type=int, default=22, help="clips of each set of voices")
    parser.add_argument("--films", type=int, default=8, help="films of the agent and of others")
    parser.add_argument("--frames", type=int, default=200, help="frames of each film")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the codec data, so that its held-out sentences are used"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    codecs = {}
    if options.checkpoint or not (options.audio or options.video):
        agent = WanStreamer.from_pretrained(options.checkpoint or "nano")
        codecs = {"audio": agent.audio_vae, "video": agent.video_vae}
    for kind, folder in (("audio", options.audio), ("video", options.video)):
        if folder is not None:
            codecs[kind] = load_codec(folder, kind)
    if "video" in codecs:
        codecs["video"].to(torch.bfloat16, memory_format=torch.channels_last)
    audio_vae, video_vae = (codecs.get(kind) if options.only in (None, kind) else None for kind in ALL)
    report = score_codecs(
        audio_vae, video_vae, options.data, count=options.count, films=options.films, frames=options.frames,
        seed=options.seed, voices=options.voices, human=options.human, footage=options.footage,
        progress=lambda name, scores: print(f"{name}: {json.dumps(scores)}", flush=True),
    )  # fmt: skip
    print_tables(report, Console())
    if options.json is not None:
        write_json(options.json, report)


if __name__ == "__main__":
    try:
        main()
    except WanStreamerError as error:
        sys.exit(f"error: {error}")

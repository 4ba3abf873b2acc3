"""Before and after the codecs, to look at and listen to: python scripts/codec_clips.py --codecs DIR --footage DIR.

Writes docs/images/codecs.jpg (rows: original, round trip, four times the difference), docs/clips/codec-pictures.mp4
(original left, round trip right) and docs/clips/codec-voices.m4a (every sentence twice: original, round trip). Needs
what `score_codecs.py` needs.
"""

import argparse
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch

from wan_streamer.codecs.folder import load_codec
from wan_streamer.data.media import read_units
from wan_streamer.data.shards import read_episodes
from wan_streamer.evaluation.codecs.clips import agent_clips, espeak_clips, human_clips
from wan_streamer.evaluation.codecs.score import rebuild
from wan_streamer.evaluation.suite.pairs import letterbox
from wan_streamer.units import FPS, SAMPLE_RATE

FRAMES = 60
SHOWN = 34  # frame of every film that the sheet shows


def films(shards: Path, footage: Path | None) -> list[np.ndarray]:
    """The agent, somebody else, and real films: uint8 [60, 192, 336, 3] each."""
    episode = next(e for e in read_episodes(shards) if e.user_video is not None)
    talk = next(e for e in episode.labels["events"] if e["type"] == "speech" and e["side"] == "agent")
    first = int(talk["start"] * FPS) // 4 * 4
    found = [video[first : first + FRAMES] for video in (episode.agent_video, episode.user_video) if video is not None]
    for path in sorted(footage.iterdir()) if footage else ():
        with read_units(path) as reader:
            found.append(
                letterbox(np.concatenate([u.video for u in islice(reader, FRAMES // 4) if u.video is not None]))
            )
    return found


def write_film(path: Path, before: list[np.ndarray], after: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = 672, 192, "yuv420p"
        for left, right in zip(np.concatenate(before), np.concatenate(after), strict=True):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.concatenate([left, right], 1), format="rgb24")))
        out.mux(stream.encode(None))


def write_sound(path: Path, audio_T: np.ndarray) -> None:
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=96_000)
        for first in range(0, len(audio_T), 1024):
            frame = av.AudioFrame.from_ndarray(audio_T[None, first : first + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, first
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", type=Path, required=True, help="folder with both codecs and their JSON")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--footage", type=Path)
    parser.add_argument("--human", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    video_vae = load_codec(options.codecs, "video").to(torch.bfloat16, memory_format=torch.channels_last)
    audio_vae = load_codec(options.codecs, "audio")
    for name in ("images", "clips"):
        (options.out / name).mkdir(parents=True, exist_ok=True)
    before = films(options.data / "sim" / "test", options.footage)
    after = [rebuild(video_vae, film) for film in before]
    write_film(options.out / "clips" / "codec-pictures.mp4", before, after)
    columns = []
    for a, b in zip(before, after, strict=True):
        error = np.clip(4 * np.abs(a.astype(np.int16) - b), 0, 255).astype(np.uint8)
        columns.append(np.concatenate([rows[SHOWN] for rows in (a, b, error)]))
    av.VideoFrame.from_ndarray(np.concatenate(columns, 1), format="rgb24").save(options.out / "images" / "codecs.jpg")
    clips = [*islice(agent_clips(options.data / "codec" / "voice_cache", 0, 2), 2), *islice(espeak_clips(0, 1), 1)]
    if options.human:
        clips += list(human_clips(options.human, 1))[:3]
    voices = [part for clip in clips for part in (clip.audio_T, audio_vae.reconstruct(clip.audio_T))]
    write_sound(options.out / "clips" / "codec-voices.m4a", np.concatenate(voices))


if __name__ == "__main__":
    main()

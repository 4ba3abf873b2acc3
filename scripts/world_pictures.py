"""The pictures of docs/simulation.md and docs/scenarios.md, and the table of all scenarios, from shards.

    wan-streamer simulate data/world/train --hours 1 --seed 1
    python scripts/world_pictures.py data/world/train

Every strip shows the first time that a scenario happens with the camera on (or off, where it must be off).
"""

import argparse
from collections import Counter
from pathlib import Path

import av
import numpy as np
from sheet import contact_sheet, frame_strip

from wan_streamer.data.shards import read_episodes
from wan_streamer.simulation.conversation.scenarios import SCENARIO_NAMES, plan_of
from wan_streamer.simulation.preview.films import preview_frames

DOCS = Path(__file__).parent.parent / "docs"
PREVIEW_AT = 150  # frame of the first conversation that stands for the preview
LONGEST = 16.0  # seconds of a strip


def save_jpeg(image_HWC: np.ndarray, path: Path, scale: float) -> None:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
    size = {"width": round(image_HWC.shape[1] * scale) // 2 * 2, "height": round(image_HWC.shape[0] * scale) // 2 * 2}
    frame.reformat(**size, interpolation="LANCZOS").to_image().save(path, quality=80)


def meaning(name: str) -> str:
    """What the function of a scenario says about itself."""
    return (plan_of(name).__doc__ or "").strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    options = parser.parse_args()
    (DOCS / "images" / "scenarios").mkdir(parents=True, exist_ok=True)
    contact_sheet(options.shards, DOCS / "images" / "world.jpg")
    counts: Counter[str] = Counter()
    shown: set[str] = set()
    units = 0
    for number, episode in enumerate(read_episodes(options.shards)):
        units += episode.units
        if number == 0:
            frame = next(f for i, f in enumerate(preview_frames(episode)) if i == PREVIEW_AT)
            save_jpeg(frame, DOCS / "images" / "preview.jpg", 1.0)
        for event in episode.labels["events"]:
            if event["type"] != "scenario":
                continue
            name = event["label"]
            counts[name] += 1
            short = event["end"] - event["start"] <= LONGEST
            if name not in shown and short and episode.user_video is not None:
                shown.add(name)
                end = min(event["end"] + 0.2, episode.units * 0.16)
                strip = frame_strip(episode, max(0.0, event["start"] - 0.2), end, frames=5)
                save_jpeg(strip, DOCS / "images" / "scenarios" / f"{name}.jpg", 0.72)
    hours = units * 0.16 / 3600
    lines = ["| scenario | per hour | what happens |", "|---|---|---|"]
    for name in SCENARIO_NAMES:
        picture = f"<br>![{name}](images/scenarios/{name}.jpg)" if name in shown else ""
        lines.append(f"| `{name}` | {counts[name] / hours:.0f} | {meaning(name)}{picture} |")
    print(f"{hours:.2f} hours, {sum(counts.values())} scenarios")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

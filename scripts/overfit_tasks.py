"""Does a model that learned a few tasks by heart do them live? Trains one on a handful of spoken tasks and talks to it.

    python scripts/overfit_tasks.py --out out/overfit --codecs wan_streamer/checkpoints/nano

Makes the shortest of many `tts` and `generate_av` tasks, encodes them, trains `pretrain` on them alone, and answers the
user's side of each with `talk`, the prompt typed as in the task. With `--from CHECKPOINT` the model begins as that
agent, which takes far fewer steps. Printed: the losses and, for every task, what a recogniser hears in the reply, its
word error, and how well the mouth in the reply follows the true opening and the sound. In OUT: the tasks, the run,
the replies, and `sheet.png` (the task above, the reply below, at the same moments).

Tasks leave open what is in a text lane that is no target. A live session fills in both lanes and then reads them, so
here both are targets, and the agent also writes down what somebody else says in `generate_av`.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from wan_streamer.codecs.folder import load_codecs
from wan_streamer.config import StreamerConfig
from wan_streamer.data.latents import encode_shards
from wan_streamer.data.media import read_units
from wan_streamer.data.shard_media import encode_flac
from wan_streamer.data.shards import Episode, read_shard, shard_name, write_shard
from wan_streamer.evaluation.axes.sync import sync_scores
from wan_streamer.evaluation.readers.judges import Recogniser, word_error_rate
from wan_streamer.evaluation.readers.pictures import delayed_correlation, mouth_gap_track
from wan_streamer.model.layout import LANES
from wan_streamer.presets import PRESETS, nano
from wan_streamer.runtime.talk import captions, talk
from wan_streamer.simulation.generate import default_cache
from wan_streamer.simulation.tasks.episodes import make_task
from wan_streamer.simulation.voice.agent import AgentVoice
from wan_streamer.tensors import save_atomically
from wan_streamer.training.codecs.samples import write_png
from wan_streamer.training.examples.vocabulary import learn_text
from wan_streamer.training.loop.parallel import World
from wan_streamer.training.stages.pretrain import CONFIG, PretrainStage
from wan_streamer.training.stages.run import RunOptions, run, starting_point
from wan_streamer.units import UNIT_MS

TRIED, WORDS = 120, 4  # tasks of a kind to choose from; words that a sentence has at least
COLUMNS = 8  # of the sheet


def short_tasks(kind: str, count: int, seed: int, voice: AgentVoice) -> list[Episode]:
    """The shortest tasks of a kind in which something is said and the camera is off."""
    made = [make_task(seed, "train", i, voice, name=kind, pictures=False) for i in range(TRIED)]
    fit = [m for m in made if len(m.labels["words"]["agent"]) >= WORDS and not m.labels["user"]["camera"]]
    chosen: dict[str, int] = {}
    for episode in sorted(fit, key=lambda m: m.units):
        chosen.setdefault(episode.labels["prompt"], episode.labels["index"])
    tasks = [make_task(seed, "train", i, voice, name=kind) for i in list(chosen.values())[:count]]
    for number, task in enumerate(tasks):
        task.labels["targets"] = [*dict.fromkeys([*task.labels["targets"], *LANES])]
        tasks[number] = dataclasses.replace(task, key=f"{kind}{number}")
    return tasks


def make_data(options: argparse.Namespace) -> list[Episode]:
    """The tasks, encoded, as training and as held-out data alike; those of an earlier run are kept."""
    shard = options.out / "tasks" / "train" / shard_name(0)
    if shard.exists():
        return list(read_shard(shard))
    voice = AgentVoice(default_cache())
    tasks = [
        task
        for kind, count in (("tts", options.tts), ("generate_av", options.av))
        for task in short_tasks(kind, count, options.seed, voice)
    ]
    data = options.out / "latents"
    data.mkdir(parents=True, exist_ok=True)
    codecs = load_codecs(nano(), options.codecs)
    for codec, name in zip(codecs, ("audio_vae", "video_vae"), strict=True):
        save_atomically(codec.state_dict(), data / f"{name}.safetensors")
    for split in ("train", "valid"):
        write_shard(options.out / "tasks" / split / shard_name(0), tasks)
        encode_shards(options.out / "tasks" / split, data / split, *codecs, nano().perception)
    return tasks


def smaller(layers: int) -> StreamerConfig:
    return dataclasses.replace(nano(), backbone=dataclasses.replace(nano().backbone, layers=layers))


def train(options: argparse.Namespace) -> dict[str, float]:
    """The stage `pretrain` on the tasks alone, with a short warm-up and memory. Returns the last losses."""
    PRESETS["overfit"] = lambda: smaller(options.layers)
    chosen = RunOptions(
        options.out / "run", "overfit", options.start, options.resume, options.steps, options.minutes,
        options.batch, seed=options.seed, compiled=options.compile,
    )  # fmt: skip
    data = options.out / "latents"
    streamer, text = starting_point(chosen, lambda vocabulary: learn_text([data / "train"], vocabulary))
    config = dataclasses.replace(CONFIG, warmup=20, ema=0.96, validate_every=50, save_every=50)
    return run(PretrainStage(streamer, text, data, chosen.apply(config)), chosen, World())


def reply(task: Episode, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, dict]:
    """The agent's sound and pictures when it is asked live, and the report."""
    user, film = (options.out / f"{task.key}.{end}" for end in ("user.flac", "reply.mp4"))
    user.write_bytes(encode_flac(task.user_audio))
    (asked,) = (event for event in task.labels["events"] if event["type"] == "typed")
    typed = {int(asked["start"] * 1000 / UNIT_MS): asked["label"]}
    report = talk(user, film, checkpoint=str(options.out / "run"), pace="fast", seed=options.seed, typed=typed)
    with read_units(film, max_side=4096) as reader:
        units = list(reader)
    frames_THWC = np.concatenate([unit.video for unit in units])
    return np.concatenate([unit.audio for unit in units]), frames_THWC[:, :, frames_THWC.shape[2] // 2 :], report


def score(task: Episode, options: argparse.Namespace, recognise: Recogniser) -> tuple[dict, np.ndarray]:
    """What the reply is like, and its strip of the sheet."""
    audio_T, frames_THWC, report = reply(task, options)
    film_THWC = task.agent_video
    assert film_THWC is not None
    length = len(film_THWC)
    gap_F, open_F = mouth_gap_track(frames_THWC[:length]), np.array(task.labels["mouth_open"]["agent"])
    wanted = " ".join(word["text"] for word in task.labels["words"]["agent"])
    heard = {name: recognise(sound) for name, sound in (("task", task.agent_audio), ("reply", audio_T))}
    shown = np.linspace(length // 3, length - 2, COLUMNS).astype(int)
    strip = [np.concatenate(film[shown][:, ::2, ::2], axis=1) for film in (film_THWC, frames_THWC)]
    return {
        "task": task.key,
        "units": task.units,
        "prompt": task.labels["prompt"],
        "wanted": wanted,
        "heard_in_task": heard["task"],
        "heard": heard["reply"],
        "word_error": round(word_error_rate(wanted, heard["reply"]), 3),
        "captions": captions(report["transcript"]),
        "mouth": round(delayed_correlation(gap_F, open_F)[0], 3),
        "mouth_of_task": round(delayed_correlation(mouth_gap_track(film_THWC), open_F)[0], 3),
        "mouth_and_sound": round(sync_scores(gap_F, audio_T)["correlation"], 3),
        "mouth_and_sound_of_task": round(sync_scores(open_F, task.agent_audio)["correlation"], 3),
    }, np.concatenate(strip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codecs", type=Path, required=True, help="folder with both codecs")
    parser.add_argument("--tts", type=int, default=3, help="tasks in which the agent speaks")
    parser.add_argument("--av", type=int, default=1, help="tasks in which somebody else does")
    parser.add_argument("--from", dest="start", metavar="CHECKPOINT", help="agent of the same codecs to begin from")
    parser.add_argument("--layers", type=int, default=8, help="of the backbone of a new model")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    tasks = make_data(options)
    for task in tasks:
        print(task.key, task.units, "units", repr(task.labels["prompt"]), flush=True)
    print(json.dumps(train(options), indent=2), flush=True)
    recognise, strips = Recogniser(), []
    for task in tasks:
        scores, strip = score(task, options, recognise)
        print(json.dumps(scores, indent=2, ensure_ascii=False), flush=True)
        strips.append(strip)
    write_png(np.concatenate(strips), options.out / "sheet.png")


if __name__ == "__main__":
    main()

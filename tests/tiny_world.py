"""Conversations small enough to encode and train on in a test, for the agent of `tiny`."""

from pathlib import Path

import numpy as np
import torch
from tiny import TALKER, round_as_stored, tiny_weights

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE, frames_to_video
from wan_streamer.data.latents import encode_shards
from wan_streamer.data.shards import Episode, write_shard
from wan_streamer.tensors import save_atomically
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_FRAME, SAMPLES_PER_UNIT


def hum(samples: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [samples]: two tones that swell and fade, over a little noise."""
    time = np.arange(samples) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * rng.uniform(150, 900) * time) for _ in range(2))
    swell = np.interp(time, np.linspace(0, time[-1], 24), rng.uniform(0, 0.3, 24))
    return (tones * swell + 0.003 * rng.standard_normal(samples)).astype(np.float32)


def bouncing_square(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [frames, height, width, 3]: a square that wanders over a striped ground."""
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:] = rng.integers(30, 120, 3)
    video[:, np.arange(height) % 8 < 4] += 60
    colour, side = rng.integers(130, 256, 3), height // 4
    speed, start = rng.uniform(1, 5, 2), rng.uniform(0, 100, 2)
    for number in range(frames):
        span = np.array([height - side, width - side])
        top, left = (np.abs((start + speed * number) % (2 * span) - span)).astype(int)
        video[number, top : top + side, left : left + side] = colour
    return video


def make_episode(number: int, units: int, split: str = "train", camera: bool = True) -> Episode:
    """The user says hello, the agent counts to two and has to be quick."""
    rng = np.random.default_rng((number, units))
    size, frames = TALKER.video_vae.height, units * FRAMES_PER_UNIT
    say = {"user": [("hello", 0.05, 0.3)], "agent": [("one", 0.45, 0.6), ("two", 0.65, 0.8)]}
    words = {side: [{"text": t, "start": s, "end": e} for t, s, e in said] for side, said in say.items()}
    phonemes = [{"symbol": s, "start": w["start"], "end": w["end"]} for s, w in zip("wt", words["agent"], strict=True)]
    labels = {
        "schema": 1, "generator": "test", "seed": number, "split": split, "index": number, "units": units, "fps": FPS,
        "scenarios": ["greeting"], "user": {}, "agent": {}, "words": words, "phonemes": {"user": [], "agent": phonemes},
        "events": [
            {"type": "speech", "side": side, "start": row[0]["start"], "end": row[-1]["end"]}
            for side, row in words.items()
        ],
        "mouth_open": {side: [0.0] * frames for side in words},
    }  # fmt: skip
    return Episode(
        f"ep{number:06d}",
        hum(units * SAMPLES_PER_UNIT, rng),
        hum(units * SAMPLES_PER_UNIT, rng),
        bouncing_square(frames, 60, 80, rng) if camera else None,
        bouncing_square(frames, size, size, rng),
        labels,
    )


def save_codecs(audio_vae: AudioVAE, video_vae: VideoVAE, folder: Path) -> None:
    save_atomically(audio_vae.state_dict(), folder / "audio_vae.safetensors")
    save_atomically(video_vae.state_dict(), folder / "video_vae.safetensors")


@torch.inference_mode()
def make_latents(folder: Path, units: int, episodes: int = 1) -> Path:
    """What `wan-streamer encode` leaves: the codecs and encoded conversations in train and valid."""
    weights = tiny_weights()
    audio_vae, video_vae = weights.audio_vae, weights.video_vae
    sample = [make_episode(number, 2) for number in range(8)]
    audio = torch.from_numpy(np.stack([episode.agent_audio for episode in sample]))
    audio_vae.stats.measure(audio_vae.encode_raw(audio)[0].flatten(0, 1))
    frames = torch.from_numpy(np.stack([episode.agent_video for episode in sample]))
    video_vae.stats.measure(
        video_vae.encode_raw(frames_to_video(frames, frames.device))[0].movedim(2, -1).flatten(0, 3)
    )
    for codec in (audio_vae, video_vae):
        round_as_stored(codec)
    for split, start in (("train", 0), ("valid", episodes)):
        made = [make_episode(start + i, units, split, camera=i % 3 < 2) for i in range(episodes)]
        write_shard(folder / "shards" / split / "shard-00000.tar", made)
        encode_shards(folder / "shards" / split, folder / split, audio_vae, video_vae, TALKER.perception)
    save_codecs(audio_vae, video_vae, folder)
    return folder


def make_codec_arrays(folder: Path, seconds: float = 4.0, frames: int = 60) -> Path:
    """What `train codec` reads: sounds and pictures of the agent and of others."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = int(seconds * FPS) * SAMPLES_PER_FRAME
    for number, name in enumerate(("agent", "other", "agent_valid", "other_valid")):
        rng = np.random.default_rng(number)
        who, _, split = name.partition("_")
        end = f"_{split}" if split else ""
        np.save(folder / f"{who}_audio{end}.npy", (hum(samples, rng) * 32767).clip(-32767, 32767).astype(np.int16))
        np.save(folder / f"{who}_frames{end}.npy", bouncing_square(frames, 96, 128, rng))
    return folder

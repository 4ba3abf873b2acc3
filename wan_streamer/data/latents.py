"""Latent store: shards of conversations -> what a training step reads, bound to the codecs that made it.

`encode_shards`  shards + codecs -> one safetensors file per conversation; resumable
`LatentStore`    random access to them; refuses latents of other codecs

A file holds video f16 [U, C, h, w], audio f16 [U, 4, C] (standardised agent latents), user_audio i16 [U x 3840],
user_video u8 [4 U, h, w, 3] in the size of the perception encoder (absent if the camera is off), and as metadata the
labels and the codecs' hash.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE, frames_to_video
from wan_streamer.config import PerceptionConfig
from wan_streamer.data.shards import Episode, read_shard, shard_paths
from wan_streamer.errors import DataError
from wan_streamer.model.pretrained import codec_hash
from wan_streamer.perception.video import scale_frames
from wan_streamer.tensors import save_atomically
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT

CHUNK_UNITS = 16  # encoded at once; state is carried over, so the size changes nothing


@torch.inference_mode()
def encode_episode(
    episode: Episode, audio_vae: AudioVAE, video_vae: VideoVAE, perception: PerceptionConfig
) -> dict[str, Tensor]:
    """The tensors of one conversation (see the module's docstring). Needs the agent's film."""
    if episode.agent_video is None:
        raise DataError(f"{episode.key}: expected the agent's film, got none")
    audio, video = [], []
    audio_state = video_state = None
    for first in range(0, episode.units, CHUNK_UNITS):
        last = min(episode.units, first + CHUNK_UNITS)
        sound = torch.from_numpy(episode.agent_audio[first * SAMPLES_PER_UNIT : last * SAMPLES_PER_UNIT])
        frames = torch.from_numpy(episode.agent_video[first * FRAMES_PER_UNIT : last * FRAMES_PER_UNIT])
        latent, audio_state = audio_vae.encode(sound[None], audio_state)
        audio.append(latent[0])
        with torch.autocast("cpu", torch.bfloat16):
            latent, video_state = video_vae.encode(frames_to_video(frames[None], frames.device), video_state)
        video.append(latent[0])
    tensors = {
        "video": torch.cat(video).half(),
        "audio": torch.cat(audio).unflatten(0, (episode.units, -1)).half(),
        "user_audio": torch.from_numpy((episode.user_audio.clip(-1, 1) * 32767).astype(np.int16)),
    }
    if episode.user_video is not None:
        tensors["user_video"] = scale_frames(episode.user_video, perception)
    return tensors


def encode_shards(
    shards: Path,
    out_dir: Path,
    audio_vae: AudioVAE,
    video_vae: VideoVAE,
    perception: PerceptionConfig,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Encode every conversation of `shards` that `out_dir` lacks. `part` (i, n) does every n-th shard only.

    Returns the number of files written. Several processes may work on disjoint parts of one store.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    fingerprint = codec_hash(audio_vae, video_vae)
    paths = shard_paths(shards)[part[0] :: part[1]]
    written = 0
    for number, path in enumerate(paths):
        for episode in read_shard(path):
            target = out_dir / f"{path.stem}-{episode.key}.safetensors"
            if target.exists() and _metadata(target)["codecs"] == fingerprint:
                continue
            tensors = encode_episode(episode, audio_vae, video_vae, perception)
            save_atomically(tensors, target, {"codecs": fingerprint, "labels": json.dumps(episode.labels)})
            written += 1
        if progress:
            progress(number + 1, len(paths))
    return written


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata()
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it and encode again") from error


class LatentStore:
    """Encoded conversations of one folder. Raises `DataError` if it is empty or made by other codecs."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.paths = sorted(Path(folder).glob("*.safetensors"))
        if not self.paths:
            raise DataError(
                f"{folder}: expected encoded conversations, found none; make them with 'wan-streamer encode'"
            )
        self.labels: list[dict] = []
        for path in self.paths:
            metadata = _metadata(path)
            if metadata["codecs"] != fingerprint:
                raise DataError(
                    f"{path}: made by codecs {metadata['codecs']}, expected {fingerprint}; encode the shards again"
                )
            self.labels.append(json.loads(metadata["labels"]))

    def read(self, number: int, first: int, units: int) -> dict[str, Tensor]:
        """Units [first, first + units) of a conversation; the agent's latents from one unit before (zeros at 0)."""
        before = max(0, first - 1)
        with safe_open(self.paths[number], "pt") as file:
            video = file.get_slice("video")[before : first + units].float()
            audio = file.get_slice("audio")[before : first + units].float()
            sound = file.get_slice("user_audio")[first * SAMPLES_PER_UNIT : (first + units) * SAMPLES_PER_UNIT]
            clip = {"user_audio": sound.float() / 32768}
            if "user_video" in file.keys():  # noqa: SIM118  (a safetensors file, not a dict)
                frames = file.get_slice("user_video")
                clip["user_video"] = frames[first * FRAMES_PER_UNIT : (first + units) * FRAMES_PER_UNIT]
        if first == 0:
            video, audio = (torch.cat([torch.zeros_like(z[:1]), z]) for z in (video, audio))
        return clip | {"video": video, "audio": audio}

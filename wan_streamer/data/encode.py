"""One shard of conversations -> one safetensors file per conversation.

`Encoder`         codecs, ready to write files;   `make_encoder`  them
`encode_episode`  the tensors of one conversation
`encode_shard`    writes the files of a shard that are missing or stale
`stale_reason`    what a file was made for, against what is wanted
`source_hashes`   fingerprints of the conversations in a shard

A file holds user_audio i16 [U x 3840], audio f16 [U, 4, C] and, if there is a film of the agent, video f16
[U, C, h, w] (standardised agent latents), and user_video u8 [4 U, h, w, 3] in the size of the perception encoder
(absent if the camera is off). With frozen `Senses` it holds what they make of the user instead: heard f16 [U, tokens,
features] for user_audio, seen f16 [U, tokens, features] for user_video. Its metadata are the labels and the `stamp`:
format of the file, hash of the codecs, size of the user's pictures, hash of the source, and of the senses.
"""

import copy
import hashlib
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.folder import codec_hash
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import PerceptionConfig
from wan_streamer.data.shards import Episode, read_shard
from wan_streamer.device import working_dtype
from wan_streamer.errors import DataError
from wan_streamer.files import parse_json
from wan_streamer.perception.senses import Senses
from wan_streamer.perception.video import scale_frames
from wan_streamer.tensors import save_atomically
from wan_streamer.units import FRAMES_PER_UNIT

FORMAT = "2"  # of the files; 1 had no source and no size
CHUNK_UNITS = 4  # encoded at once: its features stay in the cache of a core; state is carried over
STAMP = {  # key of the metadata -> how an error begins
    "format": "written in format", "codecs": "made by codecs", "perception": "made for pictures of",
    "source": "made from source", "ears": "heard with ears", "eyes": "seen with eyes",
}  # fmt: skip


@dataclass(frozen=True)
class Encoder:
    """What a job needs. `video_vae` may be in bfloat16, as it is in a loaded agent; `fingerprint` is the codecs'."""

    audio_vae: AudioVAE
    video_vae: VideoVAE
    perception: PerceptionConfig
    fingerprint: str
    senses: Senses = field(default_factory=Senses)

    def write(self, episode: Episode, path: Path, source: str | None = None) -> None:
        """The file of one conversation; `source` is its hash in `source_hashes`, None if it is in no shard."""
        tensors = encode_episode(episode, self.audio_vae, self.video_vae, self.perception, self.senses)
        metadata = self.stamp(source) | {"labels": json.dumps(episode.labels)}
        save_atomically(tensors, path, metadata)

    def stamp(self, source: str | None) -> dict[str, str]:
        return stamp(self.fingerprint, self.perception, source) | self.senses.fingerprints


def make_encoder(
    audio_vae: AudioVAE,
    video_vae: VideoVAE,
    perception: PerceptionConfig,
    device: torch.device | None = None,
    senses: Senses = Senses(),
) -> Encoder:
    """Copies of the codecs on `device` (default: where they are); the video codec as in a session there."""
    fingerprint, device = codec_hash(audio_vae, video_vae), device or video_vae.device
    audio_vae, video_vae = copy.deepcopy(audio_vae).to(device), copy.deepcopy(video_vae).to(device)
    return Encoder(audio_vae, video_vae.to(working_dtype(device)), perception, fingerprint, senses.to(device))


def stamp(
    fingerprint: str | None, perception: PerceptionConfig | None = None, source: str | None = None
) -> dict[str, str]:
    """The metadata that decide whether a file is stale; what is None is left out."""
    size = None if perception is None else f"{perception.video_height}x{perception.video_width}"
    values = {"format": FORMAT, "codecs": fingerprint, "perception": size, "source": source}
    return {key: value for key, value in values.items() if value is not None}


def read_metadata(path: Path) -> dict[str, str]:
    """Raises `DataError` if the file is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it and encode again") from error


def read_labels(path: Path) -> dict:
    """The labels of one conversation. Raises `DataError` if the file is missing or damaged."""
    return parse_labels(read_metadata(path), path)


def parse_labels(metadata: Mapping[str, str], path: Path) -> dict:
    """The labels among the `metadata` of the file `path`. Raises `DataError` if there are none."""
    try:
        return parse_json(metadata["labels"])
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: the labels are not valid JSON ({error}); encode the shards again") from error


def stale_reason(metadata: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """The first difference, as "made by codecs X, expected Y"; None if the file is as wanted."""
    for key, value in wanted.items():
        if (found := metadata.get(key, "none")) != value:
            return f"{STAMP[key]} {found}, expected {value}"
    return None


def source_hashes(shard: Path) -> dict[str, str]:
    """Key of every conversation -> hash of its labels and its sound, and of which films there are.

    Nothing is decoded. The films themselves are left out: they take most of the time to read, are drawn from the
    labels, and an encoder may pack the same pictures into other bytes.
    """
    digests: dict[str, hashlib._Hash] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, part = Path(member.name).name.partition(".")
                digest = digests.setdefault(key, hashlib.sha256())
                digest.update(f"{part}\n".encode())
                file = None if part.endswith("mp4") else tar.extractfile(member)
                if file:
                    digest.update(file.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{shard}: the shard is missing, damaged or cut off ({error}); make it again") from error
    return {key: digest.hexdigest()[:16] for key, digest in digests.items()}


def target_name(shard: Path, key: str) -> str:
    return f"{shard.stem}-{key}.safetensors"


@torch.inference_mode()
def encode_episode(
    episode: Episode,
    audio_vae: AudioVAE,
    video_vae: VideoVAE,
    perception: PerceptionConfig,
    senses: Senses = Senses(),
) -> dict[str, Tensor]:
    """The tensors of one conversation (see the module's docstring). Raises `DataError` for a film of another size."""
    device = video_vae.device
    audio, _ = audio_vae.encode(torch.from_numpy(episode.agent_audio)[None].to(device))
    tensors = {"audio": audio[0].unflatten(0, (episode.units, -1)).half().cpu()}
    sound_T = torch.from_numpy(episode.user_audio.clip(-1, 1))
    if senses.ears is not None:
        tensors["heard"] = senses.hear(sound_T.to(device))
    else:
        tensors["user_audio"] = (sound_T * 32767).to(torch.int16)
    if episode.agent_video is not None:
        size = (video_vae.config.height, video_vae.config.width)
        if episode.agent_video.shape[1:3] != size:
            raise DataError(f"{episode.key}: expected a film of {size}, got {episode.agent_video.shape[1:3]}")
        tensors["video"] = _encode_video(episode.agent_video, video_vae)
    if episode.user_video is not None:
        frames = scale_frames(episode.user_video, perception).to(device)
        if senses.eyes is not None:
            tensors["seen"] = senses.see(frames)
        else:
            tensors["user_video"] = frames.cpu()
    return tensors


def _encode_video(film_THWC: np.ndarray, video_vae: VideoVAE) -> Tensor:
    kind = video_vae.dtype
    latents, state = [], None
    for chunk_THWC in torch.from_numpy(film_THWC).split(CHUNK_UNITS * FRAMES_PER_UNIT):
        video_BTCHW = chunk_THWC.to(video_vae.device).float().div_(127.5).sub_(1).to(kind).movedim(3, 1)[None]
        latent, state = video_vae.encode(video_BTCHW, state)
        latents.append(latent[0])
    return torch.cat(latents).half().cpu()


def encode_shard(shard: Path, out_dir: Path, encoder: Encoder) -> tuple[int, int]:
    """Write what `out_dir` lacks of a shard. Returns the conversations written and those in the shard."""
    wanted = {key: encoder.stamp(source) for key, source in source_hashes(shard).items()}
    stale = {key for key, values in wanted.items() if _is_stale(out_dir / target_name(shard, key), values)}
    if not stale:
        return 0, len(wanted)
    for episode in read_shard(shard):
        if episode.key in stale:
            encoder.write(episode, out_dir / target_name(shard, episode.key), wanted[episode.key]["source"])
    return len(stale), len(wanted)


def _is_stale(path: Path, wanted: Mapping[str, str]) -> bool:
    try:
        return stale_reason(read_metadata(path), wanted) is not None
    except DataError:
        return True  # missing or damaged: made again

"""Latent store: shards of conversations -> what a training step reads, bound to the codecs that made it.

`encode_shards`  shards + codecs -> one file per conversation, on all cores; resumable
`LatentStore`    random access to them; refuses what was made for something else

The files are described in `wan_streamer.data.encode`.
"""

import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import PerceptionConfig
from wan_streamer.data.cluster import Engine, run_jobs
from wan_streamer.data.encode import (
    Encoder,
    encode_shard,
    make_encoder,
    parse_labels,
    read_metadata,
    source_hashes,
    stale_reason,
    stamp,
    target_name,
)
from wan_streamer.data.shards import shard_paths
from wan_streamer.errors import DataError
from wan_streamer.files import remove_halves
from wan_streamer.folders import expected
from wan_streamer.perception.senses import Senses
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT


def encode_shards(
    shards: Path,
    out_dir: Path,
    audio_vae: AudioVAE,
    video_vae: VideoVAE,
    perception: PerceptionConfig,
    engine: Engine | None = None,
    progress: Callable[[int, int], None] | None = None,
    senses: Senses = Senses(),
) -> int:
    """Encode every conversation of `shards` that `out_dir` lacks, or holds stale. Returns the number written.

    engine    where to work (default: this process); work is handed out shard by shard
    progress  called with (conversations done, conversations in all)
    senses    frozen ears and eyes whose features are kept instead of what the user said and showed

    A file is stale if its format, codecs, picture size, source or senses differ. The video codec runs as in a session.
    After Ctrl-C the folder holds whole files only, and the next call goes on.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = shard_paths(shards)
    total = sum(map(_count, paths))
    encoder = make_encoder(audio_vae, video_vae, perception, senses=senses)
    written = done = 0
    try:
        job = partial(_encode_number, paths, out_dir, encoder)
        for more, seen in run_jobs(job, range(len(paths)), engine or Engine()):
            written, done = written + more, done + seen
            if progress:
                progress(done, total)
    finally:
        remove_halves(out_dir)
    return written


def _encode_number(paths: list[Path], out_dir: Path, encoder: Encoder, number: int) -> tuple[int, int]:
    return encode_shard(paths[number], out_dir, encoder)


def _count(shard: Path) -> int:
    try:
        with tarfile.open(shard, "r:") as tar:
            return len({Path(name).name.partition(".")[0] for name in tar.getnames()})
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{shard}: the shard is damaged or cut off ({error}); make it again") from error


NOT_PERCEIVED = Senses().fingerprints


class LatentStore:
    """Encoded conversations of one folder, `labels` and `paths` in the same order.

    senses  fingerprints of the ears and eyes whose features they hold, "none" where sound and pictures are kept

    fingerprint  hash of the codecs that the files must be made by (None: not checked, for who reads no latents)
    perception   encoder that the user's pictures must fit (default: not checked)
    shards       folder that the files must be made from (default: not checked; every shard is read for it)

    Raises `DataError` if the folder is empty or a file is damaged or stale.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str | None,
        perception: PerceptionConfig | None = None,
        shards: Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.paths = sorted(self.folder.glob("*.safetensors"))
        if not self.paths:
            raise DataError(f"{folder}: {expected('conversations', self.folder)}")
        sources = {
            target_name(shard, key): source
            for shard in (shard_paths(shards) if shards else ())
            for key, source in source_hashes(shard).items()
        }
        self.labels: list[dict] = []
        self.senses: dict[str, str] = {}
        for path in self.paths:
            metadata = read_metadata(path)
            source = sources.get(path.name, "none") if shards else None
            reason = stale_reason(metadata, stamp(fingerprint, perception, source))
            if reason:
                raise DataError(f"{path}: {reason}; encode the shards again")
            self.labels.append(parse_labels(metadata, path))
            senses = {name: metadata.get(name, "none") for name in NOT_PERCEIVED}
            if senses != (self.senses or senses):
                raise DataError(f"{path}: {stale_reason(senses, self.senses)} as the others; encode all with the same")
            self.senses = senses

    @property
    def hears(self) -> bool:
        """Whether the files hold what ears heard, not the sound;   `sees`  likewise what eyes saw, not the pictures."""
        return self.senses["ears"] != "none"

    @property
    def sees(self) -> bool:
        return self.senses["eyes"] != "none"

    def read(self, number: int, first: int, units: int, lead: int = 0) -> dict[str, Tensor]:
        """Units [first, first + units) of a conversation; the agent's latents from one unit before (zeros at 0).

        lead  units of the user's sound before them (silence before the beginning)

        user_audio float [(lead + units) x 3840], audio float [units + 1, 4, C] and, where there is a film, video float
        [units + 1, C, h, w] and user_video uint8 [4 units, h, w, 3]. Of perceived conversations, user_audio and
        user_video are what ears and eyes made of them: float [units, tokens, features], without a lead.

        Raises `DataError` if the file has gone.
        """
        try:
            return self._read(self.paths[number], first, first + units, lead)
        except (SafetensorError, OSError) as error:
            raise self._gone(number, error) from error

    def heard(self, number: int, first: int, units: int) -> Tensor:
        """Only `user_audio` of those that `read` gives."""
        try:
            return self._heard(self.paths[number], first, first + units, 0)
        except (SafetensorError, OSError) as error:
            raise self._gone(number, error) from error

    def _gone(self, number: int, error: Exception) -> DataError:
        return DataError(f"{self.paths[number]}: cannot be read any more ({error}); encode the shards again")

    @staticmethod
    def _heard(path: Path, first: int, end: int, lead: int) -> Tensor:
        heard = max(0, first - lead)
        with safe_open(path, "pt") as file:
            if "heard" in file.keys():  # noqa: SIM118 - no dictionary
                return file.get_slice("heard")[first:end].float()
            sound = file.get_slice("user_audio")[heard * SAMPLES_PER_UNIT : end * SAMPLES_PER_UNIT]
        return F.pad(sound.float() / 32768, ((lead - (first - heard)) * SAMPLES_PER_UNIT, 0))

    def _read(self, path: Path, first: int, end: int, lead: int) -> dict[str, Tensor]:
        before = max(0, first - 1)
        with safe_open(path, "pt") as file:
            names = file.keys()
            clip = {name: file.get_slice(name)[before:end].float() for name in ("audio", "video") if name in names}
            if first == 0:
                clip = {name: torch.cat([torch.zeros_like(z[:1]), z]) for name, z in clip.items()}
            if "seen" in names:
                clip["user_video"] = file.get_slice("seen")[first:end].float()
            elif "user_video" in names:
                clip["user_video"] = file.get_slice("user_video")[first * FRAMES_PER_UNIT : end * FRAMES_PER_UNIT]
        clip["user_audio"] = self._heard(path, first, end, lead)
        return clip

"""The state of a run on disk: named tensors and a few words, from which it resumes to the last bit.

One process writes one file, `trainer.safetensors`. Many write `trainer.json`, which names a folder of safetensors
shards (torch.distributed.checkpoint, without its pickled index); the run may go on with another number of processes.
Both are replaced as a whole, so that a kill or a full disk leaves the state before.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch import distributed as dist

from wan_streamer.errors import TrainingError
from wan_streamer.files import parse_json, write_json
from wan_streamer.folders import RUN
from wan_streamer.tensors import save_atomically
from wan_streamer.training.loop.parallel import World, shard_like

FILE, INDEX = RUN
FOLDER = "trainer"


def save_state(tensors: dict[str, Tensor], meta: dict[str, str], out: Path, world: World) -> None:
    """Replace the state in `out`. Raises `CheckpointError` if it cannot be written; the state before is intact."""
    if world.size == 1:
        save_atomically({name: value.cpu() for name, value in tensors.items()}, out / FILE, meta)
        _remove_folders(out, keep=None)
        (out / INDEX).unlink(missing_ok=True)
        return
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    folder = f"{FOLDER}-{meta['step']}"
    if world.main and (out / folder).exists():
        shutil.rmtree(out / folder)
    dist.barrier()
    dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(out / folder), save_distributed=True))
    if world.main:
        write_json(out / INDEX, {"folder": folder, **meta})
        _remove_folders(out, keep=folder)
        (out / FILE).unlink(missing_ok=True)
    dist.barrier()


def load_state(out: Path, like: Callable[[str, torch.Size], Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, words) of the state in `out`.

    like  (name, shape) -> a tensor of that shape, placed and split as the answer should be

    Raises `TrainingError` if there is no state or it is damaged.
    """
    try:
        if (out / INDEX).exists():
            return _load_shards(out, like)
        if not (out / FILE).exists():
            raise TrainingError(
                f"{out / FILE}: not found, expected the state of an earlier run; start without --resume"
            )
        whole = load_file(out / FILE)
        with safe_open(out / FILE, "pt") as file:
            meta = file.metadata()
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainingError(f"{out / FILE}: cannot be read ({error}); start again without --resume") from error
    return {name: shard_like(value, like(name, value.shape)) for name, value in whole.items()}, meta


def _load_shards(out: Path, like: Callable[[str, torch.Size], Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    meta = parse_json((out / INDEX).read_bytes())
    path = str(out / meta.pop("folder"))
    stored: dict[str, Any] = HuggingFaceStorageReader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.empty_like(like(name, entry.size)) for name, entry in stored.items()}
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(path), no_dist=not dist.is_initialized())
    return tensors, meta


def _remove_folders(out: Path, keep: str | None) -> None:
    for folder in out.glob(f"{FOLDER}-*"):
        if folder.name != keep and folder.is_dir():
            shutil.rmtree(folder)

"""Tensors on disk: safetensors only, written atomically, read without unpickling."""

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wan_streamer.errors import CheckpointError


def save_atomically(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write beside `path` and rename, so that a kill never leaves half a file."""
    temporary = path.with_name(path.name + ".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


def load_module(module: nn.Module, path: Path) -> None:
    """Fill `module` from a file. Raises `CheckpointError` if it is missing, damaged or does not fit."""
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not found; expected a checkpoint's weights") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); fetch or train the checkpoint again") from error
    expected = module.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise CheckpointError(f"{path}: {name} is missing; config.json and the weights do not belong together")
        if name not in expected:
            raise CheckpointError(f"{path}: {name} is unknown; config.json and the weights do not belong together")
        if tensors[name].shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} expected {list(expected[name].shape)}, got {list(tensors[name].shape)}"
            )
    module.load_state_dict({name: value.to(expected[name].dtype) for name, value in tensors.items()})

"""Tensors on disk: safetensors only, written atomically, read without unpickling.

A matrix may be kept in 8 bits (`packed`): integers under its name, and the scale of every row under `NAME|scale`.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist

from wan_streamer.errors import CheckpointError
from wan_streamer.files import replacing

SCALE = "|scale"


def save_atomically(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write beside `path` and rename, so that neither a kill nor a full disk leaves half a file.

    Raises `CheckpointError` if it cannot be written; what was there before is untouched.
    """
    try:
        with replacing(path) as part:
            save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); the file before is kept; free space") from error


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices (also of more dimensions) in 8 bits: half the size of bfloat16. `load_tensors` gives float32 back.

    The error of a number is at most 1/254 of the largest of its row.
    """
    small: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.ndim < 2 or not value.is_floating_point():
            small[name] = value
            continue
        rows = value.float().flatten(1)
        scale_N = (rows.abs().amax(1) / 127).clamp(min=1e-12)
        small[name] = (rows / scale_N[:, None]).round().to(torch.int8).view(value.shape)
        small[name + SCALE] = scale_N
    return small


def _unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = {name: value for name, value in tensors.items() if not name.endswith(SCALE)}
    for name in tensors.keys() - whole.keys():
        name = name.removesuffix(SCALE)
        scale_N = tensors[name + SCALE]
        whole[name] = whole[name].float() * scale_N.view(-1, *[1] * (whole[name].ndim - 1))
    return whole


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises `CheckpointError` if it is missing or damaged."""
    try:
        return _unpacked(load_file(path))
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged (a scale that fits no matrix: {error}); fetch it again") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not found; expected a checkpoint's weights") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); fetch or train the checkpoint again") from error


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is split over processes, put together on each of them; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def is_main_process() -> bool:
    """Whether this process is alone or the first of those that work together."""
    return not dist.is_initialized() or dist.get_rank() == 0


def load_module(module: nn.Module, path: Path, others: Mapping[str, Tensor] = MappingProxyType({})) -> None:
    """Fill `module` from a file, and from tensors that are not in it.

    Raises `CheckpointError` if it is missing, damaged or does not fit.
    """
    tensors = {**others, **load_tensors(path)}
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

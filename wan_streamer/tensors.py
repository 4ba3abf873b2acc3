"""Tensors on disk and on their way to other processes, without pickle.

`save_atomically`, `load_tensors`   safetensors only, written atomically
`packed`                            a matrix in 8 bits: integers under its name, scales of the rows under `NAME|scale`
`flatten`, `rebuild`                a record -> (its outline, its tensors), and back, with the classes that may occur
`places_of`, `view_of`              tensors side by side in a block of bytes

A record is a tensor, a NumPy array, None, a number, a string, bytes, a list, tuple, dict with string keys, or a
dataclass or named tuple of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist

from wan_streamer.errors import CheckpointError, DataError
from wan_streamer.files import replacing

SCALE = "|scale"
CHANNELS_LAST = torch.channels_last
ALIGN = 64  # bytes; where a tensor in a block may begin
Outline = Any
"""What is left of a record without its tensors; JSON can hold it. Anything but a plain value is a list, kind first."""


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
    """Matrices (also of more dimensions) in 8 bits: half the size of bfloat16. `unpacked` gives float32 back.

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


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `packed` made smaller, float32."""
    whole = {name: value for name, value in tensors.items() if not name.endswith(SCALE)}
    for name in tensors.keys() - whole.keys():
        name = name.removesuffix(SCALE)
        scale_N = tensors[name + SCALE]
        whole[name] = whole[name].float() * scale_N.view(-1, *[1] * (whole[name].ndim - 1))
    return whole


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises `CheckpointError` if it is missing or damaged."""
    try:
        return unpacked(load_file(path))
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


def flatten(record: Any) -> tuple[Outline, list[Tensor]]:
    """Outline and tensors of a record, in a fixed order. Raises `TypeError` for what is none."""
    tensors: list[Tensor] = []

    def outline(value: Any) -> Outline:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            tensors.append(value)
            last = value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=CHANNELS_LAST)
            return ["pictures" if last else "tensor", len(tensors) - 1]
        if isinstance(value, np.ndarray):
            tensors.append(torch.from_numpy(value))
            return ["array", len(tensors) - 1]
        if isinstance(value, bytes):
            return ["bytes", value.hex()]
        if isinstance(value, list):
            return ["list", [outline(item) for item in value]]
        if isinstance(value, dict):
            return ["dict", {key: outline(item) for key, item in value.items()}]
        if is_dataclass(value):
            parts = {field.name: outline(getattr(value, field.name)) for field in fields(value)}
            return ["record", type(value).__name__, parts]
        if isinstance(value, tuple):
            if names := getattr(value, "_fields", None):
                return ["record", type(value).__name__, dict(zip(names, map(outline, value), strict=True))]
            return ["tuple", [outline(item) for item in value]]
        raise TypeError(f"not part of a record: {type(value).__name__}")

    return outline(record), tensors


def rebuild(outline: Outline, tensors: Sequence[Tensor], classes: Iterable[type]) -> Any:
    """The record of an outline. Raises `DataError` if it does not fit `tensors` and `classes`."""
    known = {cls.__name__: cls for cls in classes}

    def build(part: Outline) -> Any:
        if not isinstance(part, list):
            return part
        match part:
            case ["tensor", int(index)]:
                return tensors[index]
            case ["pictures", int(index)]:  # a convolution of another memory format may round in another order
                return tensors[index].contiguous(memory_format=CHANNELS_LAST)
            case ["array", int(index)]:
                return tensors[index].numpy()
            case ["bytes", str(text)]:
                return bytes.fromhex(text)
            case ["list", items]:
                return [build(item) for item in items]
            case ["tuple", items]:
                return tuple(build(item) for item in items)
            case ["dict", items]:
                return {key: build(item) for key, item in items.items()}
            case ["record", str(name), items] if name in known:
                return known[name](**{key: build(item) for key, item in items.items()})
        raise DataError(f"expected a record of {', '.join(sorted(known)) or 'plain values'}, got {str(part)[:60]!r}")

    try:
        return build(outline)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"a damaged record: {error}") from error


def places_of(tensors: list[Tensor]) -> tuple[list[list], int]:
    """[dtype, shape, first byte] of each tensor in a block, and the bytes of the block."""
    places, at = [], 0
    for tensor in tensors:
        places.append([str(tensor.dtype).removeprefix("torch."), list(tensor.shape), at])
        at += -(-tensor.nbytes // ALIGN) * ALIGN
    return places, at


def view_of(block_N: Tensor, place: list) -> Tensor:
    """The tensor at a place of a block of bytes."""
    name, shape, at = place
    dtype = getattr(torch, name)
    count = torch.Size(shape).numel() * dtype.itemsize
    return block_N[at : at + count].view(dtype).view(shape)

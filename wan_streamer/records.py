"""Records of tensors as data, without pickle: what sessions save, and what processes send each other.

`flatten`   a record -> (its outline, its tensors)
`rebuild`   the reverse, with the classes that may occur
`places_of`, `view_of`   tensors side by side in a block of bytes

A record is a tensor, a NumPy array, None, a number, a string, bytes, a list, tuple, dict with string keys, or a
dataclass or named tuple of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan_streamer.errors import DataError

CHANNELS_LAST = torch.channels_last
ALIGN = 64  # bytes; where a tensor in a block may begin
Outline = Any
"""What is left of a record without its tensors; JSON can hold it. Anything but a plain value is a list, kind first."""


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

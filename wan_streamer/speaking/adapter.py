"""Small changes of a language model's matrices, learned while it stays as it is (LoRA: Hu et al. 2021, section 4.1).

`adapt`         puts one beside every linear layer of a module;   `LowRank`  such a layer
`begin_at`      those of a file, to go on from
`save_adapter`  to a file;   `load_adapter`  weights with the changes of a file, if it is of these
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from wan_streamer.errors import CheckpointError
from wan_streamer.tensors import load_tensors, packed, save_atomically

DOWN, UP = ".down", ".up"
BASE = "base"  # in the metadata of a file: which weights it changes


class Added(nn.Module):
    """What is added to a layer's output: of x [..., in], `up` of `down` of x. Nothing, to begin with."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) * linear.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(rank, linear.out_features))  # few long rows: packed, each has a scale

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.down.T @ self.up


class LowRank(nn.Module):
    """A layer that stays as it is, and what is added to it."""

    def __init__(self, linear: nn.Linear, added: Added) -> None:
        super().__init__()
        self.linear, self.added = linear, added

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.added(x)

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias


def adapt(module: nn.Module, parts: Sequence[str], rank: int) -> dict[str, Added]:
    """Put something to learn beside all linear layers in these parts of `module`; what is there learns no more."""
    module.requires_grad_(False)
    made = {}
    for part in parts:
        for name, linear in [*module.get_submodule(part).named_modules(prefix=part)]:
            if type(linear) is nn.Linear:
                parent, _, last = name.rpartition(".")
                made[name] = Added(linear, rank)
                setattr(module.get_submodule(parent), last, LowRank(linear, made[name]))
    return made


def begin_at(added: Mapping[str, Added], base: str, path: Path) -> None:
    """Give `added` the changes of a file, of that rank or a lower one; what the file lacks stays as it is.

    base  `fingerprint` of the weights they are beside

    Raises `CheckpointError` if it is missing, damaged, of other weights, or of other layers or a higher rank.
    """
    parts = load_tensors(path)
    if _base_of(path) != base:
        raise CheckpointError(f"{path}: expected changes of these weights, got those of others; train without it")
    for name, one in added.items():
        for end, into in ((DOWN, one.down), (UP, one.up)):
            known = parts.pop(name + end, into[:0])
            if len(known) > len(into) or known.shape[1:] != into.shape[1:]:
                raise CheckpointError(f"{path}: {name}: expected at most {list(into.shape)}, got {list(known.shape)}")
            into.data[: len(known)] = known
    if parts:
        raise CheckpointError(f"{path}: expected changes of layers that learn, got {min(parts)}, too")


def _base_of(path: Path) -> str | None:
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(BASE)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Of the weights of a language model: its vectors, which no training of ours changes."""
    digest = hashlib.sha256()
    for name in sorted(name for name, value in tensors.items() if value.ndim == 1):
        digest.update(name.encode() + tensors[name].float().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_adapter(added: Mapping[str, Added], base: str, path: Path) -> None:
    """In 8 bits. base  `fingerprint` of the weights;   names are those of their layers. Raises `CheckpointError`."""
    tensors: dict[str, Tensor] = {}
    for name, one in added.items():
        tensors |= {name + DOWN: one.down.detach(), name + UP: one.up.detach()}
    save_atomically(packed(tensors), path, {BASE: base})


def load_adapter(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """`tensors`, the weights of a language model, with the changes of a file; None if it is of another one.

    Raises `CheckpointError` if it is missing or damaged.
    """
    parts, changed = load_tensors(path), dict(tensors)
    if _base_of(path) != fingerprint(tensors):
        return None
    for name in (name.removesuffix(DOWN) for name in parts if name.endswith(DOWN)):
        weight = f"{name}.weight"
        if weight not in changed or name + UP not in parts:
            raise CheckpointError(f"{path}: expected changes of layers, got {name}, which is none; train it again")
        changed[weight] = changed[weight] + parts[name + UP].T @ parts[name + DOWN]
    return changed

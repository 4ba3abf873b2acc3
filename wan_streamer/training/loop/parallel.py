"""Many processes training one model: joined by `torchrun`, weights split by FSDP2 (`torch.distributed`).

`World`    this process among the others; alone, unless `torchrun` started it
`join`     the world that the environment describes
`shard`    split the weights of models over the world
"""

import atexit
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch import distributed as dist

from wan_streamer.device import find_device
from wan_streamer.model.layers import Layer

METHODS = ("observe", "speak", "velocity", "text_logits")  # of a model beside `forward`


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, working on `device`."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The same numbers of every process, by rank. All processes call it together."""
        if self.size == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everyone, own)
        return [numbers.tolist() for numbers in everyone]


def join(device: str = "auto") -> World:
    """This process alone on `device`, or its place among those that `torchrun` started, one GPU each where there are.

    Raises `ConfigError` if the device cannot be used here.
    """
    where = find_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World(where)
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
        atexit.register(_leave)  # else its threads may outlive the interpreter, which then aborts
    return World(where, dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(models: Iterable[nn.Module], world: World) -> None:
    """Split the parameters of every model over the processes; a Transformer layer is put together while it works."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    for model in models:
        for module in model.modules():
            if isinstance(module, Layer):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for method in METHODS:
            register_fsdp_forward_method(model, method)


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of `whole`, split as `like` is; `whole` itself if `like` is not split."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return whole.to(like.device)
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

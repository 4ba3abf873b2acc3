"""Thinker (rank 0) and performer (rank 1) as two ranks of torch.distributed; rank 0 compares with one process.

torchrun --nproc-per-node 2 tests/split_ranks.py; tests/test_split.py starts it twice itself
"""

import torch
from test_session import same, user_units
from tiny import EXACT, tiny_weights
from torch import distributed as dist

from wan_streamer import WanStreamer
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.split.links import DistributedLink
from wan_streamer.runtime.split.performer import MESSAGES, Performer, perform
from wan_streamer.runtime.split.thinker import Partner, SplitSession


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    weights = WanStreamer(tiny_weights(), "tiny", formats=EXACT).weights
    link = DistributedLink(1 - dist.get_rank(), MESSAGES)
    if dist.get_rank() == 1:
        perform(link, Performer(weights.streamer))
        return
    partner = Partner(lambda: link, patience_s=30)
    partner.wait_ready()
    alone, split = Session(weights, 3), SplitSession(weights, partner, seed=3)
    for unit in user_units(7, 20):
        assert same(split.step(unit), alone.step(unit))
    assert partner.alone == 0
    partner.close()
    print("20 units, the same")


if __name__ == "__main__":
    main()
    dist.destroy_process_group()

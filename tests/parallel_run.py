"""Runs of the tiny agent, one after the other, started by tests/test_parallel.py alone or under torchrun.

parallel_run.py DATA OUT STEPS[,resume] [OUT STEPS[,resume] ...]
"""

import dataclasses
import sys
from pathlib import Path

import torch
from tiny import SAYING, tiny_text

from wan_streamer.model.streamer import Streamer
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.loop.trainer import Trainer
from wan_streamer.training.stages.duplex import DuplexStage
from wan_streamer.training.stages.spelling import add_spelling

# Large steps would amplify what sums in another order round differently.
CONFIG = TrainConfig(
    steps=6,
    lr=2e-3,
    muon_lr=2e-3,
    batch=4,
    warmup=2,
    log_every=1,
    validate_every=3,
    save_every=3,
    precision="fp32",
    clip_units=6,
)
# With a memory, whose tokens pass the layers as well, sounds of speech, and words that are spelled.
AGENT = dataclasses.replace(SAYING, cache=dataclasses.replace(SAYING.cache, text_units=6, memory_tokens=8))


def main(arguments: list[str]) -> None:
    data, *runs = arguments
    for out, how in zip(runs[::2], runs[1::2], strict=True):
        steps, _, resume = how.partition(",")
        train(Path(data), Path(out), int(steps), bool(resume))


def train(data: Path, out: Path, steps: int, resume: bool) -> None:
    torch.manual_seed(0)
    streamer = Streamer(AGENT)
    add_spelling(streamer, tiny_text())
    stage = DuplexStage(streamer, tiny_text(), data, dataclasses.replace(CONFIG, accumulate=1), written=True)
    trainer = Trainer(stage, out, join("cpu"))
    if resume:
        trainer.resume()
    while trainer.step < steps:  # the schedule is that of the whole run
        trainer._log("train", trainer._train_step(False)[0])
    trainer.save()
    if steps == CONFIG.steps:
        trainer.run()


if __name__ == "__main__":
    main(sys.argv[1:])

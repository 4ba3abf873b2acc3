"""Runs of what is trained by itself, before the model or for it, in one process.

`AloneOptions`  the numbers that a person may choose
`train_alone`   a stage with them, from begin to end
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wan_streamer.errors import ConfigError
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.loop.trainer import Trainer


@dataclass(frozen=True)
class AloneOptions:
    """None leaves the stage's own number.

    resume   go on in the folder of the run, exactly where it was if its data have not grown
    minutes  save and leave after so many; a later resume goes on
    lr       Muon's is scaled with it
    """

    resume: bool = False
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    lr: float | None = None
    device: str = "auto"


def train_alone(
    make: Callable[[TrainConfig], Stage], config: TrainConfig, out_dir: str | Path, options: AloneOptions
) -> dict[str, float]:
    """Train what `make` gives with `config` and the options in its place. Returns the last validation.

    Raises `ConfigError` in a run of several processes, `TrainingError` for a resume that does not fit, and what `make`
    raises.
    """
    world = join(options.device)
    if world.size > 1:
        raise ConfigError(
            f"this stage trains in one process, expected one, got {world.size}; start it without torchrun"
        )
    rate = config.lr if options.lr is None else options.lr
    config = dataclasses.replace(
        config,
        steps=config.steps if options.steps is None else options.steps,
        lr=rate,
        muon_lr=config.muon_lr * rate / config.lr,
        batch=config.batch if options.batch is None else options.batch,
    )
    trainer = Trainer(make(config), Path(out_dir), world)
    if options.resume:
        trainer.resume()
    return trainer.run(options.minutes)

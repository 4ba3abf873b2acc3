"""An agent on one device, or its thinker on one and its performer on another.

`open_agent`  either, by the names of the devices;   `SplitAgent`  the second
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from wan_streamer.device import find_device
from wan_streamer.errors import ConfigError
from wan_streamer.model.pretrained import Weights, find_checkpoint, load_weights
from wan_streamer.runtime.agent import WanStreamer, agent_name
from wan_streamer.runtime.formats import Formats, choose_formats
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.split.performer import PerformerProcess, load_streamer
from wan_streamer.runtime.split.thinker import PacedSession, Partner, SplitSession

Schedule = Literal["eager", "paced"]
READY_S = 120.0


class SplitAgent(WanStreamer):
    """An agent whose sessions let a performer in another process solve; `close` ends it.

    device    of the thinker
    process   of the performer
    schedule  "eager": a unit is decoded when it is solved. "paced": one step later, while the next is solved
    """

    def __init__(
        self, weights: Weights, name: str, device: str, process: PerformerProcess, schedule: Schedule = "eager",
        formats: Formats | None = None,
    ) -> None:  # fmt: skip
        super().__init__(weights, name, device, formats)
        self.process, self._session = process, SplitSession if schedule == "eager" else PacedSession
        self.partner = Partner(process.connect)

    def session(self, seed: int | None = None, **options: Any) -> Session:
        return self._session(self.weights, self.partner, seed=seed, **options)

    def warmup(self, units: int = 3) -> None:
        self.partner.wait_ready(READY_S)
        super().warmup(units)

    def close(self) -> None:
        self.partner.close()
        self.process.kill()


def open_agent(name: str | Path, device: str = "cpu", schedule: Schedule = "eager") -> WanStreamer:
    """The agent of a checkpoint on `device`; "cuda:0,cuda:1" or "cpu,cpu" is a thinker and a performer.

    Raises `CheckpointError`, and `ConfigError` for devices and schedules that do not exist.
    """
    if schedule not in ("eager", "paced"):
        raise ConfigError(f"schedule: expected eager or paced, got {schedule!r}")
    thinker, *performer = device.split(",")
    if len(performer) > 1:
        raise ConfigError(f"device: expected one, or two for thinker and performer, got {device!r}")
    if not performer:
        if schedule == "paced":
            raise ConfigError(f"schedule paced: expected two devices such as {thinker},{thinker}, got {device!r}")
        return WanStreamer.from_pretrained(name, device)
    find_device(performer[0])  # a wrong name fails here, not in the other process
    folder = find_checkpoint(str(name))
    weights = load_weights(folder)
    formats = choose_formats(weights, find_device(thinker))
    process = PerformerProcess(partial(load_streamer, str(folder), performer[0], formats))
    return SplitAgent(weights, agent_name(name, folder, weights), thinker, process, schedule, formats)

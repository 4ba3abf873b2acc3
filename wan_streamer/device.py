"""Where a model is trained or runs."""

import torch

from wan_streamer.errors import ConfigError


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one. Raises `ConfigError` if it cannot be used here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is not supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:N of this machine ({reason})") from error
    return device

"""Where a model is trained or runs, and in which number format."""

import platform

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


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 fast.

    A CPU without AVX-512 has no kernels for it: it runs loops that are many times slower than float32.
    """
    if device.type != "cpu":
        return True
    if platform.machine() in ("x86_64", "AMD64"):
        return "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def working_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device is fast at it, else float32."""
    return torch.bfloat16 if has_bfloat16(device) else torch.float32

"""How weights learn: Muon for hidden matrices, AdamW for the rest, one schedule for both; and their moving average.

`Optimisers`  of a stage's parameters
`Average`     exponential moving average (EMA) of the parameters, which is what is validated and exported
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wan_streamer.device import has_bfloat16
from wan_streamer.training.loop.stage import Stage, TrainConfig


class Optimisers:
    """AdamW and, for what `stage.is_hidden` names, Muon. `named` are the trained parameters."""

    def __init__(self, stage: Stage, named: dict[str, nn.Parameter]) -> None:
        self.config, self.named = stage.config, named
        hidden = {n: p for n, p in named.items() if self.config.muon_lr and stage.is_hidden(n, p)}
        self.matrices = {name: nn.Parameter(_as_matrix(p, _layout(p))) for name, p in hidden.items()}
        self.adamw = self._adamw(stage)
        self.muon = self._muon() if self.matrices else None
        self._all = [self.adamw, *([self.muon] if self.muon else [])]
        self._rates = {id(group): group["lr"] for o in self._all for group in o.param_groups}

    def _adamw(self, stage: Stage) -> torch.optim.Optimizer:
        config = self.config
        rest: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, p in self.named.items():
            if name not in self.matrices:
                rest.setdefault((p.ndim >= 2, stage.steady.get(name.split(".")[0], 0.0)), []).append(p)
        groups = [
            {"params": p, "lr": config.lr * (steady or 1.0), "steady": bool(steady),
             "weight_decay": config.weight_decay if decayed else 0.0}
            for (decayed, steady), p in rest.items()
        ]  # fmt: skip
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

    def _muon(self) -> torch.optim.Optimizer:
        config = self.config
        device = next(iter(self.matrices.values())).device
        kind = torch.optim.Muon if has_bfloat16(device) else Float32Muon
        return kind(
            self.matrices.values(), lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    def prepare(self, step: int) -> None:
        """Learning rates of `step`, and no gradients."""
        for optimiser in self._all:
            for group in optimiser.param_groups:
                group["lr"] = self._rates[id(group)] * rate(self.config, step, group.get("steady", False))
        for p in self.named.values():
            p.grad = None

    def step(self) -> None:
        for name, matrix in self.matrices.items():
            p = self.named[name]
            matrix.grad = None if p.grad is None else _as_matrix(p.grad, _layout(p))
        for optimiser in self._all:
            optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """ "parameter|field" -> tensor: all that the optimisers remember."""
        return {f"{name}|{field}": value for name in self.named for field, value in self._state_of(name).items()}

    def restore(self, key: str, value: Tensor) -> None:
        """Take one entry of `state` back."""
        name, field = key.rsplit("|", 1)
        p = self.named[name]
        # The fused AdamW walks through memory, so its state has to lie in the order of the parameter.
        layout = _layout(p) if value.shape == p.shape else torch.contiguous_format
        self._state_of(name)[field] = value.to(p.device).contiguous(memory_format=layout)

    def _state_of(self, name: str) -> dict[str, Tensor]:
        if name in self.matrices:
            assert self.muon is not None
            return self.muon.state[self.matrices[name]]
        return self.adamw.state[self.named[name]]


class Float32Muon(torch.optim.Muon):
    """Muon whose iteration runs in float32, for processors that are slow at bfloat16; its state is the same.

    There it takes most of a step otherwise (docs/decisions.md, 57).
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            assert group["nesterov"]
            assert group["adjust_lr_fn"] == "match_rms_adamw"
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                direction = _orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                p.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def _orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns: the Newton-Schulz iteration of `torch.optim.Muon`."""
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    y = (x.T if tall else x) / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.T if tall else y


def rate(config: TrainConfig, step: int, steady: bool) -> float:
    """Share of the learning rate at `step`: linear warm-up, then a cosine down to the floor unless it is steady."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if steady:
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr_floor + (1 - config.lr_floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Average:
    """`values` follow the parameters `named`."""

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        self.named = named
        self.values = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        torch._foreach_lerp_(list(self.values.values()), list(self.named.values()), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters hold the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, p in self.named.items():
            kept = p.detach().clone()
            p.copy_(self.values[name])
            self.values[name].copy_(kept)


def _layout(p: Tensor) -> torch.memory_format:
    last = p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _as_matrix(p: Tensor, layout: torch.memory_format) -> Tensor:
    """[out, everything else] on the memory of `p`; a kernel in channels-last order is flattened in that order."""
    data = p.detach()
    if data.ndim == 2:
        return data
    data = data.contiguous(memory_format=layout)
    return (data.permute(0, 2, 3, 1) if layout is torch.channels_last else data).flatten(1)

"""Small parts that training experiments share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from dcem.experiments import ConfigError


def require(condition: bool, key: str, expected: str, came: object) -> None:
    """Refuse a setting in one line."""
    if not condition:
        raise ConfigError(f"{key}: expected {expected}; got {came}")


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Schedule:
    """A learning rate's course: `cosine` with a warm-up of a tenth, or halved on a `plateau` of the evaluations."""

    def __init__(self, optimizer: torch.optim.Optimizer, kind: str, num_updates: int, patience: int) -> None:
        self.optimizer = optimizer
        self.per_update: LambdaLR | None = None
        self.per_evaluation: ReduceLROnPlateau | None = None
        if kind == "plateau":
            self.per_evaluation = ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)
            return
        warm_up = max(1, num_updates // 10)

        def scale(update: int) -> float:
            if update < warm_up:
                return (update + 1) / warm_up
            return 0.5 + 0.5 * math.cos(math.pi * (update - warm_up) / max(1, num_updates - warm_up))

        self.per_update = LambdaLR(optimizer, scale)

    @property
    def lr(self) -> float:
        """The rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """After an update."""
        if self.per_update is not None:
            self.per_update.step()

    def evaluated(self, loss: float) -> None:
        """After an evaluation."""
        if self.per_evaluation is not None:
            self.per_evaluation.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        inner = self.per_update or self.per_evaluation
        assert inner is not None
        return {k: v for k, v in inner.state_dict().items() if k != "lr_lambdas"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        inner: Any = self.per_update or self.per_evaluation
        inner.load_state_dict({**state, "lr_lambdas": [None]} if self.per_update else state)

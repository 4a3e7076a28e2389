"""What training experiments share: the loop, the schedule of the rate, the best weights, the time spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dcem.experiments.harness.run import Run


def training_loop(
    run: Run,
    num_updates: int,
    update: Callable[[int], float],
    evaluate: Callable[..., object],
    schedule: Schedule,
    *,
    eval_every: int,
    checkpoint_every: int | None = None,
    clock: Clock | None = None,
    at_start: bool = True,
    description: str = "training",
) -> None:
    """Update until the end of the run, and evaluate at its start, now and then, and at its end.

    Args:
        run: the run, of which everything that has a state is tracked already.
        num_updates: in all.
        update: makes the update of that number, from 1; returns the loss before it.
        evaluate: told the step, and after an update its `loss` and the next `lr`; logs.
        schedule: of the learning rate.
        eval_every: updates between evaluations.
        checkpoint_every: updates between checkpoints; None for `eval_every`.
        clock: adds up the time of the updates.
        at_start: evaluate before the first update.
        description: beside the progress bar.
    """
    clock = Clock() if clock is None else clock
    if run.step == 0 and at_start:
        evaluate(0)
    for step in run.steps(num_updates, checkpoint_every or eval_every, description):
        with clock:
            loss = update(step)
            schedule.step()
        if step % eval_every == 0 or step == num_updates:
            evaluate(step, loss=loss, lr=schedule.lr)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, grad_clip: float = math.inf) -> float:
    """One step down a loss; returns what it was."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if math.isfinite(grad_clip):
        nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), grad_clip)
    optimizer.step()
    return loss.item()


class Best:
    """The weights of the lowest value so far; part of a checkpoint."""

    def __init__(self) -> None:
        self.value, self.weights = math.inf, dict[str, Tensor]()

    def see(self, value: float, model: nn.Module) -> None:
        """Keep the weights if the value is lower."""
        if value < self.value:
            self.value = value
            self.weights = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}

    def restore(self, model: nn.Module) -> None:
        """Give a model those weights, if there are any."""
        if self.weights:
            model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"value": self.value, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.value, self.weights = state["value"], state["weights"]


class Clock:
    """Processor seconds spent in its `with`, those before a resume included; part of a checkpoint."""

    def __init__(self) -> None:
        self.seconds, self._started = 0.0, 0.0

    def __enter__(self) -> None:
        self._started = time.process_time()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.process_time() - self._started

    def state_dict(self) -> dict[str, float]:
        """For checkpoints."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """From a checkpoint."""
        self.seconds = state["seconds"]


DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    "linear": lambda done: 1 - done,
}
"""What is left of a rate when so much of its fall is done, from 0 to 1."""


class Schedule:
    """A learning rate's course: it warms up over a tenth of the updates, then falls to zero.

    Args:
        optimizer: whose rate it is.
        num_updates: in all.
        decay: how it falls, one of `DECAYS`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, num_updates: int, decay: str = "cosine") -> None:
        self.optimizer = optimizer
        warm_up, remains = max(1, num_updates // 10), DECAYS[decay]

        def scale(update: int) -> float:
            if update < warm_up:
                return (update + 1) / warm_up
            return remains((update - warm_up) / max(1, num_updates - warm_up))

        self._inner = LambdaLR(optimizer, scale)

    @property
    def lr(self) -> float:
        """The rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """After an update."""
        self._inner.step()

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {key: value for key, value in self._inner.state_dict().items() if key != "lr_lambdas"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self._inner.load_state_dict({**state, "lr_lambdas": [None]})

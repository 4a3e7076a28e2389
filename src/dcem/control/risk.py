"""What the costs of several particles count as: their mean, their worst, or the mean of the worst few."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dcem._check import check_number


@dataclass(frozen=True)
class Mean:
    """Judge a plan by the average cost of its particles: `(P, ...) -> (...)`."""

    def __call__(self, costs: Tensor) -> Tensor:
        return costs.mean(0)


@dataclass(frozen=True)
class WorstCase:
    """Judge a plan by the highest cost of its particles: `(P, ...) -> (...)`."""

    def __call__(self, costs: Tensor) -> Tensor:
        return costs.amax(0)


@dataclass(frozen=True)
class CVaR:
    """Judge a plan by the average cost of its worst particles: `(P, ...) -> (...)`.

    Args:
        fraction: the share `α` of the particles that counts, in `(0, 1]`, rounded up to whole particles: 1 is the
            mean, a share below `1 / P` the worst case.

    Raises:
        ValueError: `fraction` is not in `(0, 1]`.

    Example:
        >>> import torch
        >>> CVaR(0.5)(torch.tensor([1.0, 2.0, 3.0, 10.0]))
        tensor(6.5000)

    Source: Rockafellar & Uryasev, "Optimization of conditional value-at-risk", 2000.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        check_number("fraction", self.fraction)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: expected a number in (0, 1], got {self.fraction}")

    def __call__(self, costs: Tensor) -> Tensor:
        count = math.ceil(self.fraction * costs.shape[0] * (1 - 1e-12))  # .28 * 25 = 7.000000000000001 are seven
        return costs.topk(count, dim=0).values.mean(0)

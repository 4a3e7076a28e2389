"""How many minima there are: along the surface by a grid, in the full space by gradient descent from random starts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from dcem.experiments.embed_synthetic.counting import Counted
from dcem.experiments.embed_synthetic.methods import descend
from dcem.experiments.embed_synthetic.task import Problems

STEPS = 300
"""Of gradient descent."""


def over_surface(problems: Problems, steps: int = 201) -> Tensor:
    """The objectives over the hidden coordinates, `s(a) + o` for `a` of a grid on `[-1, 1]²`: `(n, steps, steps)`."""
    line = torch.linspace(-1, 1, steps, device=problems.own.device)
    a = torch.cartesian_prod(line, line)
    rows = [problems.some(torch.tensor([i], device=a.device)) for i in range(len(problems))]
    return torch.stack([one(one.surface(a).unsqueeze(0) + one.own)[0] for one in rows]).reshape(-1, steps, steps)


def is_minimum(values: Tensor) -> Tensor:
    """Where a grid `(n, rows, columns)` is as low as its eight neighbours; nowhere on its edge."""
    inner = values[:, 1:-1, 1:-1] == -max_pool2d(-values, 3, stride=1)
    return pad(inner, (1, 1, 1, 1))


def minima_along(problems: Problems) -> Tensor:
    """How many minima there are along the surface, `(n,)`."""
    return is_minimum(over_surface(problems)).sum((1, 2))


def minima_reached(
    problems: Problems, generator: torch.Generator, target: float, num_starts: int = 32
) -> tuple[float, float]:
    """Of gradient descent from random starts: the share that end in a minimum of their own, and that reach the target.

    A minimum is another if a number of it differs by more than 0.05, half of the shortest ripple.
    """
    counted = Counted(problems, 2 * num_starts * STEPS, target)
    x = torch.rand(len(problems), num_starts, problems.size, generator=generator, device=problems.own.device)
    ends = descend(counted, x, 0.01, STEPS)
    apart = torch.cdist(ends, ends, p=torch.inf) > 0.05
    earlier = torch.ones_like(apart).tril(-1)
    own = (apart | ~earlier).all(-1).float().mean()
    return float(own), float((problems(ends) <= target).float().mean())

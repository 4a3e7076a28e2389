"""Gradient descent with momentum as a solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dcem._check import check_fraction, check_positive
from dcem._eager import is_eager
from dcem.distributions import Distribution
from dcem.solvers.base import Objective, Solver, Step


class GradientDescentState(NamedTuple):
    """Where gradient descent stands.

    Attributes:
        distribution: its mean is the iterate; its spread stays as it was.
        iteration: how many steps have been made.
        velocity: the momentum buffer, ``(*batch, *event)``.
    """

    distribution: Distribution
    iteration: int
    velocity: Tensor


@dataclass(frozen=True, eq=False)
class GradientDescent(Solver):
    """Minimise by following the objective's gradient: ``v <- m v + ∇f(x)``, ``x <- x - lr v``.

    Unrolled, it is the usual inner optimiser of energy-based models. The objective is asked for one candidate a
    problem: ``N = 1``.

    Args:
        lr: step size, a number > 0 or a tensor: 0-dimensional, or with one entry a step along its first axis and the
            rest broadcasting to ``(*batch, *event)``; steps beyond the last entry use the last.
        momentum: ``m`` in ``[0, 1)``, or a 0-dimensional tensor.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> import torch, dcem
        >>> dcem.minimize(lambda x: (x - 2.0).square().sum(-1), torch.zeros(2), dcem.GradientDescent(0.25)).x
        tensor([1.9980, 1.9980])

    Source: unrolled gradient descent as in Domke, 2012, and Belanger, Yang & McCallum, ICML 2017.
    """

    lr: float | Tensor = 0.1
    momentum: float | Tensor = 0.0
    num_samples = 1

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_fraction("momentum", self.momentum, below_one=True)

    def init(self, distribution: Distribution) -> GradientDescentState:
        self.__post_init__()  # tensors may have been learned since
        mean = distribution.mean
        return GradientDescentState(distribution.with_mean(mean), 0, torch.zeros_like(mean))

    def step(
        self,
        objective: Objective,
        state: GradientDescentState,
        noise: Tensor,
        clip: Callable[[Tensor], Tensor],
    ) -> Step:
        x = state.distribution.mean
        values, gradient = _value_and_gradient(objective, x, state.distribution.sample_dim)
        velocity = self.momentum * state.velocity + gradient
        moved = clip(x - self._lr(state.iteration, x) * velocity)
        distribution = state.distribution.with_mean(moved)
        smooth = gradient.isfinite()
        if state.distribution.event_dims:
            smooth = smooth.flatten(x.dim() - state.distribution.event_dims).all(-1)
        valid = values.isfinite().squeeze(-1) & smooth
        samples = x.unsqueeze(state.distribution.sample_dim)
        next_state = GradientDescentState(distribution, state.iteration + 1, velocity)
        return Step(next_state, samples, values, torch.ones_like(values), valid)

    def _lr(self, iteration: int, x: Tensor) -> float | Tensor:
        if not isinstance(self.lr, Tensor):
            return self.lr
        lr = self.lr[min(iteration, len(self.lr) - 1)] if self.lr.dim() else self.lr
        return lr.to(x)


def _value_and_gradient(objective: Objective, x: Tensor, sample_dim: int) -> tuple[Tensor, Tensor]:
    """Values ``(*batch, 1)`` and ``∇_x f``, itself differentiable where gradients are enabled."""

    def total(point: Tensor) -> tuple[Tensor, Tensor]:
        values = objective(point.unsqueeze(sample_dim))
        return values.sum(), values

    if not is_eager():
        gradient, values = torch.func.grad(total, has_aux=True)(x)
        return values, gradient
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        point = x if differentiable and x.requires_grad else x.detach().clone().requires_grad_()
        value, values = total(point)
        if not value.requires_grad:
            raise ValueError(
                "objective: GradientDescent needs an objective that is differentiable in its candidates, "
                "got values without a gradient"
            )
        # Where only the candidate itself asks for a gradient there is nothing to differentiate the answer by.
        differentiable = differentiable and (point is x or _reaches_another_leaf(value, point))
        (gradient,) = torch.autograd.grad(value, point, create_graph=differentiable)
    return (values, gradient) if differentiable else (values.detach(), gradient)


def _reaches_another_leaf(value: Tensor, leaf: Tensor) -> bool:
    """Whether the graph of ``value`` ends anywhere but in ``leaf``."""
    nodes, visited = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if getattr(node, "variable", leaf) is not leaf:
            return True
        nodes.extend(child for child, _ in node.next_functions)
    return False

"""Gradient descent with momentum as a solver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dcem._check import as_scalar, check_fraction, check_positive
from dcem._eager import all_true, in_forward_mode, is_eager
from dcem._evaluate import Evaluation
from dcem._second import OnceOnly, first_only
from dcem._tree import map_tensors
from dcem.distributions import Distribution
from dcem.solvers.base import Objective, Solver, Step


class GradientDescentState(NamedTuple):
    """Where gradient descent stands.

    Attributes:
        distribution: its mean is the iterate; its spread stays as it was.
        iteration: how many steps have been made.
        velocity: the momentum buffer, `(*batch, *event)`.
    """

    distribution: Distribution
    iteration: int
    velocity: Tensor


@dataclass(frozen=True, eq=False)
class GradientDescent(Solver):
    """Minimise by following the objective's gradient: `v <- m v + ∇f(x)`, `x <- x - lr v`.

    Unrolled, it is the usual inner optimiser of energy-based models. The objective is asked for one candidate a
    problem: `N = 1`.

    Args:
        lr: step size, a number > 0 or a tensor: 0-dimensional, or with one entry a step along its first axis and the
            rest broadcasting to `(*batch, *event)`; steps beyond the last entry use the last.
        momentum: `m` in `[0, 1)`, or a 0-dimensional tensor.

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
        if isinstance(self.lr, Tensor) and self.lr.dim():
            try:
                self.lr[0].expand(mean.shape)
            except (RuntimeError, IndexError):
                raise ValueError(
                    "lr: expected a number, or a tensor whose entries along the first axis broadcast to "
                    f"(*batch, *event) = {tuple(mean.shape)}, got shape {tuple(self.lr.shape)}"
                ) from None
        return GradientDescentState(distribution.with_mean(mean), 0, torch.zeros_like(mean))

    def step(
        self,
        objective: Objective,
        state: GradientDescentState,
        noise: Tensor,
        clip: Callable[[Tensor], Tensor],
    ) -> Step:
        x, sample_dim = state.distribution.mean, state.distribution.sample_dim
        samples = x.unsqueeze(sample_dim)
        measured = objective.measured if isinstance(objective, Evaluation) else _plainly(objective)
        values, slopes = measured(_values_and_slopes, samples)
        smooth = slopes.isfinite()
        if state.distribution.event_dims:
            smooth = smooth.flatten(values.dim()).all(-1)
        valid = (values.isfinite() & smooth).squeeze(-1)
        gradient, weights = slopes.squeeze(sample_dim), valid.unsqueeze(-1).to(values.dtype)
        if not all_true(valid):  # zero where it is not finite: a learned step size would multiply it by a gradient of 0
            gradient = torch.where(valid.reshape(valid.shape + (1,) * (x.dim() - valid.dim())), gradient, 0.0)
        velocity = as_scalar(self.momentum) * state.velocity + gradient
        moved = clip(x - self._lr(state.iteration, x) * velocity)
        inside = moved.isfinite()  # a step may leave the range of numbers though its slope does not
        valid = valid & (inside.flatten(valid.dim()).all(-1) if state.distribution.event_dims else inside)
        distribution = state.distribution.with_mean(moved)
        next_state = GradientDescentState(distribution, state.iteration + 1, velocity)
        return Step(next_state, samples, values, weights, valid)

    def _lr(self, iteration: int, x: Tensor) -> float | Tensor:
        if not isinstance(self.lr, Tensor):
            return self.lr
        lr = self.lr[min(iteration, len(self.lr) - 1)] if self.lr.dim() else self.lr
        return lr.to(x)


def _plainly(objective: Objective) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda measure, samples: measure(objective, samples)


def _values_and_slopes(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values `(*batch, 1)` and `∇_x f` `(*batch, 1, *event)`, differentiable where gradients are enabled."""

    def total(point: Tensor) -> tuple[Tensor, Tensor]:
        values = objective(point)
        return values.sum(), values

    if not is_eager() or in_forward_mode():
        gradient, values = torch.func.grad(total, has_aux=True)(x)
        return values, gradient
    differentiable = torch.is_grad_enabled()
    with _outside_inference_mode(), torch.enable_grad():
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
        if differentiable and (name := first_only(value, point, is_constant=point is not x)) is not None:
            gradient = OnceOnly.apply(gradient, value, name)  # type: ignore[no-untyped-call]
    return (values, gradient) if differentiable else (values.detach(), gradient)


class _Normal(TorchFunctionMode):
    """Lets autograd compute with tensors that were made in inference mode, which it cannot keep: by copies."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def copied(leaf: Tensor) -> Tensor:
            return leaf.clone() if leaf.is_inference() else leaf

        return func(*map_tensors(copied, args), **map_tensors(copied, kwargs or {}))


@contextlib.contextmanager
def _outside_inference_mode() -> Iterator[None]:
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), _Normal():
        yield


def _reaches_another_leaf(value: Tensor, leaf: Tensor) -> bool:
    """Whether the graph of `value` ends anywhere but in `leaf`."""
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

"""What the library's energies share: shapes that are checked, and the input's share computed once a solve."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from dcem._check import as_shape, check_tensor
from dcem._eager import calls_only


class ConditionedEnergy(nn.Module, ABC):
    """An energy that knows how to compute what depends on the input alone once, and not at every call."""

    @abstractmethod
    def condition(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`E_θ(x, ·)`: maps `(*batch, N, *event)` to `(*batch, N)`."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`E_θ(x, y)`, `(*batch, N)`."""
        return self.condition(x)(y)


def condition(energy: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """`E(x, ·)` of any energy; one whose `forward` was overridden, hooked or compiled, is called as it is."""
    if (
        isinstance(energy, ConditionedEnergy)
        and calls_only(energy, ConditionedEnergy)
        and energy._compiled_call_impl is None
    ):
        return energy.condition(x)
    return lambda y: energy(x, y)


class Energy(ConditionedEnergy):
    """An energy `E_θ(x, y)` of one input and its candidates; a subclass defines `condition_on`.

    A solve calls the energy once an iteration with the same `x`. What depends on `x` alone belongs into
    `condition_on`, which `EnergyModel` calls once a solve. Any other callable `(x, y) -> values` is an energy as
    well; this class is for the speed and for the checks.

    Args:
        feature_shape: Shape of one input; an int is `(int,)`.
        event_shape: Shape of one candidate; an int is `(int,)`.

    Shapes: `x` `(*batch, *feature)`, `y` `(*batch, N, *event)` -> `(*batch, N)`.

    Raises:
        TypeError: when called, `x` or `y` is no Tensor.
        ValueError: a shape has an axis that is not positive; when called, `x` or `y` does not end in its shape,
        or their batches differ.

    >>> import torch
    >>> class Distance(Energy):
    ...     def condition_on(self, x):
    ...         return lambda y: (y - x.mean(-1, keepdim=True).unsqueeze(-2)).square().sum(-1)
    >>> Distance(3, 2)(torch.zeros(5, 3), torch.ones(5, 100, 2)).shape
    torch.Size([5, 100])
    """

    def __init__(self, feature_shape: int | Sequence[int], event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.feature_shape = as_shape("feature_shape", feature_shape)
        self.event_shape = as_shape("event_shape", event_shape)

    @abstractmethod
    def condition_on(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The energy of candidates of these inputs, `(*batch, N, *event) -> (*batch, N)`; `x` has been checked."""

    def condition(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`E_θ(x, ·)`, with what depends on `x` alone computed now, once."""
        check_input(x, self.feature_shape)
        batch = tuple(x.shape[: x.ndim - len(self.feature_shape)])
        conditioned = self.condition_on(x)

        def energy(y: Tensor) -> Tensor:
            check_candidates(y, batch, self.event_shape)
            return conditioned(y)

        return energy


def hold(module: nn.Module, name: str, value: float | Tensor) -> None:
    """Keep a setting: a parameter, a tensor that moves and is saved with the module, or a number."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def check_input(x: Tensor, feature_shape: tuple[int, ...]) -> None:
    """Check that `x` is `(*batch, *feature)`."""
    check_tensor("x", x, "(*batch, *feature)")
    if x.ndim < len(feature_shape) or tuple(x.shape[x.ndim - len(feature_shape) :]) != feature_shape:
        raise ValueError(f"x: expected (*batch, *feature) with feature {feature_shape}, got {tuple(x.shape)}")


def check_candidates(y: Tensor, batch: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
    """Check that `y` is `(*batch, N, *event)`."""
    check_tensor("y", y, "(*batch, N, *event)")
    samples = tuple(y.shape[len(batch) : len(batch) + 1])
    if not samples or tuple(y.shape) != (*batch, *samples, *event_shape):
        raise ValueError(
            f"y: expected (*batch, N, *event) with batch {batch} (that of x) and event {event_shape}, "
            f"got {tuple(y.shape)}"
        )


def flat(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The trailing axes of `shape` as one."""
    return tensor.reshape(*tensor.shape[: tensor.ndim - len(shape)], math.prod(shape))

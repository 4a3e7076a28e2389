"""A feed-forward net seen as an energy."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dcem._given import brief
from dcem.energy.base import ConditionedEnergy, check_candidates


class FeedForwardEnergy(ConditionedEnergy):
    """`‖f(x) - y‖²`, whose argmin over `y` is `f(x)`: the bridge from prediction to energies.

    Whatever minimises it must return `f(x)`, which makes it a check of solvers and gradient modes, and a baseline
    that is trained by the same code as other energies. Add terms to it and it is no longer a feed-forward net.

    Args:
        f: Maps `x` `(*batch, *feature)` to `(*batch, *event)`; a module is registered.
        event_dims: How many trailing axes of `f(x)` are one prediction.

    Shapes: `x` `(*batch, *feature)`, `y` `(*batch, N, *event)` -> `(*batch, N)`.

    Raises:
        TypeError: `f` is not callable.
        ValueError: `event_dims` is negative or more than the axes of `f(x)`; in `forward`, `y` is not
        `(*batch, N, *event)` with the batch and event of `f(x)`.

    Source: LeCun et al., "A Tutorial on Energy-Based Learning", 2006, section 2.2.

    >>> import dcem, torch
    >>> energy = FeedForwardEnergy(lambda x: 2 * x)
    >>> dcem.energy.EnergyModel(energy, 2, dcem.GradientDescent(lr=0.5), num_iterations=1)(torch.tensor([1.0, 2.0]))
    tensor([2., 4.])
    """

    def __init__(self, f: Callable[[Tensor], Tensor], event_dims: int = 1) -> None:
        super().__init__()
        if not callable(f):
            raise TypeError(f"f: expected a callable or module, got {brief(f)}")
        if event_dims < 0:
            raise ValueError(f"event_dims: expected at least 0, got {event_dims}")
        self.f, self.event_dims = f, event_dims

    def condition(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`E(x, ·)`, with `f(x)` computed once."""
        center = self.f(x)
        batch_dims = center.ndim - self.event_dims
        if batch_dims < 0:
            raise ValueError(
                f"event_dims: expected at most the axes of f(x) {tuple(center.shape)}, got {self.event_dims}"
            )
        batch, event = tuple(center.shape[:batch_dims]), tuple(center.shape[batch_dims:])

        def energy(y: Tensor) -> Tensor:
            check_candidates(y, batch, event)
            squares = (y - center.unsqueeze(batch_dims)).square()
            return squares.flatten(batch_dims + 1).sum(-1) if event else squares

        return energy

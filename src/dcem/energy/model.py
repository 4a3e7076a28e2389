"""A model whose prediction is the minimiser of a learned energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcem.distributions import Gaussian
from dcem.gradients import GradientMode
from dcem.minimize import minimize
from dcem.solution import Solution
from dcem.solvers import Solver


class EnergyModel(nn.Module):
    """Predict by minimising an energy, `ŷ = argmin_y E_θ(x, y)`, and learn `θ` by differentiating the
    prediction.

    Any loss of `ŷ` trains it; its gradient reaches the energy (and the initial mean and std, where those are
    `nn.Parameter`s) through the solve.

    Args:
        energy: `E_θ`: maps `x` `(*batch, *feature)` and `y` `(*batch, N, *event)` to `(*batch, N)`.
        event_shape: Shape of one prediction; an int is `(int,)`.
        solver: What minimises: `dcem.CEM(...)`, `dcem.GradientDescent(...)`, ...
        num_iterations: Inner iterations, unless a call says otherwise.
        gradient: How to differentiate, `dcem.Unroll()` by default.
        init_mean: Where the search starts: a number, or a tensor that broadcasts to `event`.
        init_std: How wide it starts, likewise; None for the solver's own.
        bounds: `(low, high)` of the candidates, as in `dcem.minimize`.
        feature_dims: How many trailing axes of `x` are one input; those before are the batch.

    Raises:
        ValueError: `init_mean` or `init_std` does not broadcast to `event`; in `forward`, what
        `dcem.minimize` raises.

    Source: LeCun et al., "A Tutorial on Energy-Based Learning", 2006; Belanger, Yang & McCallum, "End-to-End
    Learning for Structured Prediction Energy Networks", ICML 2017; Amos & Yarats, ICML 2020, section 4.1.

    >>> import dcem
    >>> model = EnergyModel(lambda x, y: (y - x.unsqueeze(-2)).square().sum(-1), 2, dcem.GradientDescent(lr=0.5))
    >>> model(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).detach()
    tensor([[1., 2.],
            [3., 4.]])
    """

    def __init__(
        self,
        energy: Callable[[Tensor, Tensor], Tensor],
        event_shape: int | Sequence[int],
        solver: Solver,
        *,
        num_iterations: int = 10,
        gradient: GradientMode | None = None,
        init_mean: float | Tensor = 0.0,
        init_std: float | Tensor | None = None,
        bounds: tuple[Any, Any] | None = None,
        feature_dims: int = 1,
    ) -> None:
        super().__init__()
        self.energy = energy
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        self.solver, self.num_iterations, self.gradient = solver, num_iterations, gradient
        self.init_mean: Tensor | None
        self.init_std: Tensor | None
        self._hold("init_mean", init_mean)
        self._hold("init_std", init_std)
        self.bounds, self.feature_dims = bounds, feature_dims

    def solve(self, x: Tensor, *, num_iterations: int | None = None, **options: Any) -> Solution:
        """The whole `dcem.Solution`; `options` are `dcem.minimize`'s: `generator`, `noise`, `record`,
        `gradient`, ...
        """
        if x.ndim < self.feature_dims:
            raise ValueError(
                f"x: expected (*batch, *feature) of at least {self.feature_dims} axes, got {tuple(x.shape)}"
            )
        shape = (*x.shape[: x.ndim - self.feature_dims], *self.event_shape)
        assert self.init_mean is not None
        dtype = x.dtype if x.is_floating_point() else self.init_mean.dtype
        mean = self.init_mean.to(dtype).expand(shape)
        init = mean if self.init_std is None else Gaussian(mean, self.init_std.to(dtype).expand(shape))
        settings: dict[str, Any] = {"gradient": self.gradient, "bounds": self.bounds, **options}
        return minimize(
            lambda y: self.energy(x, y),
            init,
            self.solver,
            num_iterations=self.num_iterations if num_iterations is None else num_iterations,
            event_dims=len(self.event_shape),
            **settings,
        )

    def forward(self, x: Tensor, *, num_iterations: int | None = None, **options: Any) -> Tensor:
        """`ŷ` `(*batch, *event)` for `x` `(*batch, *feature)`."""
        return self.solve(x, num_iterations=num_iterations, **options).x

    def _hold(self, name: str, value: float | Tensor | None) -> None:
        """Keep a number or tensor as a buffer, a parameter as a parameter."""
        tensor = value if value is None or isinstance(value, Tensor) else torch.tensor(float(value))
        if tensor is not None:
            try:
                tensor.expand(self.event_shape)
            except RuntimeError:
                raise ValueError(
                    f"{name}: expected a number or a tensor that broadcasts to event {self.event_shape}, "
                    f"got {tuple(tensor.shape)}"
                ) from None
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor)
        else:
            self.register_buffer(name, tensor)

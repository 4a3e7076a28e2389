"""A model whose prediction is the minimiser of a learned energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dcem._check import check_dims, check_tensor
from dcem._evaluate import check_axis, hides_axis
from dcem._given import brief, came
from dcem._guard import Cut, WithData
from dcem.bounds import BoundsLike
from dcem.distributions import Distribution
from dcem.energy.base import condition
from dcem.gradients import GradientMode
from dcem.layer import Argmin
from dcem.loop import Shard
from dcem.solution import Solution
from dcem.solvers import Solver


class EnergyModel(Argmin):
    """Predict by minimising an energy, `ŷ = argmin_y E_θ(x, y)`, and learn `θ` by differentiating the
    prediction.

    Any loss of `ŷ` trains it; its gradient reaches the energy, and whatever else is an `nn.Parameter` (the initial
    mean and std, the solver's step sizes or temperature, the decoder's weights), through the solve.

    Args:
        energy: `E_θ`: maps `x` `(*batch, *feature)` and `y` `(*batch, N, *event)` to `(*batch, N)`.
        event_shape: Shape of one prediction; an int is `(int,)`.
        solver: What minimises: `dcem.CEM(...)`, `dcem.GradientDescent(...)`, ... Its `nn.Parameter`s and modules are
        registered: `GradientDescent(lr=nn.Parameter(torch.full((10,), 0.1)))` learns a step size for each step.
        num_iterations: Inner iterations, unless a call says otherwise.
        gradient: How to differentiate, `dcem.Unroll()` by default.
        init_mean: Where the search starts: a number, or a tensor that broadcasts to `event`.
        init_std: How wide it starts, likewise; None for the solver's own. Of a parameter the magnitude counts, so that
        no optimiser can make it negative.
        bounds: `(low, high)` of the candidates, as in `dcem.minimize`.
        feature_dims: How many trailing axes of `x` are one input; those before are the batch.
        decoder: Search a latent `z` in place of `y`: maps `(*batch, N, *latent)` to `(*batch, N, *event)`. A learned
        one makes large `y` small; `nn.Softmax(-1)` keeps `y` on the simplex, `nn.Sigmoid()` inside `(0, 1)`.
        `init_mean`, `init_std` and `bounds` are then those of `z`.
        latent_shape: Shape of `z`; by default the decoder's own `latent_shape`, or else that of `y`.
        shard: Divide each solve among processes: `dcem.distributed.Samples()` or `Problems()`.

    Raises:
        TypeError: `energy` or `decoder` is not callable, or `energy` is a class or a model; in `forward`, `x` is no
        Tensor.
        ValueError: `init_mean` or `init_std` does not broadcast to `event` (or `latent`), `latent_shape` without a
        decoder; in `forward`, the energy or the decoder returns another shape, or what `dcem.minimize` raises.

    Source: LeCun et al., "A Tutorial on Energy-Based Learning", 2006; Belanger, Yang & McCallum, "End-to-End
    Learning for Structured Prediction Energy Networks", ICML 2017; Amos & Yarats, ICML 2020, section 4.1.

    >>> import dcem, torch
    >>> model = EnergyModel(lambda x, y: (y - x.unsqueeze(-2)).square().sum(-1), 2, dcem.GradientDescent(lr=0.5))
    >>> model(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).detach()
    tensor([[1., 2.],
            [3., 4.]])
    >>> simplex = EnergyModel(lambda x, y: (y - x.unsqueeze(-2)).square().sum(-1), 2, dcem.GradientDescent(lr=2.0),
    ...                       decoder=torch.nn.Softmax(-1), num_iterations=100)
    >>> simplex(torch.tensor([1.0, 0.4])).detach()
    tensor([0.8000, 0.2000])
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
        bounds: BoundsLike | None = None,
        feature_dims: int = 1,
        decoder: Callable[[Tensor], Tensor] | None = None,
        latent_shape: int | Sequence[int] | None = None,
        shard: Shard | None = None,
    ) -> None:
        check_energy(energy)
        super().__init__(
            event_shape,
            solver,
            num_iterations=num_iterations,
            gradient=gradient,
            bounds=bounds,
            init=(init_mean, init_std),
            decoder=decoder,
            latent_shape=latent_shape,
            shard=shard,
        )
        self.energy, self.feature_dims = energy, check_dims("feature_dims", feature_dims)

    def solve(
        self, x: Tensor, *, num_iterations: int | None = None, init: Distribution | Tensor | None = None, **options: Any
    ) -> Solution:
        """The whole `dcem.Solution`; `options` are `dcem.minimize`'s: `generator`, `noise`, `record`, `gradient`, ...

        `init` replaces the model's own start, say by `solution.distribution` of an earlier solve. With a decoder,
        `x` and `best_x` of the solution are decoded; its distribution and history are of the latent.
        """
        init = self.start(x) if init is None else init
        return super().forward(
            self.objective(x), self.batch_shape(x), init=init, num_iterations=num_iterations, **options
        )

    def forward(  # type: ignore[override]  # a layer whose objective is its own
        self, x: Tensor, *, num_iterations: int | None = None, **options: Any
    ) -> Tensor:
        """`ŷ` `(*batch, *event)` for `x` `(*batch, *feature)`."""
        return self.solve(x, num_iterations=num_iterations, **options).x

    def decision(self, x: Tensor, *, noise: Tensor) -> Tensor:
        """What [`dcem.export`][] makes a program of: the prediction, for given noise."""
        return self.forward(x, noise=noise)

    def objective(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`E_θ(x, ·)`, checked: maps candidates `y` `(*batch, N, *event)` to `(*batch, N)`."""
        own = condition(self.energy, x)
        is_checked = False

        def values_of(y: Tensor, given: Tensor, cut: Cut) -> Tensor:
            # Where a problem fails it is evaluated again on the input of another one; one of several processes is given
            # the inputs of its own problems.
            nonlocal is_checked
            batch = self.batch_shape(given)
            if not is_checked and given is x and hides_axis(batch, y.shape[len(batch)]):
                is_checked = True
                check_axis("energy", own, y.detach().narrow(len(batch), 0, 1).clone(), batch)
            values: Any = (own if given is x else condition(self.energy, given))(y)
            expected = (*batch, y.shape[len(batch)])
            if not isinstance(values, Tensor) or tuple(values.shape) != expected:
                raise ValueError(
                    f"energy: expected values (*batch, N) = {expected} for candidates (*batch, N, *event) = "
                    f"{tuple(y.shape)}, got {came(values, expected)}"
                )
            return values

        return WithData(values_of, x)

    def start(self, x: Tensor) -> Distribution | Tensor:
        """Where the search for these inputs starts: a distribution, or the means alone."""
        return self.initial(self.batch_shape(x), like=x)

    def batch_shape(self, x: Tensor) -> tuple[int, ...]:
        """The leading axes of `x`, one problem each."""
        check_tensor("x", x, "(*batch, *feature)")
        if x.ndim < self.feature_dims:
            raise ValueError(
                f"x: expected (*batch, *feature) of at least {self.feature_dims} axes, got {tuple(x.shape)}"
            )
        return tuple(x.shape[: x.ndim - self.feature_dims])


def check_energy(energy: Any) -> None:
    """Check that `energy` can be called as an energy: no class of energies, nor a model, which is called with `x`."""
    if not callable(energy) or isinstance(energy, (type, EnergyModel)):
        is_model = isinstance(energy, EnergyModel)
        got = f"{type(energy).__name__}; its energy is model.energy" if is_model else brief(energy)
        raise TypeError(f"energy: expected a callable (x, y) -> (*batch, N), got {got}")


def check_model(model: Any) -> None:
    """Check that `model` is an `EnergyModel`, or what `torch.compile` makes of one, which is of another class."""
    if isinstance(model, type) or not callable(getattr(model, "batch_shape", None)):
        got = brief(model) if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model: expected a dcem.energy.EnergyModel, got {got}")

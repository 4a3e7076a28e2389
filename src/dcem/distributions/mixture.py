"""Several Gaussians at once: a search that keeps more than one basin."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dcem._check import as_scalar, check_fraction, check_std
from dcem._given import brief
from dcem.bounds import clip
from dcem.distributions.base import Distribution, Weigh, check_parameter
from dcem.distributions.gaussian import add_log_densities, log_normal, root_of_squares

if TYPE_CHECKING:
    from typing_extensions import Self

    from dcem.bounds import Bounds


@dataclass(frozen=True, eq=False)
class Mixture(Distribution):
    """Sample from `M` diagonal Gaussians, `Σ_m π_m N(μ_m, σ_m²)`, to keep basins that one Gaussian averages.

    The samples are divided among the components in proportion to `π`, without chance. [`dcem.CEM`][] selects
    `num_elites` samples for each component, among those that are nearer to it than to the others, and fits it to
    them; its weight is its part of the best samples of all. A component with too few samples of its own stays as it is.

    A solve answers with the mean of the heaviest component, `mean`. It is differentiable like that of a Gaussian;
    which component is the heaviest is not. All of them are in `solution.distribution`.

    Args:
        means: `μ`, `(*batch, M, *event)`: where to start. Components that start at one place stay together.
        stds: `σ >= 0`, a number or a tensor that broadcasts to `means`.
        logits: of the weights `π`, `(*batch, M)` or broadcasting to it; None for equal weights.
        event_dims: how many trailing axes of `means` are one candidate; the axis before counts the components.
        min_weight: every component keeps a weight of at least `min_weight / M`, in `[0, 1]`.

    Raises:
        TypeError: `means` is not a floating-point tensor.
        ValueError: an argument is out of its range or of the wrong shape.

    Example:
        >>> import torch, dcem
        >>> two_wells = lambda x: (x.square().sum(-1) - 1).square()  # at -1 and 1
        >>> options = {"num_iterations": 20, "generator": torch.Generator().manual_seed(0)}
        >>> init = dcem.Mixture(torch.tensor([[-0.5], [0.5]]), 1.0)
        >>> dcem.minimize(two_wells, init, dcem.CEM(200, 20), **options).distribution.means.round(decimals=1)
        tensor([[-1.],
                [ 1.]])

    Source: cross-entropy method with Gaussian mixtures, Kroese, Porotsky & Rubinstein, 2006; samples of their own for
    each peak, as in niching: Shir & Bäck, "Niching in evolution strategies", 2005.
    """

    means: Tensor
    stds: Tensor
    logits: Tensor
    event_dims: int = 1
    min_weight: float = 0.5

    def __init__(
        self,
        means: Tensor,
        stds: float | Tensor,
        logits: Tensor | None = None,
        event_dims: int = 1,
        min_weight: float = 0.5,
    ) -> None:
        event_dims = check_parameter("means", means, event_dims)
        if event_dims == means.dim():
            raise ValueError(
                f"means: expected (*batch, M, *event), got {tuple(means.shape)} with event_dims={event_dims}"
            )
        shape = means.shape[: means.dim() - event_dims]
        check_std("stds", stds)
        check_fraction("min_weight", min_weight)
        given = {"stds": (stds, means.shape), "logits": (0.0 if logits is None else logits, shape)}
        for name, (value, expected) in given.items():
            try:
                tensor = torch.as_tensor(value, dtype=means.dtype, device=means.device)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"{name}: expected a number or a Tensor, got {brief(value)}") from None
            try:
                # A parameter in the full shape stays the parameter that it is.
                expanded = tensor if tensor.shape == expected else tensor.expand(expected)
            except RuntimeError:
                came = tuple(tensor.shape)
                raise ValueError(f"{name}: expected a shape that broadcasts to {tuple(expected)}, got {came}") from None
            object.__setattr__(self, name, expanded)
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "event_dims", event_dims)
        object.__setattr__(self, "min_weight", as_scalar(min_weight))

    @property
    def _heaviest(self) -> Tensor:
        """Index of the heaviest component, in the shape of one: `(*batch, 1, *1)`."""
        index = self.logits.argmax(-1, keepdim=True)
        return index.reshape(index.shape + (1,) * self.event_dims)

    @property
    def _component_dim(self) -> int:
        return -1 - self.event_dims

    def _of_heaviest(self, values: Tensor) -> Tensor:
        return torch.take_along_dim(values, self._heaviest, self._component_dim).squeeze(self._component_dim)

    @property
    def mean(self) -> Tensor:
        """The mean of the heaviest component, `(*batch, *event)`."""
        return self._of_heaviest(self.means)

    @property
    def std(self) -> Tensor:
        """The std of the heaviest component, `(*batch, *event)`."""
        return self._of_heaviest(self.stds)

    @property
    def _least(self) -> float:
        # What a component is fitted to is divided by its weight, and the slopes of that once more.
        return max(self.min_weight / self.logits.shape[-1], torch.finfo(self.logits.dtype).tiny ** 0.5)

    @property
    def weights(self) -> Tensor:
        """`π`, `(*batch, M)`."""
        return self.logits.softmax(-1)

    def check(self) -> None:
        super().check()
        if (self.stds < 0).any():
            raise ValueError(f"init: expected stds >= 0, got {self.stds}")

    def rsample(self, noise: Tensor) -> Tensor:
        # Sample i of N belongs to the component in whose share of (0, 1) the point (i + 1/2) / N lies.
        num_samples = noise.shape[self.sample_dim]
        points = (torch.arange(num_samples, device=noise.device, dtype=torch.float64) + 0.5) / num_samples
        ends = self.weights.detach().cumsum(-1)[..., :-1]
        component = (points.unsqueeze(-1) > ends.unsqueeze(-2)).sum(-1)
        component = component.reshape(component.shape + (1,) * self.event_dims)
        means, stds = (torch.take_along_dim(of, component, self._component_dim) for of in (self.means, self.stds))
        return torch.addcmul(means, stds, noise)

    def log_prob(self, x: Tensor) -> Tensor:
        means, stds = self._flat_components()
        of_component = log_normal(self.flat(x).unsqueeze(-3) - means, stds)
        prior = self.logits.log_softmax(-1).unsqueeze(-1).expand_as(of_component)
        return add_log_densities(torch.stack([prior, of_component]), 0).logsumexp(-2)

    def _flat_components(self) -> tuple[Tensor, Tensor]:
        """Means and stds with the event as one axis, `(*batch, M, 1, D)`."""
        return self.flat(self.means).unsqueeze(-2), self.flat(self.stds).unsqueeze(-2)

    def _nearest(self, samples: Tensor) -> Tensor:
        """Whether a component is the nearest to a sample, in units of their common std: `(*batch, M, N)`, boolean.

        Not the likeliest: where one component is narrow already, the others would get what lies about it.
        """
        means, stds = (of.detach() for of in self._flat_components())
        common = root_of_squares(lambda squares: squares.mean(-3, keepdim=True), stds, -3)
        common = common.clamp(min=torch.finfo(stds.dtype).tiny ** 0.5)
        squares = ((self.flat(samples.detach()).unsqueeze(-3) - means) / common).square().sum(-1)
        return torch.arange(means.shape[-3], device=means.device).unsqueeze(-1) == squares.argmin(-2, keepdim=True)

    def select(self, samples: Tensor, values: Tensor, weigh: Weigh) -> tuple[Self, Tensor, Tensor | None]:
        """Elites of each component, among the samples next to it; its weight is its part of the elites of all."""
        among_all, valid = weigh(values)
        total = among_all.sum(-1, keepdim=True)
        parts, weights, any_ok = [], torch.zeros_like(among_all), None
        for own in self._nearest(samples).unbind(-2):
            part = torch.where(own, among_all, 0.0).sum(-1, keepdim=True) / total
            parts.append((1 - self.min_weight) * part + self._least)
            among_own, ok = weigh(values.masked_fill(~own, torch.inf))
            if ok is None:
                ok = own.any(-1)
            weights = weights + parts[-1] * torch.where(own & ok.unsqueeze(-1), among_own, 0.0)
            any_ok = ok if any_ok is None else any_ok | ok
        assert any_ok is not None
        ranked = dataclasses.replace(self, logits=torch.cat(parts, -1).log())
        # Where no component has enough samples of its own, the elites of all count for the components next to them.
        lacking = ~any_ok if valid is None else valid & ~any_ok
        return ranked, torch.where(lacking.unsqueeze(-1), among_all, weights), valid

    def fit(self, samples: Tensor, weights: Tensor) -> Self:
        shares = weights.unsqueeze(-2) * self._nearest(samples)  # (*batch, M, N)
        mass = shares.sum(-1, keepdim=True)
        has_any = mass > 0  # of the elites; otherwise it stays as it is, its weight included
        shares = (shares / mass.where(has_any, 1.0)).unsqueeze(-2)
        means, stds = self._flat_components()
        center = means.detach()
        deviations = self.flat(samples).unsqueeze(-3) - center
        shift = shares @ deviations
        spread = root_of_squares(lambda squares: shares @ squares, deviations - shift, -2, shares.mT > 0)
        new_means = torch.where(has_any.unsqueeze(-1), center + shift, means).reshape(self.means.shape)
        new_stds = torch.where(has_any.unsqueeze(-1), spread, stds).reshape(self.stds.shape)
        has_any, mass, old = has_any.squeeze(-1), mass.squeeze(-1), self.weights
        kept = torch.where(has_any, 0.0, old).sum(-1, keepdim=True)
        new_weights = torch.where(has_any, (1 - kept) * mass, old)
        return dataclasses.replace(self, means=new_means, stds=new_stds, logits=self._logits_of(new_weights))

    def _logits_of(self, weights: Tensor) -> Tensor:
        """Of weights that sum to 1; what some lack to `_least` is taken from what the others have more."""
        least = self._least
        above = (weights - least).relu()
        room = (1 - weights.shape[-1] * least) / above.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        return (least + above * room).log()

    def with_mean(self, mean: Tensor) -> Self:
        """All components moved together, the heaviest one to `mean`."""
        return dataclasses.replace(self, means=self.means + (mean - self.mean).unsqueeze(self._component_dim))

    def interpolate(self, other: Self, amount: float | Tensor) -> Self:
        means, stds, weights = (
            old + amount * (new - old)
            for old, new in ((self.means, other.means), (self.stds, other.stds), (self.weights, other.weights))
        )
        return dataclasses.replace(self, means=means, stds=stds, logits=self._logits_of(weights))

    def clamp_std(self, low: float, high: float | None) -> Self:
        return dataclasses.replace(self, stds=clip(self.stds, low, high))

    def is_collapsed(self, min_std: float) -> Tensor:
        floored = self.stds <= min_std
        return floored.flatten(floored.dim() - self.event_dims - 1).all(-1)

    def clip(self, bounds: Bounds) -> Self:
        return dataclasses.replace(self, means=bounds.clip(self.means))

    def narrow(self, bounds: Bounds) -> Self:
        widest = bounds.half_width()
        return self if widest is None else dataclasses.replace(self, stds=clip(self.stds, high=widest))

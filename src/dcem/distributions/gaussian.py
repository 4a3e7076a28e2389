"""Gaussian sampling distributions: diagonal and with full covariance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dcem._check import check_std
from dcem._eager import all_true, is_eager, widest
from dcem._given import kind
from dcem.bounds import clip
from dcem.distributions.base import Distribution, check_parameter

if TYPE_CHECKING:
    from typing_extensions import Self

    from dcem.bounds import Bounds


def safe_sqrt(variance: Tensor) -> Tensor:
    """`sqrt` whose gradient at zero is zero instead of infinite."""
    zero = variance <= 0  # NaN stays NaN
    return torch.where(zero, 0.0, torch.where(zero, 1.0, variance).sqrt())


def root_of_squares(
    squares_of: Callable[[Tensor], Tensor], x: Tensor, dim: int, counts: Tensor | None = None
) -> Tensor:
    """`√f(x²)` of a function `f` that is linear in the squares along `dim`, which it keeps as an axis of one.

    Where squares overflow, of which a weight of 0 makes NaN, or vanish, they are taken in units of the largest number
    that `counts`, and those that do not count are left out.
    """
    info = torch.finfo(x.dtype)
    plain = squares_of(x.square())
    ordinary = (plain >= info.tiny / info.eps) & (plain <= info.max)
    if all_true(ordinary):
        return safe_sqrt(plain)
    if counts is not None:
        x = torch.where(counts | ordinary, x, 0.0)
    largest = x.detach().abs().amax(dim, keepdim=True)
    unit = torch.where(ordinary | ~(largest > 0) | largest.isinf(), 1.0, largest)
    return safe_sqrt(squares_of((x / unit).square())) * unit


def log_normal(away: Tensor, std: Tensor) -> Tensor:
    """The log-density, summed over the last axis, of what lies `away` from the mean.

    Where a std is 0 all of the mass is at the mean: `inf` there, and `-inf` elsewhere.
    """
    collapsed = std == 0
    std = torch.where(collapsed, 1.0, std)
    density = -0.5 * ((away / std).square() + math.log(2 * math.pi)) - std.log()
    density = torch.where(collapsed, math.inf, density).masked_fill(collapsed & (away != 0), -math.inf)
    return add_log_densities(density, -1)


def add_log_densities(each: Tensor, dim: int) -> Tensor:
    """Their sum: `-inf` where one of them is, though another has all of its mass there."""
    outside = (each == -math.inf).any(dim, keepdim=True)
    return torch.where(outside.squeeze(dim), -math.inf, torch.where(outside, 0.0, each).sum(dim))


@dataclass(frozen=True, eq=False)
class Gaussian(Distribution):
    """Sample from a diagonal Gaussian: `X = μ + σ ε`, refitted by weighted moments.

    Args:
        mean: `μ`, `(*batch, *event)`.
        std: `σ >= 0`, a number or a tensor that broadcasts to `mean`. A solver raises it to its `min_std`.
        event_dims: how many trailing axes of `mean` are one candidate; the axes before are the batch.

    Raises:
        TypeError: `mean` is not a floating-point tensor.
        ValueError: `std` does not broadcast to `mean`, or `event_dims` is out of range.

    Example:
        >>> import torch, dcem
        >>> g = dcem.Gaussian(torch.zeros(2), 3.0)
        >>> g.fit(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([0.5, 0.5])).std
        tensor([1., 0.])

    Source: the update `μ = Σ w_i X_i / k`, `σ² = Σ w_i (X_i - μ)² / k` of the (differentiable) cross-entropy
    method, Amos & Yarats, ICML 2020.
    """

    mean: Tensor
    std: Tensor
    event_dims: int = 1

    def __init__(self, mean: Tensor, std: float | Tensor, event_dims: int = 1) -> None:
        event_dims = check_parameter("mean", mean, event_dims)
        if not isinstance(std, Tensor):
            check_std("std", std)
            std = torch.full_like(mean, std)
        elif std.shape != mean.shape or std.dtype != mean.dtype:
            try:
                std = std.to(mean).expand(mean.shape)
            except RuntimeError:
                raise ValueError(
                    f"std: expected a shape that broadcasts to mean's {tuple(mean.shape)}, got {tuple(std.shape)}"
                ) from None
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        object.__setattr__(self, "event_dims", event_dims)

    def log_prob(self, x: Tensor) -> Tensor:
        mean, std = (self.flat(of.unsqueeze(self.sample_dim)) for of in (self.mean, self.std))
        return log_normal(self.flat(x) - mean, std)

    def check(self) -> None:
        super().check()
        if (self.std < 0).any():
            raise ValueError(f"init: expected a std >= 0, got {self.std}")

    def rsample(self, noise: Tensor) -> Tensor:
        return torch.addcmul(self.mean.unsqueeze(self.sample_dim), self.std.unsqueeze(self.sample_dim), noise)

    def fit(self, samples: Tensor, weights: Tensor) -> Self:
        mean, deviations = self.weighted_deviations(samples, weights)
        weigh = weights.unsqueeze(-2)
        std = root_of_squares(lambda squares: torch.matmul(weigh, squares), deviations, -2, weigh.mT > 0)
        return dataclasses.replace(self, mean=mean, std=std.reshape(mean.shape))

    def clamp_std(self, low: float, high: float | None) -> Self:
        return dataclasses.replace(self, std=clip(self.std, low, high))

    def is_collapsed(self, min_std: float) -> Tensor:
        floored = self.std <= min_std
        return floored.flatten(self.mean.dim() - self.event_dims).all(-1) if self.event_dims else floored

    def clip(self, bounds: Bounds) -> Self:
        return dataclasses.replace(self, mean=bounds.clip(self.mean))

    def narrow(self, bounds: Bounds) -> Self:
        widest = bounds.half_width()
        return self if widest is None else dataclasses.replace(self, std=clip(self.std, high=widest))


@dataclass(frozen=True, eq=False)
class FullGaussian(Distribution):
    """Sample from a Gaussian with full covariance `Σ = L Lᵀ`: `X = μ + L ε`, refitted by weighted moments.

    Correlated dimensions are searched along their common direction: narrow valleys that do not follow the axes. The
    covariance of `D` dimensions has `D²/2` numbers to be estimated from the elites; a few times `D` elites, a
    quarter of the samples, and half of the old covariance kept (`CEM(20 * D, 5 * D, smoothing=0.5)`) serve well.

    After each step of the mean, [`dcem.CEM`][] widens the covariance along it (`stretch`). It is then that of
    the elites about the mean that they were drawn around, and the search goes on in a direction that paid, where the
    covariance about their own mean narrows along it and ends before the minimum.

    Args:
        mean: `μ`, `(*batch, *event)`.
        scale_tril: `L`, lower triangular with a positive diagonal, `(*batch, D, D)` (or broadcasting to that)
            with `D` the number of elements of one event.
        event_dims: how many trailing axes of `mean` are one candidate.

    Raises:
        TypeError: `mean` is not a floating-point tensor.
        ValueError: `scale_tril` does not broadcast to `(*batch, D, D)`, or `event_dims` is out of range.

    Example:
        >>> import torch, dcem
        >>> g = dcem.FullGaussian(torch.zeros(2), torch.eye(2))
        >>> x = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
        >>> g.fit(x, torch.tensor([0.5, 0.5])).covariance.round(decimals=3)
        tensor([[1., 1.],
                [1., 1.]])

    Source: cross-entropy method with a multivariate normal family, Rubinstein & Kroese, 2004; the covariance about
    the old mean: Hansen, "The CMA Evolution Strategy: A Comparing Review", 2006, section 2.2.
    """

    mean: Tensor
    scale_tril: Tensor
    event_dims: int = 1

    def __init__(self, mean: Tensor, scale_tril: Tensor, event_dims: int = 1) -> None:
        event_dims = check_parameter("mean", mean, event_dims)
        size = mean.shape[mean.dim() - event_dims :].numel()
        expected = (*mean.shape[: mean.dim() - event_dims], size, size)
        if not isinstance(scale_tril, Tensor):
            raise TypeError(f"scale_tril: expected a Tensor, got {kind(scale_tril)}")
        if scale_tril.shape != expected or scale_tril.dtype != mean.dtype:
            try:
                scale_tril = scale_tril.to(mean).expand(expected)
            except RuntimeError:
                raise ValueError(
                    f"scale_tril: expected a shape that broadcasts to {expected}, got {tuple(scale_tril.shape)}"
                ) from None
        if is_eager() and scale_tril.is_cpu and (scale_tril.detach().triu(1).abs() > 0).any():
            largest = float(scale_tril.detach().triu(1).abs().max())
            raise ValueError(
                f"scale_tril: expected a lower triangular matrix, got up to {largest:g} above its diagonal"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "scale_tril", scale_tril)
        object.__setattr__(self, "event_dims", event_dims)

    def _of(self, mean: Tensor, scale_tril: Tensor) -> Self:
        """With other parameters, which were made here: what a user gives is checked, once."""
        new = object.__new__(type(self))
        changed = {"mean": mean, "scale_tril": scale_tril}
        for field in dataclasses.fields(self):
            object.__setattr__(new, field.name, changed.get(field.name, getattr(self, field.name)))
        return new

    @property
    def covariance(self) -> Tensor:
        """`Σ = L Lᵀ`, `(*batch, D, D)`."""
        return self.scale_tril @ self.scale_tril.mT

    @property
    def _covariance(self) -> Tensor:
        """In double precision, where there is one: scales that differ by `r` differ by `r²` in a covariance."""
        wide = _wide(self.scale_tril)
        return wide @ wide.mT

    @property
    def std(self) -> Tensor:
        """Marginal standard deviations, `(*batch, *event)`."""
        return self._marginal.reshape(self.mean.shape)

    @property
    def _marginal(self) -> Tensor:
        """Norms of the rows of `L`, `(*batch, D, 1)`."""
        return root_of_squares(lambda squares: squares.sum(-1, keepdim=True), self.scale_tril, -1)

    def log_prob(self, x: Tensor) -> Tensor:
        deviations = _wide(self.flat(x - self.mean.unsqueeze(self.sample_dim)))
        scales = _wide(self.scale_tril).diagonal(dim1=-2, dim2=-1).abs()
        # The solve gives the deviation, of each coordinate from what those before it say, in units of its scale. Where
        # that is 0 so has the deviation to be, up to what the solve makes of the rounding of the samples.
        collapsed = (scales == 0).unsqueeze(-2)
        factor = _wide(self.scale_tril) + torch.diag_embed(collapsed.squeeze(-2).to(scales))
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        scaled = torch.linalg.solve_triangular(factor, deviations.mT, upper=False).mT
        inverse = torch.linalg.solve_triangular(factor.detach(), identity, upper=False)
        sizes = _wide(self.flat(x.detach().abs() + self.mean.detach().abs().unsqueeze(self.sample_dim)))
        rounding = 32 * torch.finfo(self.mean.dtype).eps * (sizes @ inverse.abs().mT)
        scaled = torch.where(collapsed & (scaled.abs() <= rounding), 0.0, scaled)
        scales = scales.unsqueeze(-2)
        return log_normal(torch.where(collapsed, scaled, scaled * scales), scales).to(self.mean.dtype)

    def check(self) -> None:
        super().check()
        if self.scale_tril.triu(1).any():
            raise ValueError(f"init: expected a lower triangular scale_tril, got {self.scale_tril}")

    def rsample(self, noise: Tensor) -> Tensor:
        spread = self.flat(noise) @ self.scale_tril.mT
        return self.mean.unsqueeze(self.sample_dim) + spread.reshape(noise.shape)

    def fit(self, samples: Tensor, weights: Tensor) -> Self:
        mean, deviations = self.weighted_deviations(samples, weights)
        deviations = _wide(deviations)
        covariance = deviations.mT @ (weights.unsqueeze(-1) * deviations)
        return self._of(mean, _cholesky(covariance, self.mean.dtype))

    def interpolate(self, other: Self, amount: float | Tensor) -> Self:
        # Of the covariances, not of their factors: those of two directions have less variance half-way than either.
        mean = self.mean + amount * (other.mean - self.mean)
        covariance = self._covariance + amount * (other._covariance - self._covariance)
        return self._of(mean, _cholesky(covariance, self.mean.dtype))

    def stretch(self, start: Self, clip: Callable[[Tensor], Tensor]) -> Self:
        step = _wide(clip(self.mean) - start.mean).reshape(*self.scale_tril.shape[:-1], 1)
        widened = _cholesky(self._covariance + step @ step.mT, self.mean.dtype)
        moved = (step != 0).any(-2, keepdim=True)
        return self._of(self.mean, torch.where(moved, widened, self.scale_tril))

    def clamp_std(self, low: float, high: float | None) -> Self:
        return self._rescale(lambda std: clip(std, low, high))

    def _rescale(self, to: Callable[[Tensor], Tensor]) -> Self:
        """Scale the rows of `L`, which changes each dimension's std and leaves correlations alone.

        A row that is nothing beside what it becomes says its direction by rounding: that has no gradient.
        """
        std = self._marginal
        new = to(std)
        lost = std <= torch.finfo(std.dtype).eps * new
        row, size = self.scale_tril.detach(), std.detach()
        identity = torch.eye(std.shape[-2], dtype=std.dtype, device=std.device)
        direction = torch.where(size > 0, row / size.where(size > 0, 1.0), identity)
        scaled = self.scale_tril * (new / std.where(~lost, 1.0))
        return self._of(self.mean, torch.where(lost, direction * new, scaled))

    def is_collapsed(self, min_std: float) -> Tensor:
        # A rescaled row has its std only up to rounding.
        return (self._marginal <= min_std * (1 + 1e-5)).flatten(-2).all(-1)

    def clip(self, bounds: Bounds) -> Self:
        return self._of(bounds.clip(self.mean), self.scale_tril)

    def narrow(self, bounds: Bounds) -> Self:
        widest = bounds.half_width()
        if isinstance(widest, Tensor):
            widest = widest.expand(self.event_shape).reshape(-1, 1)
        return self if widest is None else self._rescale(lambda std: clip(std, high=widest))


def _wide(x: Tensor) -> Tensor:
    return x.to(widest(x.device))


def _cholesky(covariance: Tensor, dtype: torch.dtype) -> Tensor:
    """A lower triangular `L` of `dtype` with `L Lᵀ = Σ` for any covariance of doubles, singular ones included.

    Correlations are factorised, so that scales along the axes do not matter. They are shrunk by a few units of
    rounding, of theirs or, squared, of the samples', or by more where that is too little: so a factor exists where
    there are fewer samples than dimensions. The variances stay; those that have lost digits to underflow, and whose
    slopes would overflow, are 0.
    """
    variance, info = covariance.diagonal(dim1=-2, dim2=-1), torch.finfo(covariance.dtype)
    normal = ~(variance < info.tiny / info.eps)
    # Constants, without a slope: `L` is the same in any unit, `chol(U A U) = U chol(A)`.
    unit = variance.detach().where(normal, 1.0).sqrt()
    inverse = torch.where(normal, unit.reciprocal(), 0.0)
    correlation = covariance * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    size, rounding = variance.shape[-1], max(info.eps, torch.finfo(dtype).eps ** 2)
    identity = torch.eye(size, dtype=variance.dtype, device=variance.device)
    ones = torch.where(normal.unsqueeze(-1), correlation, 1.0)

    def factor(shrinkage: float | Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor]
        result = torch.linalg.cholesky_ex(torch.where(identity > 0, ones, (1 - shrinkage) * correlation))
        return result

    little, much = (16 + 2 * size) * rounding, 16 * rounding**0.5
    found, error = factor(little)
    if not all_true(error == 0):
        found, _ = factor(torch.where(error == 0, little, much).to(variance.dtype)[..., None, None])
    return (torch.where(normal, unit, 0.0).unsqueeze(-1) * found).to(dtype)

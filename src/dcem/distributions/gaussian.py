"""Gaussian sampling distributions: diagonal and with full covariance."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dcem._check import check_std
from dcem.distributions.base import Distribution

if TYPE_CHECKING:
    from typing_extensions import Self

    from dcem.bounds import Bounds


def _check_mean(mean: Tensor, event_dims: int) -> None:
    if not isinstance(mean, Tensor):
        raise TypeError(f"mean: expected a Tensor, got {type(mean).__name__}")
    if not mean.is_floating_point():
        raise TypeError(f"mean: expected a floating-point tensor, got {mean.dtype}")
    if not 0 <= event_dims <= mean.dim():
        raise ValueError(
            f"event_dims: expected 0 to {mean.dim()} for a mean of shape {tuple(mean.shape)}, got {event_dims}"
        )


def _safe_sqrt(variance: Tensor) -> Tensor:
    """``sqrt`` whose gradient at zero is zero instead of infinite."""
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)


@dataclass(frozen=True, eq=False)
class Gaussian(Distribution):
    """Sample from a diagonal Gaussian: ``X = μ + σ ε``, refitted by weighted moments.

    Args:
        mean: ``μ``, ``(*batch, *event)``.
        std: ``σ >= 0``, a number or a tensor that broadcasts to ``mean``. A solver raises it to its ``min_std``.
        event_dims: how many trailing axes of ``mean`` are one candidate; the axes before are the batch.

    Raises:
        TypeError: ``mean`` is not a floating-point tensor.
        ValueError: ``std`` does not broadcast to ``mean``, or ``event_dims`` is out of range.

    Example:
        >>> import torch, dcem
        >>> g = dcem.Gaussian(torch.zeros(2), 3.0)
        >>> g.fit(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([0.5, 0.5])).std
        tensor([1., 0.])

    Source: the update ``μ = Σ w_i X_i / k``, ``σ² = Σ w_i (X_i - μ)² / k`` of the (differentiable) cross-entropy
    method, Amos & Yarats, ICML 2020.
    """

    mean: Tensor
    std: Tensor
    event_dims: int = 1

    def __init__(self, mean: Tensor, std: float | Tensor, event_dims: int = 1) -> None:
        _check_mean(mean, event_dims)
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

    def rsample(self, noise: Tensor) -> Tensor:
        return torch.addcmul(self.mean.unsqueeze(self.sample_dim), self.std.unsqueeze(self.sample_dim), noise)

    def fit(self, samples: Tensor, weights: Tensor) -> Self:
        mean = self.weighted_mean(samples, weights)
        deviation = samples - mean.unsqueeze(self.sample_dim)
        variance = self.weighted_mean(deviation.square(), weights)
        return dataclasses.replace(self, mean=mean, std=_safe_sqrt(variance))

    def clamp_std(self, low: float, high: float | None) -> Self:
        return dataclasses.replace(self, std=self.std.clamp(low, high))

    def is_collapsed(self, min_std: float) -> Tensor:
        floored = self.std <= min_std
        return floored.flatten(self.mean.dim() - self.event_dims).all(-1) if self.event_dims else floored

    def clip(self, bounds: Bounds) -> Self:
        return dataclasses.replace(self, mean=bounds.clip(self.mean))


@dataclass(frozen=True, eq=False)
class FullGaussian(Distribution):
    """Sample from a Gaussian with full covariance ``Σ = L Lᵀ``: ``X = μ + L ε``, refitted by weighted moments.

    Correlated dimensions are searched along their common direction. The covariance of ``D`` dimensions needs more
    than ``D`` elites to be well determined; a small multiple of the identity keeps its Cholesky factor defined.

    Args:
        mean: ``μ``, ``(*batch, *event)``.
        scale_tril: ``L``, lower triangular with a positive diagonal, ``(*batch, D, D)`` (or broadcasting to that)
            with ``D`` the number of elements of one event.
        event_dims: how many trailing axes of ``mean`` are one candidate.

    Raises:
        TypeError: ``mean`` is not a floating-point tensor.
        ValueError: ``scale_tril`` does not broadcast to ``(*batch, D, D)``, or ``event_dims`` is out of range.

    Example:
        >>> import torch, dcem
        >>> g = dcem.FullGaussian(torch.zeros(2), torch.eye(2))
        >>> x = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
        >>> g.fit(x, torch.tensor([0.5, 0.5])).covariance.round(decimals=3)
        tensor([[1., 1.],
                [1., 1.]])

    Source: cross-entropy method with a multivariate normal family, Rubinstein & Kroese, 2004.
    """

    mean: Tensor
    scale_tril: Tensor
    event_dims: int = 1

    def __init__(self, mean: Tensor, scale_tril: Tensor, event_dims: int = 1) -> None:
        _check_mean(mean, event_dims)
        size = mean.shape[mean.dim() - event_dims :].numel()
        expected = (*mean.shape[: mean.dim() - event_dims], size, size)
        if not isinstance(scale_tril, Tensor):
            raise TypeError(f"scale_tril: expected a Tensor, got {type(scale_tril).__name__}")
        if scale_tril.shape != expected or scale_tril.dtype != mean.dtype:
            try:
                scale_tril = scale_tril.to(mean).expand(expected)
            except RuntimeError:
                raise ValueError(
                    f"scale_tril: expected a shape that broadcasts to {expected}, got {tuple(scale_tril.shape)}"
                ) from None
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "scale_tril", scale_tril)
        object.__setattr__(self, "event_dims", event_dims)

    @property
    def covariance(self) -> Tensor:
        """``Σ = L Lᵀ``, ``(*batch, D, D)``."""
        return self.scale_tril @ self.scale_tril.mT

    @property
    def std(self) -> Tensor:
        """Marginal standard deviations, ``(*batch, *event)``."""
        return self.scale_tril.norm(dim=-1).reshape(self.mean.shape)

    def _flat(self, samples: Tensor) -> Tensor:
        return samples.flatten(self.sample_dim + 1) if self.event_dims else samples.unsqueeze(-1)

    def rsample(self, noise: Tensor) -> Tensor:
        spread = self._flat(noise) @ self.scale_tril.mT
        return self.mean.unsqueeze(self.sample_dim) + spread.reshape(noise.shape)

    def fit(self, samples: Tensor, weights: Tensor) -> Self:
        mean = self.weighted_mean(samples, weights)
        deviation = self._flat(samples - mean.unsqueeze(self.sample_dim))
        covariance = deviation.mT @ (weights.unsqueeze(-1) * deviation)
        # Fewer elites than dimensions leave directions without variance: a relative jitter keeps L defined.
        info = torch.finfo(covariance.dtype)
        variance = covariance.detach().diagonal(dim1=-2, dim2=-1).mean(-1)
        jitter = (10 * info.eps * variance).clamp(min=info.tiny**0.5).unsqueeze(-1)
        scale_tril, _ = torch.linalg.cholesky_ex(covariance + torch.diag_embed(jitter.expand_as(deviation[..., 0, :])))
        return dataclasses.replace(self, mean=mean, scale_tril=scale_tril)

    def clamp_std(self, low: float, high: float | None) -> Self:
        # Scaling a row of L scales that dimension's std and leaves its correlations alone.
        std = self.scale_tril.norm(dim=-1, keepdim=True)
        return dataclasses.replace(self, scale_tril=self.scale_tril * (std.clamp(low, high) / std))

    def is_collapsed(self, min_std: float) -> Tensor:
        # A rescaled row has its std only up to rounding.
        return (self.scale_tril.norm(dim=-1) <= min_std * (1 + 1e-5)).all(-1)

    def clip(self, bounds: Bounds) -> Self:
        return dataclasses.replace(self, mean=bounds.clip(self.mean))

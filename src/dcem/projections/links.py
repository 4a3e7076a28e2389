"""What tells the soft projections apart: the map from the dual variable to the weights.

Every soft projection onto the capped simplex ``{0 <= y <= 1, sum y = k}`` has the form ``y = phi(z)`` with
``z = x / temperature + nu`` and one scalar ``nu`` a row, fixed by ``sum phi(z) = k``. A [`Link`][] is ``phi``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Link(ABC):
    """A non-decreasing map ``phi`` of the real line onto ``[0, 1]`` (0 and 1 may be limits)."""

    name: str

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """``phi(z)``."""

    @abstractmethod
    def derivative(self, z: Tensor) -> Tensor:
        """``phi'(z)``, differentiable itself; at a kink, 0."""

    @abstractmethod
    def inverse(self, p: float) -> float:
        """The ``z`` with ``phi(z) = p``, for ``0 < p < 1``."""

    @abstractmethod
    def saturation(self, eps: float) -> float:
        """A ``z`` from which on ``phi(z) = 1`` at machine precision ``eps``."""

    @abstractmethod
    def step(self, residual: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        """How far to move ``nu`` to remove ``residual = sum y - k``, given ``y = phi(z)`` and ``dy = phi'(z)``.

        Shapes: ``(rows, 1)``, ``(rows, n)``, ``(rows, n)`` to ``(rows, 1)``. May be NaN where it cannot tell.
        """

    def __repr__(self) -> str:
        return self.name


class Sigmoid(Link):
    """LML: ``phi(z) = 1 / (1 + exp(-z))``, from the binary entropy."""

    name = "lml"

    def value(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def derivative(self, z: Tensor) -> Tensor:
        # y (1 - y), without the rounding of 1 - y when y is close to 1
        return torch.sigmoid(z) * torch.sigmoid(-z)

    def inverse(self, p: float) -> float:
        return math.log(p) - math.log1p(-p)

    def saturation(self, eps: float) -> float:
        return 4.0 - math.log(eps)

    def step(self, residual: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        # Halley: third order, from phi'' = phi' (1 - 2 phi)
        slope = dy.sum(-1, keepdim=True)
        curvature = slope - 2 * (dy * y).sum(-1, keepdim=True)
        newton = -residual / slope
        return newton / (1 + 0.5 * newton * curvature / slope)


class CappedExponential(Link):
    """Constrained softmax: ``phi(z) = min(1, exp(z))``, from the Shannon entropy."""

    name = "constrained_softmax"

    def value(self, z: Tensor) -> Tensor:
        return z.clamp(max=0).exp()

    def derivative(self, z: Tensor) -> Tensor:
        return torch.where(z < 0, z.clamp(max=0).exp(), 0)

    def inverse(self, p: float) -> float:
        return math.log(p)

    def saturation(self, eps: float) -> float:
        return 0.0

    def step(self, residual: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        # Newton in exp(nu), in which the sum is concave and piecewise linear
        return torch.log1p(-residual / dy.sum(-1, keepdim=True))


class Clip(Link):
    """Constrained sparsemax: ``phi(z) = min(1, max(0, z))``, from the squared norm."""

    name = "constrained_sparsemax"

    def value(self, z: Tensor) -> Tensor:
        return z.clamp(0, 1)

    def derivative(self, z: Tensor) -> Tensor:
        return ((z > 0) & (z < 1)).to(z.dtype)

    def inverse(self, p: float) -> float:
        return p

    def saturation(self, eps: float) -> float:
        return 1.0

    def step(self, residual: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        return -residual / dy.sum(-1, keepdim=True)

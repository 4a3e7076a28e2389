"""What tells the soft projections apart: the map from the dual variable to the weights.

Every soft projection onto the capped simplex `{0 <= y <= 1, sum y = k}` has the form `y = phi(z)` with
`z = x / temperature + nu` and one scalar `nu` a row, fixed by `sum phi(z) = k`. A `Link` is `phi`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Link(ABC):
    """A non-decreasing map `phi` of the real line onto `[0, 1]` (0 and 1 may be limits)."""

    name: str

    moves = False
    """Whether weights near 0 have no more digits than `nu`, so that the centre belongs where they begin."""

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """`phi(z)`."""

    def differentiable(self, z: Tensor) -> Tensor:
        """The same, with all digits of `phi'` where autograd differentiates it."""
        return self.value(z)

    @abstractmethod
    def derivative(self, z: Tensor) -> Tensor:
        """`phi'(z)`, differentiable itself; 0 at a kink."""

    @abstractmethod
    def slope_at(self, w: Tensor) -> Tensor:
        """`phi'(z)` where `phi(z) = w`."""

    @abstractmethod
    def inverse(self, p: Any) -> Any:
        """The `z` with `phi(z) = p`, for `0 < p < 1`: a number, or a tensor of a tensor."""

    @abstractmethod
    def saturation(self, eps: float) -> float:
        """A `z` from which on `phi(z) = 1` at machine precision `eps`."""

    @abstractmethod
    def guess(self, variance: Tensor, p: float) -> Tensor:
        """Roughly the `nu` with `mean phi(s + nu) = p` for normal `s` of mean 0; may overwrite `variance`."""

    @abstractmethod
    def step(self, z: Tensor, k: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For every row, `sum phi(z) - k`, how far to move `nu` to remove it (or NaN), and whether that does.

        May overwrite `z`.
        """


class Sigmoid(Link):
    """LML: `phi(z) = 1 / (1 + exp(-z))`, from the binary entropy."""

    name = "sigmoid"

    def value(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def differentiable(self, z: Tensor) -> Tensor:
        # autograd's y (1 - y) has the rounding of 1 - y in it
        return torch.where(z > 0, 1 - torch.sigmoid(-z), torch.sigmoid(z))

    def derivative(self, z: Tensor) -> Tensor:
        # y (1 - y), without the rounding of 1 - y when y is close to 1
        return torch.sigmoid(z) * torch.sigmoid(-z)

    def slope_at(self, w: Tensor) -> Tensor:
        return w * (1 - w)

    def inverse(self, p: Any) -> Any:
        return torch.logit(p) if isinstance(p, Tensor) else math.log(p) - math.log1p(-p)

    def saturation(self, eps: float) -> float:
        return 4.0 - math.log(eps)

    def guess(self, variance: Tensor, p: float) -> Tensor:
        # exact for a probit that has the slope of the sigmoid at 0
        return variance.mul_(math.pi / 8).add_(1).sqrt_().mul_(self.inverse(p))

    def step(self, z: Tensor, k: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Halley's, with phi'' = phi' (1 - 2 phi). The error after it is the cube of the step, times at most 1/6.
        y = z.sigmoid_()
        dy = torch.addcmul(y, y, y, value=-1)
        residual = y.sum(-1, keepdim=True) - k
        slope = dy.sum(-1, keepdim=True)
        mean = dy.mul_(y).sum(-1, keepdim=True).div_(slope)
        step = residual / mean.neg_().add_(0.5).mul_(residual).sub_(slope)
        return residual, step, step.abs() <= torch.finfo(z.dtype).eps ** (1 / 3)


class CappedExponential(Link):
    """Constrained softmax: `phi(z) = min(1, exp(z))`, from the Shannon entropy."""

    name = "capped_exponential"

    def value(self, z: Tensor) -> Tensor:
        return z.clamp(max=0).exp()

    def derivative(self, z: Tensor) -> Tensor:
        return torch.where(z < 0, z.clamp(max=0).exp(), 0)

    def slope_at(self, w: Tensor) -> Tensor:
        return torch.where(w < 1, w, 0)

    def inverse(self, p: Any) -> Any:
        return p.log() if isinstance(p, Tensor) else math.log(p)

    def saturation(self, eps: float) -> float:
        return 0.0

    def guess(self, variance: Tensor, p: float) -> Tensor:
        # the mean of a log-normal, as if nothing were capped
        return variance.mul_(-0.5).add_(math.log(p))

    def step(self, z: Tensor, k: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Newton's in exp(nu), in which the sum is concave and piecewise linear
        y = z.clamp(max=0).exp_()
        residual = y.sum(-1, keepdim=True) - k
        slope = y.masked_fill_(y == 1, 0).sum(-1, keepdim=True)
        near = residual.abs() <= _noise(z, k)
        return residual, torch.log1p(-residual / slope).masked_fill(near, 0), near


class Clip(Link):
    """Constrained sparsemax: `phi(z) = min(1, max(0, z))`, from the squared norm."""

    name = "clip"
    moves = True

    def value(self, z: Tensor) -> Tensor:
        return z.clamp(0, 1)

    def derivative(self, z: Tensor) -> Tensor:
        return z.detach().clamp(0, 1).frac().ceil()  # 1 strictly inside (a comparison compiles to slower code)

    def slope_at(self, w: Tensor) -> Tensor:
        return ((w > 0) & (w < 1)).to(w.dtype)

    def inverse(self, p: Any) -> Any:
        return p

    def saturation(self, eps: float) -> float:
        return 1.0

    def guess(self, variance: Tensor, p: float) -> Tensor:
        # phi is the distribution function of a uniform variable (mean 1/2, variance 1/12), and the normal
        # quantile is close to that of a logistic variable 1.7 times as wide
        return variance.add_(1 / 12).sqrt_().mul_((math.log(p) - math.log1p(-p)) / 1.7).add_(0.5)

    def step(self, z: Tensor, k: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Newton's: the sum is piecewise linear
        y = z.clamp(0, 1)
        residual = y.sum(-1, keepdim=True) - k
        inside = y.frac_().ceil_()
        step = -residual / inside.sum(-1, keepdim=True)
        near = residual.abs() <= _noise(z, k)
        return residual, step.masked_fill(near, 0), near


def _noise(z: Tensor, k: float | Tensor) -> float | Tensor:
    """The rounding error to expect in a sum of weights."""
    return 8 * torch.finfo(z.dtype).eps * k


LINKS: dict[str, Link] = {link.name: link for link in (Sigmoid(), CappedExponential(), Clip())}

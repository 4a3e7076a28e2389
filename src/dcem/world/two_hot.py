"""Numbers of any scale as distributions over bins, so that networks learn them by classification."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """`sign(x) log(1 + |x|)`: near the identity around 0, logarithmic far from it."""
    sign = _sign(x)
    return sign * (sign * x).log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    sign = _sign(x)
    return sign * (sign * x).expm1()


class TwoHot(nn.Module):
    """Learn a number by the cross-entropy of a distribution over bins, which does not depend on the number's scale.

    A target is divided among the two bins next to its `symlog`; a prediction is the `symexp` of the mean bin. Half
    precision is computed in single: its own rounding would be a bias of the targets.

    Args:
        num_bins: at least 2.
        limit: the largest `symlog` of a number, positive; the bins lie evenly between `-limit` and `limit`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> import torch
        >>> numbers = TwoHot()
        >>> target = torch.tensor([-3.0, 0.0, 120.0])
        >>> torch.allclose(numbers.decode(numbers.encode(target).log()), target, rtol=1e-3, atol=1e-3)
        True

    Source: Hafner et al., "Mastering diverse domains through world models", 2023; Hansen et al., "TD-MPC2", ICLR 2024.
    """

    def __init__(self, num_bins: int = 101, limit: float = 10.0) -> None:
        super().__init__()
        if num_bins < 2:
            raise ValueError(f"num_bins: expected at least 2, got {num_bins}")
        if not 0 < limit < float("inf"):
            raise ValueError(f"limit: expected a finite number > 0, got {limit}")
        self.num_bins, self.limit = num_bins, limit

    def encode(self, x: Tensor) -> Tensor:
        """Numbers `(...)` as distributions `(..., num_bins)`, at least in single precision.

        Each has at most two neighbouring bins; NaN is NaN.
        """
        x = _single(x)
        place = (symlog(x).clamp(-self.limit, self.limit) + self.limit) / (2 * self.limit) * (self.num_bins - 1)
        low = place.floor().clamp(max=self.num_bins - 2)
        share = (place - low).unsqueeze(-1)
        index = low.nan_to_num().long().unsqueeze(-1)  # no number is no place: on a GPU that ends the process
        empty = torch.zeros(*x.shape, self.num_bins, dtype=x.dtype, device=x.device)
        return empty.scatter(-1, index, 1 - share).scatter(-1, index + 1, share)

    def decode(self, logits: Tensor) -> Tensor:
        """The numbers `(...)` that logits `(..., num_bins)` stand for."""
        exact = _single(logits)
        bins = torch.linspace(-self.limit, self.limit, self.num_bins, dtype=exact.dtype, device=exact.device)
        half, shares = self.num_bins // 2, exact.softmax(-1)
        # A bin with its mirror image: what is even is 0, where a sum over all bins leaves rounding to plan by.
        surplus = shares[..., -half:] - shares[..., :half].flip(-1)
        return symexp((surplus * bins[-half:]).sum(-1)).to(logits.dtype)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy `(...)` of logits `(..., num_bins)` and numbers `(...)`."""
        return -(self.encode(target) * _single(logits).log_softmax(-1)).sum(-1)


def _sign(x: Tensor) -> Tensor:
    """1 or -1, at 0 too, where `x.sign() * f(x.abs())` would have no gradient."""
    return torch.ones_like(x).copysign(x.detach())


def _single(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()

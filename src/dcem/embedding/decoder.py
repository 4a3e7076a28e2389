"""What decoders share: the shapes on either side, and a box that their output stays in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcem._check import as_shape
from dcem.bounds import Bounds, BoundsLike


class Decoder(nn.Module, ABC):
    """Map a latent variable to a candidate, ``x = dec(z)``; a subclass defines ``decode``.

    Args:
        latent_shape: shape of ``z``; an int is ``(int,)``.
        event_shape: shape of ``x``; an int is ``(int,)``.
        bounds: the box that ``x`` stays in: ``(low, high)``, each None, a number, or a tensor that broadcasts to
            ``event``; infinite entries are open. ``low`` and ``high`` are buffers of the module.

    Shapes: ``z`` ``(..., *latent)`` -> ``x`` ``(..., *event)``, for any leading axes.

    Raises:
        ValueError: a shape has an axis that is not positive, ``bounds`` do not fit ``event`` or are in the wrong
            order; when called, ``z`` does not end in ``latent``.

    Example:
        >>> import torch
        >>> from dcem.embedding import Decoder
        >>> class Sum(Decoder):
        ...     def decode(self, z):
        ...         return z.sum(-1, keepdim=True).expand(*z.shape[:-1], *self.event_shape)
        >>> Sum(2, 3)(torch.ones(5, 2)).shape
        torch.Size([5, 3])
    """

    low: Tensor
    high: Tensor

    def __init__(
        self, latent_shape: int | Sequence[int], event_shape: int | Sequence[int], *, bounds: BoundsLike | None = None
    ) -> None:
        super().__init__()
        self.latent_shape = as_shape("latent_shape", latent_shape)
        self.event_shape = as_shape("event_shape", event_shape)
        like = torch.zeros(())
        box = Bounds.check(bounds, torch.Size(self.event_shape), like) or Bounds()
        low, high = -math.inf if box.low is None else box.low, math.inf if box.high is None else box.high
        self.register_buffer("low", torch.as_tensor(low).to(like).clone())
        self.register_buffer("high", torch.as_tensor(high).to(like).clone())
        self.is_open = not (self.low.isfinite().any() or self.high.isfinite().any())
        self.is_closed = bool(self.low.isfinite().all() and self.high.isfinite().all())

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """``x`` of ``z``, whose shape has been checked."""

    def forward(self, z: Tensor) -> Tensor:
        """``x`` ``(..., *event)`` of ``z`` ``(..., *latent)``."""
        dims = len(self.latent_shape)
        if z.dim() < dims or tuple(z.shape[z.dim() - dims :]) != self.latent_shape:
            raise ValueError(f"z: expected (..., *latent) with latent {self.latent_shape}, got {tuple(z.shape)}")
        return self.decode(z)

    def squash(self, x: Tensor) -> Tensor:
        """Free numbers ``(..., *event)`` smoothly into the box: a sigmoid between two sides, a softplus from one."""
        if self.is_open:
            return x
        low, high, x = self.low, self.high, x.to(self.low.dtype)
        if self.is_closed:
            return torch.lerp(low, high, x.sigmoid())  # unlike low + (high - low) σ(x), never outside by rounding
        # An open side enters no formula, not even one whose result is discarded: its gradient would be NaN.
        from_low, from_high = low.isfinite(), high.isfinite()
        low, high = low.where(from_low, 0.0), high.where(from_high, 0.0)
        one_sided = torch.where(from_low, low + F.softplus(x), torch.where(from_high, high - F.softplus(-x), x))
        return torch.where(from_low & from_high, torch.lerp(low, high, x.sigmoid()), one_sided)

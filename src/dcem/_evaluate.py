"""The boundary to the user's objective: its output is checked, and failed samples get no gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcem._eager import is_eager
from dcem.solvers.base import Objective


def checked(objective: Objective, batch_shape: torch.Size, event_dims: int, dtype: torch.dtype) -> Objective:
    """Wrap ``objective``: candidates in ``dtype`` in, checked values of at least single precision out."""

    def evaluate(samples: Tensor) -> Tensor:
        values = _values(objective, samples, batch_shape, event_dims, dtype)
        if not (is_eager() and torch.is_grad_enabled() and values.requires_grad):
            return values
        if math.isfinite(values.detach().sum()):  # the cheap way to see that no sample failed
            return values
        # The derivative of a failed sample may be NaN, and 0 * NaN is NaN: it must never be computed. Its place is
        # taken by a candidate of the same problem that did not fail.
        finite = values.isfinite()
        stand_in = _first(samples, finite, event_dims)
        keep = finite.reshape(finite.shape + (1,) * event_dims)
        again = _values(objective, torch.where(keep, samples, stand_in), batch_shape, event_dims, dtype)
        return torch.where(finite, again, values.detach())

    return evaluate


def _first(samples: Tensor, finite: Tensor, event_dims: int) -> Tensor:
    index = finite.to(torch.uint8).argmax(-1, keepdim=True)
    index = index.reshape(index.shape + (1,) * event_dims)
    return torch.take_along_dim(samples.detach(), index, -1 - event_dims)


def _values(
    objective: Objective, samples: Tensor, batch_shape: torch.Size, event_dims: int, dtype: torch.dtype
) -> Tensor:
    values = objective(samples.to(dtype))
    expected = (*batch_shape, samples.shape[samples.dim() - event_dims - 1])
    if not isinstance(values, Tensor):
        raise TypeError(f"objective: expected a Tensor of values of shape {expected}, got {type(values).__name__}")
    if tuple(values.shape) != expected:
        raise ValueError(
            f"objective: expected values of shape (*batch, N) = {expected} for candidates of shape "
            f"(*batch, N, *event) = {tuple(samples.shape)}, got {tuple(values.shape)}"
        )
    if not values.is_floating_point():
        raise TypeError(f"objective: expected floating-point values, got {values.dtype}")
    if values.device != samples.device:
        raise ValueError(f"objective: expected values on {samples.device} like the candidates, got {values.device}")
    return values.to(samples.dtype)

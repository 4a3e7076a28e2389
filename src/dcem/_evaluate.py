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
        if not (is_eager() and torch.is_grad_enabled()):
            return _values(objective, samples, batch_shape, event_dims, dtype)
        # The view gathers what the objective sends back before it is added to what comes from elsewhere, in the same
        # order of summation as below: the gradient of a problem does not depend on whether another one fails.
        values = _values(objective, samples.view_as(samples), batch_shape, event_dims, dtype)
        if not values.requires_grad or math.isfinite(values.detach().sum()):  # the cheap way to see that none failed
            return values
        # The derivative of a failed sample may be NaN, and 0 * NaN is NaN: it must never be computed. Its place is
        # taken by a candidate that did not fail.
        finite = values.isfinite()
        if not finite.any():
            return values.detach().requires_grad_()  # a gradient of nothing, not an error where one is asked for
        keep = finite.reshape(finite.shape + (1,) * event_dims)
        stand_in = _stand_in(samples.detach(), finite, event_dims)
        again = _values(objective, torch.where(keep, samples, stand_in), batch_shape, event_dims, dtype)
        return torch.where(finite, again, values.detach())

    return evaluate


def _stand_in(samples: Tensor, finite: Tensor, event_dims: int) -> Tensor:
    """The first candidate of each problem that did not fail, ``(*batch, 1, *event)``; where all of them did, that of
    the first problem that has one.
    """
    index = finite.to(torch.uint8).argmax(-1, keepdim=True)
    first = torch.take_along_dim(samples, index.reshape(index.shape + (1,) * event_dims), -1 - event_dims)
    has_one = finite.any(-1).reshape(-1)
    flat = first.reshape(len(has_one), *first.shape[first.dim() - event_dims - 1 :])
    other = flat[has_one.to(torch.uint8).argmax()]
    return torch.where(finite.any(-1).reshape(index.shape + (1,) * event_dims), first, other)


def _values(
    objective: Objective, samples: Tensor, batch_shape: torch.Size, event_dims: int, dtype: torch.dtype
) -> Tensor:
    given = samples.to(dtype)
    before = None if not is_eager() or given.is_inference() else given._version
    values = objective(given)
    if before is not None and given._version != before:
        raise ValueError("objective: expected to leave its candidates as they are, got them changed in place")
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

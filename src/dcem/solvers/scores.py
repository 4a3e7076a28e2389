"""From objective values to scores: higher is better, failed samples out of the race."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dcem._best import finite_range
from dcem._eager import all_true, is_eager

ROUNDING = 32
"""Values whose spread is at most so many times `eps * max|v|` differ by the rounding of their computation."""
ROUNDING_OF_HALF = 4
"""The same of values that were returned in half precision: what is rounded so often is summed in single."""


def coarse(values: Tensor, returned: torch.dtype) -> Tensor | None:
    """Which problems say nothing in the dtype that the objective `returned`, where that is coarser than that of
    `values` `(*batch, N)`; None where it is not.
    """
    eps = torch.finfo(returned).eps
    if eps <= torch.finfo(values.dtype).eps:
        return None
    low, high = finite_range(values.detach())
    return (high >= low) & ~_tells_apart(low, high, _half_of_spread(low, high), returned)


def scores_of(values: Tensor, num_required: float, *, standardize: bool) -> tuple[Tensor, Tensor | None]:
    """Turn values into scores, `-v` or its standardised form `-(v - mean) / std` (over the finite values).

    A problem says something about its candidates where enough of its values are finite, and where these differ by more
    than their rounding, `max v - min v > ROUNDING * eps * max|v|`, half of that being a normal number. Otherwise its
    scores are all 0, without a gradient, and the caller keeps its distribution as it is.

    Args:
        values: `(*batch, N)`; what is not finite is a failed sample.
        num_required: with fewer finite values than this there is nothing to select from.
        standardize: whether to bring the scores of each problem to mean 0 and std 1.

    Returns:
        scores: `(*batch, N)`, `-inf` at failed samples; all zero for a problem that is not valid.
        valid: `(*batch,)`, boolean, which problems say something; None where all of them are known to.
    """
    with torch.no_grad():
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        half = _half_of_spread(low, high)
        valid = _tells_apart(low, high, half)  # false where anything is not finite, too
    if all_true(valid):
        return (_standardized(values, low, half) if standardize else -values), None
    finite = values.isfinite()
    count = finite.sum(-1, keepdim=True)
    with torch.no_grad():
        low, high = finite_range(values, keepdim=True)
        half = _half_of_spread(low, high)
        valid = (count >= num_required) & _tells_apart(low, high, half)
        low, half = torch.where(valid, low, 0.0), torch.where(valid, half, 0.0)
    usable = finite & valid
    filled = torch.where(usable, values, low)
    scores = _standardized(filled, low, half, usable, count) if standardize else -filled
    scores = torch.where(finite, scores, -torch.inf)
    return torch.where(valid, scores, 0.0), valid.squeeze(-1)


def _half_of_spread(low: Tensor, high: Tensor) -> Tensor:
    """Half of it, which does not overflow where the whole would."""
    return torch.add(0.5 * high, low, alpha=-0.5)


def _tells_apart(low: Tensor, high: Tensor, half: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Whether values differ by more than their rounding, which among subnormal numbers is not relative to them."""
    of, info = torch.finfo(low.dtype), torch.finfo(low.dtype if dtype is None else dtype)
    floor = 0.5 * (ROUNDING if info.bits > 16 else ROUNDING_OF_HALF) * info.eps
    return half > (floor * torch.maximum(high, -low)).clamp(min=max(of.tiny, floor * info.tiny))


def _standardized(
    values: Tensor, low: Tensor, half: Tensor, usable: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """`-(v - mean) / std` over the usable values, for any scale of them; 0 where all are equal."""
    info = torch.finfo(values.dtype)
    with torch.no_grad():  # the result does not depend on the unit that the range is measured in
        unit = torch.where(half >= info.tiny, half.reciprocal(), 0.0)
        origin = -0.5 * low
    scaled = torch.add(origin, values, alpha=0.5) * unit
    if usable is None or count is None:
        return -_normalized(scaled)
    # Fill the gaps with the mean of the rest, which leaves that mean as it is. It has a gradient, of which the scores'
    # own does not depend; their second derivative does.
    center = torch.where(usable, scaled, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    scaled = torch.where(usable, scaled, center)
    # ... but makes the std smaller than that of the usable values by sqrt(count / N).
    factor = (count.to(values.dtype) / values.shape[-1]).sqrt()  # whole numbers would be divided in single precision
    return -factor * _normalized(scaled)


def _normalized(x: Tensor) -> Tensor:
    """`(x - mean) / std`, 0 where all are equal."""
    tiny = torch.finfo(x.dtype).tiny ** 0.5
    # One operation; but wrong are its third derivative, and that of its forward-mode derivative (torch 2.13).
    has_slope = torch.is_grad_enabled() and x.requires_grad
    if is_eager() and not has_slope and forward_ad.unpack_dual(x).tangent is None:  # type: ignore[no-untyped-call]
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=tiny)
    centered = x - x.mean(-1, keepdim=True)
    return centered * (centered.square().mean(-1, keepdim=True) + tiny).rsqrt()

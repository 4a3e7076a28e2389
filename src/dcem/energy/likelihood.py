"""The likelihood that an energy stands for, where `y` is small enough to integrate over."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dcem._check import check_count, check_positive, check_tensor
from dcem._given import brief
from dcem.energy.base import condition
from dcem.energy.model import check_energy
from dcem.projections.checks import of_rows

POINTS = {1: 512, 2: 64}
"""Grid points along each axis, by the number of axes."""


def log_likelihood(
    energy: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    low: float | Tensor,
    high: float | Tensor,
    num_points: int | None = None,
    inverse_temperature: float | Tensor = 1.0,
) -> Tensor:
    """`log p(y|x)` of `p(y|x) = exp(-β E(x, y)) / ∫ exp(-β E(x, y')) dy'` over a box, for `y` of one or two numbers.

    It is differentiable, so it trains an energy by maximum likelihood, and it measures what one that was trained
    otherwise still says about probabilities. An end-to-end loss leaves the scale of the energy open: choose
    `inverse_temperature` on held-out data before comparing.

    Args:
        energy: Maps `x` `(*batch, *feature)` and `y` `(*batch, N, d)` to `(*batch, N)`.
        x: `(*batch, *feature)`.
        y: `(*batch, d)` with `d` of 1 or 2; the energy is given candidates of its dtype.
        low: The box's lower corner, a number or `(d,)`; the density is zero outside.
        high: Its upper corner.
        num_points: Midpoints of cells along each axis, 512 for `d = 1` and 64 for `d = 2` by default: cells narrower
        than the energy's valleys, or the integral is wrong.
        inverse_temperature: `β > 0`; a tensor is one for all, or one a problem in a shape that broadcasts to `batch`.

    Returns:
        `(*batch,)`, of at least single precision.

    Raises:
        TypeError: `energy` is not callable, a class or a model; `x` or `y` is no Tensor.
        ValueError: `d` is neither 1 nor 2, `y` is outside the box, `low < high` does not hold, `num_points` or
        `inverse_temperature` is not positive, the latter has another shape, or the energy returns another shape.

    Source: LeCun et al., "A Tutorial on Energy-Based Learning", 2006, section 2.2; the integral is the midpoint rule.

    >>> gaussian = lambda x, y: 0.5 * y.square().sum(-1)
    >>> log_likelihood(gaussian, torch.zeros(1), torch.zeros(1), low=-9, high=9).round(decimals=2)  # -log(2π) / 2
    tensor(-0.9200)
    """
    check_energy(energy)
    check_tensor("x", x, "(*batch, *feature)")
    check_tensor("y", y, "(*batch, d)")
    size = y.shape[-1] if y.ndim else 0
    if size not in POINTS:
        raise ValueError(f"y: expected (*batch, d) with d of 1 or 2, got {tuple(y.shape)}")
    check_positive("inverse_temperature", inverse_temperature)
    if not y.is_floating_point():
        y = y.to(x.dtype if x.is_floating_point() else torch.get_default_dtype())
    points = POINTS[size] if num_points is None else check_count("num_points", num_points)
    single = torch.promote_types(y.dtype, torch.float32)  # half precision could not tell the cells of a grid apart
    sides = [torch.as_tensor(side, dtype=single, device=y.device).expand(size) for side in (low, high)]
    if not all(((sides[0] < sides[1]) & side.isfinite()).all() for side in sides):
        raise ValueError(f"low, high: expected finite low < high, got {brief(low)} and {brief(high)}")
    if ((y < sides[0].to(y)) | (y > sides[1].to(y))).any():
        raise ValueError(
            f"y: expected values between low={low} and high={high}, got {float(y.min()):g} to {float(y.max()):g}"
        )
    width = (sides[1] - sides[0]) / points
    centers = torch.arange(points, dtype=single, device=y.device) + 0.5
    axes = [sides[0][i] + width[i] * centers for i in range(size)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2).to(y)
    batch = tuple(y.shape[:-1])
    everything = torch.cat([y.unsqueeze(-2), grid.expand(*batch, *grid.shape)], -2)
    values = condition(energy, x)(everything)
    if tuple(values.shape) != (*batch, len(grid) + 1):
        raise ValueError(
            f"energy: expected values (*batch, N) = {(*batch, len(grid) + 1)} for candidates "
            f"{tuple(everything.shape)}, got {tuple(values.shape)}"
        )
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if isinstance(inverse_temperature, Tensor):
        inverse_temperature = of_rows("inverse_temperature", inverse_temperature, values, values.dim() - 1)
    logits = -inverse_temperature * values
    return logits[..., 0] - logits[..., 1:].logsumexp(-1) - math.fsum(width.log().tolist())

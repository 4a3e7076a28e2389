"""From objective values to scores: higher is better, failed samples out of the race."""

from __future__ import annotations

import torch
from torch import Tensor

from dcem._eager import all_true


def scores_of(values: Tensor, num_required: float, *, standardize: bool) -> tuple[Tensor, Tensor | None]:
    """Turn values into scores, ``-v`` or its standardised form ``-(v - mean) / std`` (over the finite values).

    Args:
        values: ``(*batch, N)``; what is not finite is a failed sample.
        num_required: a problem with fewer finite values than this is not valid.
        standardize: whether to bring the scores of each problem to mean 0 and std 1.

    Returns:
        scores: ``(*batch, N)``, ``-inf`` at failed samples; all zero for a problem that is not valid.
        valid: ``(*batch,)``, boolean; None where every value is known to be finite.
    """
    finite = values.isfinite()
    if all_true(finite):
        return (_standardized(values, -1.0) if standardize else -values), None
    count = finite.sum(-1, keepdim=True)
    valid = count >= num_required
    with torch.no_grad():  # fill the gaps with the mean of the rest, which leaves that mean as it is
        center = torch.where(finite, values, 0).sum(-1, keepdim=True) / count.clamp(min=1)
    filled = torch.where(finite, values, center)
    # ... but makes the std smaller than that of the finite values by sqrt(count / N).
    factor = -(count / values.shape[-1]).to(values.dtype).sqrt()
    scores = _standardized(filled, factor) if standardize else -filled
    scores = scores.masked_fill(~finite, -torch.inf)
    return torch.where(valid, scores, 0.0), valid.squeeze(-1)


def _standardized(values: Tensor, factor: float | Tensor) -> Tensor:
    """``factor * (v - mean) / std`` along the last axis, for any scale of the values; 0 where all are equal."""
    with torch.no_grad():  # the result does not depend on the unit that the range is measured in
        low, high = values.aminmax(dim=-1, keepdim=True)
        spread = high - low
        unit = torch.where(spread >= torch.finfo(values.dtype).tiny, spread.reciprocal(), 0.0)
    scaled = (values - low) * unit
    return factor * torch.nn.functional.layer_norm(scaled, scaled.shape[-1:], eps=torch.finfo(values.dtype).tiny ** 0.5)

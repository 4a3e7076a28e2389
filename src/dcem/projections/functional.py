"""The projections as functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import check_effective, check_k, check_scores, check_temperature
from .effective import temperature_for, weights


def lml(scores: Tensor, k: float | Tensor, *, temperature: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    """Soft top-k: the limited multi-label projection.

    Solves, for every row `x` of scores,

        minimise over y    -x^T y - tau H_b(y)
        subject to         0 <= y <= 1,  sum y = k

    with the binary entropy `H_b(y) = -sum_i y_i log y_i + (1 - y_i) log(1 - y_i)`. The solution is
    `y = sigmoid((x + nu) / tau)`, with one `nu` a row. As `tau` goes to 0 it becomes `hard_topk`.
    Derivatives up to the third are exact, in both modes; a fourth one is not.

    Args:
        scores: The scores `x`, floating point, `(*batch, n)` with `n` on the axis `dim`; the higher, the
            more weight. An entry of -inf gets a weight of exactly 0.
        k: What the weights sum to, `0 < k <= n`; need not be an integer. A tensor is one for all rows or one a
            row, in a shape as that of `temperature`, and receives gradients.
        temperature: `tau`: a positive number, or a tensor, which receives gradients: one temperature (no axes),
            or one a row, in a shape that broadcasts to `batch` (fewer axes than `scores`) or to the shape of
            `scores` with a 1 at `dim` (as many axes).
        dim: The axis to select along.

    Returns:
        The weights `y`, shaped as `scores` and of its dtype; half precision is computed in float32. A row
        that holds NaN or +inf, or fewer than `k` finite scores, or whose temperature (in a tensor of one a row)
        is not positive, is NaN and has no gradient; the others are what they would be without it.

    Raises:
        ValueError: If `k`, `temperature` or `dim` is out of range, or a shape does not fit.
        TypeError: If an argument is of the wrong type, among them integer scores and a boolean `k`.

    Example:
        >>> import torch
        >>> lml(torch.tensor([2.0, 1.0, 0.0]), 2).round(decimals=2)
        tensor([0.8600, 0.6900, 0.4500])
        >>> lml(torch.tensor([2.0, 1.0, 0.0]), 2, temperature=0.1).round(decimals=2)
        tensor([1.0000, 0.9900, 0.0100])

    Source:
        Amos, Koltun and Kolter, "The Limited Multi-Label Projection Layer", 2019 (arXiv 1906.08707), here for
        any `k`.
    """
    return soft("sigmoid", scores, k, temperature, dim)


def constrained_softmax(
    scores: Tensor, k: float | Tensor, *, temperature: float | Tensor = 1.0, dim: int = -1
) -> Tensor:
    """Softmax of total weight `k`, with no weight above 1.

    Solves, for every row `x` of scores,

        minimise over y    -x^T y - tau H(y)
        subject to         0 <= y <= 1,  sum y = k

    with the entropy `H(y) = -sum_i y_i log y_i`. The solution is `y = min(1, exp((x + nu) / tau))`, with one
    `nu` a row. With `k = 1` the cap never binds: this is the softmax. As `tau` goes to 0 it becomes
    `hard_topk`. Differentiable where no weight is about to be capped, and 0 counts as the derivative of a capped
    weight; in both modes, up to the third derivative.

    Args:
        scores: The scores `x`, floating point, `(*batch, n)` with `n` on the axis `dim`; the higher, the
            more weight. An entry of -inf gets a weight of exactly 0.
        k: What the weights sum to, `0 < k <= n`; need not be an integer. A tensor is one for all rows or one a
            row, in a shape as that of `temperature`, and receives gradients.
        temperature: `tau`: a positive number, or a tensor, which receives gradients: one temperature (no axes),
            or one a row, in a shape that broadcasts to `batch` (fewer axes than `scores`) or to the shape of
            `scores` with a 1 at `dim` (as many axes).
        dim: The axis to select along.

    Returns:
        The weights `y`, shaped as `scores` and of its dtype; half precision is computed in float32. A row
        that holds NaN or +inf, or fewer than `k` finite scores, or whose temperature (in a tensor of one a row)
        is not positive, is NaN and has no gradient; the others are what they would be without it.

    Raises:
        ValueError: If `k`, `temperature` or `dim` is out of range, or a shape does not fit.
        TypeError: If an argument is of the wrong type, among them integer scores and a boolean `k`.

    Example:
        >>> import torch
        >>> constrained_softmax(torch.tensor([2.0, 0.0, 0.0]), 2)
        tensor([1.0000, 0.5000, 0.5000])
        >>> constrained_softmax(torch.tensor([2.0, 0.0, 0.0]), 1).round(decimals=2)
        tensor([0.7900, 0.1100, 0.1100])
        >>> torch.softmax(torch.tensor([2.0, 0.0, 0.0]), -1).round(decimals=2)
        tensor([0.7900, 0.1100, 0.1100])

    Source:
        Martins and Kreutzer, "Learning What's Easy: Fully Differentiable Neural Easy-First Taggers", 2017,
        the constrained softmax with all upper bounds 1, here for any `k`.
    """
    return soft("capped_exponential", scores, k, temperature, dim)


def constrained_sparsemax(
    scores: Tensor, k: float | Tensor, *, temperature: float | Tensor = 1.0, dim: int = -1
) -> Tensor:
    """Sparse soft top-k: the nearest point of the capped simplex.

    Solves, for every row `x` of scores,

        minimise over y    -x^T y + tau / 2 ||y||^2
        subject to         0 <= y <= 1,  sum y = k

    which is the Euclidean projection of `x / tau`. The solution is `y = clip((x + nu) / tau, 0, 1)`, with one
    `nu` a row: many weights are exactly 0 or 1. As `tau` goes to 0 it becomes `hard_topk`. Piecewise linear;
    weights of 0 and 1 receive no gradient.

    Args:
        scores: The scores `x`, floating point, `(*batch, n)` with `n` on the axis `dim`; the higher, the
            more weight. An entry of -inf gets a weight of exactly 0.
        k: What the weights sum to, `0 < k <= n`; need not be an integer. A tensor is one for all rows or one a
            row, in a shape as that of `temperature`, and receives gradients.
        temperature: `tau`: a positive number, or a tensor, which receives gradients: one temperature (no axes),
            or one a row, in a shape that broadcasts to `batch` (fewer axes than `scores`) or to the shape of
            `scores` with a 1 at `dim` (as many axes).
        dim: The axis to select along.

    Returns:
        The weights `y`, shaped as `scores` and of its dtype; half precision is computed in float32. A row
        that holds NaN or +inf, or fewer than `k` finite scores, or whose temperature (in a tensor of one a row)
        is not positive, is NaN and has no gradient; the others are what they would be without it.

    Raises:
        ValueError: If `k`, `temperature` or `dim` is out of range, or a shape does not fit.
        TypeError: If an argument is of the wrong type, among them integer scores and a boolean `k`.

    Example:
        >>> import torch
        >>> constrained_sparsemax(torch.tensor([2.0, 0.5, 0.0, -2.0]), 2)
        tensor([1.0000, 0.7500, 0.2500, 0.0000])

    Source:
        Malaviya, Ferreira and Martins, "Sparse and Constrained Attention for Neural Machine Translation", 2018,
        the constrained sparsemax with all upper bounds 1, here for any `k`.
    """
    return soft("clip", scores, k, temperature, dim)


def hard_topk(scores: Tensor, k: int | Tensor, *, dim: int = -1) -> Tensor:
    """Indicator of the `k` largest scores: what the soft projections become as the temperature goes to 0.

    Solves, for every row `x` of scores,

        minimise over y    -x^T y
        subject to         0 <= y <= 1,  sum y = k

    and among equal scores takes the first. Without gradient.

    Args:
        scores: The scores, floating point, `(*batch, n)` with `n` on the axis `dim`.
        k: How many to select, an int with `0 < k <= n`; or a tensor of such, which broadcasts to `batch`.
        dim: The axis to select along.

    Returns:
        Exactly `k` ones and otherwise zeros in every row, shaped as `scores` and of its dtype. A row that holds
        NaN or +inf, or fewer than `k` finite scores, is NaN.

    Raises:
        ValueError: If `k` or `dim` is out of range.
        TypeError: If an argument is of the wrong type, among them integer scores and a `k` that is no int.

    Example:
        >>> import torch
        >>> hard_topk(torch.tensor([2.0, 1.0, 2.0, 2.0]), 2)
        tensor([1., 0., 1., 0.])
    """
    axis = check_scores(scores, dim)
    number: Any = check_k(k, scores, axis, integer=True)
    x = scores.detach().movedim(axis, -1)
    if isinstance(number, Tensor):
        number = number.movedim(axis, -1)
        top = x.sort(dim=-1, descending=True).values
        last = number.nan_to_num(1.0).long() - 1
        largest, threshold = top[..., :1], torch.where(number.isnan(), torch.nan, top.gather(-1, last))
    else:
        top = x.topk(number, dim=-1).values
        largest, threshold = top[..., :1], top[..., -1:]
    above = x > threshold
    tied = x == threshold
    room = number - above.sum(-1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(-1) <= room))
    valid = largest.isfinite() & threshold.isfinite()
    return torch.where(valid, chosen.to(x.dtype), torch.nan).movedim(-1, axis)


def soft(
    link: str,
    scores: Tensor,
    k: float | Tensor,
    temperature: float | Tensor,
    dim: int,
    effective: float | Tensor | None = None,
) -> Tensor:
    """The soft projection of one link; `effective` stands for the temperature where it is not None."""
    axis = check_scores(scores, dim)
    x = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    k = check_k(k, x, axis)
    tau = check_temperature(temperature, x, axis)
    wanted = None if effective is None else check_effective(effective, k, x, axis)
    x, k, tau = x.movedim(axis, -1), _last(k, axis), _last(tau, axis)
    if wanted is not None:
        tau = temperature_for(x, k, _last(wanted, axis), link)
    return weights(x, tau, k, link).movedim(-1, axis).to(scores.dtype)


def _last(value: float | Tensor, axis: int) -> float | Tensor:
    """A number, or one a row with their axis moved to the end."""
    return value.movedim(axis, -1) if isinstance(value, Tensor) else value

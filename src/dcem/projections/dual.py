"""The dual problem: one scalar `nu` a row, with `sum phi(s + nu) = k` for the scaled scores `s`.

`solve` takes a few unsafeguarded steps from a good guess, enough for scores of moderate spread. Rows that have
not arrived by then are searched again inside a bracket that comes from their order statistics. That search
always arrives, but it needs the k-th largest score, which on a CPU takes longer than everything else.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from dcem._eager import is_eager

from .links import Link

_RANGE = 4000.0  # this far from the threshold, in temperatures, a weight is exactly 0 or 1: the kernels' nu reach 1500
_REACH = 64.0  # up to this nu, rounding s + nu does not show in the weights
_ROUNDED = 84  # sums of so many roundings for each unit of k are as exact as they have to be
_QUICK_PASSES = 8  # standardised scores at temperature 1 need 2 to 5
DEVICE_PASSES = 20  # where asking whether all rows have arrived would stall the device


def scale(x: Tensor, center: Tensor, temperature: Tensor | float) -> Tensor:
    """`s = (x - center) / temperature`, for a given temperature; where that is a tensor, `s` is finite.

    An infinite `s` gives a weight of 0 or 1, but in the gradient of a temperature it would meet a 0.
    """
    if not isinstance(temperature, Tensor):
        return x - center if temperature == 1 else (x - center) / temperature
    limit = _RANGE * temperature.detach()
    return torch.minimum(torch.maximum(x - center, -limit), limit) / temperature


def solve(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor]:
    """A center and the `nu` that belongs to it, `(*batch, 1)`, for `x` of `(*batch, n)` and `k < n`.

    NaN for a row that holds NaN or +inf, or fewer than `k` finite scores.
    """
    if x.device.type != "cpu" or not is_eager():
        return thorough(x, temperature, k, link, 1 if x.is_meta else DEVICE_PASSES)
    center, nu, arrived = _quick(x, temperature, k, link)
    if not arrived.all():
        other_center, other_nu = _ranked_search(x, temperature, k, link)
        center, nu = torch.where(arrived, center, other_center), torch.where(arrived, nu, other_nu)
    return _moved(x, temperature, k, link, center, nu)


def _quick(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, `nu`, and in which rows it is the root: others have not converged, or hold infinities."""
    n = x.shape[-1]
    center = x.mean(-1, keepdim=True)
    s = x - center
    if isinstance(temperature, Tensor) or temperature != 1:
        s = s.div_(temperature)
    nu = link.guess(torch.linalg.vector_norm(s, dim=-1, keepdim=True).pow(2).div_(n), k / n)
    arrived = torch.zeros_like(nu, dtype=torch.bool)
    for _ in range(_QUICK_PASSES):
        _, step, near = link.step(s + nu, k)
        # a row that has arrived stays where it is: its result must not depend on how long others take
        nu, arrived = nu + step.masked_fill(arrived, 0), arrived | near
        if arrived.all():
            break
    return center, nu, arrived & (nu.abs() <= _REACH)


def thorough(
    x: Tensor, temperature: Tensor | float, k: float | Tensor, link: Link, passes: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same for any scores and any `k`, also one a row, `(*batch, 1)`.

    It makes at most `passes` passes over the scores; None to go on until all rows have arrived.
    """
    return _moved(x, temperature, k, link, *_ranked_search(x, temperature, k, link, passes))


def _ranked_search(
    x: Tensor, temperature: Tensor | float, k: float | Tensor, link: Link, passes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Around the threshold, inside the bracket of the order statistics."""
    largest, threshold, runner_up = _ranked(x, k)
    # The center is the threshold itself: differences of close scores are exact, whatever their size.
    center = torch.where(largest.isfinite() & threshold.isfinite(), threshold, math.nan)
    s = scale(x, center, temperature)
    low, high = bracket(scale(runner_up, center, temperature), x.shape[-1], k, link)
    return center, search(s, k, link, low, high, passes)


def _moved(
    x: Tensor, temperature: Tensor | float, k: float | Tensor, link: Link, center: Tensor, nu: Tensor
) -> tuple[Tensor, Tensor]:
    """The same root around a centre at which weights begin, where that is more exact.

    A small weight of the sparsemax is the sum of two larger numbers, `s` and `nu`, and all of them may be rounded to
    the same side: 50,000 weights of 2e-5 summed to 1.001. Around a score of weight 0 both are as small as the weights.
    """
    if not link.moves:
        return center, nu
    is_coarse = x.shape[-1] * (1 + nu.abs()) > _ROUNDED * k
    if is_eager() and x.device.type == "cpu" and not is_coarse.any():
        return center, nu
    # By a NaN nothing is coarse; and where all weights are 1 no threshold matters.
    threshold = torch.where(is_coarse & nu.isfinite(), center - nu * temperature, center)
    s, moved = scale(x, threshold, temperature), nu - scale(center, threshold, temperature)
    moved = torch.where(threshold.isfinite(), moved, nu)
    for _ in range(3):  # from there on the same weights are neither 0 nor 1: the first step arrives, but for rounding
        _, step, _ = link.step(s + moved, k)
        moved = moved + torch.where(is_coarse & step.isfinite(), step, 0)
    return threshold, moved


def _ranked(x: Tensor, k: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest score of each row, the `ceil(k)`-th and the one after the `floor(k)`-th; NaN where `k` is."""
    if not isinstance(k, Tensor):
        top = x.topk(math.floor(k) + 1, dim=-1).values
        at = math.ceil(k) - 1
        return top[..., :1], top[..., at : at + 1], top[..., -1:]
    rank = torch.cat([torch.ones_like(k), k.ceil(), k.floor() + 1], -1)
    index = rank.nan_to_num(1.0).long().clamp(1, x.shape[-1]) - 1
    top = torch.where(rank.isnan(), math.nan, x.sort(dim=-1, descending=True).values.gather(-1, index))
    return top[..., :1], top[..., 1:2], top[..., 2:]


def bracket(s_next: Tensor, n: int, k: float | Tensor, link: Link) -> tuple[Tensor, Tensor]:
    """Bounds of `nu` for `k < n` and scores shifted so that the `ceil(k)`-th largest is 0.

    With `s_1 >= s_2 >= ...`, at most `j - 1` weights come before the j-th, and the other `n - j + 1` are
    no larger than it: `k <= j - 1 + (n - j + 1) phi(s_j + nu)`. The first `j` are no smaller than the j-th:
    `j phi(s_j + nu) <= k`. The first says most at `j = ceil(k)`, the second at `j = floor(k) + 1`, whose
    score is `s_next`. And `nu` need never pass the point where the `ceil(k)` largest weights are 1.
    """
    j: Any = k.ceil() if isinstance(k, Tensor) else math.ceil(k)
    saturation = link.saturation(torch.finfo(s_next.dtype).eps)
    low = (link.inverse((k - (j - 1)) / (n - j + 1)) + torch.zeros_like(s_next)).clamp(max=saturation)
    j = (k.floor() if isinstance(k, Tensor) else math.floor(k)) + 1
    high = (link.inverse(k / j) - s_next).clamp(max=saturation)
    return low, torch.maximum(low, high)


def search(s: Tensor, k: float | Tensor, link: Link, low: Tensor, high: Tensor, passes: int | None) -> Tensor:
    """The root in a bracket: the link's step where it leads on, inside and to half the residual, else bisection."""
    tolerance = 2 * torch.finfo(s.dtype).eps * k
    nu = 0.5 * (low + high)
    arrived, last = torch.zeros_like(nu, dtype=torch.bool), torch.full_like(nu, math.inf)
    for _ in itertools.count() if passes is None else range(passes):
        residual, step, near = link.step(s + nu, k)
        low = torch.where(residual < 0, nu, low)
        high = torch.where(residual > 0, nu, high)
        trial, middle = (nu + step).clamp(low, high), 0.5 * (low + high)
        # a step that the bracket holds back at where it was leads nowhere: only what is near has arrived by it
        sound = near | (((trial - nu).abs() > 0) & (residual.abs() < 0.5 * last))
        trial = torch.where(sound, trial, middle)
        last = torch.where(sound, residual.abs(), math.inf)  # after a bisection, a step is worth a try
        # at the root, NaN, or with no number left between the ends of the bracket
        there = ~((residual.abs() > tolerance) & (low < middle) & (middle < high) | near)
        nu, arrived = torch.where(arrived | there, nu, trial), arrived | near | there
        if passes is None and arrived.all():
            break
    return nu

"""The dual problem: one scalar ``nu`` a row with ``sum phi(s + nu) = k``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .links import Link

_PASSES = 64
_RANGE = 1000.0  # in units of the temperature: further than this from the threshold, a weight is 0 or 1


def scale(x: Tensor, centre: Tensor, temperature: Tensor | float) -> Tensor:
    """``(x - centre) / temperature``, bounded first: no overflow, and -inf becomes a large finite number."""
    limit = _RANGE * temperature
    if isinstance(limit, Tensor):
        limit = limit.detach()
        return torch.minimum(torch.maximum(x - centre, -limit), limit) / temperature
    return (x - centre).clamp(-limit, limit) / temperature


def bracket(s_next: Tensor, n: int, k: float, link: Link) -> tuple[Tensor, Tensor]:
    """Bounds of ``nu`` for ``k < n`` and scores shifted so that the ``ceil(k)``-th largest is 0.

    With ``s_1 >= s_2 >= ...``, at most ``j - 1`` weights come before the j-th, and the other ``n - j + 1`` are no
    larger than it: ``k <= j - 1 + (n - j + 1) phi(s_j + nu)``. The first ``j`` are no smaller than the j-th:
    ``j phi(s_j + nu) <= k``. The first says most at ``j = ceil(k)``, the second at ``j = floor(k) + 1``, whose
    score is ``s_next``. And ``nu`` need never pass the point where the ``ceil(k)`` largest weights are 1.
    """
    j = math.ceil(k)
    saturation = link.saturation(torch.finfo(s_next.dtype).eps)
    low = torch.full_like(s_next, min(saturation, link.inverse((k - j + 1) / (n - j + 1))))
    j = math.floor(k) + 1
    high = (link.inverse(k / j) - s_next).clamp(max=saturation)
    return low, torch.maximum(low, high)


def find_root(s: Tensor, k: float, link: Link, low: Tensor, high: Tensor, nu: Tensor) -> Tensor:
    """Safeguarded iteration for ``nu``, from a bracket and a guess, all ``(rows, 1)`` for ``s`` of ``(rows, n)``."""
    tolerance = 2 * torch.finfo(s.dtype).eps * k
    previous = torch.full_like(nu, math.inf)
    done = torch.zeros_like(nu, dtype=torch.bool)
    compiling = torch.compiler.is_compiling()
    for _ in range(12 if compiling else _PASSES):
        z = s + nu
        y = link.value(z)
        residual = y.sum(-1, keepdim=True) - k
        # a row that has arrived stays where it is: its result must not depend on how long others take
        done = done | ~(residual.abs() > tolerance)
        low = torch.where(residual < 0, nu, low)
        high = torch.where(residual > 0, nu, high)
        trial = nu + link.step(residual, y, link.derivative(z))
        slow = residual.abs() > 0.5 * previous
        inside = (trial > low) & (trial < high) & ~slow
        trial = torch.where(inside, trial, 0.5 * (low + high))
        done = done | (trial == nu)
        previous = residual.abs()
        nu = torch.where(done, nu, trial)
        if not compiling and not nu.is_cuda and bool(done.all()):
            break
    return nu


def solve(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor]:
    """A centre and the ``nu`` that belongs to it for every row of ``x``; NaN where a row has no projection."""
    top = x.topk(math.floor(k) + 1, dim=-1).values
    largest, threshold, runner_up = (top[..., i : i + 1] for i in (0, math.ceil(k) - 1, math.floor(k)))
    # The centre is the threshold itself: differences of close scores are exact, whatever their size.
    centre = torch.where(largest.isfinite() & threshold.isfinite(), threshold, math.nan)
    s = scale(x, centre, temperature)
    low, high = bracket(scale(runner_up, centre, temperature), x.shape[-1], k, link)
    return centre, find_root(s, k, link, low, high, 0.5 * (low + high))

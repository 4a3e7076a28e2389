"""The temperature at which a wanted number of candidates shares the weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcem._eager import all_true, is_eager

from .autograd import project
from .links import LINKS

_PASSES = 40  # of which a bisection alone would need as many
_DEVICE_PASSES = 32  # where asking whether all rows have arrived would stall the device; few rows need more than 10


def weights(x: Tensor, temperature: Tensor | float, k: Tensor | float, link: str) -> Tensor:
    """The weights `(*batch, n)` for any `k <= n`; `k` and `temperature` are numbers or `(*batch, 1)`."""
    n = x.shape[-1]
    if not isinstance(k, Tensor):
        return _ones(x, temperature) if k == n else project(x, temperature, k, link)
    full = k == n
    return torch.where(full, _ones(x, temperature), project(x, temperature, torch.where(full, 0.5 * n, k), link))


def _ones(x: Tensor, temperature: float | Tensor) -> Tensor:
    """The only point of the capped simplex when `k = n`: weights of 1 and gradients of 0."""
    low, high = x.detach().amin(-1, keepdim=True), x.detach().amax(-1, keepdim=True)
    valid = low.isfinite() & high.isfinite() & (temperature > 0)
    return torch.where(valid, 1 + 0 * (torch.where(valid, x, 0.0) + temperature), torch.nan)


def temperature_for(x: Tensor, k: Tensor | float, effective: Tensor | float, link: str) -> Tensor:
    """The `tau`, `(*batch, 1)`, at which `(sum w)^2 / sum w^2`, the effective number, is `effective`.

    `sum w^2` is `k^2 / n` and the spread of the weights, `sum (w - k / n)^2`, which keeps its digits where all weigh
    nearly the same. It falls as `tau` grows: by `2 <w phi', s - m>` for every unit of `log tau`, where `m` is the mean
    of `s = x / tau` in the weights `phi'`. Newton steps for its logarithm, held in a bracket, find the root; two more
    for itself, with a graph, make it a function of `x`, `k` and `effective`, right to third order.

    A row that cannot reach the number gets a temperature that comes close to it, as a constant. Where ties share the
    weight among more scores, it is the largest that does so up to rounding: the gradients of tied scores grow as
    `1 / tau`. Where masks leave fewer, it is large; and where all scores tie, so large that there is no gradient.
    """
    eps, finite = torch.finfo(x.dtype).eps, x.isfinite()
    count = finite.sum(-1, keepdim=True).clamp(min=1).to(x.dtype)
    wanted = k * k * (count - effective) / (count * effective)

    def excess(log_tau: Tensor, x: Tensor, k: Tensor | float, wanted: Tensor | float) -> tuple[Tensor, Tensor]:
        """The spread of the weights above what is wanted, and the rate at which it falls."""
        tau = log_tau.exp()
        w = weights(x, tau, k, link)
        away = torch.where(finite, w - k / count, 0.0)
        s = torch.where(finite, x - top, 0.0) / tau
        slope = LINKS[link].slope_at(w)
        mean = (slope * s).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True).clamp(min=eps**2)
        return away.square().sum(-1, keepdim=True) - wanted, 2 * (away * slope * (s - mean)).sum(-1, keepdim=True)

    with torch.no_grad():
        values, target = x.detach(), wanted.detach()
        number = k.detach() if isinstance(k, Tensor) else k
        top = values.amax(-1, keepdim=True)
        spread = top - torch.where(finite, values, torch.inf).amin(-1, keepdim=True)
        info = torch.finfo(x.dtype)
        tied = spread * eps < info.tiny  # or so close that no temperature is small enough for them
        unit = torch.where(tied, info.max**0.5, spread).log()
        low, high = unit + math.log(eps), unit + 12.0
        hardest = excess(low, values, number, 0.0)[0]
        limit = hardest - eps**0.75 * (hardest + number * number / count)  # further up, it says nothing but rounding
        reachable, target = (target > 0) & (target < limit), limit.clamp(max=target)
        tolerance = torch.minimum(4 * eps**0.5 * target, 0.5 * (hardest - target))  # Newton's steps lead on from there
        softest = target <= 0  # no temperature is too large
        log_tau, arrived = torch.where(softest, high, unit - 1.0), tied | softest | target.isnan()
        before = torch.full_like(top, torch.inf)
        passes = _PASSES if is_eager() and x.device.type == "cpu" else _DEVICE_PASSES
        for _ in range(1 if x.is_meta else passes):
            above, rate = excess(log_tau, values, number, target)
            near = above.abs() <= tolerance
            low = torch.where(above > 0, log_tau, low)
            high = torch.where(above > 0, high, log_tau)
            found = above + target
            trial = log_tau + found * (found / target).log() / rate
            # A step that may creep along one side of the bracket follows only where the last one halved the excess.
            trusted = (low < trial) & (trial < high) & (above.abs() <= 0.5 * before)
            trial, before = torch.where(trusted, trial, 0.5 * (low + high)), above.abs()
            arrived = arrived | near  # a row that has arrived stays: it must not depend on how long others take
            log_tau = torch.where(arrived, log_tau, trial)
            if all_true(arrived):
                break
    reached = arrived & reachable
    x = torch.where(reached, x, values)
    for _ in range(2):
        above, rate = excess(log_tau, x, k, wanted)
        moves = reached & (rate > 0)
        log_tau = log_tau + torch.where(moves, above, 0.0) / torch.where(moves, rate, 1.0)
    return torch.where(wanted.isnan(), torch.nan, log_tau.exp())

"""The dual problem: one scalar ``nu`` a row, with ``sum phi(s + nu) = k`` for the scaled scores ``s``.

`solve` takes a few unsafeguarded steps from a good guess, enough for scores of moderate spread. Rows that have
not arrived by then are searched again inside a bracket that comes from their order statistics. That search
always arrives, but it needs the k-th largest score, which on a CPU takes longer than everything else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from .links import Link

_RANGE = 1000.0  # further than this from the threshold, in temperatures, a weight is exactly 0 or 1
_REACH = 64.0  # up to this nu, rounding s + nu does not show in the weights
_QUICK_PASSES = 8  # standardised scores at temperature 1 need 2 to 5
_DEVICE_PASSES = 14  # where asking whether all rows have arrived would stall the device


def scale(x: Tensor, centre: Tensor, temperature: Tensor | float) -> Tensor:
    """``s = (x - centre) / temperature``, for a given temperature; where that is a tensor, ``s`` is finite.

    An infinite ``s`` gives a weight of 0 or 1, but in the gradient of a temperature it would meet a 0.
    """
    if not isinstance(temperature, Tensor):
        return x - centre if temperature == 1 else (x - centre) / temperature
    limit = _RANGE * temperature.detach()
    return torch.minimum(torch.maximum(x - centre, -limit), limit) / temperature


def solve(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor]:
    """A centre and the ``nu`` that belongs to it, ``(*batch, 1)``, for ``x`` of ``(*batch, n)`` and ``k < n``.

    NaN for a row that holds NaN or +inf, or fewer than ``k`` finite scores.
    """
    if not _may_ask(x):
        return _thorough(x, temperature, k, link)
    centre, nu, arrived = _quick(x, temperature, k, link)

    def redo(centre: Tensor, nu: Tensor, arrived: Tensor) -> tuple[Tensor, Tensor]:
        other_centre, other_nu = _thorough(x, temperature, k, link)
        return torch.where(arrived, centre, other_centre), torch.where(arrived, nu, other_nu)

    def keep(centre: Tensor, nu: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return centre.clone(), nu.clone()

    if torch.compiler.is_compiling():
        return torch.cond(arrived.all(), keep, redo, (centre, nu, arrived))
    return (centre, nu) if arrived.all() else redo(centre, nu, arrived)


def _may_ask(x: Tensor) -> bool:
    """Whether how to go on may depend on values of ``x``: that would stall a GPU, and a compiled transform."""
    transformed = torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return x.device.type == "cpu" and not transformed


def _quick(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, ``nu``, and in which rows it is the root: others have not converged, or hold infinities."""
    n = x.shape[-1]
    centre = x.mean(-1, keepdim=True)
    s = x - centre
    if isinstance(temperature, Tensor) or temperature != 1:
        s = s.div_(temperature)
    nu = link.guess(torch.linalg.vector_norm(s, dim=-1, keepdim=True).pow(2).div_(n), k / n)

    def advance(nu: Tensor, arrived: Tensor, left: Tensor | int) -> tuple[Tensor, Tensor, Tensor | int]:
        _, step, near = link.step(s + nu, k)
        # a row that has arrived stays where it is: its result must not depend on how long others take
        return nu + step.masked_fill(arrived, 0), arrived | near, left - 1

    def going_on(_: Tensor, arrived: Tensor, left: Tensor) -> Tensor:
        return ~arrived.all() & (left > 0)

    _, step, arrived = link.step(s + nu, k)
    left: Tensor | int = _QUICK_PASSES - 2
    nu, arrived, _ = advance(nu + step, arrived, 0)
    if torch.compiler.is_compiling():
        state = (nu, arrived, torch.tensor(left))
        nu, arrived, _ = while_loop(going_on, advance, state)  # type: ignore[no-untyped-call]
    else:
        while left and not arrived.all():
            nu, arrived, left = advance(nu, arrived, left)
    return centre, nu, arrived & (nu.abs() <= _REACH)


def _thorough(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor]:
    top = x.topk(math.floor(k) + 1, dim=-1).values
    largest, threshold, runner_up = (top[..., i : i + 1] for i in (0, math.ceil(k) - 1, math.floor(k)))
    # The centre is the threshold itself: differences of close scores are exact, whatever their size.
    centre = torch.where(largest.isfinite() & threshold.isfinite(), threshold, math.nan)
    s = scale(x, centre, temperature)
    low, high = bracket(scale(runner_up, centre, temperature), x.shape[-1], k, link)
    return centre, search(s, k, link, low, high)


def bracket(s_next: Tensor, n: int, k: float, link: Link) -> tuple[Tensor, Tensor]:
    """Bounds of ``nu`` for ``k < n`` and scores shifted so that the ``ceil(k)``-th largest is 0.

    With ``s_1 >= s_2 >= ...``, at most ``j - 1`` weights come before the j-th, and the other ``n - j + 1`` are
    no larger than it: ``k <= j - 1 + (n - j + 1) phi(s_j + nu)``. The first ``j`` are no smaller than the j-th:
    ``j phi(s_j + nu) <= k``. The first says most at ``j = ceil(k)``, the second at ``j = floor(k) + 1``, whose
    score is ``s_next``. And ``nu`` need never pass the point where the ``ceil(k)`` largest weights are 1.
    """
    j = math.ceil(k)
    saturation = link.saturation(torch.finfo(s_next.dtype).eps)
    low = torch.full_like(s_next, min(saturation, link.inverse((k - (j - 1)) / (n - j + 1))))
    j = math.floor(k) + 1
    high = (link.inverse(k / j) - s_next).clamp(max=saturation)
    return low, torch.maximum(low, high)


def search(s: Tensor, k: float, link: Link, low: Tensor, high: Tensor) -> Tensor:
    """The root in a bracket: the link's step where that shrinks the residual and stays inside, else bisection."""
    tolerance = 2 * torch.finfo(s.dtype).eps * k

    def advance(nu: Tensor, arrived: Tensor, low: Tensor, high: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        residual, step, near = link.step(s + nu, k)
        low = torch.where(residual < 0, nu, low)
        high = torch.where(residual > 0, nu, high)
        trial = (nu + step).clamp(low, high)
        # A step that the bracket holds back where it was leads nowhere: only what is near has arrived by it.
        sound = near | ((trial != nu) & (residual.abs() < 0.5 * size))
        trial = torch.where(sound, trial, 0.5 * (low + high))
        size = torch.where(sound, residual.abs(), math.inf)  # after a bisection, a step is worth a try
        there = (residual.abs() <= tolerance) | residual.isnan()
        trial, near = torch.where(there, nu, trial), near | there | (trial == nu)
        return torch.where(arrived, nu, trial), arrived | near, low.clone(), high.clone(), size

    def searching(nu: Tensor, arrived: Tensor, *_: Tensor) -> Tensor:
        return ~arrived.all()

    nu = 0.5 * (low + high)
    state: tuple[Tensor, ...] = (nu, torch.zeros_like(nu, dtype=torch.bool), low, high, torch.full_like(nu, math.inf))
    if not _may_ask(s):
        for _ in range(_DEVICE_PASSES):
            state = advance(*state)
    elif torch.compiler.is_compiling():
        state = while_loop(searching, advance, state)  # type: ignore[no-untyped-call]
    else:
        while searching(*state):
            state = advance(*state)
    return state[0].clone()

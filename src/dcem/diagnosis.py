"""Check a solve: can its gradient be trusted, and are temperature, spread and number of iterations right?"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dcem._advice import Start, advise, std_of
from dcem._check import check_count
from dcem._extras import needs
from dcem._gradient_check import Comparison, Inside, checked, compare, direction
from dcem._setup import NoiseSource, Setup
from dcem.bounds import BoundsLike
from dcem.distributions import Distribution
from dcem.gradients import Detach, GradientMode, Unroll
from dcem.loop import minimize
from dcem.solution import Iteration, Solution
from dcem.solvers import CEM, Solver

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DEFAULT_SOLVER = CEM()
_DEFAULT_GRADIENT = Unroll()


class Row(NamedTuple):
    """One iteration, averaged over the problems.

    Attributes:
        best: the lowest value so far.
        std: of the samples, averaged over their coordinates.
        effective_elites: how many samples share the weight.
        failed: the fraction of samples whose value is not finite.
        gradient_norm: of the answer with respect to the mean after this iteration; NaN where none is asked for.
    """

    best: float
    std: float
    effective_elites: float
    failed: float
    gradient_norm: float


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found; `print` it, or draw its `figure`.

    Attributes:
        rows: a `Row` an iteration.
        comparison: the gradient against finite differences; None where there is no gradient.
        travelled: how far the answer lies from the start, in stds of the start, the farthest coordinate.
        spread: how far answers of different noise lie apart (their std), in stds of the start, the widest coordinate.
        at_bounds: the fraction of the answer's numbers that lie on a bound, to a hundredth of the std of the start;
            beyond it the objective may go on falling.
        status: of each problem, `(*batch,)`.
        advice: sentences that name a setting and what to do with it; none where nothing is wrong.
        solution: of the first seed.
    """

    rows: list[Row]
    comparison: Comparison | None
    travelled: float
    spread: float
    at_bounds: float
    status: Tensor
    advice: list[str]
    solution: Solution

    def __str__(self) -> str:
        lines = ["iteration   best value          std  effective elites  failed  gradient norm"]
        for t, row in enumerate(self.rows, 1):
            lines.append(
                f"{t:9d} {row.best:12.4g} {row.std:12.3g} {row.effective_elites:17.1f} {row.failed:7.0%} "
                f"{'-' if math.isnan(row.gradient_norm) else format(row.gradient_norm, '.3g'):>14}"
            )
        if self.comparison is not None:
            lines.append(
                f"gradient {self.comparison.given:.4g}, by finite differences {self.comparison.expected:.4g} "
                f"± {self.comparison.uncertainty:.1g}"
            )
        lines.append(
            f"the answer lies {self.travelled:.2g} stds from the start; over seeds it varies by {self.spread:.2g}"
            + (f"; {self.at_bounds:.0%} of its numbers lie on a bound" if self.at_bounds else "")
        )
        return "\n".join([*lines, *(self.advice or ["nothing to change"])])

    def figure(self) -> Figure:
        """Best value, std, effective elites and gradient norm by iteration; needs `dcem[experiments]`."""
        with needs("Diagnosis.figure", "experiments"):
            from dcem._diagnosis_figure import draw

        return draw(self)


def diagnose(
    objective: Callable[[Tensor], Tensor],
    init: Distribution | Tensor,
    solver: Solver = _DEFAULT_SOLVER,
    *,
    num_iterations: int = 10,
    gradient: GradientMode = _DEFAULT_GRADIENT,
    event_dims: int = 1,
    bounds: BoundsLike | None = None,
    noise: NoiseSource | None = None,
    parameters: Iterable[Tensor] | None = None,
    num_seeds: int = 5,
    seed: int = 0,
) -> Diagnosis:
    """Find out whether a solve is set up well: watch it, repeat it with other noise, and check its gradient.

    A layer diagnoses its own: [`dcem.Argmin.diagnose`][], and so `mpc.diagnose(state)` and `model.diagnose(x)`.

    Args:
        objective: as in [`dcem.minimize`][]; evaluated some `20 + num_seeds` solves' worth.
        init: likewise.
        solver: likewise.
        num_iterations: likewise.
        gradient: likewise.
        event_dims: likewise.
        bounds: likewise.
        noise: a source of noise, likewise.
        parameters: the tensors whose gradient to check; None for all leaves that the answer depends on, but those from
            which something was computed before the solve. They are moved a little and put back.
        num_seeds: how many solves to compare, at least 2.
        seed: of the first.

    Returns:
        What was found, with sentences that say which setting to change.

    Raises:
        TypeError: as [`dcem.minimize`][].
        ValueError: likewise, or `num_seeds` is below 2, or something was computed of a parameter before the solve.

    Example:
        >>> import torch, dcem
        >>> theta = torch.tensor([30.0, -2.0], requires_grad=True)
        >>> found = dcem.diagnose(lambda x: (x - theta).square().sum(-1), torch.zeros(2), num_iterations=5)
        >>> any("init_std" in sentence for sentence in found.advice)  # the minimum is 30 stds away
        True

    Source: the softness of the selection, Amos & Yarats, ICML 2020, section 3; central differences.
    """
    if isinstance(noise, Tensor):
        raise TypeError("noise: expected a source of noise or None, of which each seed draws another, got a Tensor")

    def solve(mode: GradientMode, seed: int, record: bool) -> Searched:
        mean: Any = init.mean if isinstance(init, Distribution) else init
        device = mean.device if isinstance(mean, Tensor) else "cpu"  # what else it is the solve says
        solution = minimize(
            objective, init, solver, num_iterations=num_iterations, gradient=mode, event_dims=event_dims, bounds=bounds,
            noise=noise, generator=torch.Generator(device).manual_seed(seed), record=record,
        )  # fmt: skip
        return Searched(solution, init, bounds)

    return diagnosed(solve, solver, event_dims, gradient, parameters, num_seeds, seed)


class Searched(NamedTuple):
    """A solve, from where it searched and inside which bounds."""

    solution: Solution
    init: Distribution | Tensor
    bounds: BoundsLike | None


def diagnosed(
    solve: Callable[[GradientMode, int, bool], Searched],
    solver: Solver,
    event_dims: int,
    gradient: GradientMode,
    parameters: Iterable[Tensor] | None,
    num_seeds: int,
    seed: int,
) -> Diagnosis:
    """What is found about `solve(gradient, seed, record)`, a search by `solver`."""
    num_seeds = check_count("num_seeds", num_seeds)
    if num_seeds < 2:
        raise ValueError(f"num_seeds: expected at least 2, got {num_seeds}")
    asked = None if parameters is None else checked(parameters)
    refused, inside = None, Inside()
    try:
        with torch.enable_grad(), inside:
            searched = solve(gradient, seed, True)
    except ValueError as error:
        if not _is_raised_here(error):
            raise
        # Where it is a gradient that cannot be given, everything else can still be looked at.
        searched = solve(Detach(), seed, True)
        refused = f"there is no gradient: {error}"
    solution = searched.solution

    with torch.no_grad():
        setup = Setup.of(
            searched.init, solver, num_iterations=None, event_dims=event_dims, bounds=searched.bounds, generator=None,
            noise=None, proposals=None,
        )  # fmt: skip
        start = Start.of(setup.start.distribution, setup.bounds, isinstance(searched.init, Distribution))
        scale = start.std
        others = [solve(Detach(), seed + i, False).solution for i in range(1, num_seeds)]
        spread = float((torch.stack([solution.x.detach(), *(other.x for other in others)]).std(0) / scale).max())
        harm = _harm(solution, others)
        travelled = float(((solution.x - start.mean).abs() / scale).max())
        at_bounds = float(start.is_near(solution.x).double().mean())
    comparison, norms = None, [float("nan")] * len(solution.history)
    leaves, has_earlier = asked or [], False
    if solution.x.requires_grad:
        leaves, has_earlier = inside.leaves(solution.x, asked)
    elif refused is not None or isinstance(gradient, Detach):
        leaves = []
    leaves = [leaf for leaf in leaves if leaf.numel()]
    try:
        with torch.enable_grad():
            weights = direction(solution.x)
            if solution.x.requires_grad:
                norms = _gradient_norms(solution, weights)
            if leaves:
                comparison = compare(lambda: solve(Detach(), seed, False).solution.x, solution.x, weights, leaves)
            elif has_earlier:
                refused = "gradient: not checked, as all that it is of was computed before; compute it in the objective"
    except RuntimeError as error:  # of a hard selection, when it is asked
        if "has no gradient, and the solution was asked for one" not in str(error):
            raise
        refused = f"there is no gradient: {error}"
    rows = _rows(solution, norms)
    advice = advise(rows, comparison, travelled, spread, harm, solution, start, solver, gradient, refused)
    return Diagnosis(rows, comparison, travelled, spread, at_bounds, solution.status, advice, solution)


def _is_raised_here(error: BaseException) -> bool:
    """Whether it is raised by this package, and not by what it calls, such as the objective."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_filename.startswith(os.path.dirname(__file__))


def _harm(solution: Solution, others: list[Solution]) -> tuple[float, float]:
    """What stopping here loses, and what the noise does: how much the selected values fell in the last iteration, and
    how much the best value differs between seeds (its std). Each in units of what the search has gained on an average
    first candidate, of the problem where it is most.
    """

    def selected(iteration: Iteration) -> Tensor:
        values, weights = iteration.values.detach().double(), iteration.weights.detach().double()
        return torch.where(weights > 0, weights * values, 0.0).sum(-1) / weights.sum(-1)

    levels = [selected(iteration) for iteration in solution.history]
    values = solution.history[0].values.detach().double()
    gained = (torch.where(values.isfinite(), values, torch.nan).nanmean(-1) - levels[-1]).clamp(min=1e-30)
    fell = (levels[-2] - levels[-1]) / gained if len(levels) > 1 else torch.ones_like(gained)
    differs = torch.stack([of.best_value.double() for of in (solution, *others)]).std(0) / gained
    late, noisy = (float(of.nan_to_num(0.0, 0.0, 0.0).max()) for of in (fell, differs))
    return late, noisy


def _gradient_norms(solution: Solution, weights: Tensor) -> list[float]:
    means = [iteration.distribution.mean for iteration in solution.history]
    asked = [mean for mean in means if mean.requires_grad]
    gradients = iter(
        torch.autograd.grad((solution.x * weights).sum(), asked, retain_graph=True, allow_unused=True) if asked else ()
    )
    norms = []
    for mean in means:
        of_mean = next(gradients) if mean.requires_grad else None
        norms.append(float("nan") if of_mean is None else float(of_mean.norm()))
    return norms


def _rows(solution: Solution, norms: list[float]) -> list[Row]:
    rows, best = [], torch.full_like(solution.best_value, torch.inf)
    for iteration, norm in zip(solution.history, norms, strict=True):
        values = iteration.values.detach()
        best = torch.minimum(best, values.nan_to_num(torch.inf, torch.inf, torch.inf).amin(-1))
        std = std_of(iteration.distribution).mean()
        failed = 1 - values.isfinite().double().mean()
        rows.append(Row(float(best.mean()), float(std), float(iteration.effective_elites.mean()), float(failed), norm))
    return rows

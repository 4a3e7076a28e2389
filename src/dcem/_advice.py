"""What a diagnosis advises: sentences that name a setting and what to do with it."""

from __future__ import annotations

import statistics
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dcem._gradient_check import Comparison
from dcem.bounds import Bounds
from dcem.distributions import Distribution
from dcem.gradients import Checkpoint, GradientMode, Unroll
from dcem.solution import Solution, Status
from dcem.solvers import GradientDescent, SamplingSolver, Solver

if TYPE_CHECKING:
    from dcem.diagnosis import Row


class Start(NamedTuple):
    """Where a search begins: mean and std `(*batch, *event)`, the box that it stays in, and what sets the std."""

    mean: Tensor
    std: Tensor
    bounds: Bounds | None
    batch_dims: int
    width: str

    @classmethod
    def of(cls, distribution: Distribution, bounds: Bounds | None, is_given: bool) -> Start:
        """That of the first `g_φ`, which is given, or made of means and the solver's `init_std`."""
        width = "the std of init (init_std of a layer)" if is_given else "init_std"
        return cls(distribution.mean, std_of(distribution), bounds, len(distribution.batch_shape), width)

    @property
    def is_open(self) -> bool:
        """Whether candidates can go on without end in some direction."""
        half = None if self.bounds is None else self.bounds.half_width()
        return half is None or bool(torch.as_tensor(half).isinf().any())

    def is_near(self, x: Tensor) -> Tensor:
        """Which numbers lie on a side of the box, to a hundredth of a std."""
        box, slack = self.bounds, 0.01 * self.std
        sides = [] if box is None else [side for side in (box.low, box.high) if side is not None]
        near = [(x - side).abs() <= slack for side in sides]
        return torch.stack(near).any(0) if near else torch.zeros_like(x, dtype=torch.bool)

    def rests(self, x: Tensor) -> Tensor:
        """Which problems have not moved at all, and no side of the box holds them: `(*batch,)`."""
        still = (x == self.mean) & ~self.is_near(x)
        return still.reshape(*still.shape[: self.batch_dims], -1).all(-1)


def std_of(distribution: Distribution) -> Tensor:
    """Of a family without one, 1."""
    std: Any = getattr(distribution, "std", None)
    return torch.ones_like(distribution.mean) if std is None else std.detach().clamp(min=1e-12)


def _either(solver: Solver, *names: str) -> str:
    """Those of these settings that the solver has, or its selection."""
    known = {field.name for field in fields(solver)}  # type: ignore[arg-type]
    known |= {"temperature"} if hasattr(getattr(solver, "selection", None), "temperature") else set()
    return " or ".join(name for name in names if name in known)


def advise(
    rows: list[Row],
    comparison: Comparison | None,
    travelled: float,
    spread: float,
    harm: tuple[float, float],
    solution: Solution,
    start: Start,
    solver: Solver,
    gradient: GradientMode,
    refused: str | None,
) -> list[str]:
    """Sentences that name a setting and what to do with it."""
    advice = [] if refused is None else [refused]
    advice += _of_objective(rows, solution, start, solver)
    descends = isinstance(solver, GradientDescent)
    if not getattr(solver, "momentum", 0.0) and _is_endless(rows, start):  # with momentum all falls faster at first
        remedy = "raise lr or num_iterations" if descends else f"raise {start.width}"
        advice.append(
            "objective: it seems to have no minimum: is it a reward (minimise its negative)? or give bounds; if the "
            f"minimum is far away, {remedy}"
        )
    elif descends:
        advice += _of_descent(rows, solution)
    else:
        advice += _of_search(rows, travelled, spread, harm, solution, solver, start.width)
    return advice + _of_gradient(comparison, gradient, solver)


def _of_objective(rows: list[Row], solution: Solution, start: Start, solver: Solver) -> list[str]:
    """What the values, or the slopes, say."""
    advice = []
    failed = max(row.failed for row in rows)
    lost = solution.status == Status.NONFINITE
    if lost.any():
        advice.append(
            "objective: too few values were finite in some iteration; look at samples and values of solution.history. "
            "Of a controller dcem.control.run says where its model fails"
        )
    elif failed > 0.1:
        narrower = "lr" if isinstance(solver, GradientDescent) else start.width
        advice.append(f"objective: up to {failed:.0%} of the samples failed; tighten bounds, or lower {narrower}")
    if (solution.status == Status.FLAT).any():
        advice.append(
            f"objective: all values were equal up to rounding; raise {start.width}, or take a constant out of "
            "the objective"
        )
    if bool((start.std <= getattr(solver, "min_std", 0.0)).all()):
        advice.append(
            f"init_std: the search starts with the least std that it may have, min_std={solver.min_std:g}, and so "  # type: ignore[attr-defined]
            f"where it ends; raise {start.width}"
        )
    if isinstance(solver, GradientDescent) and (start.rests(solution.x) & ~lost).any():
        advice.append(
            "objective: its slope is zero where the search starts, from which gradient descent does not move: if that "
            "is no minimum, start elsewhere, or take dcem.CEM() if it is constant in steps (round, argmax)"
        )
    return advice


def _is_endless(rows: list[Row], start: Start) -> bool:
    """Whether the values seem to fall for ever: to the last iterations, while the std grows or, of a solver that leaves
    it as it is, faster and faster.
    """
    if not start.is_open or not _falls_to_the_end(rows):
        return False
    first, middle, last = (rows[i].best for i in (0, len(rows) // 2, -1))
    before, after = float(start.std.mean()), rows[-1].std
    return after > 1.5 * before or (after == before and middle - last > 1.5 * (first - middle))


def _falls_to_the_end(rows: list[Row]) -> bool:
    """Whether a tenth of what all iterations gain comes in the last fifth of them."""
    if len(rows) < 4:
        return False
    first, late, last = (rows[i].best for i in (0, -1 - max(1, len(rows) // 5), -1))
    return late - last > 0.1 * (first - last) > 0


def _of_descent(rows: list[Row], solution: Solution) -> list[str]:
    """What the values of a descent say, which has one candidate and no std that falls."""
    first, last = (solution.history[i].values.detach() for i in (0, -1))
    if (last > first + 1e-3 * first.abs()).any():
        return ["lr: the values are higher at the end than at the start; lower lr"]
    if _falls_to_the_end(rows):
        return ["num_iterations: the values still fall in the last iterations; iterate longer, or raise lr"]
    return []


def _of_search(
    rows: list[Row],
    travelled: float,
    spread: float,
    harm: tuple[float, float],
    solution: Solution,
    solver: Solver,
    width: str,
) -> list[str]:
    """What the samples say: where they went, how many share the weight, and whether they came to rest."""
    advice = []
    wanted = getattr(solver, "num_elites", None)
    first, last = rows[0], rows[-1]
    if wanted is not None and wanted < 1:
        advice.append(
            f"num_elites: {wanted:g} is a count, less than one sample, not a share: {wanted:.0%} of the "
            f"{solver.num_samples} samples is num_elites={wanted * solver.num_samples:g}"
        )
    if travelled > 2.5:  # where a std that shrinks with each selection stops a search: at about 3
        advice.append(f"init_std: the answer lies {travelled:.2g} stds from the start; raise {width}, or move init")
    told = (solution.status != Status.NONFINITE) & (solution.status != Status.FLAT)
    moves = last.std > 0.3 * first.std and last.best < first.best
    late, noisy = harm
    shared = statistics.median(row.effective_elites for row in rows)
    if wanted is not None and shared > 3 * wanted and told.any() and (moves or spread > 0.1):
        advice.append(
            f"temperature: {shared:.0f} samples share the weight where num_elites asks for {wanted:g}; "
            "lower the temperature of the selection to select more sharply"
        )
    sharper = _either(solver, "temperature", "num_elites")
    if isinstance(solver, SamplingSolver) and moves and late > 0.05:
        falls = f"the std is still {last.std:.2g} ({first.std:.2g} after the first)"
        advice.append(
            f"num_iterations: {'the values still fall' if last.std == first.std else falls}; iterate longer"
            + (f", or lower {sharper}" if sharper else "")
        )
    settled = next((t for t, row in enumerate(rows, 1) if row.std < 1e-4 * first.std), len(rows))
    if settled < 0.7 * len(rows):
        advice.append(f"num_iterations: nothing moves after iteration {settled} of {len(rows)}; fewer are enough")
    if spread > 0.1 and noisy > 0.02:
        advice.append(
            f"num_samples: answers of different noise lie {spread:.2g} stds of the start apart: there are several "
            f"basins, or too few samples; raise {_either(solver, 'num_samples', 'num_elites')}"
        )
    return advice


def _of_gradient(comparison: Comparison | None, gradient: GradientMode, solver: Solver) -> list[str]:
    """What finite differences say."""
    advice = []
    if comparison is not None and comparison.error > 0.05:
        full = isinstance(gradient, (Unroll, Checkpoint))
        cure = (
            "the objective leaves autograd somewhere (NumPy, item(), detach()), is not differentiable there, or is one "
            "of choices, whose gradients are estimates"
            if full
            else "with Unroll() or Checkpoint() they agree unless the objective itself is not differentiable there"
        )
        advice.append(
            f"gradient: it is {comparison.given:.3g} along a random direction where finite differences give "
            f"{comparison.expected:.3g}; {cure}"
        )
    elif comparison is not None and comparison.is_open:
        softer = _either(solver, "temperature")
        advice.append(
            "gradient: finite differences of several step sizes do not agree: the answer jumps with the parameters; "
            + (f"raise {softer}, or use float64" if softer else "use float64")
        )
    elif comparison is not None and comparison.given == 0:
        advice.append(
            "gradient: it is exactly 0: the answer does not depend on the parameters, lies on bounds, or the objective "
            "is constant in steps (floor, round, argmax), which neither it nor small differences see; if the answer "
            "follows larger changes of the parameters, learn through something smooth instead"
        )
    return advice

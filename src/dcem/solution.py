"""What came out of a solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import unserializable_hook

from dcem._data import Result, shown
from dcem._eager import is_eager
from dcem._tree import leaves
from dcem.distributions import Distribution
from dcem.distributions.gaussian import root_of_squares
from dcem.solvers.base import Step


class Status(IntEnum):
    """How a problem ended; `solution.status == Status.OK` is a mask over the batch.

    Attributes:
        OK: the solve went as it should. That includes one that has converged so far that its values differ by no more
            than their rounding (their spread is at most `32 eps max|v|` in the dtype that the objective returned, or
            `4 eps max|v|` in half precision, or subnormal): from then on there is nothing to select by, and the
            distribution stays as it is.
        COLLAPSED: the std reached its floor in every dimension: further iterations change nothing. Raise `min_std`,
            `init_std` or the temperature if that came too early.
        NONFINITE: in at least one iteration fewer than `num_elites` values were finite; the distribution was kept as
            it was there. Or, with gradient descent, a slope was not finite; with other solvers that is seen in the
            backward pass, which then writes it here. Look at the objective.
        NOT_STATIONARY: with `gradient=Implicit()`, the answer is too far from a stationary point for the implicit
            function theorem to apply; its gradient is zero. Make more iterations, or use another gradient mode.
        FLAT: in every iteration the values were equal up to rounding: nothing was selected, and the answer is where the
            search started. Widen the search, or take a constant out of the objective.
        INVALID: the answer does not pass the check that was given as `validate`.
    """

    OK = 0
    COLLAPSED = 1
    NONFINITE = 2
    NOT_STATIONARY = 3
    FLAT = 4
    INVALID = 5


class Iteration(NamedTuple):
    """One iteration of a solve.

    Attributes:
        samples: the candidates, `(*batch, N, *event)`.
        values: the objective at them, `(*batch, N)`.
        weights: the selection's weights, `(*batch, N)`: 0 for a sample that failed, and even among the others where
            nothing was selected; of a solver that does not sample, 1 otherwise.
        distribution: `g_φ` after the iteration.
        effective_elites: `(Σw)² / Σw²`, `(*batch,)`: how many candidates share the weight. `k` for a hard
            selection, up to `N` for a soft one, 0 where all samples failed; choose the temperature by it.
        std: the root mean square of the std of `distribution`, `(*batch,)`; NaN for a family without one.
        gradient_norm: of what the last backward pass that reached them sent to the parameters of `distribution`,
            `(*batch,)`; NaN before there was one, and where nothing is differentiated.
        drift: how far the mean has moved since the start of the solve, in stds of the start, the farthest coordinate,
            `(*batch,)`; NaN for a family without a std. Beyond 2.5 the start was too narrow for the distance, and
            the search may have stopped on the way.
    """

    samples: Tensor
    values: Tensor
    weights: Tensor
    distribution: Distribution
    effective_elites: Tensor
    std: Tensor
    gradient_norm: Tensor
    drift: Tensor

    @classmethod
    def of(cls, step: Step, start: Distribution) -> Iteration:
        """The record of a solver's step, in a solve that began with `start`."""
        weights = step.weights.detach()
        squares = weights.square().sum(-1)
        effective = weights.sum(-1).square() / squares.where(squares > 0, 1.0)
        distribution: Distribution = step.state.distribution
        std: Tensor | None = getattr(distribution, "std", None)
        spread = torch.full_like(effective, torch.nan)
        if std is not None:
            each = std.detach().reshape(*distribution.batch_shape, -1)
            spread = root_of_squares(lambda squares: squares.mean(-1, keepdim=True), each, -1).squeeze(-1)
        norm, drift = _norm_of_gradient(distribution), _drift(start, distribution)
        return cls(step.samples, step.values, step.weights, distribution, effective, spread, norm, drift)


@torch.no_grad()
def _drift(start: Distribution, now: Distribution) -> Tensor:
    """`max |μ - μ₀| / σ₀` over the coordinates, `(*batch,)`."""
    std: Tensor | None = getattr(start, "std", None)
    moved = (now.mean - start.mean).abs()
    moved = torch.full_like(moved, torch.nan) if std is None else torch.where(moved > 0, moved / std, 0.0)
    return moved.reshape(*now.batch_shape, -1).amax(-1)


def _norm(x: Tensor) -> Tensor:
    return root_of_squares(lambda squares: squares.sum(-1, keepdim=True), x, -1).squeeze(-1)


def _norm_of_gradient(distribution: Distribution) -> Tensor:
    """`(*batch,)`, NaN until a backward pass writes into it."""
    batch_shape, like = distribution.batch_shape, distribution.mean
    norm = torch.full(batch_shape, torch.nan, dtype=like.dtype, device=like.device)
    asked = [leaf for leaf in leaves(distribution) if leaf.requires_grad] if is_eager() else []
    norms, latest = norm.new_zeros((len(asked), *batch_shape)), -1

    def hook(i: int) -> Callable[[Tensor | None], None]:
        @unserializable_hook  # type: ignore[untyped-decorator]
        def note(slope: Tensor | None) -> None:
            nonlocal latest
            if slope is not None and not torch._C._functorch.is_legacy_batchedtensor(slope):
                backward_pass = torch._C._current_graph_task_id()
                if backward_pass != latest:  # which need not reach all that the one before did
                    norms.zero_()
                latest = backward_pass
                norms[i] = _norm(slope.detach().reshape(*batch_shape, -1))
                norm.copy_(_norm(norms.movedim(0, -1)))

        return note

    for i, leaf in enumerate(asked):
        leaf.register_hook(hook(i))  # type: ignore[no-untyped-call]
    return norm


@dataclass(frozen=True, eq=False, repr=False)
class Solution(Result):
    """The answer of [`dcem.minimize`][].

    It is data: `solution.detach()` cuts it from its graph, `solution.to(device, dtype)` moves it, `copy.deepcopy`
    copies its numbers, and `torch.load(..., weights_only=True)` reads what `torch.save` has written.

    Attributes:
        x: `E[g_φ]`, `(*batch, *event)`, differentiable as the gradient mode says.
        best_x: the best sample seen, `(*batch, *event)`, detached.
        best_value: its value, `(*batch,)`, detached; `inf` where no value was finite.
        distribution: the final `g_φ`, to start the next solve from.
        status: a `Status` a problem, `(*batch,)`. A backward pass may write into it, as long as the solution is kept.
        history: with `record=True` a list of `Iteration`, else empty.
    """

    x: Tensor
    best_x: Tensor
    best_value: Tensor
    distribution: Distribution
    status: Tensor
    history: list[Iteration]

    def __repr__(self) -> str:
        """Shapes, ranges and statuses."""
        history = {"history": f"{len(self.history)} iterations"} if self.history else {}
        return shown("Solution", self.status, Status, x=self.x, best_value=self.best_value, **history)


torch.serialization.add_safe_globals([Solution, Iteration, Status])

"""How a solve is differentiated: one object, given to [`dcem.minimize`][] as `gradient`."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcem._check import check_count, check_flag, check_number
from dcem._eager import in_forward_mode, is_eager, may_have_gradient
from dcem._evaluate import Evaluation
from dcem._replay import check_alike, forgotten
from dcem._tree import detach
from dcem.bounds import Bounds
from dcem.implicit.minimum import attach_minimum
from dcem.solvers.base import Objective, Step

Iterate = Callable[[Any, Tensor], Step]
Weigh = Callable[[Tensor], tuple[Tensor, "Tensor | None"]]
_NO_DRAWS = (
    "draw nothing, whatever from, as other candidates are evaluated then, and keep no state between calls; or use "
    "gradient=dcem.Checkpoint()"
)


class GradientMode:
    """How gradients flow through the iterations of a solve. The defaults differentiate through all of them."""

    keeps_hyperparameters = True
    """Whether the solver's own tensors (a temperature, a learning rate) receive a gradient where they ask for one."""

    counts_back = False
    """Whether it has to know which iterations are the last, which a tolerance decides later."""

    def keeps_init(self, num_iterations: int) -> bool:
        """Whether the gradient with respect to the initial distribution survives."""
        return True

    def evaluation(self, objective: Objective, weigh: Weigh | None, generator: torch.Generator | None) -> Objective:
        """The objective as the solver shall see it; `weigh` turns values into the solver's weights, if it has any."""
        return objective

    def iterate(
        self, iterate: Iterate, state: Any, noise: Tensor, remaining: int, generator: torch.Generator | None
    ) -> Step:
        """Make one iteration, the first of `remaining`; `generator` is the one that the solve was given."""
        return iterate(state, noise)

    def finish(
        self, objective: Evaluation, x: Tensor, event_dims: int, bounds: Bounds | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attach what is left of the gradient to the answer `x`, and say per problem where that has no meaning."""
        return x, None


@dataclass(frozen=True)
class Unroll(GradientMode):
    """Differentiate through every iteration, keeping all of them in memory: the gradient of the paper.

    Source: Amos & Yarats, ICML 2020, section 3.
    """


@dataclass(frozen=True)
class Checkpoint(GradientMode):
    """The gradient of `Unroll` with the memory of one iteration: each is made again in the backward pass.

    The objective is called twice as often. Randomness inside it is replayed if it is torch's global one or that of the
    generator that the solve was given; an objective that draws otherwise has other values the second time, which is a
    `RuntimeError` in the backward pass. What an objective counts or averages (the running statistics of a
    `torch.nn.BatchNorm` in training) moves twice. Inside `torch.func` transforms, which checkpoints do not work in,
    this is `Unroll`.

    Source: Chen et al., "Training deep nets with sublinear memory cost", 2016.
    """

    def iterate(
        self, iterate: Iterate, state: Any, noise: Tensor, remaining: int, generator: torch.Generator | None
    ) -> Step:
        step: Step = forgotten(iterate, state, noise, values_of=lambda step: step.values, generator=generator)
        return step


@dataclass(frozen=True)
class Truncate(GradientMode):
    """Differentiate through the last iterations only; those before run without gradient.

    Iterations count whether or not they move anything. Where values are equal up to rounding they do not, and have no
    gradient: a problem that came to rest more than `last` iterations before the end has the gradient 0, and the
    status `OK` of its answer. Make fewer iterations, or take `Unroll` or `Implicit`. A `tolerance`, or a callback that
    stops, is an error where gradients are enabled: it has to be known which iterations are the last.

    Args:
        last: how many iterations to differentiate through, at least 1.

    Raises:
        TypeError: `last` is no integer.
        ValueError: it is below 1.

    Source: truncated back-propagation through time, Shaban et al., AISTATS 2019.
    """

    last: int = 3
    counts_back = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "last", check_count("last", self.last))

    def keeps_init(self, num_iterations: int) -> bool:
        return num_iterations <= self.last

    def iterate(
        self, iterate: Iterate, state: Any, noise: Tensor, remaining: int, generator: torch.Generator | None
    ) -> Step:
        return iterate(state, noise) if remaining <= self.last else _without_gradient(iterate, state, noise)


@dataclass(frozen=True)
class Detach(GradientMode):
    """No gradient: the answer is a constant, and nothing of the solve is kept."""

    def iterate(
        self, iterate: Iterate, state: Any, noise: Tensor, remaining: int, generator: torch.Generator | None
    ) -> Step:
        return _without_gradient(iterate, state, noise)


@dataclass(frozen=True)
class Implicit(GradientMode):
    """Differentiate the stationary point that the solve ended in: `D_θ x* = -(∇²_xx f)^-1 ∇²_xθ f`.

    Costs no memory in the iterations, and does not depend on how `x*` was found. It needs an objective that is twice
    differentiable in `x`, and a solve that has converged: a problem whose answer is farther than `tolerance` from
    the stationary point next to it (by a Newton step), or whose Hessian has negative curvature, has the status
    `NOT_STATIONARY` and a zero gradient. Coordinates that the minimum next to the answer has on a bound do not move
    with `θ`. Nor does the answer along directions in which the objective is flat, such as what all inputs of a softmax
    have in common: of all minima next to it, the nearest one counts. Flat is curvature below rounding, some `1e-6` of
    the largest in float32 and `1e-15` in float64, with coordinates brought to the same curvature first.

    Args:
        tolerance: the largest Newton step, relative to `1 + |x|`, that still counts as stationary.

    Raises:
        TypeError: `tolerance` is no number.
        ValueError: it is not above 0.

    Source: Dontchev & Rockafellar, "Implicit functions and solution mappings", 2009.
    """

    tolerance: float = 0.05
    keeps_hyperparameters = False

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance)
        if not self.tolerance > 0:
            raise ValueError(f"tolerance: expected a number > 0, got {self.tolerance}")

    def keeps_init(self, num_iterations: int) -> bool:
        return False

    def iterate(
        self, iterate: Iterate, state: Any, noise: Tensor, remaining: int, generator: torch.Generator | None
    ) -> Step:
        return _without_gradient(iterate, state, noise)

    def finish(
        self, objective: Evaluation, x: Tensor, event_dims: int, bounds: Bounds | None
    ) -> tuple[Tensor, Tensor | None]:
        x = x.detach()
        if not torch.is_grad_enabled():
            return x, None
        if not is_eager():
            raise RuntimeError("gradient: Implicit does not work inside torch.compile and torch.func transforms")
        if x.is_meta:  # no numbers to solve with: shapes, and what the answer depends on
            values = objective(x.unsqueeze(x.dim() - event_dims)).squeeze(-1)
            return x + 0 * values.reshape(values.shape + (1,) * event_dims), None
        found = x
        objective, x, failed = objective.sound(x)
        batch_dims = x.dim() - event_dims
        if failed.all():
            return x.requires_grad_(objective(x.unsqueeze(batch_dims)).requires_grad), failed
        size = (x.flatten(batch_dims).norm(dim=-1) if event_dims else x.abs()) + 1

        def at(y: Tensor) -> Tensor:
            return objective(y.unsqueeze(batch_dims)).squeeze(-1)

        box = None if bounds is None else bounds.steps(x)
        answer, stationary = attach_minimum(at, x, batch_dims, self.tolerance * size, box)
        stationary = stationary & ~failed
        keep = stationary.reshape(stationary.shape + (1,) * event_dims)
        return torch.where(keep, answer, found), ~stationary


@dataclass(frozen=True)
class Prune(GradientMode):
    """Differentiate only through the samples that carry the gradient, those of the largest `w (1 - w)`.

    The values of all samples are computed without gradient, then those of a few once more with it: memory and
    backward time shrink to the fraction kept. An objective that draws random numbers has other values the second time,
    whatever it draws from, which is a `RuntimeError`.

    Where the objective is cheap this is slower than `Unroll`, about twice: it pays where the objective costs much, in
    memory or in time, beside the solve itself.

    Args:
        keep: the fraction of the samples to keep, in `(0, 1]`.
        unbiased: draw the samples in proportion to `w (1 - w)` and weigh them by their inverse probability, instead
            of taking the largest: right on average, at the price of variance.

    Raises:
        TypeError: `keep` is no number, or `unbiased` no boolean.
        ValueError: `keep` is outside `(0, 1]`, or the solver weighs no samples.

    Source: the influence `w (1 - w)` is the derivative of the LML projection, Amos, Koltun & Kolter, 2019.
    """

    keep: float = 0.2
    unbiased: bool = False

    def __post_init__(self) -> None:
        check_number("keep", self.keep)
        check_flag("unbiased", self.unbiased)
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: expected a number in (0, 1], got {self.keep}")

    def evaluation(self, objective: Objective, weigh: Weigh | None, generator: torch.Generator | None) -> Objective:
        if weigh is None:
            raise ValueError(
                "gradient: Prune needs a solver that weighs samples (CEM, MPPI); this one has none to prune"
            )

        def pruned(samples: Tensor) -> Tensor:
            with torch.no_grad():
                values = objective(samples).detach()  # also from tangents, which no_grad does not stop
                weights, _ = weigh(values)
                influence = weights * (1 - weights)
            if not may_have_gradient():
                return values
            kept, center, factor = self._choose(influence, generator)
            sample_dim = values.dim() - 1
            index = kept.reshape(kept.shape + (1,) * (samples.dim() - values.dim()))
            again = objective(torch.take_along_dim(samples, index, sample_dim))
            if is_eager():
                check_alike(values.gather(-1, kept), again, "Prune", remedy=_NO_DRAWS, spread_of=values)
            # The values stay as they are; their gradient comes from the samples computed again. A selection depends
            # on differences of values only: what all samples have in common must cancel although few are left.
            change = torch.where(again.isfinite(), again - again.detach(), 0.0)
            change = (change - (center * change).sum(-1, keepdim=True)) * factor
            return values.scatter_add(-1, kept, change)

        return pruned

    def _choose(self, influence: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, float | Tensor]:
        """Which samples to keep, `(*batch, M)`, the weights of their common part, and a factor for the rest."""
        num_samples = influence.shape[-1]
        num_kept = min(num_samples, max(2, math.ceil(self.keep * num_samples)))
        influence = influence.clamp(min=torch.finfo(influence.dtype).tiny)
        if not self.unbiased:
            top, kept = influence.topk(num_kept)
            return kept, top / top.sum(-1, keepdim=True), 1.0
        # Through the standardisation every sample carries a little gradient, so each keeps some probability.
        probability = 0.9 * influence / influence.sum(-1, keepdim=True) + 0.1 / num_samples
        rows = probability.reshape(-1, num_samples)
        kept = torch.multinomial(rows, num_kept, replacement=True, generator=generator)
        kept = kept.reshape(*influence.shape[:-1], num_kept)
        # Each draw's common part is the mean of the other draws, which leaves the estimate unbiased.
        factor = 1 / (max(num_kept - 1, 1) * probability.gather(-1, kept))
        return kept, torch.full_like(factor, 1 / num_kept), factor


def _without_gradient(iterate: Iterate, state: Any, noise: Tensor) -> Step:
    tangents = torch.autograd.forward_ad._set_fwd_grad_enabled(False) if in_forward_mode() else nullcontext()
    with torch.no_grad(), tangents:
        return detach(iterate(detach(state), noise))

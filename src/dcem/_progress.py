"""A solve while it runs: the solver's state, and what has to be remembered of the iterations so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem._best import Best
from dcem._eager import is_eager
from dcem._given import brief
from dcem._setup import Setup, where
from dcem.distributions import Distribution
from dcem.solution import Iteration, Solution, Status
from dcem.solvers import Step


class Progress(NamedTuple):
    """Where a solve stands.

    Attributes:
        state: the solver's.
        iteration: how many have been made.
        best: of the candidates so far.
        failed: which problems failed in any of them, `(*batch,)`.
        flat: which had equal values in all of them, `(*batch,)`; None where none had.
        done: which have converged and stay as they are, `(*batch,)`; None where none has.
    """

    state: Any
    iteration: int
    best: Best
    failed: Tensor
    flat: Tensor | None
    done: Tensor | None = None

    @classmethod
    def start(cls, setup: Setup) -> Progress:
        """Before the first iteration."""
        distribution: Distribution = setup.start.distribution
        batch_shape = distribution.batch_shape
        failed = torch.zeros(batch_shape, dtype=torch.bool, device=distribution.mean.device)
        return cls(setup.start, 0, Best.start(distribution.mean, len(batch_shape)), failed, None)

    def held(self, step: Step) -> Step:
        """A step in which the problems that are done stay where they are."""
        if self.done is None:
            return step
        valid = None if step.valid is None else step.valid | self.done
        return step._replace(state=where(~self.done, step.state, self.state), valid=valid)

    def after(self, step: Step) -> Progress:
        """With one more iteration."""
        failed, flat, values = self.failed, step.flat, step.values.detach()
        if self.done is not None:  # what is tried for them afterwards depends on when the others are
            values = torch.where(self.done.unsqueeze(-1), torch.inf, values)
        if step.valid is not None:
            failed = failed | (~step.valid if flat is None else ~step.valid & ~flat)
        if self.iteration > 0:
            flat = None if flat is None or self.flat is None else flat & self.flat
        best = self.best.after(step.samples, values)
        return Progress(step.state, self.iteration + 1, best, failed, flat, self.done)

    def settled(self, before: Progress, step: Step, setup: Setup, tolerance: float) -> Progress:
        """With the problems done that came to rest in this step."""
        rests = setup.solver.is_converged(before.state, self.state, tolerance)
        if step.valid is not None:  # or it stays where it is for having failed
            rests = rests & (step.valid if step.flat is None else step.valid | step.flat)
        return self._replace(done=rests if self.done is None else rests | self.done)

    def solution(
        self,
        setup: Setup,
        x: Tensor,
        not_stationary: Tensor | None = None,
        validate: Callable[[Tensor], Tensor] | None = None,
        history: list[Iteration] | None = None,
    ) -> Solution:
        """The answer `x` `(*batch, *event)`, and what there is to say of it."""
        best, batch_dims = self.best.compared(), self.failed.dim()
        status = torch.full_like(self.failed, int(Status.OK), dtype=torch.int64)
        if self.flat is not None:
            status = torch.where(self.flat, int(Status.FLAT), status)
        status = torch.where(setup.solver.is_collapsed(self.state), int(Status.COLLAPSED), status)
        if not_stationary is not None:
            status = torch.where(not_stationary, int(Status.NOT_STATIONARY), status)
        x = x.to(setup.dtype)
        if validate is not None:
            status = torch.where(_passes(validate, x.detach().clone(), status), status, int(Status.INVALID))
        status = torch.where(self.failed | _lost(x, batch_dims), int(Status.NONFINITE), status)
        best_x, best_value = best.samples[0].squeeze(batch_dims), best.values[0].squeeze(-1)
        found: Distribution = self.state.distribution
        return Solution(x, best_x.to(setup.dtype), best_value, found, status, history or [])


def _lost(x: Tensor, batch_dims: int) -> Tensor:
    """Of which problems the answer is not finite, though values were: of a draw that is no number, or a family's own
    fit. `(*batch,)`, or no axes where none is.
    """
    if is_eager() and x.is_cpu and math.isfinite(x.detach().sum()):
        return x.new_zeros((), dtype=torch.bool)
    finite = x.detach().isfinite()
    return ~(finite.flatten(batch_dims).all(-1) if x.dim() > batch_dims else finite)


@torch.no_grad()
def _passes(validate: Callable[[Tensor], Tensor], x: Tensor, status: Tensor) -> Tensor:
    passes: Any = validate(x)
    if not isinstance(passes, Tensor) or passes.dtype != torch.bool or passes.shape != status.shape:
        came = f"{passes.dtype} of shape {tuple(passes.shape)}" if isinstance(passes, Tensor) else brief(passes)
        raise ValueError(f"validate: expected booleans of shape (*batch,) = {tuple(status.shape)}, got {came}")
    return passes

"""A solve while it runs: the solver's state, and what has to be remembered of the iterations so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem._best import Best
from dcem._setup import Setup
from dcem.distributions import Distribution
from dcem.solution import Iteration, Solution, Status
from dcem.solvers import Step


class Progress(NamedTuple):
    """Where a solve stands.

    Attributes:
        state: the solver's.
        iteration: how many have been made.
        best: of the candidates so far.
        failed: which problems failed in any of them, ``(*batch,)``.
        flat: which had equal values in all of them, ``(*batch,)``; None where none had.
    """

    state: Any
    iteration: int
    best: Best
    failed: Tensor
    flat: Tensor | None

    @classmethod
    def start(cls, setup: Setup) -> Progress:
        """Before the first iteration."""
        distribution: Distribution = setup.start.distribution
        batch_shape = distribution.batch_shape
        failed = torch.zeros(batch_shape, dtype=torch.bool, device=distribution.mean.device)
        return cls(setup.start, 0, Best.start(distribution.mean, len(batch_shape)), failed, None)

    def after(self, step: Step) -> Progress:
        """With one more iteration."""
        failed, flat = self.failed, step.flat
        if step.valid is not None:
            failed = failed | (~step.valid if flat is None else ~step.valid & ~flat)
        if self.iteration > 0:
            flat = None if flat is None or self.flat is None else flat & self.flat
        return Progress(step.state, self.iteration + 1, self.best.after(step.samples, step.values), failed, flat)

    def solution(
        self, setup: Setup, x: Tensor, not_stationary: Tensor | None = None, history: list[Iteration] | None = None
    ) -> Solution:
        """The answer ``x`` ``(*batch, *event)``, and what there is to say of it."""
        best, batch_dims = self.best.compared(), self.failed.dim()
        status = torch.full_like(self.failed, int(Status.OK), dtype=torch.int64)
        if self.flat is not None:
            status = torch.where(self.flat, int(Status.FLAT), status)
        status = torch.where(setup.solver.is_collapsed(self.state), int(Status.COLLAPSED), status)
        if not_stationary is not None:
            status = torch.where(not_stationary, int(Status.NOT_STATIONARY), status)
        status = torch.where(self.failed, int(Status.NONFINITE), status)
        best_x, best_value = best.samples[0].squeeze(batch_dims), best.values[0].squeeze(-1)
        found: Distribution = self.state.distribution
        return Solution(x.to(setup.dtype), best_x.to(setup.dtype), best_value, found, status, history or [])

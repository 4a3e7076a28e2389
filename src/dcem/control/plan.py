"""What a controller plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem._data import Result, shown
from dcem.distributions import Distribution
from dcem.solution import Solution, Status


class WarmStart(NamedTuple):
    """What a decision leaves to the next one, as plain tensors that can be stored, sent and stacked.

    Attributes:
        actions: the sequence that was planned, `(*batch, H, *a)`. Its first action counts as the one applied: put
            the true one there if another was.
        mean: of the final distribution, `(*batch, *latent)`; the same as the actions without a decoder.
    """

    actions: Tensor
    mean: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Result):
    """The answer of [`dcem.control.MPC`][], and where its next solve may start.

    It is data like a [`dcem.Solution`][], with `detach`, `to`, copies and files. So is its `warm_start`, which
    is what a checkpoint of a closed loop needs.

    Attributes:
        action: the first action, `(*batch, *a)`: the one to apply.
        actions: the whole sequence, `(*batch, H, *a)`.
        states: where it leads, `(*batch, H + 1, *s)` or a tree of these; with several particles `(P, *batch, ...)`.
            None if that was not asked for, by `evaluate=False`.
        cost: the cost of these very actions, `(*batch,)`; differentiable. Evaluated once more by itself, but for a
            sample (`answer="best"` or `"last"`) without a gradient, of which the search has seen it. NaN if not asked.
        violation: by how much the soft constraint is violated at worst on the way, `(*batch,)`; 0 without one. NaN if
            not asked.
        distribution: the final `g_φ`, over the action sequence or over the decoder's latent.
        status: a [`dcem.Status`][] a problem, `(*batch,)`: that of the solve; `NONFINITE` also where the plan
            itself leads to what is not finite.
        solution: the whole [`dcem.Solution`][] of the solve (its `x` is a latent where there is a decoder).
    """

    action: Tensor
    actions: Tensor
    states: Any
    cost: Tensor
    violation: Tensor
    distribution: Distribution
    status: Tensor
    solution: Solution

    @property
    def warm_start(self) -> WarmStart:
        """What the next solve needs of this one, detached."""
        return WarmStart(self.actions.detach(), self.distribution.mean.detach())

    def __repr__(self) -> str:
        """Shapes, ranges and statuses."""
        return shown("Plan", self.status, Status, actions=self.actions, cost=self.cost, violation=self.violation)


torch.serialization.add_safe_globals([Plan, WarmStart])

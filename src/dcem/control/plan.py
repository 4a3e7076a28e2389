"""What a controller plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dcem.distributions import Distribution
from dcem.solution import Solution


@dataclass(frozen=True, eq=False)
class Plan:
    """The answer of :class:`dcem.control.MPC`, and where its next solve may start.

    Attributes:
        action: the first action, ``(*batch, *a)``: the one to apply.
        actions: the whole sequence, ``(*batch, H, *a)``.
        states: where it leads, ``(*batch, H + 1, *s)`` or a tree of these; with several particles ``(P, *batch, ...)``.
        cost: the cost of these very actions, evaluated again, ``(*batch,)``; differentiable.
        violation: by how much the soft constraint is violated at worst on the way, ``(*batch,)``; 0 without one.
        distribution: the final ``g_φ``, over the action sequence or over the decoder's latent.
        status: a :class:`dcem.Status` a problem, ``(*batch,)``.
        solution: the whole :class:`dcem.Solution` of the solve (its ``x`` is a latent where there is a decoder).
    """

    action: Tensor
    actions: Tensor
    states: Any
    cost: Tensor
    violation: Tensor
    distribution: Distribution
    status: Tensor
    solution: Solution

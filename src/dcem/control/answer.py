"""Which actions a plan returns, and where the search has seen them lead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem._best import best_of
from dcem._guard import beside
from dcem._replay import randomness
from dcem._tree import map_tensors
from dcem.control.problem import Outcome
from dcem.solution import Solution

ANSWERS = ("mean", "best", "last")


class Followed(NamedTuple):
    """Actions `(*batch, H, *a)` and where they lead: cost and violation `(*batch,)`, states `(*batch, H + 1, *s)`."""

    actions: Tensor
    cost: Tensor
    violation: Tensor
    states: Any

    @classmethod
    def not_at_all(cls, actions: Tensor, batch_dims: int) -> Followed:
        """Actions of which it is not asked where they lead."""
        unknown = actions.new_full(actions.shape[:batch_dims], torch.nan)
        return cls(actions, unknown, unknown, None)


def chosen(answer: str, solution: Solution, latent_dims: int) -> Tensor:
    """The candidate to return, `(*batch, *latent)`; the mean where none was finite."""
    if answer == "mean":
        return solution.x
    sample_dim = solution.x.dim() - latent_dims
    iterations = solution.history if answer == "best" else solution.history[-1:]
    samples = torch.cat([iteration.samples for iteration in iterations], sample_dim)
    values = torch.cat([iteration.values for iteration in iterations], -1)
    best, lowest = best_of(samples, values)
    found = lowest.isfinite().reshape((*lowest.shape[:-1], *(1,) * latent_dims))
    # The search is in single precision at least; evaluated was the candidate rounded to the dtype of the state.
    return torch.where(found, best.squeeze(sample_dim).to(solution.x), solution.x)


class Seen:
    """What came of the best candidates of a search, so that they need not be followed a second time."""

    def __init__(self, batch_dims: int) -> None:
        self._dim = batch_dims
        self._best: list[tuple[Tensor, Followed]] = []  # of each evaluation: the lowest cost, inf if none is finite

    def forget(self) -> None:
        """Begin anew."""
        self._best.clear()

    def note(self, actions: Tensor, outcome: Outcome) -> None:
        """Keep the best of these, `(*batch, n, H, *a)`."""
        dim = self._dim
        lowest, index = outcome.cost.nan_to_num(torch.inf, torch.inf, torch.inf).min(-1, keepdim=True)

        def of_best(leaf: Tensor, at: int) -> Tensor:
            """The best of candidates that have the axis `at`, with the batch before it."""
            shape = (1,) * (at - dim) + index.shape + (1,) * (leaf.dim() - at - 1)
            return torch.take_along_dim(leaf, index.reshape(shape), at).squeeze(at)

        def path(before: Tensor, last: Tensor) -> Tensor:
            return torch.cat([of_best(before, dim + 1), of_best(last, dim).unsqueeze(0)]).movedim(0, dim)

        states = map_tensors(path, outcome.visited, outcome.path.last())
        best = Followed(of_best(actions, dim), of_best(outcome.cost, dim), of_best(outcome.violation, dim), states)
        self._best.append((lowest.squeeze(-1), best))

    def answer(self, follow: Callable[[], Followed], evaluate: bool, generator: torch.Generator | None) -> Followed:
        """The best that was noted; what `follow` says of problems of which no candidate was finite.

        What that draws for them counts for nothing: of the others, the next plan does not depend on it.
        """
        best, found = self._best_of_all()
        if not evaluate:
            best = Followed.not_at_all(best.actions, self._dim)
        if found.all():
            return best
        put_back = randomness(found.device, generator)
        alone = follow()
        put_back()
        merged: Followed = map_tensors(lambda of, other: torch.where(beside(found, of), of, other), best, alone)
        return merged

    def _best_of_all(self) -> tuple[Followed, Tensor]:
        """The best of all that was noted, the first of equals, and which problems have one whose cost is finite."""
        lowest = torch.stack([cost for cost, _ in self._best])
        index = lowest.argmin(0, keepdim=True)

        def of_best(*leaf: Tensor) -> Tensor:
            at = index.reshape(index.shape + (1,) * (leaf[0].dim() - self._dim))
            return torch.take_along_dim(torch.stack(leaf), at, 0).squeeze(0)

        first, *others = (followed for _, followed in self._best)
        return map_tensors(of_best, first, *others), lowest.gather(0, index).squeeze(0).isfinite()


def batch_first(states: Any, batch_dims: int, num_particles: int) -> Any:
    """States `([P,] *batch, H + 1, n, *s)` as `(*batch, n, [P,] H + 1, *s)`."""
    if num_particles == 1:
        return map_tensors(lambda leaf: leaf.movedim(batch_dims + 1, batch_dims), states)
    at = (batch_dims, batch_dims + 1)
    return map_tensors(lambda leaf: leaf.movedim(batch_dims + 2, 0).movedim((0, 1), at), states)

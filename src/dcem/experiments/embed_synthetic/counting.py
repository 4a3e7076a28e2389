"""What a search spends, and what it has found by then."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dcem.experiments.embed_synthetic.task import Problems

FLOOR = 1e-6
"""Costs below it are not told apart; a batch that is there altogether is finished."""


class Outcome(NamedTuple):
    """Of a search: the lowest cost of each problem by evaluations, and when it was solved.

    Attributes:
        evaluations: where the course is taken, `(m,)`.
        costs: lowest so far, `(n, m)`.
        solved: evaluations until the target was reached, `(n,)`; infinite where it was not.
    """

    evaluations: Tensor
    costs: Tensor
    solved: Tensor


class Counted:
    """Problems that count what is evaluated, and keep the lowest values; what comes after the budget is not kept.

    A value counts 1, a value with its gradient 2.

    Args:
        problems: to solve.
        budget: evaluations a problem.
        target: cost at which a problem counts as solved.
        num_marks: points at which the course is taken, evenly spaced in the logarithm.
    """

    def __init__(self, problems: Problems, budget: int, target: float, num_marks: int = 60) -> None:
        self.problems, self.budget, self.target, self.num_marks = problems, budget, target, num_marks
        self.spent, like = 0, problems.own
        self.lowest, self.solved = like.new_full((2, len(problems)), math.inf)
        marks = torch.logspace(1, math.log10(budget), num_marks, dtype=torch.float64).round().long()
        self.marks = marks.to(like.device)  # which are the same wherever they are
        self._costs = like.new_full((len(problems), num_marks), math.inf)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to spend, or nothing left to find."""
        return self.spent >= self.budget or bool((self.lowest <= FLOOR).all())

    def alone(self, index: int) -> Counted:
        """One of the problems, with an account of its own."""
        one = self.problems.some(torch.tensor([index], device=self.lowest.device))
        return Counted(one, self.budget, self.target, self.num_marks)

    def __call__(self, x: Tensor, price: int = 1) -> Tensor:
        """Values `(n, M)` of `x` `(n, M, N)`, which count in their order."""
        values = self.problems(x)
        seen = values.detach()[:, : (self.budget - self.spent) // price]
        course = torch.cat([self.lowest.unsqueeze(1), seen], 1).cummin(1).values
        counts = self.spent + price * torch.arange(course.shape[1], device=course.device)
        here = (self.marks >= self.spent) & (self.marks <= int(counts[-1]))
        self._costs[:, here] = course[:, (self.marks[here] - self.spent) // price]
        at = (course <= self.target).float().argmax(1)  # the first, or 0 where there is none
        first = counts[at].to(course).where(course[:, -1] <= self.target, math.inf)
        self.solved = self.solved.minimum(first)
        self.lowest = course[:, -1]
        self.spent = min(self.budget, self.spent + price * values.shape[1])
        return values

    def outcome(self) -> Outcome:
        """Of what was evaluated so far; a search that has ended early stays where it is."""
        costs = self._costs.cummin(1).values.minimum(
            torch.where(self.marks < self.spent, math.inf, self.lowest.unsqueeze(1))
        )
        return Outcome(self.marks.cpu(), costs.clamp_min(FLOOR).cpu(), self.solved.cpu())


def joined(outcomes: list[Outcome]) -> Outcome:
    """The outcome of all the problems of several."""
    evaluations, costs, solved = zip(*outcomes, strict=True)
    return Outcome(evaluations[0], torch.cat(costs), torch.cat(solved))


def expected_evaluations(solved: Tensor, budget: int) -> float:
    """All evaluations, over the problems that they have solved: what one costs if a search may be started again.

    Infinite if none is solved.

    Example:
        >>> import torch
        >>> expected_evaluations(torch.tensor([100.0, 300.0, torch.inf]), 1000)
        700.0

    Source: Hansen et al., "Real-parameter black-box optimization benchmarking 2009", the expected running time.
    """
    hits = int(solved.isfinite().sum())
    return float(solved.clamp_max(budget).sum()) / hits if hits else math.inf

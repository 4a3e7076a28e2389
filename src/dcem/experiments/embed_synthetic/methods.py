"""The searches that are compared, and what is counted as saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import dcem
from dcem.embedding import MLPDecoder, embed
from dcem.experiments.embed_synthetic.settings import BOX
from dcem.experiments.embed_synthetic.task import Problems
from dcem.experiments.harness.settings import Search

LABELS = {
    "cem": "full-space CEM",
    "icem": "full-space iCEM",
    "random": "random embedding",
    "pca": "principal components",
    "learned": "learned embedding",
}
Curve = list[list[float]]
"""Pairs of evaluations a problem so far, and the cost reached, a mean over problems."""


@torch.no_grad()
def search(
    problems: Problems,
    solver: dcem.CEM,
    settings: Search,
    generator: torch.Generator,
    decoder: Callable[[Tensor], Tensor] | None = None,
    noise: dcem.ColoredNoise | None = None,
) -> tuple[Curve, Tensor]:
    """Solve all problems, over the latent if there is a decoder: the course of the cost, and the answers found."""
    num, size = problems.solution.shape
    objective: Callable[[Tensor], Tensor] = problems if decoder is None else embed(problems, decoder)
    latent = problems.config.latent_size
    like = problems.solution
    init = like.new_full((num, size), 0.5) if decoder is None else like.new_zeros(num, latent)
    curve: Curve = []

    def note(iteration: dcem.Iteration) -> None:
        evaluations = (curve[-1][0] if curve else 0) + iteration.values.shape[-1]
        cost = objective(iteration.distribution.mean.unsqueeze(1)).mean()
        curve.append([evaluations, float(cost)])

    solution = dcem.minimize(
        objective,
        init,
        solver,
        num_iterations=settings.num_iterations,
        bounds=(0, 1) if decoder is None else BOX,
        generator=generator,
        noise=noise,
        callback=note,
    )
    return curve, solution.x


def needed(curve: Curve, cost: float) -> float | None:
    """Evaluations until the cost is reached, if it is."""
    return next((evaluations for evaluations, reached in curve if reached <= cost), None)


def saved(curves: dict[str, Curve], rival: str) -> dict[str, float | None]:
    """What the learned embedding saves: evaluations of the rival over its own until both reach the same cost.

    Once at the rival's final cost, which it counts as having reached when within 1 % (or one in a million); once at the
    learned embedding's own final cost within 5 %: a lower bound, with the rival's whole budget, if the rival never
    gets there.
    """
    theirs, ours = curves[rival], curves["learned"]
    target, own = max(1.01 * theirs[-1][1], 1e-6), 1.05 * ours[-1][1]
    until, mine, alone = needed(theirs, target), needed(ours, target), needed(ours, own)
    assert until is not None
    assert alone is not None
    there = needed(theirs, own)
    return {
        "rival_evaluations": until,
        "evaluations": mine,
        "factor": None if mine is None else until / mine,
        "rival_evaluations_at_own_cost": there or theirs[-1][0],
        "evaluations_at_own_cost": alone,
        "factor_at_own_cost": (there or theirs[-1][0]) / alone,
        "rival_gets_there": float(there is not None),
    }


class Part(NamedTuple):
    """One size and seed: the course of every method on the same test problems, and what the figures need."""

    curves: dict[str, Curve]
    seconds: float
    decoder: MLPDecoder

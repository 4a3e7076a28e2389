"""The searches that are compared, and what is counted as saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import dcem
from dcem.embedding import MLPDecoder, embed
from dcem.experiments.embed_synthetic.settings import BOX, Config, Search
from dcem.experiments.embed_synthetic.task import Problems
from dcem.experiments.harness.training import choose_device

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


def random_embedding(config: Config, size: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A random linear map, clipped to the box (REMBO: Wang et al., IJCAI 2013), with the spread of the solutions."""
    matrix = torch.randn(config.latent_size, size, generator=generator) * (0.5 / math.sqrt(config.latent_size))
    matrix = matrix.to(choose_device(config.device))
    return lambda z: (0.5 + z @ matrix).clamp(0, 1)


def principal_components(config: Config, solutions: Tensor) -> Callable[[Tensor], Tensor]:
    """The linear map that fits given solutions best; the box is two standard deviations wide on either side."""
    mean = solutions.mean(0)
    _, scale, directions = torch.linalg.svd(solutions - mean, full_matrices=False)
    kept = min(config.latent_size, len(scale))
    matrix = solutions.new_zeros(config.latent_size, solutions.shape[1])
    matrix[:kept] = 2 * scale[:kept, None] / math.sqrt(len(solutions) - 1 or 1) * directions[:kept]
    return lambda z: (mean + z @ matrix).clamp(0, 1)


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

"""The searches that are compared: each solves a batch of problems that count what it spends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dcem
from dcem.embedding import LinearDecoder
from dcem.experiments.embed_synthetic.counting import Counted, Outcome, joined
from dcem.experiments.embed_synthetic.settings import BOX
from dcem.experiments.embed_synthetic.task import cosines

LABELS = {
    "cem": "CEM, full space",
    "icem": "iCEM, full space",
    "cma": "BIPOP sep-CMA-ES",
    "adam": "gradient descent, restarts",
    "random": "random embedding",
    "cosine": "cosine coefficients",
    "pca": "principal components",
    "learned": "learned embedding",
}
_FULL = [
    {"num_samples": 100, "num_elites": 10, "num_iterations": 100, "std": 0.3},
    {"num_samples": 300, "num_elites": 30, "num_iterations": 33, "std": 0.3},
    {"num_samples": 1000, "num_elites": 100, "num_iterations": 10, "std": 0.3},
    {"num_samples": 100, "num_elites": 10, "num_iterations": 100, "std": 0.1},
]
_SMALL = [
    {"num_samples": 50, "num_elites": 5, "num_iterations": 5, "std": 0.5},
    {"num_samples": 50, "num_elites": 5, "num_iterations": 10, "std": 0.5},
    {"num_samples": 100, "num_elites": 10, "num_iterations": 10, "std": 0.5},
    {"num_samples": 200, "num_elites": 20, "num_iterations": 10, "std": 0.5},
]
_WIDE = [
    {"num_samples": 100, "num_elites": 10, "num_iterations": 30, "std": 0.3},
    {"num_samples": 200, "num_elites": 20, "num_iterations": 20, "std": 0.3},
    {"num_samples": 300, "num_elites": 20, "num_iterations": 15, "std": 0.5},
]
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "cem": _FULL,
    "icem": [one | {"keep": 0.3, "colour": colour} for colour in (0.5, 2.0) for one in _FULL[:2]],
    "cma": [{"std": std, "population": factor} for std, factor in ((0.3, 2), (0.3, 8), (0.1, 8))],
    "adam": [{"rate": rate, "num_steps": steps} for rate, steps in ((0.01, 100), (0.1, 100), (0.3, 100), (0.3, 400))],
    "random": [_SMALL[1] | {"latent_size": 3}, _WIDE[1] | {"latent_size": 28}],
    "cosine": [one | {"latent_size": size} for size, some in ((28, _WIDE), (20, _WIDE[1:2])) for one in some],
    "pca": [one | {"latent_size": size} for size in (6, 12) for one in _SMALL[1:3]],
    "learned": _SMALL,
}
"""Settings of each, from which those that do best on the validation problems are taken."""
POLISH = (0.01, 100)
"""Rate and steps of the gradient descent in the full space with which every search by samples ends."""
Decoder = Callable[[Tensor], Tensor]


def descend(counted: Counted, x: Tensor, rate: float, num_steps: int) -> Tensor:
    """Adam from `x` `(n, M, N)`, its rate falling to 0."""
    x = x.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        if counted.done:
            break
        optimizer.zero_grad()
        counted(x, price=2).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach()


def restarted_descent(counted: Counted, generator: torch.Generator, rate: float, num_steps: int) -> Outcome:
    """Gradient descent from random starts, ten at a time."""
    num, size = counted.problems.own.shape
    while not counted.done:
        starts = torch.rand(num, 10, size, generator=generator, device=counted.problems.own.device)
        descend(counted, starts, rate, num_steps)
    return counted.outcome()


def search(
    counted: Counted,
    generator: torch.Generator,
    decoder: Decoder | None = None,
    *,
    latent_size: int | None = None,
    num_samples: int,
    num_elites: int,
    num_iterations: int,
    std: float,
    keep: float = 0.0,
    colour: float = 0.0,
) -> Outcome:
    """The cross-entropy method, over a latent if there is a decoder; then gradient descent from its best sample.

    It starts at the centre of the box, and again at random until the budget is spent. The mean of each iteration is
    evaluated, too.
    """
    num, size = counted.problems.own.shape
    low, high = (0.0, 1.0) if decoder is None else BOX
    decode: Decoder = decoder if decoder is not None else lambda x: x
    solver = dcem.CEM(num_samples, num_elites, dcem.HardTopK(), init_std=std, keep_elites=keep)
    noise = dcem.ColoredNoise(colour) if colour else None
    start = counted.problems.own.new_full((num, latent_size or size), (low + high) / 2)
    while not counted.done:
        best, answer = start.new_full((num,), math.inf), start

        def note(iteration: dcem.Iteration) -> bool:
            nonlocal best, answer
            mean = iteration.distribution.mean.unsqueeze(1)
            z = torch.cat([iteration.samples, mean], 1)
            value, index = torch.cat([iteration.values, counted(decode(mean))], 1).min(1)
            answer = z[torch.arange(num), index].where((value < best).unsqueeze(1), answer)
            best = best.minimum(value)
            return counted.done

        with torch.no_grad():
            dcem.minimize(
                lambda z: counted(decode(z)), start, solver, num_iterations=num_iterations, bounds=(low, high),
                generator=generator, noise=noise, callback=note,
            )  # fmt: skip
            found = decode(answer.unsqueeze(1))
        descend(counted, found, *POLISH)
        start = low + (high - low) * torch.rand(start.shape, generator=generator, device=start.device)
    return counted.outcome()


def cosine_decoder(num: int, size: int) -> LinearDecoder:
    """The slowest waves, a constant first: a basis for whoever knows that answers are smooth, and nothing else."""
    return LinearDecoder(0.25 * cosines(range(num), size), torch.full((size,), 0.5), bounds=(0, 1))


def evolution(counted: Counted, generator: torch.Generator, std: float, population: int) -> Outcome:
    """CMA-ES with a diagonal covariance and BIPOP restarts from random starts, by the package `cma`.

    Source: Ros & Hansen, "A simple modification in CMA-ES achieving linear time and space complexity", 2008; Hansen,
    "Benchmarking a BI-population CMA-ES on the BBOB-2009 function testbed".
    """
    import cma
    import numpy as np

    size, outcomes = counted.problems.size, []
    for index in range(len(counted.problems)):
        one = counted.alone(index)

        def values(candidates: list[Any], one: Counted = one) -> list[float]:
            x = torch.as_tensor(np.asarray(candidates)).to(one.problems.own)
            found: list[float] = one(x.unsqueeze(0))[0].tolist()
            return found

        while not one.done:
            seed = int(torch.randint(1, 2**31, (), generator=generator))
            drawn = np.random.default_rng(seed)
            options = {
                "bounds": [0, 1], "CMA_diagonal": True, "seed": seed, "verbose": -9, "ftarget": 0.0,
                "popsize": population * (4 + int(3 * math.log(size))), "maxfevals": counted.budget - one.spent,
                "termination_callback": lambda _, one=one: one.done,
            }  # fmt: skip
            cma.fmin2(
                None, lambda drawn=drawn: drawn.uniform(size=size), std, options, parallel_objective=values,
                restarts=9, bipop=True,
            )  # fmt: skip
        outcomes.append(one.outcome())
    return joined(outcomes)

"""The candidates that a solver looked at, as negatives, and the density that they were drawn from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dcem._given import brief
from dcem._setup import Setup
from dcem.distributions import WhiteNoise
from dcem.energy.model import EnergyModel
from dcem.gradients import Detach
from dcem.solution import Solution
from dcem.solvers import CEM, SamplingSolver


def mine(
    model: EnergyModel, x: Tensor, num_starts: int, generator: torch.Generator | None, options: dict[str, Any]
) -> tuple[Solution, Tensor]:
    """What the solver evaluated, `(*batch, M, *latent)`; the starts are a leading axis of the solve."""
    batch_dims, solver = len(model.batch_shape(x)), model.solver
    start = model.start(x)
    init = None
    if num_starts > 1:
        x = x.expand(num_starts, *x.shape)
        if not isinstance(solver, SamplingSolver):
            if isinstance(start, Tensor):
                start = solver.distribution(start, len(model.latent_shape))
            shape = (*start.batch_shape, num_starts, *start.event_shape)
            noise = torch.randn(shape, generator=generator, dtype=start.mean.dtype, device=start.mean.device)
            init = start.rsample(noise).movedim(batch_dims, 0)
    found = model.solve(x, init=init, generator=generator, **{**options, "record": True, "gradient": Detach()})
    extra = 1 if num_starts > 1 else 0
    samples = torch.cat([iteration.samples for iteration in found.history], batch_dims + extra)
    if extra:
        samples = samples.movedim(0, batch_dims).flatten(batch_dims, batch_dims + 1)
    return found, samples


def check_correction(model: EnergyModel, options: dict[str, Any]) -> None:
    """Check that the density of the candidates is known: that of the solver's distributions, and no other."""
    solver, noise = model.solver, options.get("noise")
    if model.decoder is not None or model.bounds is not None or options.get("bounds") is not None:
        raise ValueError("correction: expected a model without bounds and decoder, whose candidates have a density")
    if not isinstance(solver, SamplingSolver) or getattr(solver, "keep_elites", 0) > 0:
        raise ValueError(f"correction: expected a sampling solver without kept elites, got {brief(solver)}")
    if type(solver).sample not in (SamplingSolver.sample, CEM.sample):
        raise ValueError(f"correction: expected a solver that draws from its distribution, got {brief(solver)}")
    if options.get("proposals") is not None:
        raise ValueError("correction: expected no proposals, whose density is not known")
    if noise is not None and not isinstance(noise, (Tensor, WhiteNoise)):
        raise ValueError(f"correction: expected independent draws, got noise={noise!r}")


@torch.no_grad()
def log_density(model: EnergyModel, x: Tensor, solution: Solution, y: Tensor, num_starts: int) -> Tensor:
    """The log-density, `(*batch, M)`, of the mixture of the distributions that the candidates were drawn from."""
    first = Setup.of(
        model.start(x), model.solver, num_iterations=None, event_dims=len(model.latent_shape), bounds=None,
        generator=None, noise=None, proposals=None,
    ).start.distribution  # fmt: skip
    drawn_from = [first, *(iteration.distribution for iteration in solution.history[:-1])]
    counts = [iteration.values.shape[-1] for iteration in solution.history]
    terms = []
    for distribution, count in zip(drawn_from, counts, strict=True):
        density = distribution.log_prob(y)
        if num_starts > 1 and distribution is not first:
            density = density.logsumexp(0) - math.log(num_starts)
        terms.append(density + math.log(count / sum(counts)))
    return torch.stack(terms).logsumexp(0)

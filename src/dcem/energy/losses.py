"""How an energy model is trained: through its prediction, or by telling targets from other candidates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dcem.bounds import Bounds
from dcem.distributions import Gaussian
from dcem.energy.model import EnergyModel
from dcem.gradients import Detach
from dcem.solution import Solution
from dcem.solvers import SamplingSolver


def end_to_end_loss(
    model: EnergyModel,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    **options: Any,
) -> Tensor:
    """The loss of the prediction, `loss(model(x), y)`, after checking that the prediction could be `y` at all.

    It asks that the solve ends at the target, not that the energy be lowest there, and it is blind to a second answer:
    where several `y` belong to one `x`, squared errors are smallest at their mean.

    Args:
        model: The model.
        x: Inputs `(*batch, *feature)`.
        y: Targets `(*batch, *event)`.
        loss: Of prediction and target.
        **options: For `model`: `generator`, `num_iterations`, ...

    Raises:
        ValueError: `y` has another shape or lies outside the model's bounds.

    Source: Belanger, Yang & McCallum, ICML 2017; Amos & Yarats, ICML 2020, section 4.1.

    >>> import dcem
    >>> model = EnergyModel(dcem.energy.MLPEnergy(3, 2), 2, dcem.GradientDescent(0.1), bounds=(0, 1))
    >>> end_to_end_loss(model, torch.zeros(5, 3), torch.full((5, 2), 7.0))
    Traceback (most recent call last):
    ValueError: y: expected targets inside the model's bounds (0, 1), got values from 7 to 7
    """
    check_targets(model, x, y)
    return loss(model(x, **options), y)


def contrastive_loss(
    model: EnergyModel,
    x: Tensor,
    y: Tensor,
    *,
    num_negatives: int = 64,
    num_starts: int = 1,
    temperature: float | Tensor = 1.0,
    correction: bool = False,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """InfoNCE: the target must have a lower energy than candidates that the model's own solver found attractive.

    The negatives are drawn from all candidates that a solve evaluates: those of DCEM cover the space at first and the
    low energies at last; those of gradient descent are its iterates. The solve is not differentiated. Several answers
    to one `x` are no problem: the energy learns a valley at each.

    Args:
        model: The model; its solver mines the negatives.
        x: Inputs `(*batch, *feature)`.
        y: Targets `(*batch, *event)`.
        num_negatives: How many of the candidates to keep, at random (all, if there are fewer).
        num_starts: Solves an input. Gradient descent starts each at random, from `init_mean` and `init_std` (or the
        solver's); one start of it has no more negatives than iterations.
        temperature: Divides the energies.
        correction: Weigh each candidate by its density under the solver's own Gaussians. The loss is then an estimate
        of the negative log-likelihood of `p(y|x) ∝ exp(-E/temperature)`, by importance sampling; without it the
        energy also absorbs where the solver looks. It needs a sampling solver without bounds, decoder or kept elites.
        generator: Source of randomness.
        **options: For the solve: `num_iterations`, `noise`, ...

    Returns:
        The mean over the batch of `-log softmax(-E/temperature)` at the target; with `correction`, of the estimated
        `-log p(y|x)`.

    Raises:
        ValueError: `y` has another shape or lies outside the model's bounds; a count is not positive; `correction`
        with a model that cannot have it.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018; the correction:
    Ma & Collins, "Noise Contrastive Estimation and Negative Sampling for Conditional Models", EMNLP 2018; negatives
    from a derivative-free optimiser: Florence et al., "Implicit Behavioral Cloning", CoRL 2021.

    >>> import dcem
    >>> model = EnergyModel(dcem.energy.MLPEnergy(3, 2), 2, dcem.CEM())
    >>> contrastive_loss(model, torch.zeros(5, 3), torch.zeros(5, 2)).shape
    torch.Size([])
    """
    check_targets(model, x, y)
    for name, count in (("num_negatives", num_negatives), ("num_starts", num_starts)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    if correction:
        _check_correction(model)
    batch_dims = len(model.batch_shape(x))
    with torch.no_grad():
        solution, candidates = _mine(model, x, num_starts, generator, options)
        found = candidates.shape[batch_dims]
        if found > num_negatives:
            scores = torch.rand(candidates.shape[: batch_dims + 1], generator=generator, device=candidates.device)
            chosen = scores.topk(num_negatives, dim=-1).indices
            chosen = chosen.reshape(*chosen.shape, *(1,) * len(model.latent_shape))
            candidates = candidates.take_along_dim(chosen, batch_dims)
        negatives = model.decode(candidates)
    everything = torch.cat([y.unsqueeze(batch_dims), negatives], batch_dims)
    logits = -model.objective(x)(everything) / temperature
    if not correction:
        return (logits.logsumexp(-1) - logits[..., 0]).mean()
    weights = logits - _log_density(model, x, solution, everything, num_starts)
    return (weights.logsumexp(-1) - logits[..., 0]).mean() - math.log(everything.shape[batch_dims])


def check_targets(model: EnergyModel, x: Tensor, y: Tensor) -> None:
    """Check that `y` is something that the model could predict for `x`: its shape, and the bounds."""
    expected = (*model.batch_shape(x), *model.event_shape)
    if tuple(y.shape) != expected:
        raise ValueError(f"y: expected targets (*batch, *event) = {expected}, got {tuple(y.shape)}")
    if model.bounds is None or model.decoder is not None:
        return
    box = Bounds.check(model.bounds, torch.Size(model.event_shape), y)
    if box is not None and not box.contains(y).all():
        low, high = (side.tolist() if isinstance(side, Tensor) else side for side in model.bounds)
        raise ValueError(
            f"y: expected targets inside the model's bounds ({low}, {high}), "
            f"got values from {float(y.min()):g} to {float(y.max()):g}"
        )


def _mine(
    model: EnergyModel, x: Tensor, num_starts: int, generator: torch.Generator | None, options: dict[str, Any]
) -> tuple[Solution, Tensor]:
    """What the solver evaluated, `(*batch, M, *latent)`; the starts are a leading axis of the solve."""
    batch_dims = len(model.batch_shape(x))
    start = model.start(x)
    init = None
    if num_starts > 1:
        x = x.expand(num_starts, *x.shape)
        if not isinstance(model.solver, SamplingSolver):
            if isinstance(start, Tensor):
                start = model.solver.distribution(start, len(model.latent_shape))
            shape = (*start.batch_shape, num_starts, *start.event_shape)
            noise = torch.randn(shape, generator=generator, dtype=start.mean.dtype, device=start.mean.device)
            init = start.rsample(noise).movedim(batch_dims, 0)
    found = model.solve(x, init=init, generator=generator, **{**options, "record": True, "gradient": Detach()})
    extra = 1 if num_starts > 1 else 0
    samples = torch.cat([iteration.samples for iteration in found.history], batch_dims + extra)
    if extra:
        samples = samples.movedim(0, batch_dims).flatten(batch_dims, batch_dims + 1)
    return found, samples


def _check_correction(model: EnergyModel) -> None:
    solver = model.solver
    if model.decoder is not None or model.bounds is not None:
        raise ValueError("correction: expected a model without bounds and decoder, whose candidates have a density")
    if not isinstance(solver, SamplingSolver) or getattr(solver, "keep_elites", 0) > 0:
        raise ValueError(f"correction: expected a sampling solver without kept elites, got {solver}")


@torch.no_grad()
def _log_density(model: EnergyModel, x: Tensor, solution: Solution, y: Tensor, num_starts: int) -> Tensor:
    """The log-density, `(*batch, M)`, of the mixture of the Gaussians that the candidates were drawn from."""
    start = model.start(x)
    if isinstance(start, Tensor):
        start = model.solver.distribution(start, len(model.latent_shape))
    first = model.solver.init(start).distribution
    drawn_from = [first, *(iteration.distribution for iteration in solution.history[:-1])]
    counts = [iteration.values.shape[-1] for iteration in solution.history]
    event_dims, terms = len(model.latent_shape), []
    for distribution, count in zip(drawn_from, counts, strict=True):
        if not isinstance(distribution, Gaussian):
            raise ValueError(f"correction: expected a dcem.Gaussian to draw from, got {type(distribution).__name__}")
        mean, std = (t.unsqueeze(-1 - event_dims) for t in (distribution.mean, distribution.std))
        log_density = -0.5 * ((y - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        summed = log_density.flatten(-event_dims).sum(-1) if event_dims else log_density
        if num_starts > 1 and distribution is not first:
            summed = summed.logsumexp(0) - math.log(num_starts)
        terms.append(summed + math.log(count / sum(counts)))
    return torch.stack(terms).logsumexp(0)

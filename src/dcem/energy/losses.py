"""How an energy model is trained: through its prediction, or by telling targets from other candidates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dcem._check import check_count, check_flag, check_positive, check_tensor
from dcem._evaluate import Evaluation
from dcem._guard import WithData
from dcem.bounds import Bounds
from dcem.energy.model import EnergyModel, check_model
from dcem.energy.negatives import check_correction, log_density, mine
from dcem.projections.checks import of_rows


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
        TypeError: `model` is none, or `x` or `y` is no Tensor.
        ValueError: `y` has another shape or lies outside the model's bounds.

    Source: Belanger, Yang & McCallum, ICML 2017; Amos & Yarats, ICML 2020, section 4.1.

    >>> import dcem
    >>> model = EnergyModel(dcem.energy.MLPEnergy(3, 2), 2, dcem.GradientDescent(0.1), bounds=(0, 1))
    >>> end_to_end_loss(model, torch.zeros(5, 3), torch.full((5, 2), 7.0))
    Traceback (most recent call last):
    ValueError: y: expected targets inside the model's bounds (0, 1), got values from 7 to 7
    """
    check_targets(model, x, y)
    return loss(at_least_single(model(x, **options)), at_least_single(y))


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
        temperature: Divides the energies; a tensor is one for all, or one a problem in a shape that broadcasts to
        `batch`.
        correction: Weigh each candidate by its density under the solver's distributions. The loss is then an estimate
        of the negative log-likelihood of `p(y|x) ∝ exp(-E/temperature)`, by importance sampling; without it the
        energy also absorbs where the solver looks. It needs a sampling solver without bounds, decoder or kept elites,
        and independent draws.
        generator: Source of randomness.
        **options: For the solve: `num_iterations`, `noise`, ...

    Returns:
        The mean over the batch of `-log softmax(-E/temperature)` at the target; with `correction`, of the estimated
        `-log p(y|x)`. A candidate whose energy is not finite counts as improbable and gets no gradient; a problem whose
        target has such an energy is left out of the mean, which is NaN where none is left. Of at least single
        precision.

    Raises:
        TypeError: `model` is none, or `x` or `y` is no Tensor.
        ValueError: `y` has another shape or lies outside the model's bounds; a count or `temperature` is not
        positive, the latter has another shape; `correction` with a model or options that cannot have it.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018; the correction:
    Ma & Collins, "Noise Contrastive Estimation and Negative Sampling for Conditional Models", EMNLP 2018; negatives
    from a derivative-free optimiser: Florence et al., "Implicit Behavioral Cloning", CoRL 2021.

    >>> import dcem
    >>> model = EnergyModel(dcem.energy.MLPEnergy(3, 2), 2, dcem.CEM())
    >>> contrastive_loss(model, torch.zeros(5, 3), torch.zeros(5, 2)).shape
    torch.Size([])
    """
    check_targets(model, x, y)
    num_negatives, num_starts = check_count("num_negatives", num_negatives), check_count("num_starts", num_starts)
    check_positive("temperature", temperature)
    if check_flag("correction", correction):
        check_correction(model, options)
    batch_dims, event_dims = len(model.batch_shape(x)), len(model.event_shape)
    with torch.no_grad():
        solution, candidates = mine(model, x, num_starts, generator, options)
        found = candidates.shape[batch_dims]
        if found > num_negatives:
            scores = torch.rand(candidates.shape[: batch_dims + 1], generator=generator, device=candidates.device)
            chosen = scores.topk(num_negatives, dim=-1).indices
            chosen = chosen.reshape(*chosen.shape, *(1,) * len(model.latent_shape))
            candidates = candidates.take_along_dim(chosen, batch_dims)
        # A solve has at least single precision; decoder and energy are given candidates of the dtype that they know.
        start = model.start(x)
        dtype = (start if isinstance(start, Tensor) else start.mean).dtype
        negatives = candidates
        if model.decoder is not None:
            negatives = model.decode(candidates.to(dtype))
            dtype = torch.promote_types(dtype, negatives.dtype)
    everything = torch.cat([at_least_single(of) for of in (y.unsqueeze(batch_dims), negatives)], batch_dims)
    energy = WithData.of(model.objective(x))
    energies = Evaluation(energy, y.shape[:batch_dims], event_dims, dtype, generator)(everything)
    if isinstance(temperature, Tensor):
        temperature = of_rows("temperature", temperature, energies, batch_dims)
    finite = energies.isfinite()
    logits = torch.where(finite, -torch.where(finite, energies, 0.0) / temperature, -math.inf)
    weights, offset = logits, 0.0
    if correction:
        density = log_density(model, x, solution, everything, num_starts)
        weights = torch.where(finite, logits - density, -math.inf)
        offset = math.log(everything.shape[batch_dims])
    usable = finite[..., 0]
    losses = torch.where(usable, weights.logsumexp(-1) - logits[..., 0] - offset, 0.0)
    return losses.sum() / usable.sum()


def check_targets(model: EnergyModel, x: Tensor, y: Tensor) -> None:
    """Check that `y` is something that the model could predict for `x`: its shape, and the bounds."""
    check_model(model)
    expected = (*model.batch_shape(x), *model.event_shape)
    check_tensor("y", y, "of targets (*batch, *event)")
    if tuple(y.shape) != expected:
        raise ValueError(f"y: expected targets (*batch, *event) = {expected}, got {tuple(y.shape)}")
    if model.bounds is None or model.decoder is not None:
        return
    box = Bounds.check(model.bounds, torch.Size(model.event_shape), y)
    if box is not None and not box.contains(y).all():
        bounds: Any = model.bounds
        sides = (bounds.low, bounds.high) if hasattr(bounds, "low") else bounds
        low, high = (side.tolist() if hasattr(side, "tolist") else side for side in sides)
        raise ValueError(
            f"y: expected targets inside the model's bounds ({low}, {high}), "
            f"got values from {float(y.min()):g} to {float(y.max()):g}"
        )


def at_least_single(x: Tensor) -> Tensor:
    """Half precision as single: what is summed over a batch needs more digits than one number of it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

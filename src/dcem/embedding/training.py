"""Learn a decoder from the objective alone, through the solve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcem._check import check_positive
from dcem._given import brief
from dcem._guard import evaluated
from dcem._setup import NoiseSource
from dcem._tree import detach
from dcem.bounds import BoundsLike
from dcem.distributions import Distribution
from dcem.embedding.objective import decode, embed
from dcem.gradients import GradientMode, Unroll
from dcem.loop import minimize
from dcem.solution import Solution
from dcem.solvers import CEM, Solver


class DecoderStep(NamedTuple):
    """What came out of `decoder_step`; nothing of it requires a gradient.

    Attributes:
        loss: the mean of `values` over the problems where it is finite, before the update: `()`; NaN without one.
        values: `f(dec(ẑ))`, `(*batch,)`.
        x: `dec(ẑ)`, `(*batch, *event)`.
        solution: of the solve over `z`.
        gradient_norm: before it was clipped, `()`; NaN where no loss was finite.
        updated: whether the parameters were changed: False where the loss or its gradient is not finite.
    """

    loss: Tensor
    values: Tensor
    x: Tensor
    solution: Solution
    gradient_norm: Tensor
    updated: bool


def decoder_step(
    objective: Callable[[Tensor], Tensor],
    decoder: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    init: Distribution | Tensor,
    solver: Solver | None = None,
    *,
    num_iterations: int = 10,
    gradient: GradientMode | None = None,
    bounds: BoundsLike | None = None,
    max_grad_norm: float | None = 1.0,
    generator: torch.Generator | None = None,
    noise: Tensor | NoiseSource | None = None,
) -> DecoderStep:
    """Make a decoder better at problems of this kind: solve them over `z`, and follow `∇_θ f(dec_θ(ẑ))`.

    One update of "embedded control space": `ẑ = argmin_z f(dec_θ(z))` for a batch of problems, then a gradient step
    on the mean of `f(dec_θ(ẑ))`. The gradient flows through the value and, as `gradient` says, through the solve.
    No solutions by an expert are needed. Call it with fresh problems each time.

    A problem whose value is not finite is left out of the loss. Where nothing is left, or the gradient is not finite,
    the parameters and the optimizer's state stay as they are.

    Args:
        objective: `(*batch, N, *event) -> (*batch, N)`, the values of `N` candidates a problem.
        decoder: `(*batch, N, *latent) -> (*batch, N, *event)`. Without an attribute `latent_shape` its latent has
            one axis.
        optimizer: of the decoder's parameters, and of any others that shall learn: the temperature, a model inside
            the objective. Nothing else receives a gradient.
        init: where each solve starts: a distribution over `z`, or means `(*batch, *latent)`.
        solver: what minimises, `CEM(100, 10, LML(1.0))` by default.
        num_iterations: of the solve.
        gradient: how to differentiate the solve, [`dcem.Unroll`][] by default. A hard selection has no gradient to
            give: use [`dcem.Detach`][].
        bounds: the box of `z`.
        max_grad_norm: longer gradients are shortened to this; None for as they come.
        generator: source of the solve's randomness.
        noise: instead of drawing, as in [`dcem.minimize`][].

    Returns:
        The loss before the update, the solutions, and whether there was an update.

    Raises:
        TypeError: as [`dcem.minimize`][].
        ValueError: the loss depends on none of the optimizer's parameters, the decoder returns another shape than it
            says, and as [`dcem.minimize`][].

    Example:
        >>> import torch, dcem
        >>> from dcem.embedding import MLPDecoder, decoder_step
        >>> _ = torch.manual_seed(0)
        >>> decoder = MLPDecoder(1, 50, hidden=(32,))
        >>> optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
        >>> losses = []
        >>> for update in range(30):
        ...     target = torch.randn(8, 1, 1)  # eight problems: all 50 numbers shall be the target
        ...     step = decoder_step(lambda x: (x - target).square().mean(-1), decoder, optimizer, torch.zeros(8, 1))
        ...     losses.append(step.loss)
        >>> bool(losses[-1] < losses[0] / 2)
        True

    Source: Amos & Yarats, ICML 2020, section 4.2, algorithm "embedded control space".
    """
    if max_grad_norm is not None:
        check_positive("max_grad_norm", max_grad_norm)
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer: expected a torch optimizer, got {brief(optimizer)}")
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    latent_objective = embed(objective, decoder)
    with torch.enable_grad():
        solution = minimize(
            latent_objective,
            init,
            CEM() if solver is None else solver,
            num_iterations=num_iterations,
            gradient=Unroll() if gradient is None else gradient,
            event_dims=len(getattr(decoder, "latent_shape", (1,))),
            bounds=bounds,
            generator=generator,
            noise=noise,
        )
        sample_dim = solution.status.dim()
        z = solution.x.unsqueeze(sample_dim)
        values = evaluated(latent_objective, z, sample_dim).squeeze(sample_dim)
        values = values.to(torch.promote_types(values.dtype, torch.float32))  # half precision cannot add up a batch
        finite = values.isfinite()
        loss = values[finite].mean()
    with torch.no_grad():
        x = decode(decoder, z).squeeze(sample_dim)
    norm = loss.new_tensor(math.nan)
    learns = isinstance(decoder, nn.Module) and any(weight.requires_grad for weight in decoder.parameters())
    if learns and finite.any() and not loss.requires_grad:  # what failed altogether may be a constant
        raise ValueError(
            "objective: expected values with a gradient, which the decoder learns from, got values without (no_grad, "
            "detach, NumPy, a simulator)"
        )
    if finite.any():
        gradients = _gradients(loss, parameters)
        norm = nn.utils.get_total_norm([g for g in gradients if g is not None])
    updated = bool(norm.isfinite())
    if updated:
        for parameter, gradient_of_loss in zip(parameters, gradients, strict=True):
            parameter.grad = gradient_of_loss
        if max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        optimizer.step()
    return detach(DecoderStep(loss, values, x, solution, norm, updated))


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Those of the optimizer's parameters alone: others, such as a model's inside the objective, stay untouched."""
    gradients: tuple[Tensor | None, ...] = (None,)
    if loss.requires_grad and parameters:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    if all(g is None for g in gradients):
        raise ValueError(
            "optimizer: expected parameters that the value of a decoded candidate depends on, such as the decoder's; "
            f"got {len(parameters)} parameters, none of which it does"
        )
    return gradients

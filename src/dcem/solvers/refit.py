"""The refit of a diagonal Gaussian to LML-weighted samples, as one differentiable operation: `dcem::refit`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dcem._eager import all_true, does_only_its_own, is_transformed
from dcem.distributions import Gaussian
from dcem.kernels import differentiate, operators
from dcem.projections import LML, lml
from dcem.solvers.scores import scores_of


def refit(
    values: Tensor,
    samples: Tensor,
    num_elites: float,
    temperature: float,
    standardize: bool,
    min_std: float,
    max_std: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Weights `(*batch, N)`, mean and std `(*batch, *event)`, and which problems are valid; None where all are.

    Args:
        values: `(*batch, N)`.
        samples: `(*batch, N, *event)`.
        num_elites: what the weights sum to.
        temperature: that of the LML projection of the scores.
        standardize: whether values are brought to mean 0 and std 1.
        min_std: floor of the std.
        max_std: its ceiling, or None.
    """
    high = math.inf if max_std is None else max_std
    weights, mean, std, valid, _ = operators.refit(values, samples, num_elites, temperature, standardize, min_std, high)
    return weights, mean, std, None if all_true(valid) else valid


def is_plain_lml(selection: object) -> bool:
    """Whether a selection is the LML projection at a fixed temperature, and nothing besides."""
    if type(selection) is not LML or type(selection.temperature) not in (int, float):
        return False
    module: Any = selection
    return 0 < module.temperature < math.inf and does_only_its_own(module)


def _reference(
    values: Tensor, samples: Tensor, k: float, temperature: float, standardize: bool, min_std: float, max_std: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Weights, mean, std and which problems are valid: what `CEM` does in two steps, as differentiable as these."""
    scores, valid = scores_of(values, k, standardize=standardize)
    weights = lml(scores, k, temperature=temperature)
    event_dims = samples.dim() - values.dim()
    like = samples.detach().select(values.dim() - 1, 0)
    fitted = Gaussian(like, 1.0, event_dims).fit(samples, weights / weights.sum(-1, keepdim=True))
    fitted = fitted.clamp_std(min_std, max_std)
    return weights, fitted.mean, fitted.std, valid


def _composite(values: Tensor, samples: Tensor, *options: Any) -> tuple[Tensor, ...]:
    weights, mean, std, valid = _reference(values, samples, *options)
    batch, n, d = values.shape[:-1], values.shape[-1], samples.shape[values.dim() :].numel()
    if valid is None:
        valid = torch.ones(batch, dtype=torch.bool, device=values.device)
    return weights, mean, std, valid, values.new_zeros((*batch, operators.kept_size(n, d)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, samples, *ctx.options = inputs
    weights, _, std, valid, kept = output
    ctx.mark_non_differentiable(valid, kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(values, samples, weights, std, kept)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    values, samples, *saved = ctx.saved_tensors
    nothing = (None,) * len(ctx.options)
    if all(grad is None for grad in grads[:3]):
        return None, None, *nothing
    pull = _pull if torch.is_grad_enabled() else operators.refit_backward
    return *pull(values, samples, *ctx.options, *saved, *grads[:3]), *nothing


def _pull(values: Tensor, samples: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """`dcem::refit_backward` in differentiable operations: the refit again, by the reference."""
    options, grads = rest[:5], rest[-3:]
    given = [i for i, grad in enumerate(grads) if grad is not None]

    def outputs(values: Tensor, samples: Tensor) -> tuple[Tensor, ...]:
        found = _reference(values, samples, *options)
        return tuple(found[i] for i in given)  # type: ignore[misc]

    asked = tuple(grads[i] for i in given)
    if is_transformed():
        pulled: tuple[Tensor, Tensor] = torch.func.vjp(outputs, values, samples)[1](asked)
        return pulled
    # A transform of torch.func refuses hooks on saved tensors, such as those of torch.utils.checkpoint.
    with torch.enable_grad():
        values, samples = (x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in (values, samples))
        slopes = torch.autograd.grad(
            outputs(values, samples), (values, samples), asked, create_graph=True, materialize_grads=True
        )
    return slopes[0], slopes[1]


differentiate(operators.refit, _composite, _setup_context, _backward)
differentiate(operators.refit_backward, _pull)

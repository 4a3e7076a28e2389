"""The compiled refit of a diagonal Gaussian to LML-weighted samples, as one differentiable operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dcem import _native
from dcem._native import RefitOptions

Reference = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class _Refit(torch.autograd.Function):
    """``(values, samples) -> (weights, mean, std)``; by the reference where a gradient is differentiated again."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, samples: Tensor, like_mean: Tensor, options: RefitOptions, reference: Reference
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        saved, valid = _native.refit_forward(values, samples, like_mean, options)
        ctx.options, ctx.reference = options, reference
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(values, samples, *saved)
        return saved[0], saved[1], saved[2], valid

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        values, samples, *saved = ctx.saved_tensors
        again = torch.is_grad_enabled()
        if not again and _native.applies(values, *(grad for grad in grads[:3] if grad is not None)):
            given = [None if grad is None else grad.contiguous() for grad in grads[:3]]
            return *_native.refit_backward(values, samples, ctx.options, saved, given), None, None, None
        with torch.enable_grad():
            # Views, because values depend on samples: that way back is the engine's to go, not ours.
            views = values.view_as(values), samples.view_as(samples)
            outputs = zip(ctx.reference(*views), grads[:3], strict=True)
        reached, seeds = zip(*((output, grad) for output, grad in outputs if grad is not None), strict=True)
        inputs = [view for view in views if view.requires_grad]
        found = iter(torch.autograd.grad(reached, inputs, seeds, create_graph=again))
        return *(next(found) if view.requires_grad else None for view in views), None, None, None


def refit(
    values: Tensor, samples: Tensor, mean: Tensor, options: RefitOptions, reference: Reference
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Weights ``(*batch, N)``, mean and std ``(*batch, *event)`` of the refit, and which problems are valid.

    Args:
        values: ``(*batch, N)``.
        samples: ``(*batch, N, *event)``.
        mean: any tensor of shape ``(*batch, *event)``.
        options: what else it depends on.
        reference: the same ``(values, samples) -> (weights, mean, std)`` in differentiable operations.
    """
    inputs = values.contiguous(), samples.contiguous(), mean.detach().contiguous()
    outputs: tuple[Tensor, Tensor, Tensor, Tensor | None]
    outputs = _Refit.apply(*inputs, options, reference)  # type: ignore[no-untyped-call]
    return outputs

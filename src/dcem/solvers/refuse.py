"""No silent detach: a selection without a gradient says so when one is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcem._eager import has_tangent, in_forward_mode, is_transformed
from dcem.projections import HardTopK


class _Refuse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, scores: Tensor, name: str) -> Tensor:
        return weights.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        ctx.name = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(_reason(ctx.name))


def _reason(name: str) -> str:
    return (
        f"{name} has no gradient, and the solution was asked for one through the objective's values: "
        "use a soft selection (dcem.LML, dcem.ConstrainedSoftmax, dcem.ConstrainedSparsemax) or "
        "gradient=dcem.Implicit(), or say gradient=dcem.Detach() to train around the solve"
    )


def refuse_gradient(weights: Tensor, scores: Tensor, selection: object) -> Tensor:
    """Make a backward pass through ``weights`` an error where ``scores`` carry a gradient that ``weights`` lost.

    In forward mode the error comes at once: a tangent is there because it is asked for.
    """
    if torch.compiler.is_compiling():
        return weights
    name = type(selection).__name__
    if in_forward_mode() and has_tangent(scores) and not has_tangent(weights):
        raise RuntimeError(_reason(name))
    # Inside torch.func transforms tensors do not say whether they are differentiated.
    lost = scores.requires_grad or (is_transformed() and isinstance(selection, HardTopK))
    if not torch.is_grad_enabled() or not lost or weights.requires_grad:
        return weights
    result: Tensor = _Refuse.apply(weights, scores, name)  # type: ignore[no-untyped-call]
    return result

"""No silent detach: a selection without a gradient says so when one is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
        raise RuntimeError(
            f"{ctx.name} has no gradient, and the solution was asked for one through the objective's values: "
            "use a soft selection (dcem.LML, dcem.ConstrainedSoftmax, dcem.ConstrainedSparsemax) or "
            "gradient=dcem.Implicit(), or say gradient=dcem.Detach() to train around the solve"
        )


def refuse_gradient(weights: Tensor, scores: Tensor, selection: object) -> Tensor:
    """Make a backward pass through ``weights`` an error where ``scores`` carry a gradient that ``weights`` lost."""
    lost = torch.is_grad_enabled() and scores.requires_grad and not weights.requires_grad
    if not lost or torch.compiler.is_compiling():
        return weights
    result: Tensor = _Refuse.apply(weights, scores, type(selection).__name__)  # type: ignore[no-untyped-call]
    return result

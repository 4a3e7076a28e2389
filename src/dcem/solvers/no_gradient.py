"""No silent detach: a selection without a gradient says so when one is asked for."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from dcem._eager import has_tangent, in_forward_mode, is_transformed
from dcem.kernels import differentiate, operators


def refuse_gradient(weights: Tensor, scores: Tensor, selection: object) -> Tensor:
    """Make a backward pass through `weights` an error where `scores` carry a gradient that `weights` lost.

    In forward mode the error comes at once: a tangent is there because it is asked for.
    """
    lost = torch.is_grad_enabled() and scores.requires_grad and not weights.requires_grad
    # Inside torch.func transforms tensors do not say whether they are differentiated; an operator is told.
    if lost or in_forward_mode() or is_transformed():
        return _without_gradient(weights, scores, type(selection).__name__)
    return weights


def _raise(name: str) -> NoReturn:
    raise RuntimeError(
        f"{name} has no gradient, and the solution was asked for one through the objective's values: "
        "use a soft selection (dcem.LML, dcem.ConstrainedSoftmax, dcem.ConstrainedSparsemax) or "
        "gradient=dcem.Implicit(), or say gradient=dcem.Detach() to train around the solve"
    )


def _composite(weights: Tensor, scores: Tensor, name: str) -> Tensor:
    if has_tangent(scores) and not has_tangent(weights):
        _raise(name)
    return weights.clone()


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    weights, scores, ctx.name = inputs
    ctx.lost = scores.requires_grad and not weights.requires_grad


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (None, _refused(grad, ctx.name), None) if ctx.lost else (grad, None, None)


# The backward pass of a compiled graph is traced when it is compiled, and asked for later or never: the error has to be
# an operator, which is called when it runs.
_without_gradient = operators.define(
    "without_gradient(Tensor weights, Tensor scores, str name) -> Tensor",
    lambda weights, scores, name: torch.empty_like(weights),
)
_refused = operators.define("refused(Tensor grad, str name) -> Tensor", lambda grad, name: torch.empty_like(grad))
operators.refer(_without_gradient, lambda weights, scores, name: weights.clone())
operators.refer(_refused, lambda grad, name: _raise(name), opaque=True)
differentiate(_without_gradient, _composite, _setup_context, _backward)
differentiate(_refused, lambda grad, name: _raise(name))

"""No silent detach: a selection, or an objective, without a gradient says so when one is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge

from dcem._eager import has_tangent, in_forward_mode, is_transformed
from dcem.kernels import differentiate, operators


def refuse_gradient(weights: Tensor, scores: Tensor, selection: object) -> Tensor:
    """Make a backward pass through `weights` an error where `scores` carry a gradient that the selection lost."""
    return _refuse(
        weights,
        scores,
        f"{type(selection).__name__} has no gradient, and the solution was asked for one through the objective's "
        "values: use a soft selection (dcem.LML, dcem.ConstrainedSoftmax, dcem.ConstrainedSparsemax) or "
        "gradient=dcem.Implicit(), or say gradient=dcem.Detach() to train around the solve",
    )


def refuse_outside(values: Tensor, samples: Tensor, lost: list[bool]) -> Tensor:
    """Make a backward pass through `values` an error where `samples` carry a gradient that the objective lost: what is
    left of it, through the samples that are selected and through what the objective has learned, is not that of the
    answer.

    `lost` is what was found of this objective before, and is noted there: a graph is searched once a solve.
    """

    def no_path() -> bool:
        if not lost and not torch.compiler.is_compiling():
            lost.append(not depend([values], samples))
        return lost == [True]

    return _refuse(
        values,
        samples,
        "objective: expected values with a gradient, which the solution was asked for one through the candidates (of "
        "init, noise, proposals or the solver's settings, or of the iterations before), got values without (no_grad, "
        "detach, NumPy, a simulator): detach what the candidates depend on, or say gradient=dcem.Truncate(1) for the "
        "part of the last iteration or gradient=dcem.Detach() to train around the solve; to values that are constant "
        "in steps add 0 * x.sum(-1)",
        no_path,
    )


def refuse_simulated(outcome: Tensor, actions: Tensor) -> Tensor:
    """Make a backward pass through what a plan costs an error: of its gradient there is a part, that of the actions
    themselves or of what the cost has learned, and not that of the states that the actions lead to.
    """
    return _without_gradient(
        outcome.detach(),
        actions,
        "dynamics: expected states with a gradient, which the plan was asked for one through its actions, got states "
        "without (no_grad, detach, NumPy, a simulator): say gradient=dcem.Truncate(1) for the part of the last "
        "iteration, which plan.actions has and plan.cost has not, or gradient=dcem.Detach() to train around the solve, "
        "with which plan.cost has the gradient of what the cost has learned; to states that are steps of the actions "
        "add 0 * u.sum(-1, keepdim=True)",
    )


def depend(results: list[Tensor], x: Tensor) -> bool:
    """Whether there is a path from any of `results` back to `x`, which has a gradient, in the graph of autograd."""
    goal = get_gradient_edge(x).node
    seen = {get_gradient_edge(result).node for result in results if result.requires_grad}
    waiting = deque(seen)
    while waiting:  # the nearest first: what an objective has learned may have a long history
        node = waiting.popleft()
        if node is goal:
            return True
        after = {follower for follower, _ in node.next_functions if follower is not None} - seen
        seen |= after
        waiting += after
    return False


def _refuse(kept: Tensor, asked: Tensor, message: str, no_path: Callable[[], bool] = lambda: False) -> Tensor:
    """In forward mode the error comes at once: a tangent is there because it is asked for."""
    if kept.requires_grad and asked.requires_grad and no_path():
        kept = kept.detach()
    lost = torch.is_grad_enabled() and asked.requires_grad and not kept.requires_grad
    # Inside torch.func transforms tensors do not say whether they are differentiated; an operator is told.
    return _without_gradient(kept, asked, message) if lost or in_forward_mode() or is_transformed() else kept


def _raise(message: str) -> NoReturn:
    raise RuntimeError(message)


def _composite(kept: Tensor, asked: Tensor, message: str) -> Tensor:
    if has_tangent(asked) and not has_tangent(kept):
        _raise(message)
    return kept.clone()


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    kept, asked, ctx.message = inputs
    ctx.save_for_backward(asked)
    ctx.lost = asked.requires_grad and not kept.requires_grad


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (asked,) = ctx.saved_tensors
    return (None, _refused(grad, asked, ctx.message), None) if ctx.lost else (grad, None, None)


def _refuse_unless_zero(grad: Tensor, asked: Tensor, message: str) -> Tensor:
    """Where nothing comes back, as of an iteration that says nothing, nothing is missing."""
    if bool(grad.any()):
        _raise(message)
    return torch.zeros_like(asked)


def _each_part(grad: Tensor, asked: Tensor, message: str) -> Tensor:
    """Forward mode over the backward pass: neither what comes back nor its tangent may be missing."""
    primal, tangent = forward_ad.unpack_dual(grad)  # type: ignore[no-untyped-call]
    if tangent is not None:
        _refused(tangent, asked, message)
    return _refused(primal, asked, message)


def _setup_second(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    grad, _, ctx.message = inputs
    ctx.save_for_backward(grad)


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """What is missing is linear in what came back: its derivative is missing, too."""
    return _refused(grad, *ctx.saved_tensors, ctx.message), None, None


# The backward pass of a compiled graph is traced when it is compiled, and asked for later or never: the error has to be
# an operator, which is called when it runs.
_without_gradient = operators.define(
    "without_gradient(Tensor kept, Tensor asked, str message) -> Tensor",
    lambda kept, asked, message: torch.empty_like(kept),
)
_refused = operators.define(
    "refused(Tensor grad, Tensor asked, str message) -> Tensor", lambda grad, asked, message: torch.empty_like(asked)
)
operators.refer(_without_gradient, lambda kept, asked, message: kept.clone())
operators.refer(_refused, _refuse_unless_zero, opaque=True)
differentiate(_without_gradient, _composite, _setup_context, _backward)
differentiate(_refused, _each_part, _setup_second, _second_backward)

"""What autograd's graph says of a value: what it depends on, and whether it has a second derivative.

A `torch.autograd.Function` with a `once_differentiable` backward pass has none. Autograd takes such a slope for a
constant, in silence, where it is differentiated with respect to `x`.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

_WRAPPER = once_differentiable(lambda ctx: None).__code__  # the same of all that it wraps


def first_only(value: Tensor, x: Tensor, *, is_constant: bool = False) -> str | None:
    """The name of a function on the way from `x` to `value` that is differentiable only once; None without one.

    Where `x` is a constant nothing is differentiated by it again, so that only a function counts that something else
    with a gradient goes into, too.
    """
    end = get_gradient_edge(x).node
    for once in [node for node in _before(value.grad_fn) if _is_once(node)]:
        leaves = [node for node in _before(once) if not node.next_functions]
        if end in _before(once) and not (is_constant and all(leaf is end for leaf in leaves)):
            return str(once._forward_cls.__name__)
    return None


def depends_on_more(value: Tensor, x: Tensor) -> bool:
    """Whether anything else than `x` that requires a gradient went into `value`."""
    if not value.requires_grad:
        return False
    end = get_gradient_edge(x).node
    return any(not node.next_functions and node is not end for node in _before(get_gradient_edge(value).node))


def _before(node: Any) -> list[Any]:
    """The node and all that goes into it."""
    found, waiting = {node: None}, [node]
    while waiting:
        for child, _ in waiting.pop().next_functions:
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def _is_once(node: Any) -> bool:
    function: Any = getattr(node, "_forward_cls", None)
    return getattr(getattr(function, "backward", None), "__code__", None) is _WRAPPER


class OnceOnly(torch.autograd.Function):
    """A slope as it is, with an error where it is differentiated by what `value` depends on."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, value: Tensor, name: str) -> Tensor:
        ctx.name = name
        return slope.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(refusal(ctx.name))


def refusal(name: str) -> str:
    """What is said where a second derivative is asked for."""
    return (
        f"objective: expected one that is differentiable twice, got one through {name}, whose backward pass is "
        "once_differentiable; a solver that samples, with gradient=dcem.Unroll(), needs the first derivative alone"
    )

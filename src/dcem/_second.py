"""What has a first derivative and no second: a `torch.autograd.Function` with a `once_differentiable` backward pass.

Autograd takes such a slope for a constant, in silence, where it is differentiated with respect to `x`.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

_WRAPPER = once_differentiable(lambda ctx: None).__code__  # the same of all that it wraps


def first_only(value: Tensor, x: Tensor) -> str | None:
    """The name of a function on the way from `x` to `value` that is differentiable only once; None without one."""
    end = get_gradient_edge(x).node
    users: dict[Any, list[Any]] = {}  # of a node, those that use what it makes
    waiting: list[Any] = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        for child, _ in node.next_functions:
            if child is None:
                continue
            if child not in users and child is not end:
                waiting.append(child)
            users.setdefault(child, []).append(node)
    seen, waiting = set[Any](), list(users.get(end, []))
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        function: Any = getattr(node, "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _WRAPPER:
            return str(function.__name__)
        waiting += users.get(node, [])
    return None


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

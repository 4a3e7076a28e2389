"""How an operator is differentiated and vectorised, in every way that PyTorch has of asking for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from .operators import implement, library


def differentiate(
    operator: Any,
    composite: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register the derivatives of an operator.

    Args:
        operator: one of `operators`.
        composite: the same as the operator in differentiable operations of PyTorch; used where an input carries a
            tangent, and where a gradient is asked for of an operator that has no ``backward``.
        setup_context: as that of ``torch.autograd.Function``.
        backward: as that of ``torch.autograd.Function``; what it computes has to be differentiable itself.

    The kernel is called once for each level of ``torch.func`` transforms, with tensors that it wraps; below this
    level the operator is called again, and so on, until its tensors are plain.
    """

    class Node(_SingleLevelFunction):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            # A Function's forward is without gradients; but the next level may differentiate, too.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return _below(operator, inputs)

    if setup_context is not None and backward is not None:
        Node.setup_context = staticmethod(setup_context)  # type: ignore[method-assign]
        Node.backward = staticmethod(backward)  # type: ignore[method-assign]
    Node.__name__ = Node.__qualname__ = operator._schema.name.replace("::", "_")

    def kernel(*inputs: Any) -> Any:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if any(map(_has_tangent, tensors)):
            return composite(*inputs)
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
            return _below(operator, inputs)
        if backward is None:
            return composite(*inputs)
        with enable_single_level_autograd_function():
            return Node.apply(*inputs)  # type: ignore[attr-defined]

    implement(operator, "Autograd", kernel)
    torch.library.register_vmap(operator._schema.name, _vmap(operator), lib=library)


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _below(operator: Any, inputs: tuple[Any, ...]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*inputs)


def _vmap(operator: Any) -> Callable[..., Any]:
    """Rows do not influence each other: a mapped axis is one more batch axis."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        def batch_first(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)

        outputs = operator(*map(batch_first, inputs, in_dims))
        return outputs, (0,) * len(outputs)

    return rule

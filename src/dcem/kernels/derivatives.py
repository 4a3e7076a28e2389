"""How an operator is differentiated and vectorised, in every way that PyTorch has of asking for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from .operators import compiled_kernels, compose, implement, in_place_of, is_implemented, library


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
            tangent, where a gradient is asked for of an operator that has no `backward`, and in the place of an
            operator that has neither a compiled kernel for a device nor a reference.
        setup_context: as that of `torch.autograd.Function`.
        backward: as that of `torch.autograd.Function`; what it computes has to be differentiable itself.

    The kernel is called once for each level of `torch.func` transforms, with tensors that it wraps; below this
    level the operator is called again, and so on, until its tensors are plain.
    """

    class Node(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, run: Callable[..., Any], *inputs: Any) -> Any:
            output = run(*inputs)
            if setup_context is not None:
                setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            assert backward is not None
            return None, *backward(ctx, *grads)

    Node.__name__ = Node.__qualname__ = operator._schema.name.replace("::", "_")
    kernels = compiled_kernels(operator)
    compose(operator, composite)

    def below(*inputs: Any) -> Any:
        """The operator on the next level down."""
        # The forward pass of a Function records no gradients; but the next level may differentiate, too.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    def kernel(keyset: Any, *inputs: Any) -> Any:
        # A compiled kernel that is next in line is called at once: the dispatcher would take as long as it does.
        key = (keyset & torch._C._after_autograd_keyset).highestPriorityTypeId()
        run: Any = kernels.get(key, below)
        if run is below:
            if not is_implemented(operator, inputs[0]):
                return composite(*inputs)
            if key != torch._C.DispatchKey.FuncTorchDynamicLayerBackMode:
                run = in_place_of(operator, inputs[0]) or below
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if forward_ad._current_level >= 0 and any(map(_has_tangent, tensors)):
            return composite(*inputs)
        if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
            return run(*inputs)
        if backward is None:
            return composite(*inputs)
        if run is not below:
            return Node.apply(run, *inputs)  # type: ignore[attr-defined]
        with enable_single_level_autograd_function():  # a transform may be what is next
            return Node.apply(run, *inputs)  # type: ignore[attr-defined]

    implement(operator, "Autograd", kernel, with_keyset=True)
    if not is_implemented(operator, None):
        implement(operator, "CompositeExplicitAutograd", composite)
    torch.library.register_vmap(operator._schema.name, _vmap(operator), lib=library)


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _vmap(operator: Any) -> Callable[..., Any]:
    """Rows do not influence each other: a mapped axis is one more batch axis."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        def batch_first(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)

        outputs = operator(*map(batch_first, inputs, in_dims))
        return outputs, 0 if isinstance(outputs, Tensor) else (0,) * len(outputs)

    return rule

"""The theorem inside `torch.func` transforms and forward mode, out of operations that they can see through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dcem.implicit.dense import Spectrum, apply, invert
from dcem.implicit.system import Options, System


def by_newton(residual: Callable[[Tensor], Tensor], solution: Tensor, options: Options) -> Tensor:
    """`root` out of differentiable operations only.

    From a stationary start, each step `x <- x - J⁻¹ g(x, θ)` with the constant `J = D_x g(x*)` makes one more
    order of the series of `x` in `θ` exact.
    """
    if options.method == "iterative":
        raise ValueError(
            "method: expected 'dense' or 'auto' inside torch.func transforms and forward mode, got 'iterative'"
        )
    shape, size = solution.shape, math.prod(solution.shape[options.batch_dims :])

    def flat(x: Tensor) -> Tensor:
        return residual(x.reshape(shape)).reshape(-1, size)

    x = constant(solution.reshape(-1, size))
    if torch._C._are_functorch_transforms_active():
        value, vjp = torch.func.vjp(flat, x)[:2]
        identity = torch.eye(size, dtype=x.dtype, device=x.device).unsqueeze(1).expand(size, *x.shape)
        jacobian = torch.func.vmap(vjp)(identity)[0].transpose(0, 1)
    else:
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(False):
            start = solution.detach().requires_grad_()
            value = residual(start)
            jacobian = System(start, value, options).jacobian
            value = value.reshape(-1, size)
    inverse, singular = Spectrum.of(jacobian).pseudo_inverse() if options.minimum_norm else invert(jacobian)
    inverse, base, singular = constant(inverse), constant(value), singular.unsqueeze(-1)
    for _ in range((torch._C._functorch.maybe_current_level() or 0) + 2):
        rest = flat(x) - base
        step = apply(inverse, torch.where(singular, 0.0, rest))
        x = x - torch.where(singular, _Nowhere.apply(rest), step)  # type: ignore[no-untyped-call]
    return x.reshape(shape)


def constant(x: Tensor) -> Tensor:
    """The identity without a derivative, in every mode and at every level of transforms."""
    return _Constant.apply(x)  # type: ignore[no-untyped-call]


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return torch.zeros_like(tangents[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        return constant(x), in_dims[0]


class _Nowhere(torch.autograd.Function):
    """Zero, with a derivative of NaN: the answer's step where it is not a function of the parameters."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _undefined(grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _undefined(tangents[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        return _Nowhere.apply(x), in_dims[0]  # type: ignore[no-untyped-call]


def _undefined(change: Tensor) -> Tensor:
    """NaN for each problem, a row, that a change reaches."""
    return change * torch.where((change != 0).any(-1, keepdim=True), math.nan, 1.0).to(change)

"""The implicit function theorem, once for all soft projections.

With ``s = (x - c) / temperature``, ``w = phi(s + nu)`` and ``sum w = k``, differentiating both equations gives

    d nu = -<phi', d s> / sum phi'
    d w  = phi' (d s + d nu)                  that is, J = diag(phi') - phi' phi'^T / sum phi'

where ``c`` is a constant of each row: the projection does not change when a row is shifted.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from dcem import _native

from .blocks import by_blocks
from .dual import scale, solve
from .links import Link, Sigmoid


def project(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> Tensor:
    """The weights, ``(*batch, n)`` as ``x``; ``temperature`` is a number or ``(*batch, 1)``, and ``k < n``."""
    if _has_tangent(x) or _has_tangent(temperature):
        return _by_newton(x, temperature, k, link)
    return _apply(x, temperature, k, link)[0]


def _apply(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling():  # accepts no Function with a jvp; forward mode accepts none without
        return _Project.apply(x, temperature, k, link)  # type: ignore[no-untyped-call]
    recorded = x.requires_grad or (isinstance(temperature, Tensor) and temperature.requires_grad)
    if recorded or torch._C._are_functorch_transforms_active():
        return _ForwardProject.apply(x, temperature, k, link)  # type: ignore[no-untyped-call]
    return _forward(x, temperature, k, link)


def _forward(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, ...]:
    return _compiled(x, temperature, k, link) or by_blocks(_solve, x, temperature, k, link)


class _Project(Function):
    """``(x, temperature, k, link) -> (w, nu, c)``.

    ``nu`` is an output so that the derivatives, written in differentiable operations of ``x``, ``temperature``
    and ``nu``, can themselves be differentiated, to any order.
    """

    @staticmethod
    def forward(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(x, temperature, k, link)  # type: ignore[return-value]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, temperature, _, link = inputs
        _, nu, c = output
        ctx.link = link
        ctx.temperature = None if isinstance(temperature, Tensor) else temperature
        saved = (x, nu, c) if ctx.temperature is not None else (x, nu, c, temperature)
        ctx.mark_non_differentiable(c)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad_w: Tensor | None, grad_nu: Tensor | None, _: Any) -> Any:
        x, nu, c, temperature = _saved(ctx)
        needs_temperature = ctx.needs_input_grad[1]
        if grad_w is None and grad_nu is None:
            return None, None, None, None
        if (
            grad_w is not None
            and grad_nu is None
            and not torch.is_grad_enabled()
            and _compiles(temperature, ctx.link, x, grad_w)
        ):
            return _native.lml_backward(x.contiguous(), temperature, nu, c, grad_w.contiguous()), None, None, None
        inputs = (x, temperature, nu, c, grad_w, grad_nu, ctx.link, needs_temperature)
        # blocks would only fragment the graph of a derivative that is to be differentiated again
        grads = _pull(*inputs) if torch.is_grad_enabled() else by_blocks(_pull, *inputs)
        grad_x, grad_temperature = grads if needs_temperature else (grads[0], None)
        return grad_x, grad_temperature, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        # rows do not influence each other: a mapped axis is one more batch axis
        def batch_first(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)

        return _apply(*map(batch_first, inputs, in_dims)), (0, 0, 0)


class _ForwardProject(_Project):
    """The same with forward-mode differentiation."""

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, temperature_tangent: Tensor | None, *_: Any) -> Any:
        x, nu, c, temperature = _saved(ctx)
        s = scale(x, c, temperature)
        dphi, total = _slopes(s + nu, ctx.link)
        s_tangent = torch.zeros_like(x) if x_tangent is None else x_tangent
        if temperature_tangent is not None:
            s_tangent = s_tangent - s * temperature_tangent
        s_tangent = s_tangent / temperature
        nu_tangent = -(dphi * s_tangent).sum(-1, keepdim=True) / total
        return dphi * (s_tangent + nu_tangent), nu_tangent, None


def _saved(ctx: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    x, nu, c, *rest = ctx.saved_tensors
    return x, nu, c, rest[0] if rest else ctx.temperature


def _has_tangent(value: Tensor | float) -> bool:
    if not isinstance(value, Tensor) or torch.compiler.is_compiling():
        return False
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


def _by_newton(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> Tensor:
    """The weights under forward-mode differentiation, in which Functions do not nest (tangents of ``jvp`` are lost).

    From the root, a Newton step moves ``nu`` by nothing and yet makes it a function of ``x``, right to first order;
    a second one makes it right to third order.
    """
    constant = temperature.detach() if isinstance(temperature, Tensor) else temperature
    _, nu, c = _apply(x.detach(), constant, k, link)
    s = scale(x, c, temperature)

    def weights(nu: Tensor) -> tuple[Tensor, Tensor]:
        dphi, total = _slopes(s + nu, link)
        w = link.value(s + nu)
        return torch.where(dphi > 0, w, w.detach()), total

    for _ in range(2):
        w, total = weights(nu)
        nu = nu - (w - w.detach()).sum(-1, keepdim=True) / total
    return weights(nu)[0]


def _compiles(temperature: Tensor | float, link: Link, *tensors: Tensor) -> TypeGuard[float]:
    """Whether the compiled kernels, which know the sigmoid alone, can take these inputs."""
    return not isinstance(temperature, Tensor) and isinstance(link, Sigmoid) and _native.applies(*tensors)


def _compiled(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor, Tensor] | None:
    """What `_solve` gives, by the compiled kernels; rows that are not finite are left to it."""
    if not _compiles(temperature, link, x):
        return None
    w, nu, c, done = _native.lml_forward(x.contiguous(), k, temperature)
    if not done:
        # All rows again, although few are needed: a row's bits must not depend on which others are.
        rest = nu.isnan()
        solved = by_blocks(_solve, x, temperature, k, link)
        w, nu, c = (torch.where(rest, theirs, ours) for theirs, ours in zip(solved, (w, nu, c), strict=True))
    return w, nu, c


def _solve(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor, Tensor]:
    c, nu = solve(x, temperature, k, link)
    return link.value(scale(x, c, temperature) + nu), nu, c


def _pull(
    x: Tensor,
    temperature: Tensor | float,
    nu: Tensor,
    c: Tensor,
    grad_w: Tensor | None,
    grad_nu: Tensor | None,
    link: Link,
    needs_temperature: bool,
) -> tuple[Tensor, ...]:
    """The gradients of ``x`` and, where it is needed, ``temperature``."""
    s = scale(x, c, temperature)
    dphi, total = _slopes(s + nu, link)
    if grad_w is None:
        assert grad_nu is not None
        grad_s = dphi * (-grad_nu / total)
    else:
        pull = (dphi * grad_w).sum(-1, keepdim=True)
        if grad_nu is not None:
            pull = pull + grad_nu
        grad_s = dphi * (grad_w - pull / total)
    grad_x = grad_s if isinstance(temperature, float) and temperature == 1 else grad_s / temperature
    if not needs_temperature:
        return (grad_x,)
    return grad_x, -(grad_x * s).sum(-1, keepdim=True)


def _slopes(z: Tensor, link: Link) -> tuple[Tensor, Tensor]:
    """``phi'`` and its sum, which is kept from 0: where all weights have saturated, J is 0 and not 0 / 0."""
    dphi = link.derivative(z)
    return dphi, dphi.sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).eps ** 2)

"""The implicit function theorem, once for all soft projections.

With ``z = (x - c) / temperature + nu``, ``w = phi(z)`` and ``sum w = k``, differentiating both equations gives

    d nu = -<phi', d s> / sum phi'            (s = (x - c) / temperature)
    d w  = phi' (d s + d nu)                  that is, J = diag(phi') - phi' phi'^T / sum phi'

``c`` is a constant of each row: the projection does not change when a row is shifted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .dual import scale, solve
from .links import Link


def _jacobian_parts(x: Tensor, temperature: Tensor | float, centre: Tensor, nu: Tensor, link: Link) -> Any:
    s = scale(x, centre, temperature)
    dphi = link.derivative(s + nu)
    # Where every weight has saturated (phi' below eps everywhere) J vanishes, and must not become 0 / 0.
    total = dphi.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).eps ** 2)
    return s, dphi, total


class _Project(Function):
    """``(x, temperature) -> (w, nu, centre)`` for ``x`` of ``(*batch, n)``, ``temperature`` a number or ``(*batch, 1)``.

    ``nu`` is an output so that the backward pass, written in differentiable operations of ``x``, ``temperature``
    and ``nu``, can itself be differentiated to any order.
    """

    @staticmethod
    def forward(
        x: Tensor, temperature: Tensor | float, k: float, link: Link
    ) -> tuple[Tensor, Tensor, Tensor]:
        centre, nu = solve(x, temperature, k, link)
        return link.value(scale(x, centre, temperature) + nu), nu, centre

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, temperature, _, link = inputs
        _, nu, centre = output
        ctx.link = link
        ctx.number = None if isinstance(temperature, Tensor) else temperature
        tensors = (x, nu, centre) if ctx.number is not None else (x, nu, centre, temperature)
        ctx.mark_non_differentiable(centre)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_w: Tensor | None, grad_nu: Tensor | None, _: Any) -> Any:
        x, nu, centre = ctx.saved_tensors[:3]
        temperature = ctx.saved_tensors[3] if ctx.number is None else ctx.number
        s, dphi, total = _jacobian_parts(x, temperature, centre, nu, ctx.link)
        if grad_w is None:
            grad_s = dphi * (-grad_nu / total) if grad_nu is not None else torch.zeros_like(x)
        else:
            pull = (dphi * grad_w).sum(-1, keepdim=True)
            if grad_nu is not None:
                pull = pull + grad_nu
            grad_s = dphi * (grad_w - pull / total)
        grad_x = grad_s / temperature
        grad_temperature = None
        if ctx.needs_input_grad[1]:
            grad_temperature = -(grad_x * s).sum(-1, keepdim=True)
        return grad_x, grad_temperature, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, temperature: Tensor | float, k: float, link: Link) -> Any:
        # Rows do not influence each other: a mapped axis is one more batch axis.
        x_dim, temperature_dim = in_dims[:2]
        x = _batch_first(x, x_dim, info.batch_size)
        if isinstance(temperature, Tensor):
            temperature = _batch_first(temperature, temperature_dim, info.batch_size)
        return project(x, temperature, k, link), (0, 0, 0)


class _ForwardProject(_Project):
    """The same with forward-mode differentiation, which `torch.compile` does not accept in a Function."""

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, temperature_tangent: Tensor | None, *_: Any) -> Any:
        x, nu, centre = ctx.saved_tensors[:3]
        temperature = ctx.saved_tensors[3] if ctx.number is None else ctx.number
        s, dphi, total = _jacobian_parts(x, temperature, centre, nu, ctx.link)
        s_tangent = torch.zeros_like(x) if x_tangent is None else x_tangent
        if temperature_tangent is not None:
            s_tangent = s_tangent - s * temperature_tangent
        s_tangent = s_tangent / temperature
        nu_tangent = -(dphi * s_tangent).sum(-1, keepdim=True) / total
        return dphi * (s_tangent + nu_tangent), nu_tangent, None


def _batch_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def project(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, dual variable and centre of every row of ``x``."""
    function = _Project if torch.compiler.is_compiling() else _ForwardProject
    result: tuple[Tensor, Tensor, Tensor] = function.apply(x, temperature, k, link)  # type: ignore[no-untyped-call]
    return result

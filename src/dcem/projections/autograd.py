"""The implicit function theorem, once for all soft projections: the operators `dcem::project` and its derivative.

With `s = (x - c) / temperature`, `w = phi(s + nu)` and `sum w = k`, differentiating both equations gives

    d nu = -<phi', d s> / sum phi'
    d w  = phi' (d s + d nu)                  that is, J = diag(phi') - phi' phi'^T / sum phi'

where `c` is a constant of each row: the projection does not change when a row is shifted. A row without an answer,
whose weights and `nu` are NaN, has no gradient: its derivatives are 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcem._eager import all_true, is_eager
from dcem.kernels import differentiate, operators

from .dual import DEVICE_PASSES, scale, solve, thorough
from .links import LINKS, Link
from .row_blocks import by_blocks


def project(x: Tensor, temperature: Tensor | float, k: float | Tensor, link: str) -> Tensor:
    """The weights, `(*batch, n)` as `x`; `temperature` and `k < n` are numbers or `(*batch, 1)`."""
    if isinstance(k, Tensor):
        return _of_rows(x, temperature, k, link)
    if isinstance(temperature, Tensor):
        return operators.project(x, temperature, 1.0, k, link)[0]
    return operators.project(x, None, temperature, k, link)[0]


def _reference(x: Tensor, temperatures: Tensor | None, temperature: float, k: float, link: str) -> tuple[Tensor, ...]:
    """`dcem::project` in Python, for any device."""
    return by_blocks(_solve, x, temperature if temperatures is None else temperatures, k, LINKS[link])


def _solve(x: Tensor, temperature: Tensor | float, k: float, link: Link) -> tuple[Tensor, Tensor, Tensor]:
    c, nu = solve(x, temperature, k, link)
    return link.value(scale(x, c, temperature) + nu), nu, c


def _by_newton(
    x: Tensor, temperatures: Tensor | None, temperature: float, k: float, link_name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`dcem::project` in differentiable operations, as forward mode needs it."""
    constant = None if temperatures is None else temperatures.detach()
    _, nu, c = operators.project(x.detach(), constant, temperature, k, link_name)
    w, nu = _attached(x, temperature if temperatures is None else temperatures, k, LINKS[link_name], nu, c)
    return w, nu, c


def _of_rows(x: Tensor, temperature: Tensor | float, k: Tensor, link_name: str) -> Tensor:
    """The weights for a `k` a row, which have a gradient with respect to that, too."""
    constant = temperature.detach() if isinstance(temperature, Tensor) else temperature
    passes = None if is_eager() and x.device.type == "cpu" else DEVICE_PASSES
    with torch.no_grad():
        c, nu = thorough(x.detach(), constant, k.detach(), LINKS[link_name], passes)
    return _attached(x, temperature, k, LINKS[link_name], nu, c)[0]


def _attached(
    x: Tensor, tau: Tensor | float, k: float | Tensor, link: Link, nu: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights and `nu` as functions of `x`, `tau` and `k`, from the root `nu`.

    A Newton step moves it by nothing and yet makes it a function, right to first order; a second one makes it right to
    third order.
    """
    answered, (x, c, tau, nu) = _where_answered(nu, x, c, tau)
    s = scale(x, c, tau)

    def weights(nu: Tensor) -> tuple[Tensor, Tensor]:
        dphi, total = _slopes(s + nu, link)
        w = link.differentiable(s + nu)
        return torch.where(dphi > 0, w, w.detach()), total

    for _ in range(2):
        w, total = weights(nu)
        excess = (w - w.detach()).sum(-1, keepdim=True)
        if isinstance(k, Tensor):
            excess = excess - torch.where(answered, k - k.detach(), 0.0)
        nu = nu - excess / total
    return torch.where(answered, weights(nu)[0], torch.nan), torch.where(answered, nu, torch.nan)


def _where_answered(nu: Tensor, *inputs: Any) -> tuple[Tensor, tuple[Any, ...]]:
    """Which rows have an answer, and tensors in which the others are rows of equal scores whose weights are all 1."""
    answered = nu == nu
    if all_true(answered):
        return answered, (*inputs, nu)
    constants = [torch.where(answered, value, 1.0) if isinstance(value, Tensor) else value for value in inputs]
    return answered, (*constants, torch.where(answered, nu, torch.inf))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, temperatures, ctx.temperature, _, ctx.link = inputs
    _, nu, c = output  # nu is an output so that the derivatives, which are functions of it, can be differentiated
    ctx.mark_non_differentiable(c)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, nu, c, temperatures)


def _backward(ctx: Any, grad_w: Tensor | None, grad_nu: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    x, nu, c, temperatures = ctx.saved_tensors
    if grad_w is None and grad_nu is None:
        return None, None, None, None, None
    grad_x, grad_temperature = operators.project_backward(
        x, temperatures, ctx.temperature, nu, c, grad_w, grad_nu, ctx.link
    )
    return grad_x, None if temperatures is None else grad_temperature, None, None, None


def _pull(
    x: Tensor,
    temperatures: Tensor | None,
    temperature: float,
    nu: Tensor,
    c: Tensor,
    grad_w: Tensor | None,
    grad_nu: Tensor | None,
    link: str,
) -> tuple[Tensor, Tensor]:
    """`dcem::project_backward` in differentiable operations."""
    _, (x, c, tau, grad_w, grad_nu, nu) = _where_answered(
        nu, x, c, temperature if temperatures is None else temperatures, grad_w, grad_nu
    )
    s = scale(x, c, tau)
    dphi, total = _slopes(s + nu, LINKS[link])
    if grad_w is None:
        assert grad_nu is not None
        grad_s = dphi * (-grad_nu / total)
    else:
        pull = (dphi * grad_w).sum(-1, keepdim=True)
        if grad_nu is not None:
            pull = pull + grad_nu
        grad_s = dphi * (grad_w - pull / total)
    grad_x = grad_s if isinstance(tau, float) and tau == 1 else grad_s / tau
    # a score of -inf has no gradient, and no finite s
    return grad_x, -(grad_x * s.nan_to_num(0.0, 0.0, 0.0)).sum(-1, keepdim=True)


def _pull_by_blocks(*inputs: Any) -> tuple[Tensor, ...]:
    return by_blocks(_pull, *inputs)


def _slopes(z: Tensor, link: Link) -> tuple[Tensor, Tensor]:
    """`phi'` and its sum, which is kept from 0: where all weights have saturated, J is 0 and not 0 / 0."""
    dphi = link.derivative(z)
    return dphi, dphi.sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).eps ** 2)


operators.refer(operators.project, _reference)
operators.refer(operators.project_backward, _pull_by_blocks)
differentiate(operators.project, _by_newton, _setup_context, _backward)
differentiate(operators.project_backward, _pull)

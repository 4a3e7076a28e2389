"""The theorem for a minimum, where the equation is that the gradient is zero, and whether it is a minimum at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem._eager import has_tangent, in_forward_mode
from dcem._second import depends_on_more, first_only, refusal
from dcem.implicit.dense import Spectrum, apply, rounding, smallest_eigenvalue
from dcem.implicit.equation import Theorem, attach, check_arguments, check_returned
from dcem.implicit.krylov import conjugate_gradient, generic, minimum_residual
from dcem.implicit.system import Method, Options, System
from dcem.implicit.transforms import by_newton


class Stationarity(NamedTuple):
    """How much of a minimum a point is, for each problem of a batch.

    Attributes:
        gradient_norm: `‖∇f‖`, `(*batch,)`.
        step: `‖H⁻¹ ∇f‖`, `(*batch,)`, the length of Newton's step: about how far away the stationary point is; `inf`
            where `H` is singular up to rounding (see `root`).
        min_curvature: Smallest eigenvalue of the Hessian, `(*batch,)` (an upper bound of it for large problems);
            positive at a strict minimum, and not positive where `H` is singular up to rounding.
    """

    gradient_norm: Tensor
    step: Tensor
    min_curvature: Tensor

    def is_minimum(self, tolerance: float = 1e-2, scale: float | Tensor = 1.0) -> Tensor:
        """Where Newton's step is at most `tolerance * scale` and the curvature positive."""
        return (self.step <= tolerance * scale) & (self.min_curvature > 0)


def argmin(
    objective: Callable[..., Tensor],
    solution: Tensor,
    *params: Any,
    batch_dims: int = 0,
    method: Method = "auto",
    tolerance: float | None = None,
    max_iterations: int | None = None,
) -> Tensor:
    """Differentiate the minimiser of `objective(x, *params)` that some solver has found.

    The gradient is `-(∇²_xx f)⁻¹ ∇²_xθ f`, exact where `solution` is stationary and the Hessian there
    positive definite: it is `root` of the objective's gradient, whose other arguments these are.
    `stationarity` measures how true that is.

    Args:
        objective: Maps `x` (shaped like `solution`) and `params` to one number a problem, `(*batch,)`.
        solution: `(*batch, *event)`, floating point, where `objective` is smallest.
        *params: Passed to `objective`. Naming a parameter here or closing over it is the same.
        batch_dims: How many leading axes of `solution` count separate problems.
        method: As in `root`; `"iterative"` is conjugate gradients here.
        tolerance: As in `root`.
        max_iterations: As in `root`.

    Raises:
        TypeError: `solution` is not a floating point tensor, `objective` is not callable or does not return a tensor.
        ValueError: `objective` returns another shape, does not depend on `x`, or has no second derivative
            (`once_differentiable`), or an option is out of its range.

    Source: Dontchev & Rockafellar, "Implicit Functions and Solution Mappings", 2009, theorem 1B.1.

    >>> centre = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> x = argmin(lambda x: ((x - 2 * centre) ** 2).sum(), torch.tensor([2.0, 6.0]))
    >>> torch.autograd.grad(x.sum(), centre)[0]
    tensor([2., 2.])
    """
    options = Options(batch_dims, method, True, tolerance, max_iterations)
    check_arguments("objective", objective, solution, options)
    return attach(_gradient_of(objective, batch_dims), solution, params, options)


@torch.enable_grad()
def stationarity(
    objective: Callable[..., Tensor],
    solution: Tensor,
    *params: Any,
    batch_dims: int = 0,
    method: Method = "auto",
) -> Stationarity:
    """Measure how close `solution` is to a strict minimum, which is what `argmin`'s gradient rests on.

    Args:
        objective: As in `argmin`.
        solution: As in `argmin`, `(*batch, *event)`; it need not be a minimum.
        *params: As in `argmin`.
        batch_dims: As in `argmin`.
        method: As in `argmin`.

    Returns:
        Its fields have the shape `(*batch,)` and are detached.

    Raises:
        TypeError: As `argmin`.
        ValueError: As `argmin`.

    >>> where = stationarity(lambda x: (x**2 - 1) ** 2, torch.tensor([-1.0, 0.0, 1.1]), batch_dims=1)
    >>> where.is_minimum()                     # a minimum, a maximum, a point on the slope
    tensor([ True, False, False])
    """
    options = Options(batch_dims, method, True)
    check_arguments("objective", objective, solution, options)
    x = solution.detach().requires_grad_()
    system = System(x, _gradient_of(objective, batch_dims)(x, *params), options)
    gradient = system.flat(system.value.detach())
    batch = solution.shape[:batch_dims]
    if system.dense:
        spectrum = system.spectrum
        inverse, singular = spectrum.inverse(), spectrum.singular
        step = apply(inverse, gradient).norm(dim=-1)
        strict = (spectrum.values > 0).all(-1) & ~singular
        # from the inverse where it exists: there the smallest is the largest, which rounding leaves alone
        lowest = smallest_eigenvalue(torch.where(strict[:, None, None], -inverse, system.jacobian))
        lowest = torch.where(strict, -1 / lowest, lowest)
    else:
        solved = system.krylov(gradient, conjugate_gradient)
        # at the point itself the gradient shows no direction: another one meets negative curvature
        explored = system.krylov(generic(gradient), conjugate_gradient)
        step = solved.x.norm(dim=-1)
        lowest = torch.minimum(solved.lowest, explored.lowest)
        singular = solved.singular | explored.singular
    step = torch.where(singular | ~step.isfinite(), math.inf, step)
    lowest = torch.where(singular, lowest.clamp(max=0), lowest)
    return Stationarity(gradient.norm(dim=-1).view(batch), step.view(batch), lowest.view(batch))


@torch.enable_grad()
def attach_minimum(
    objective: Callable[[Tensor], Tensor],
    solution: Tensor,
    batch_dims: int,
    reach: Tensor,
    box: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`solution` with `argmin`'s gradient, and where it is a minimum, `(*batch,)`: with one Hessian for both.

    A minimum need not be strict here. It may go on in directions without curvature, as it does behind a softmax, which
    is blind to what its inputs have in common: the answer does not move along them (the solution of least norm).

    Args:
        objective: As in `argmin`.
        solution: `(*batch, *event)`.
        batch_dims: As in `argmin`.
        reach: `(*batch,)`: how far away the stationary point may be, by Newton's step.
        box: The steps from `solution` to the lower and the upper bounds within which it is a minimum, if there are any.
            Coordinates that the minimum has on a bound stay where they are.
    """
    x, options = solution.detach().requires_grad_(), Options(batch_dims, symmetric=True, minimum_norm=True)
    residual = _gradient_of(objective, batch_dims)
    system = System(x, residual(x), options)
    fixed = torch.zeros_like(x, dtype=torch.bool)
    if box is not None and (fixed := _on_a_bound(system, *box, reach)).any():

        def free(y: Tensor) -> Tensor:
            return objective(torch.where(fixed, solution.detach(), y))

        residual = _gradient_of(free, batch_dims)
        system = System(x, residual(x), options)
    gradient, reach = system.flat(system.value.detach()), reach.reshape(-1)
    if system.dense:
        spectrum = system.spectrum
        step = apply(system.inverse[0], gradient)
        ascends = (spectrum.values > 0) | ~spectrum.curved
        is_minimum = ascends.all(-1) & (step.norm(dim=-1) <= reach)
        num_flat = (~spectrum.curved).sum(-1) - system.flat(fixed).sum(-1)
        if (is_minimum & (num_flat > 0)).any():
            is_minimum &= _goes_on(residual, system, reach)
    else:
        solved = system.krylov(gradient, minimum_residual)
        explored = system.krylov(generic(gradient), conjugate_gradient)
        slope = solved.relative_residual * gradient.norm(dim=-1)  # what is left of it where there is no curvature
        noise = rounding(system.size, x.dtype) * explored.highest * reach
        is_minimum = (solved.x.norm(dim=-1) <= reach) & (~solved.singular | (slope <= noise))
        is_minimum &= (explored.lowest > 0) | explored.singular
    is_minimum &= gradient.isfinite().all(-1)
    if in_forward_mode() and has_tangent(system.value):
        answer = by_newton(residual, solution, system.options)
    else:
        theorem = Theorem(residual, system)
        if theorem.is_needed():
            answer = theorem.attach()
        else:  # what the value has and the slope has not, a constant of an energy, has a gradient of 0, not none
            value = objective(x)
            held = x.detach() + 0 * value.reshape(value.shape + (1,) * (x.dim() - batch_dims))
            answer = held if depends_on_more(value, x) else solution.detach()
    return answer, is_minimum.view(solution.shape[:batch_dims])


def _on_a_bound(system: System, down: Tensor, up: Tensor, reach: Tensor) -> Tensor:
    """Which coordinates the minimum next to `x` has on a bound, `(*batch, *event)`, boolean.

    Those of the smallest value of the quadratic model at `x` within the box, `min gᵀd + dᵀHd / 2, down <= d <= up`, by
    primal-dual active sets (Hintermüller, Ito & Kunisch 2002): a bound holds what the step would carry beyond it, and
    lets go of what is not pushed to it. A bound farther than `reach` from `x` plays no part. The slope at `x` alone
    does not tell: close to a minimum inside it is rounding, of either sign.
    """
    down, up, gradient = system.flat(down), system.flat(up), system.flat(system.value.detach())
    reach = reach.reshape(-1, 1)
    near_low, near_high = down >= -reach, up <= reach
    low, high = near_low & (gradient > 0), near_high & (gradient < 0)  # which hold
    if not (near_low | near_high).any():
        return low.view(system.x.shape)
    for _ in range(20):
        free = ~(low | high)
        step = torch.where(low, down, torch.where(high, up, 0.0))
        step = step + _step_of(system, gradient + _product(system, step), free)
        slope = gradient + _product(system, step)
        before = low, high
        low = near_low & torch.where(low, slope > 0, free & (step < down))
        high = near_high & torch.where(high, slope < 0, free & (step > up))
        if low.equal(before[0]) and high.equal(before[1]):
            break
    return (low | high | (down >= up)).view(system.x.shape)  # what has no room does not move, whatever the slope


def _product(system: System, v: Tensor) -> Tensor:
    """`H v`."""
    return apply(system.jacobian, v) if system.dense else system.vjp(v)


def _step_of(system: System, slope: Tensor, free: Tensor) -> Tensor:
    """Newton's step of the coordinates that are `free`, 0 in the others."""
    slope = torch.where(free, slope, 0.0)
    if system.dense:
        hessian = torch.where(free.unsqueeze(-1) & free.unsqueeze(-2), system.jacobian, 0.0)
        inverse, _ = Spectrum.of(hessian).pseudo_inverse()
        return torch.where(free, -apply(inverse, slope), 0.0)
    return torch.where(free, -system.krylov(slope, minimum_residual, free).x.to(slope), 0.0)


def _goes_on(residual: Callable[[Tensor], Tensor], system: System, reach: Tensor) -> Tensor:
    """Whether the point is one of many minima next to each other, or the bottom of a valley like that of `x⁴`.

    Moved by `reach` along the directions without curvature, and back to the bottom across them (steps of Newton with
    the curvature that there is, as in the reduction of Lyapunov & Schmidt), it must be stationary again.
    """
    flat = system.spectrum.flat
    x = system.flat(system.x.detach()) + reach.unsqueeze(-1) * flat.sum(-1)
    slope = torch.zeros_like(x)
    for _ in range(8):
        slope = system.flat(residual(x.reshape(system.x.shape).requires_grad_()).detach())
        x = x - apply(system.inverse[0], slope)
    left = apply(flat.mT, slope).norm(dim=-1)
    return left <= 1e-4 * system.jacobian.abs().amax((-2, -1)) * reach


def _gradient_of(objective: Callable[..., Tensor], batch_dims: int) -> Callable[..., Tensor]:
    def gradient(x: Tensor, *params: Any) -> Tensor:
        def total(x: Tensor) -> Tensor:
            value = objective(x, *params)
            what = f"one number a problem, {batch_dims=}"
            check_returned("objective", value, tuple(x.shape[:batch_dims]), what)
            return value.sum()

        if torch._C._are_functorch_transforms_active():
            return torch.func.grad(total)(x)
        with torch.enable_grad():
            x = x if x.requires_grad else x.view_as(x).requires_grad_()  # which keeps a tangent
            value = total(x)
            if value.requires_grad:
                (grad,) = torch.autograd.grad(value, x, create_graph=True, allow_unused=True)
                if grad is not None:
                    if (name := first_only(value, x)) is not None:
                        raise ValueError(refusal(name))
                    return grad
        raise ValueError("objective: expected a function of x, got one that does not depend on x")

    return gradient

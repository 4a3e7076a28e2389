"""The theorem, for the solution of an equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dcem._eager import has_tangent, in_forward_mode, is_eager
from dcem._given import brief, came, kind
from dcem._second import depends_on_more
from dcem.implicit.system import Method, Options, System
from dcem.implicit.transforms import by_newton


def root(
    residual: Callable[..., Tensor],
    solution: Tensor,
    *params: Any,
    batch_dims: int = 0,
    method: Method = "auto",
    symmetric: bool = False,
    tolerance: float | None = None,
    max_iterations: int | None = None,
) -> Tensor:
    """Differentiate the solution of an equation `residual(x, *params) = 0` that some solver has found.

    The value is `solution`; its gradient with respect to `params`, and to anything else that `residual`
    depends on, is `-(D_x residual)⁻¹ D_θ residual`. `solution` itself receives no gradient. The linear system
    is solved when a gradient is asked for and not before. Derivatives of any order are exact for `params`;
    what `residual` closes over has the first only, and asking for its second is an error. Inside `torch.func`
    transforms and in forward mode both have derivatives up to an order one above the number of nested transforms.

    Args:
        residual: Maps `x` (shaped like `solution`) and `params` to a tensor of the shape of `x`.
        solution: `(*batch, *event)`, floating point, where `residual` is zero.
        *params: Passed to `residual`: tensors, and anything else that it takes.
        batch_dims: How many leading axes of `solution` count separate problems. `residual` must keep them
            separate.
        method: `"dense"` builds each problem's Jacobian (numbers in `event` squared) and factorises it,
            `"iterative"` only multiplies by it (GMRES, or conjugate gradients where `symmetric`), `"auto"` is
            dense up to 64 numbers.
        symmetric: Whether the Jacobian is symmetric positive definite, as at a minimum.
        tolerance: Relative residual at which the iterative method stops; default `1e-5` in float32, `1e-10`
            in float64.
        max_iterations: Largest number of products with the Jacobian; default `max(100, 10 * numbers in
            event)`.

    Returns:
        A tensor with the values of `solution`. The gradient is NaN for a problem whose Jacobian is singular
        (unless the gradient that arrives there is zero), and for that problem alone; see `stationarity` to
        find such problems first. Singular is also a Jacobian whose condition number, with its rows and columns brought
        to the same size, is above `1 / (10 √n ε)` for `n` numbers of precision `ε`: there, rounding decides what
        the gradient is. That is `4e5` for four numbers in float32; use float64 beyond. The iterative method does not
        scale, and sees only what the gradient that arrives leads it to.

    Raises:
        TypeError: `solution` is not a floating point tensor, `residual` is not callable or does not return a tensor.
        ValueError: `residual` returns another shape, does not depend on `x`, or an option is out of its
            range.

    Source: Dontchev & Rockafellar, "Implicit Functions and Solution Mappings", 2009, theorem 1B.1.

    >>> a = torch.tensor(2.0, requires_grad=True)
    >>> x = root(lambda x: x**3 - a, torch.tensor(2.0).pow(1 / 3))     # the cube root of a
    >>> torch.autograd.grad(x, a)[0]                                   # 1 / (3 x²)
    tensor(0.2100)
    """
    options = Options(batch_dims, method, symmetric, tolerance, max_iterations)
    check_arguments("residual", residual, solution, options)
    return attach(residual, solution, params, options)


def attach(residual: Callable[..., Tensor], solution: Tensor, params: tuple[Any, ...], options: Options) -> Tensor:
    """`root` of checked arguments."""

    def checked(x: Tensor, *params: Any) -> Tensor:
        value = residual(x, *params)
        check_returned("residual", value, tuple(solution.shape), "the shape of solution")
        return value

    if torch._C._are_functorch_transforms_active() or (
        in_forward_mode() and has_tangent(checked(solution.detach(), *params))
    ):
        return by_newton(lambda x: checked(x, *params), solution, options)
    if not torch.is_grad_enabled():
        return solution.detach().clone()
    x = solution.detach().requires_grad_()
    # As torch's functions return them: an `autograd.Function` takes its arguments past whoever looks at those calls.
    differentiated = [param.view_as(param) for param in params if _is_differentiated(param)]
    leaves = [param.detach().requires_grad_() for param in differentiated]
    system = System(x, checked(x, *_merge(params, leaves)), options)
    theorem = Theorem(checked, system, params, leaves)
    # As of any function: what comes out requires a gradient where something that goes in does.
    return theorem.attach(*differentiated) if solution.requires_grad or theorem.is_needed() else x.detach().clone()


class Theorem:
    """`D_θ x* = -J⁻¹ D_θ g` as a vector-Jacobian product: `b ↦ u D_θ g` with `Jᵀ u = -b`.

    `leaves` are those of the parameters that are differentiated, as the system's value depends on them.
    """

    def __init__(
        self,
        residual: Callable[..., Tensor],
        system: System,
        params: tuple[Any, ...] = (),
        leaves: Sequence[Tensor] = (),
    ) -> None:
        self.residual, self.system, self.params, self.leaves = residual, system, params, list(leaves)

    def is_needed(self) -> bool:
        """Whether there is anything that receives a gradient."""
        return not is_eager() or bool(self.leaves) or depends_on_more(self.system.value, self.system.x)

    def attach(self, *differentiated: Tensor) -> Tensor:
        """The solution, with this derivative."""
        x, value = self.system.x.detach(), self.system.value
        return _Attach.apply(x, value, self, *differentiated)  # type: ignore[no-untyped-call]

    def vjp(self, b: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """`u`, which is the gradient of the residual's value, and that of the parameters."""
        u = -self.system.solve_transposed(b)
        return u, _vjp(self.system.value, self.leaves, u)

    def vjp_to_differentiate(
        self, b: Tensor, x: Tensor, params: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The same, attached to `b`, `x` and the parameters: `u` is itself the root of `Jᵀ u + b`."""

        def linear(u: Tensor, x: Tensor, b: Tensor, *params: Tensor) -> Tensor:
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = self.residual(x, *_merge(self.params, list(params)))
            (out,) = torch.autograd.grad(value, x, u, create_graph=True)
            return out + b

        found = -self.system.solve_transposed(b.detach())
        u = attach(linear, found, (x, b, *params), self.system.options)
        aliases = [p.view_as(p) for p in params]  # the way to the parameters past x
        value = self.residual(x, *_merge(self.params, aliases))
        return _Once.apply(u, torch.zeros((), requires_grad=True)), _vjp(value, aliases, u, create_graph=True)  # type: ignore[no-untyped-call]


class _Attach(torch.autograd.Function):
    """The identity on a solution, whose backward is the implicit function theorem.

    What `residual` closes over is reached through `value`, the residual's value at the solution; parameters
    are inputs.
    """

    @staticmethod
    def forward(ctx: Any, solution: Tensor, value: Tensor, theorem: Theorem, *params: Tensor) -> Tensor:
        solution = solution.clone()
        ctx.theorem = theorem
        ctx.save_for_backward(solution, *params)
        return solution

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        theorem: Theorem = ctx.theorem
        if torch.is_grad_enabled():  # somebody will differentiate this gradient again
            x, *params = ctx.saved_tensors
            u, of_params = theorem.vjp_to_differentiate(grads[0], x, params)
        else:
            u, of_params = theorem.vjp(grads[0])
        return None, u, None, *of_params


class _Once(torch.autograd.Function):
    """The identity, with an error where it is differentiated."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, mark: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "implicit gradient: a second derivative with respect to what residual or objective closes over; "
            "only the first is available: pass it in params instead"
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0]  # of the gradient that arrived: with any other, `by_newton` stands in for all this


def _vjp(value: Tensor, to: list[Tensor], v: Tensor, create_graph: bool = False) -> tuple[Tensor | None, ...]:
    options = {"retain_graph": True, "create_graph": create_graph, "allow_unused": True}
    return torch.autograd.grad(value, to, v, **options) if to else ()


def _is_differentiated(param: object) -> bool:
    return isinstance(param, Tensor) and param.requires_grad


def _merge(params: tuple[Any, ...], differentiated: list[Tensor]) -> list[Any]:
    """`params` with those that are differentiated replaced."""
    new = iter(differentiated)
    return [next(new) if _is_differentiated(param) else param for param in params]


def check_arguments(name: str, function: object, solution: object, options: Options) -> None:
    if not callable(function):
        raise TypeError(f"{name}: expected a callable, got {brief(function)}")
    if not isinstance(solution, Tensor) or not solution.is_floating_point():
        came = solution.dtype if isinstance(solution, Tensor) else kind(solution)
        raise TypeError(f"solution: expected a floating point tensor, got {came}")
    if not 0 <= options.batch_dims <= solution.ndim:
        raise ValueError(
            f"batch_dims: expected 0 to {solution.ndim}, the axes of solution {tuple(solution.shape)}, "
            f"got {options.batch_dims}"
        )
    if options.method not in ("auto", "dense", "iterative"):
        raise ValueError(f"method: expected 'auto', 'dense' or 'iterative', got {options.method!r}")
    if options.tolerance is not None and not options.tolerance > 0:
        raise ValueError(f"tolerance: expected a positive number, got {options.tolerance}")
    if options.max_iterations is not None and options.max_iterations < 1:
        raise ValueError(f"max_iterations: expected at least 1, got {options.max_iterations}")


def check_returned(name: str, value: object, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected to return a tensor, got {kind(value)}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected to return {shape} ({what}), got {came(value, shape)}")

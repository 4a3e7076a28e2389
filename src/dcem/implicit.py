"""Gradients of the answer of any solver, by the implicit function theorem: no unrolling, no memory of the
iterations.

If `g(x*, θ) = 0` and `D_x g` is invertible, then `x*` is locally a function of `θ` with `D_θ x* = -(D_x g)⁻¹
D_θ g` (Dini 1877; Dontchev & Rockafellar, *Implicit Functions and Solution Mappings*, 2009, theorem 1B.1).
`root` applies it to an equation, `argmin` to a minimum, where `g` is the gradient. Both only look at the
answer: how it was found is no matter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dcem._linear import conjugate_gradient, eigh, gmres, solve

__all__ = ["Stationarity", "argmin", "root", "stationarity"]

Method = Literal["auto", "dense", "iterative"]
DENSE_LIMIT = 64
"""Numbers in one problem up to which `method="auto"` builds the Jacobian."""


class Stationarity(NamedTuple):
    """How much of a minimum a point is, for each problem of a batch."""

    gradient_norm: Tensor
    """`‖∇f‖`."""
    step: Tensor
    """`‖H⁻¹ ∇f‖`, the length of Newton's step: about how far away the stationary point is; `inf` where `H` is
    singular."""
    min_curvature: Tensor
    """Smallest eigenvalue of the Hessian (an upper bound of it for large problems); positive at a strict
    minimum."""

    def is_minimum(self, tolerance: float = 1e-2, scale: float | Tensor = 1.0) -> Tensor:
        """Where Newton's step is at most `tolerance * scale` and the curvature positive."""
        return (self.step <= tolerance * scale) & (self.min_curvature > 0)


class _Options(NamedTuple):
    batch_dims: int
    method: Method
    symmetric: bool
    tolerance: float | None
    max_iterations: int | None


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
    transforms both have derivatives up to an order one above the number of nested transforms.

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
        find such problems first.

    Raises:
        TypeError: `solution` is not a floating point tensor, or `residual` does not return a tensor.
        ValueError: `residual` returns another shape, does not depend on `x`, or an option is out of its
            range.

    >>> a = torch.tensor(2.0, requires_grad=True)
    >>> x = root(lambda x: x**3 - a, torch.tensor(2.0).pow(1 / 3))     # the cube root of a
    >>> torch.autograd.grad(x, a)[0]                                   # 1 / (3 x²)
    tensor(0.2100)
    """
    options = _Options(batch_dims, method, symmetric, tolerance, max_iterations)
    _check(solution, options)
    if torch._C._are_functorch_transforms_active():
        return _by_newton(residual, solution, params, options)
    if not torch.is_grad_enabled():
        return solution.detach().clone()
    x = solution.detach().requires_grad_()
    differentiated = [param for param in params if _is_differentiated(param)]
    leaves = [param.detach().requires_grad_() for param in differentiated]
    value = residual(x, *_merge(params, leaves))
    _check_shape("residual", value, tuple(solution.shape), "the shape of solution")
    system = _System(residual, x, value, params, leaves, options)
    return _Attach.apply(x.detach(), value, system, *differentiated)  # type: ignore[no-untyped-call]


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
        TypeError: `solution` is not a floating point tensor, or `objective` does not return a tensor.
        ValueError: `objective` returns another shape, does not depend on `x`, or an option is out of its
            range.

    >>> centre = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> x = argmin(lambda x: ((x - 2 * centre) ** 2).sum(), torch.tensor([2.0, 6.0]))
    >>> torch.autograd.grad(x.sum(), centre)[0]
    tensor([2., 2.])
    """
    options = _Options(batch_dims, method, True, tolerance, max_iterations)
    _check(solution, options)
    return root(_gradient_of(objective, batch_dims), solution, *params, **options._asdict())


@torch.enable_grad()
def stationarity(
    objective: Callable[..., Tensor],
    solution: Tensor,
    *params: Any,
    batch_dims: int = 0,
    method: Method = "auto",
) -> Stationarity:
    """Measure how close `solution` is to a strict minimum, which is what `argmin`'s gradient rests on.

    Arguments are those of `argmin`; every field of the result has the shape `(*batch,)` and is detached.

    >>> where = stationarity(lambda x: (x**2 - 1) ** 2, torch.tensor([-1.0, 0.0, 1.1]), batch_dims=1)
    >>> where.is_minimum()                     # a minimum, a maximum, a point on the slope
    tensor([ True, False, False])
    """
    options = _Options(batch_dims, method, True, None, None)
    _check(solution, options)
    x = solution.detach().requires_grad_()
    value = _gradient_of(objective, batch_dims)(x, *params)
    system = _System(objective, x, value, params, [], options)
    gradient = system.flat(value.detach())
    batch = solution.shape[:batch_dims]
    if system.dense:
        curvature, vectors = eigh(system.jacobian())
        step = ((vectors.mT @ gradient.unsqueeze(-1)).squeeze(-1) / curvature).norm(dim=-1)
        lowest = curvature[:, 0]
    else:
        solved = conjugate_gradient(system.vjp, gradient, *system.limits())
        # at the point itself the gradient shows no direction: a fixed generic one meets negative curvature
        generic = torch.arange(1, system.size + 1, device=x.device).to(x.dtype).sin()
        explored = conjugate_gradient(system.vjp, generic.expand_as(gradient), *system.limits())
        lowest = torch.minimum(solved.min_curvature, explored.min_curvature)
        step = solved.x.norm(dim=-1)
    step = torch.where(step.isfinite(), step, math.inf)
    return Stationarity(gradient.norm(dim=-1).view(batch), step.view(batch), lowest.view(batch))


class _System:
    """The Jacobian at `x`, as products `vᵀ J` with the graph from `x` to `value`; rows of a batch are
    problems.
    """

    def __init__(
        self,
        residual: Callable[..., Tensor],
        x: Tensor,
        value: Tensor,
        params: tuple[Any, ...],
        leaves: list[Tensor],
        options: _Options,
    ) -> None:
        self.residual, self.x, self.value, self.params = residual, x, value, params
        self.leaves, self.options = leaves, options
        self.size = math.prod(x.shape[options.batch_dims :])
        method = options.method
        self.dense = self.size <= DENSE_LIMIT if method == "auto" else method == "dense"

    def flat(self, tensor: Tensor) -> Tensor:
        """`(*batch, *event)` as `(problems, numbers)`."""
        return tensor.reshape(math.prod(self.x.shape[: self.options.batch_dims]), self.size)

    def limits(self) -> tuple[float, int]:
        default = 1e-10 if self.x.dtype == torch.float64 else 1e-5
        most = self.options.max_iterations
        tolerance = self.options.tolerance
        return default if tolerance is None else tolerance, max(100, 10 * self.size) if most is None else most

    def vjp(self, v: Tensor, rows: bool = False) -> Tensor:
        """`vᵀ J` for every problem; with `rows`, for a further leading axis of `v`."""
        weights = v.reshape(*v.shape[:1], *self.x.shape) if rows else v.reshape(self.x.shape)
        if self.value.requires_grad:
            (out,) = torch.autograd.grad(
                self.value, self.x, weights, retain_graph=True, allow_unused=True, is_grads_batched=rows
            )
            if out is not None:
                return out.reshape(v.shape)
        raise ValueError("residual: expected a function of x, got one that does not depend on x")

    def jacobian(self) -> Tensor:
        """`(problems, numbers, numbers)`, row `i` the gradient of the residual's number `i`."""
        problems = self.flat(self.x.detach()).shape[0]
        identity = torch.eye(self.size, dtype=self.x.dtype, device=self.x.device)
        seeds = identity.unsqueeze(1).expand(self.size, problems, self.size)
        try:
            rows = self.vjp(seeds, rows=True)
        except RuntimeError:  # an operation without a batching rule
            rows = torch.stack([self.vjp(seed) for seed in seeds])
        return rows.transpose(0, 1)

    def solve_transposed(self, b: Tensor) -> Tensor:
        """`Jᵀ u = b`."""
        b = self.flat(b)
        if self.dense:
            u = solve(self.jacobian().mT, b)
        else:
            tolerance, most = self.limits()
            solver = conjugate_gradient if self.options.symmetric else gmres
            solved = solver(self.vjp, b, tolerance, most)
            u = solved.x
            worst = max(solved.relative_residual.tolist(), default=0.0)
            if not worst <= tolerance * 10:
                warnings.warn(
                    f"implicit gradient: the linear system is solved to a relative residual of "
                    f"{worst:.1e}, not {tolerance:.0e}: raise max_iterations, or use method='dense'",
                    RuntimeWarning,
                    stacklevel=2,
                )
        # a problem that no gradient reaches gives none, even where its Jacobian is singular
        u = torch.where((b != 0).any(-1, keepdim=True), u, 0.0)
        return u.reshape(self.x.shape)

    def solve_transposed_differentiably(self, x: Tensor, b: Tensor, params: list[Tensor]) -> Tensor:
        """The same `u`, attached to `x`, `b` and the parameters: it is the root of `Jᵀ u - b`."""

        def linear(u: Tensor, x: Tensor, b: Tensor, *params: Tensor) -> Tensor:
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = self.residual(x, *_merge(self.params, list(params)))
            (out,) = torch.autograd.grad(value, x, u, create_graph=True)
            return out - b

        return root(linear, self.solve_transposed(b.detach()), x, b, *params, **self.options._asdict())


class _Attach(torch.autograd.Function):
    """The identity on a solution, whose backward is the implicit function theorem.

    What `residual` closes over is reached through `value`, the residual's value at the solution; parameters
    are inputs.
    """

    @staticmethod
    def forward(ctx: Any, solution: Tensor, value: Tensor, system: _System, *params: Tensor) -> Tensor:
        solution = solution.clone()
        ctx.system = system
        ctx.save_for_backward(solution, *params)
        return solution

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        system: _System = ctx.system
        if not torch.is_grad_enabled():
            u = -system.solve_transposed(grads[0])
            return None, u, None, *_vjp(system.value, system.leaves, u)
        # somebody will differentiate this gradient again
        x, *params = ctx.saved_tensors
        u = -system.solve_transposed_differentiably(x, grads[0], params)
        aliases = [p.view_as(p) for p in params]  # the way to the parameters past x
        value = system.residual(x, *_merge(system.params, aliases))
        once = _Once.apply(u, torch.zeros((), requires_grad=True))  # type: ignore[no-untyped-call]
        return None, once, None, *_vjp(value, aliases, u, create_graph=True)


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


def _vjp(value: Tensor, to: list[Tensor], v: Tensor, create_graph: bool = False) -> tuple[Tensor | None, ...]:
    options = {"retain_graph": True, "create_graph": create_graph, "allow_unused": True}
    return torch.autograd.grad(value, to, v, **options) if to else ()


def _is_differentiated(param: object) -> bool:
    return isinstance(param, Tensor) and param.requires_grad


def _merge(params: tuple[Any, ...], differentiated: list[Tensor]) -> list[Any]:
    """`params` with those that are differentiated replaced."""
    new = iter(differentiated)
    return [next(new) if _is_differentiated(param) else param for param in params]


class _Constant(torch.autograd.Function):
    """The identity without a derivative, in every mode and at every level of `torch.func` transforms."""

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
        return _constant(x), in_dims[0]


def _constant(x: Tensor) -> Tensor:
    return _Constant.apply(x)  # type: ignore[no-untyped-call]


def _by_newton(residual: Callable[..., Tensor], solution: Tensor, params: tuple[Any, ...], options: _Options) -> Tensor:
    """`root` out of differentiable operations only, which is what `torch.func` transforms can see through.

    From a stationary start, each step `x <- x - J⁻¹ g(x, θ)` with the constant `J = D_x g(x*)` makes one more
    order of the series of `x` in `θ` exact.
    """
    shape, size = solution.shape, math.prod(solution.shape[options.batch_dims :])
    if options.method == "iterative":
        raise ValueError("method: expected 'dense' or 'auto' inside torch.func transforms, got 'iterative'")

    def flat(x: Tensor) -> Tensor:
        value = residual(x.reshape(shape), *params)
        _check_shape("residual", value, tuple(shape), "the shape of solution")
        return value.reshape(-1, size)

    x = _constant(solution.reshape(-1, size))
    value, vjp = torch.func.vjp(flat, x)[:2]
    identity = torch.eye(size, dtype=x.dtype, device=x.device).unsqueeze(1).expand(size, *x.shape)
    jacobian = _constant(torch.func.vmap(vjp)(identity)[0].transpose(0, 1))
    base = _constant(value)
    for _ in range((torch._C._functorch.maybe_current_level() or 0) + 2):
        x = x - solve(jacobian, flat(x) - base)
    return x.reshape(shape)


def _gradient_of(objective: Callable[..., Tensor], batch_dims: int) -> Callable[..., Tensor]:
    def gradient(x: Tensor, *params: Any) -> Tensor:
        def total(x: Tensor) -> Tensor:
            value = objective(x, *params)
            what = f"one number a problem, {batch_dims=}"
            _check_shape("objective", value, tuple(x.shape[:batch_dims]), what)
            return value.sum()

        if torch._C._are_functorch_transforms_active():
            return torch.func.grad(total)(x)
        value = total(x)
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value, x, create_graph=True, allow_unused=True)
            if grad is not None:
                return grad
        raise ValueError("objective: expected a function of x, got one that does not depend on x")

    return gradient


def _check(solution: object, options: _Options) -> None:
    if not isinstance(solution, Tensor) or not solution.is_floating_point():
        came = solution.dtype if isinstance(solution, Tensor) else type(solution).__name__
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


def _check_shape(name: str, value: object, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected to return a tensor, got {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected to return {shape} ({what}), got {tuple(value.shape)}")

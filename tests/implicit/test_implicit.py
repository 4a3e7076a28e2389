"""`dcem.implicit` against closed forms, finite differences, and itself by another road."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import dcem
from dcem import implicit

F64 = torch.float64
# forward mode scripts torch's own formulas
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


def leaf(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=F64, requires_grad=True)


def ridge(a: Tensor, b: Tensor, penalty: Tensor) -> Tensor:
    return torch.linalg.solve(a.T @ a + penalty * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)


@pytest.mark.parametrize("method", ["dense", "iterative"])
def test_ridge_regression_by_its_penalty(method: implicit.Method) -> None:
    torch.manual_seed(0)
    a, b, penalty = torch.randn(30, 5, dtype=F64), torch.randn(30, dtype=F64), leaf(0.7)
    exact = ridge(a, b, penalty)

    def objective(w: Tensor, penalty: Tensor) -> Tensor:
        return 0.5 * (a @ w - b).square().sum() + 0.5 * penalty * w.square().sum()

    w = implicit.argmin(objective, exact.detach(), penalty, method=method)
    assert torch.equal(w, exact)
    for i in range(5):
        (ours,) = torch.autograd.grad(w[i], penalty, retain_graph=True)
        (truth,) = torch.autograd.grad(exact[i], penalty, retain_graph=True)
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-12)


def rosenbrock_like(x: Tensor, theta: Tensor) -> Tensor:
    return (
        (theta[0] - x[..., 0]) ** 2 + 5 * (x[..., 1] - theta[1] * x[..., 0] ** 2) ** 2 + 0.3 * torch.sin(3 * x[..., 0])
    )


def newton(theta: Tensor, x: Tensor) -> Tensor:
    for _ in range(12):
        g = torch.func.grad(rosenbrock_like)(x, theta)
        x = x - torch.linalg.solve(torch.func.hessian(rosenbrock_like)(x, theta), g)
    return x.detach()


def test_nonconvex_minimum_against_finite_differences() -> None:
    theta, start = leaf(1.0, 0.8), torch.tensor([1.4, 1.5], dtype=F64)
    solution = newton(theta.detach(), start)
    assert implicit.stationarity(rosenbrock_like, solution, theta).is_minimum(1e-8)
    ours = torch.stack(
        [torch.autograd.grad(implicit.argmin(rosenbrock_like, solution, theta)[i], theta)[0] for i in range(2)]
    )
    h = 1e-5
    for j in range(2):
        shift = torch.zeros(2, dtype=F64)
        shift[j] = h
        truth = (newton(theta.detach() + shift, solution) - newton(theta.detach() - shift, solution)) / (2 * h)
        torch.testing.assert_close(ours[:, j], truth, rtol=1e-7, atol=1e-9)


def cube_root(a: Tensor, **options: object) -> Tensor:
    return implicit.root(lambda x, a: x**3 - a, a.detach() ** (1 / 3), a, **options)  # type: ignore[arg-type]


def test_scalar_root_and_its_higher_derivatives() -> None:
    a = leaf(2.0)
    y, truth = cube_root(a), a ** (1 / 3)
    for _ in range(4):
        torch.testing.assert_close(y, truth, rtol=1e-10, atol=0)
        (y,) = torch.autograd.grad(y, a, create_graph=True)
        (truth,) = torch.autograd.grad(truth, a, create_graph=True)


@pytest.mark.parametrize("method", ["dense", "iterative"])
def test_gradgradcheck(method: implicit.Method) -> None:
    def both(a: Tensor) -> Tensor:
        return cube_root(a, batch_dims=1, method=method)

    a = torch.tensor([0.5, 2.0, 3.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(both, a)
    assert torch.autograd.gradgradcheck(both, a)


def test_higher_derivatives_where_parameters_and_solution_interact() -> None:
    def residual(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([a * x[0] ** 2 - b * x[1], x[0] * x[1] * b - a**2])

    def both(a: Tensor, b: Tensor) -> Tensor:  # x0³ = a, x1 = a x0² / b
        x0 = a.detach() ** (1 / 3)
        return implicit.root(residual, torch.stack([x0, a.detach() * x0**2 / b.detach()]), a, b)

    def exact(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([a ** (1 / 3), a ** (5 / 3) / b])

    a, b = leaf(1.3), leaf(0.6)
    assert torch.autograd.gradcheck(both, (a, b))
    assert torch.autograd.gradgradcheck(both, (a, b))
    ours, truth = both(a, b).sin().sum(), exact(a, b).sin().sum()
    for _ in range(3):
        ours, truth = (sum(torch.autograd.grad(y, (a, b), create_graph=True)) for y in (ours, truth))
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=0)


def test_second_derivatives_through_a_closure_are_an_error() -> None:
    a = leaf(2.0)
    x = implicit.root(lambda x: x**3 - a, a.detach() ** (1 / 3))
    (first,) = torch.autograd.grad(x**2, a, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative .* pass it in params"):
        torch.autograd.grad(first, a)


def test_inside_torch_func() -> None:
    a = torch.tensor([0.5, 2.0, 3.0], dtype=F64)
    first, second, third = a ** (-2 / 3) / 3, -2 / 9 * a ** (-5 / 3), 10 / 27 * a ** (-8 / 3)
    grad = torch.func.grad(cube_root)
    torch.testing.assert_close(torch.func.vmap(cube_root)(a), a ** (1 / 3))
    torch.testing.assert_close(torch.func.vmap(grad)(a), first)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(grad))(a), second)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(torch.func.grad(grad)))(a), third)
    batched: Callable[[Tensor], Tensor] = lambda a: cube_root(a, batch_dims=1)  # noqa: E731
    torch.testing.assert_close(torch.func.jacrev(batched)(a), torch.diag(first))
    torch.testing.assert_close(torch.func.jacfwd(batched)(a), torch.diag(first))
    torch.testing.assert_close(torch.func.jvp(batched, (a,), (torch.ones_like(a),))[1], first)
    torch.testing.assert_close(torch.func.hessian(lambda a: batched(a).sum())(a), torch.diag(second))
    leaves = a.clone().requires_grad_()  # ordinary backward through vmap
    torch.testing.assert_close(torch.autograd.grad(torch.func.vmap(cube_root)(leaves).sum(), leaves)[0], first)


def test_argmin_inside_torch_func() -> None:
    theta = torch.tensor([1.0, 0.8], dtype=F64)
    solution = newton(theta, torch.tensor([1.4, 1.5], dtype=F64))
    jacobian = torch.func.jacrev(lambda t: implicit.argmin(rosenbrock_like, solution, t))(theta)
    parameter = theta.clone().requires_grad_()
    x = implicit.argmin(rosenbrock_like, solution, parameter)
    rows = [torch.autograd.grad(x[i], parameter, retain_graph=True)[0] for i in range(2)]
    torch.testing.assert_close(jacobian, torch.stack(rows))


def test_closures_modules_and_parameters_agree() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.5)
        x = torch.zeros(4, 3, dtype=F64)
        for _ in range(200):
            x = net(x) + 1
    equilibrium = implicit.root(lambda x: x - net(x) - 1, x, batch_dims=1)
    closed = torch.autograd.grad(equilibrium.square().sum(), list(net.parameters()))

    def residual(x: Tensor, *params: Tensor) -> Tensor:
        names = [name for name, _ in net.named_parameters()]
        return x - torch.func.functional_call(net, dict(zip(names, params, strict=True)), x) - 1

    explicit = implicit.root(residual, x, *net.parameters(), batch_dims=1)
    for ours, other in zip(closed, torch.autograd.grad(explicit.square().sum(), list(net.parameters())), strict=True):
        assert torch.equal(ours, other)
    iterated = x
    for _ in range(60):  # unrolling from the answer gives the same in the limit
        iterated = net(iterated) + 1
    for ours, other in zip(closed, torch.autograd.grad(iterated.square().sum(), list(net.parameters())), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
def test_dense_and_iterative_agree_on_a_batch(symmetric: bool) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(2, 3, 20, 20, dtype=F64) / 5 + 3 * torch.eye(20, dtype=F64)
    if symmetric:
        matrix = matrix @ matrix.mT
    b = torch.randn(2, 3, 20, dtype=F64, requires_grad=True)
    solution = torch.linalg.solve(matrix, b).reshape(2, 3, 4, 5)
    weight = torch.randn(2, 3, 4, 5, dtype=F64)

    def gradient(method: implicit.Method) -> Tensor:
        def residual(x: Tensor) -> Tensor:
            return ((matrix @ x.reshape(2, 3, 20, 1)).squeeze(-1) - b).reshape(x.shape)

        x = implicit.root(residual, solution, batch_dims=2, method=method, symmetric=symmetric)
        return torch.autograd.grad((weight * x).sum(), b)[0]

    truth = torch.autograd.grad((weight * solution).sum(), b)[0]
    torch.testing.assert_close(gradient("dense"), truth, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient("iterative"), truth, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["dense", "iterative"])
def test_one_problem_never_changes_another(method: implicit.Method) -> None:
    torch.manual_seed(2)
    matrix = torch.randn(3, 6, 6) + 4 * torch.eye(6)
    b = torch.randn(3, 6)

    def gradient(matrix: Tensor) -> Tensor:
        rhs = b.clone().requires_grad_()
        solution = torch.linalg.solve(matrix, b)
        x = implicit.root(lambda x: (matrix @ x.unsqueeze(-1)).squeeze(-1) - rhs, solution, batch_dims=1, method=method)
        return torch.autograd.grad(x.sin().sum(), rhs)[0]

    other = matrix.clone()
    other[1] = torch.randn(6, 6) + 50 * torch.eye(6)
    other[1, 0] *= 30
    assert torch.equal(gradient(matrix)[[0, 2]], gradient(other)[[0, 2]])


def test_a_singular_problem_is_nan_alone_and_silent_without_a_gradient() -> None:
    slope = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    x = implicit.root(lambda x: slope.detach() * x - slope, torch.ones(3), batch_dims=1)
    (grad,) = torch.autograd.grad(x.sum(), slope, retain_graph=True)
    assert grad.isnan().tolist() == [False, True, False]
    (grad,) = torch.autograd.grad(torch.where(slope > 0, x, 0.0).sum(), slope)
    torch.testing.assert_close(grad, torch.tensor([1.0, 0.0, 0.5]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_many_unknowns_without_a_matrix(symmetric: bool) -> None:
    n = 600
    grid = torch.linspace(0, 1, n, dtype=F64)
    diagonal, skew = 2 + grid, 0.0 if symmetric else 0.4

    def product(x: Tensor) -> Tensor:
        return diagonal * x - (0.5 + skew) * x.roll(1) - (0.5 - skew) * x.roll(-1)

    b = torch.sin(7 * grid).requires_grad_()
    matrix = torch.func.vmap(product)(torch.eye(n, dtype=F64)).T
    solution = torch.linalg.solve(matrix, b.detach())
    x = implicit.root(lambda x: product(x) - b, solution, symmetric=symmetric)
    (ours,) = torch.autograd.grad((grid * x).sum(), b)
    torch.testing.assert_close(ours, torch.linalg.solve(matrix.T, grid), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["dense", "iterative"])
def test_ill_conditioned(method: implicit.Method) -> None:
    scale = torch.logspace(0, 8, 40, dtype=F64)
    target = torch.ones(40, dtype=F64, requires_grad=True)

    def objective(x: Tensor) -> Tensor:
        return (0.5 * scale * x.square() - target * x).sum()

    x = implicit.argmin(objective, 1 / scale, method=method, max_iterations=2000)
    (ours,) = torch.autograd.grad((x * scale).sum(), target)
    # the iterative method bounds the residual, so the condition number stands between that and the error
    rtol = 1e-12 if method == "dense" else 1e-3
    torch.testing.assert_close(ours, torch.ones(40, dtype=F64), rtol=rtol, atol=0)


def test_giving_up_says_so() -> None:
    scale = torch.logspace(0, 6, 100, dtype=F64)
    target = torch.ones(100, dtype=F64, requires_grad=True)
    x = implicit.argmin(lambda x: (0.5 * scale * x**2 - target * x).sum(), 1 / scale, max_iterations=5)
    with pytest.warns(RuntimeWarning, match=r"relative residual of .* raise max_iterations"):
        x.sum().backward()


def test_stationarity_tells_minima_from_the_rest() -> None:
    def wells(x: Tensor) -> Tensor:
        return ((x**2 - 1) ** 2).sum(-1)

    points = torch.tensor([[1.0, -1.0], [0.0, 1.0], [1.001, 1.0], [0.5, 1.0], [math.nan, 1.0]], dtype=F64)
    where = implicit.stationarity(wells, points, batch_dims=1)
    assert where.is_minimum().tolist() == [True, False, True, False, False]
    torch.testing.assert_close(where.min_curvature[:2], torch.tensor([8.0, -4.0], dtype=F64))
    torch.testing.assert_close(where.step[2], torch.tensor(0.001, dtype=F64), rtol=1e-2, atol=0)
    large = torch.cat([points[:3], points[:3, :1].expand(3, 98)], dim=1)
    assert implicit.stationarity(wells, large, batch_dims=1).is_minimum(0.02).tolist() == [True, False, True]


METHODS: tuple[implicit.Method, ...] = ("dense", "iterative")


def of_condition(condition: float, size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A symmetric positive definite matrix whose eigenvectors are not the axes."""
    torch.manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=F64))
    return (q @ torch.diag(torch.logspace(0, -math.log10(condition), size, dtype=F64)) @ q.T).to(dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rounding_is_no_curvature(method: implicit.Method, dtype: torch.dtype) -> None:
    """The smallest eigenvalue of these matrices is 0; the computed one is rounding, of either sign."""
    for seed in range(12):
        torch.manual_seed(seed)
        q = torch.randn(4, 3, dtype=dtype)
        matrix = q @ q.T

        def objective(x: Tensor, target: Tensor, matrix: Tensor = matrix) -> Tensor:
            return 0.5 * x @ matrix @ x - x @ target

        at, target = torch.zeros(4, dtype=dtype), torch.zeros(4, dtype=dtype, requires_grad=True)
        assert not implicit.stationarity(objective, at, target, method=method).is_minimum()
        for symmetric in (True, False):
            x = implicit.root(lambda x, t: matrix @ x - t, at, target, method=method, symmetric=symmetric)  # noqa: B023
            assert torch.autograd.grad(x.sum(), target)[0].isnan().all()
        x = implicit.argmin(objective, at, target, method=method)
        assert torch.autograd.grad(x.sum(), target)[0].isnan().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_condition_is_supported_or_the_gradient_says_so(
    method: implicit.Method, symmetric: bool, dtype: torch.dtype
) -> None:
    size, eps = 8, torch.finfo(dtype).eps
    for exponent in range(1, 18):
        condition = 10.0**exponent
        matrix = of_condition(condition, size, dtype, exponent)
        target = torch.zeros(size, dtype=dtype, requires_grad=True)

        def residual(x: Tensor, matrix: Tensor = matrix, target: Tensor = target) -> Tensor:
            return matrix @ x - target

        x = implicit.root(residual, torch.zeros(size, dtype=dtype), method=method, symmetric=symmetric)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            (ours,) = torch.autograd.grad(x.sum(), target)
        truth = torch.linalg.solve(matrix.double(), torch.ones(size, dtype=F64))
        error = ((ours - truth).norm() / truth.norm()).item()
        if condition * eps < 1e-4:
            assert error < 0.01
        assert error < 0.2 or math.isnan(error) or said
        assert condition * eps < 1 or math.isnan(error)


@pytest.mark.parametrize("size", [6, 80])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_problem_that_is_not_finite_fails_alone(method: implicit.Method, symmetric: bool, size: int) -> None:
    for bad in (math.nan, math.inf, 1e30):  # the last overflows on the way
        torch.manual_seed(2)
        matrix = torch.randn(3, size, size) / size
        matrix = matrix @ matrix.mT + torch.eye(size)

        def gradient(matrix: Tensor) -> Tensor:
            rhs = torch.zeros(3, size, requires_grad=True)
            x = implicit.root(
                lambda x: (matrix @ x.unsqueeze(-1)).squeeze(-1) - rhs,
                torch.zeros(3, size),
                batch_dims=1,
                method=method,
                symmetric=symmetric,
            )
            return torch.autograd.grad(x.sum(), rhs)[0]

        good = gradient(matrix)
        broken = matrix.clone()
        broken[1, 0, 1] = broken[1, 1, 0] = bad
        ours = gradient(broken)
        assert torch.equal(ours[[0, 2]], good[[0, 2]])
        assert bad == 1e30 or ours[1].isnan().all()

        def objective(x: Tensor) -> Tensor:
            return 0.5 * (x.unsqueeze(-2) @ broken @ x.unsqueeze(-1)).squeeze(-1).squeeze(-1)  # noqa: B023

        where = implicit.stationarity(objective, torch.zeros(3, size), batch_dims=1, method=method)
        assert where.is_minimum().tolist() == [True, False, True]


def test_units_do_not_matter() -> None:
    for scale in (1e-30, 1e30):
        rhs = torch.zeros(3, requires_grad=True)
        matrix = of_condition(100.0, 3, torch.float32)
        x = implicit.root(lambda x: scale * (matrix @ x - rhs), torch.zeros(3))  # noqa: B023
        (ours,) = torch.autograd.grad(x.sum(), rhs)
        torch.testing.assert_close(ours, torch.linalg.solve(matrix, torch.ones(3)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("double_root", [lambda x, a: x**2 - a, lambda x, a: 0 * x - a, lambda x, a: x * math.nan - a])
def test_no_function_of_the_parameters_inside_transforms(double_root: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The value stays that of the solution and the derivative is NaN, as outside."""
    zero = torch.zeros(3, dtype=F64)

    def solved(a: Tensor) -> Tensor:
        return implicit.root(double_root, zero, a, batch_dims=1)

    def one(a: Tensor) -> Tensor:
        return implicit.root(double_root, torch.zeros((), dtype=F64), a)

    assert torch.equal(torch.func.vmap(one)(zero), zero)
    assert torch.func.vmap(torch.func.grad(one))(zero).isnan().all()
    value, tangent = torch.func.jvp(solved, (zero,), (torch.tensor([0.0, 1.0, 0.0], dtype=F64),))
    assert torch.equal(value, zero)
    assert tangent[1].isnan()
    assert double_root(zero, zero).isnan().any() or tangent.isnan().tolist() == [False, True, False]
    parameter = zero.clone().requires_grad_()
    assert torch.autograd.grad(solved(parameter).sum(), parameter)[0].isnan().all()


def solved_by_implicit(objective: Callable[[Tensor], Tensor], at: Tensor, **options: object) -> dcem.Solution:
    """`at`, found by a solve."""
    solver = dcem.GradientDescent(1e-12)
    return dcem.minimize(objective, at, solver, num_iterations=1, gradient=dcem.Implicit(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_behind_a_softmax_the_answer_does_not_move_along_what_is_flat(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(size, size, dtype=dtype).div(size).requires_grad_()
    inputs, direction = torch.randn(4, size, dtype=dtype), torch.randn(size, dtype=dtype)

    def model(weight: Tensor) -> Tensor:
        return (inputs @ weight).softmax(-1)

    def objective(z: Tensor) -> Tensor:
        return 1 + size * (z.softmax(-1) - model(weight).unsqueeze(-2)).square().sum(-1)

    solution = solved_by_implicit(objective, (inputs @ weight).detach() + 1)
    assert (solution.status == dcem.Status.OK).all()
    (ours,) = torch.autograd.grad((solution.x.softmax(-1) * direction).sum(), weight, retain_graph=True)
    (truth,) = torch.autograd.grad((model(weight) * direction).sum(), weight)
    torch.testing.assert_close(
        ours, truth, rtol=1e-3 if dtype == torch.float32 else 1e-7, atol=1e-6 * truth.norm().item()
    )
    (along,) = torch.autograd.grad(solution.x.sum(), weight)
    assert along.norm() < 1e-4 * truth.norm()


@pytest.mark.parametrize("size", [4, 80])
def test_the_minimum_norm_solution(size: int) -> None:
    for seed in range(10 if size == 4 else 2):
        torch.manual_seed(seed)
        matrix = torch.randn(size - 1, size, dtype=F64)
        if size > 4:
            matrix = matrix / size + torch.eye(size - 1, size, dtype=F64)
        theta = torch.randn(size - 1, dtype=F64, requires_grad=True)
        inverse = torch.linalg.pinv(matrix)
        solution = solved_by_implicit(lambda x: (x @ matrix.T - theta).square().sum(-1), inverse @ theta.detach())  # noqa: B023
        assert solution.status == dcem.Status.OK
        weight = torch.randn(size, dtype=F64)
        (ours,) = torch.autograd.grad((weight * solution.x).sum(), theta)
        torch.testing.assert_close(ours, inverse.T @ weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("objective", "stationary"),
    [
        (lambda x: (x.square().sum(-1) - 1).square(), [True, False, True, True]),  # a ring of minima, around a maximum
        (lambda x: (x[..., 0].square() + x[..., 1] - 1).square(), [True, False, False, True]),  # a bent valley
        (lambda x: x[..., 0] ** 4 + x[..., 1].square(), [False, False, False, False]),  # one minimum without curvature
        (lambda x: x[..., 0].square() + x[..., 1] ** 3, [False, False, False, False]),
        (lambda x: x[..., 0].square() + 1e-3 * x[..., 1], [False, False, False, False]),  # a slope along the valley
        (lambda x: x[..., 0].square() - x[..., 1].square(), [False, False, False, False]),
        (lambda x: x[..., 0].square() + 0 * x[..., 1], [False, True, False, True]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_minimum_may_go_on_but_must_be_one(
    objective: Callable[[Tensor], Tensor], stationary: list[bool], dtype: torch.dtype
) -> None:
    points = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=dtype)
    status = solved_by_implicit(objective, points).status
    assert (status == dcem.Status.OK).tolist() == stationary
    assert not implicit.stationarity(objective, points, batch_dims=1).is_minimum().any()


def test_the_hessian_is_built_once() -> None:
    calls = 0

    def objective(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (x - theta).square().sum(-1)

    theta = torch.ones(3, requires_grad=True)
    solution = solved_by_implicit(objective, torch.ones(3))
    (gradient,) = torch.autograd.grad(solution.x.sum(), theta)
    torch.testing.assert_close(gradient, torch.ones(3))
    assert (
        calls == 3
    )  # a step of the solver; the slope at its answer; the slope again, to be differentiated, with the Hessian


def test_what_bounds_hold_is_not_flat() -> None:
    theta = torch.tensor([1e-6, 1.0, 2.0], requires_grad=True)
    scale = torch.tensor([1e-6, 1e-6, 1.0])  # curvature far below that of a unit
    solution = solved_by_implicit(
        lambda x: (scale * (x - theta).square()).sum(-1),
        torch.tensor([1e-6, 0.5, 2.0]),
        bounds=(None, torch.tensor([1.0, 0.5, 3.0])),
    )
    assert solution.status == dcem.Status.OK
    (gradient,) = torch.autograd.grad(solution.x.sum(), theta)
    torch.testing.assert_close(gradient, torch.tensor([1.0, 0.0, 1.0]))
    held = solved_by_implicit(lambda x: (theta * x).sum(-1), torch.zeros(3), bounds=(0.0, 1.0))  # all, and no curvature
    assert held.status == dcem.Status.OK
    assert not torch.autograd.grad(held.x.sum(), theta)[0].any()


def test_forward_mode() -> None:
    a = torch.tensor([0.5, 2.0, 3.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: cube_root(a, batch_dims=1), a, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda a: cube_root(a, batch_dims=1), a, check_fwd_over_rev=True)
    at, first = a.detach() ** (1 / 3), a.detach() ** (-2 / 3) / 3
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(a.detach(), torch.ones_like(a))
        for solved in (
            implicit.root(lambda x: x**3 - dual, at, batch_dims=1),  # closed over
            implicit.root(lambda x, a: x**3 - a, at, dual, batch_dims=1),
            implicit.argmin(lambda x: x**4 / 4 - dual * x, at, batch_dims=1),
        ):
            value, tangent = forward_ad.unpack_dual(solved)
            assert torch.equal(value, at)
            torch.testing.assert_close(tangent, first)
        with torch.no_grad():
            x = implicit.root(lambda x: x**3 - dual, at, batch_dims=1)
        torch.testing.assert_close(forward_ad.unpack_dual(x).tangent, first)
        with pytest.raises(ValueError, match="method: expected 'dense' or 'auto' inside .* forward mode"):
            implicit.root(lambda x: x**3 - dual, at, batch_dims=1, method="iterative")
        plain = implicit.root(lambda x: x**3 - a, at, batch_dims=1, method="iterative")  # nothing of it is dual
        torch.testing.assert_close(torch.autograd.grad(plain.sum(), a)[0], first)


def test_nothing_to_differentiate() -> None:
    solution = torch.tensor([1.0, 2.0], requires_grad=True)
    with torch.no_grad():
        assert not implicit.root(lambda x: x, solution).requires_grad
    x = implicit.root(lambda x: x - 1, solution)
    assert torch.autograd.grad(x.sum(), solution, allow_unused=True)[0] is None
    plain, theta = solution.detach(), torch.ones(2, requires_grad=True)
    assert not implicit.root(lambda x: x - 1, plain).requires_grad
    assert not implicit.argmin(lambda x, t: (x - t).square().sum(), plain, theta.detach()).requires_grad
    assert implicit.root(lambda x: x - theta, plain).requires_grad
    assert implicit.argmin(lambda x, t: (x - t).square().sum(), plain, theta).requires_grad


def test_half_precision_and_empty_batches() -> None:
    a = torch.tensor([2.0, 3.0], dtype=torch.bfloat16, requires_grad=True)
    x = implicit.root(lambda x: 2 * x - a, a.detach() / 2, batch_dims=1)
    assert torch.equal(torch.autograd.grad(x.sum(), a)[0], torch.full_like(a, 0.5))
    none = torch.zeros(0, 3, requires_grad=True)
    for method in ("dense", "iterative"):
        x = implicit.root(lambda x: x - none, torch.zeros(0, 3), batch_dims=1, method=method)  # type: ignore[arg-type]
        assert torch.autograd.grad(x.sum(), none)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: implicit.root(lambda x: x, torch.tensor([1])), TypeError, "solution: expected a floating point tensor, got torch.int64"),
        (lambda x: implicit.root(lambda x: x, 1.0), TypeError, "solution: expected a floating point tensor, got float"),
        (lambda x: implicit.root(None, x), TypeError, "^residual: expected a callable, got None"),  # type: ignore[arg-type]
        (lambda x: implicit.argmin(x, x), TypeError, "^objective: expected a callable, got a Tensor"),  # type: ignore[arg-type]
        (lambda x: implicit.stationarity(3, x), TypeError, "^objective: expected a callable, got 3"),  # type: ignore[arg-type]
        (lambda x: implicit.root(lambda x: x.sum(), x), ValueError, r"residual: expected to return \(3,\).* got \(\)"),
        (lambda x: implicit.root(lambda x: 0.0, x), TypeError, "residual: expected to return a tensor, got float"),
        (lambda x: implicit.argmin(lambda x: x**2, x), ValueError, r"objective: expected to return \(\).* got \(3,\)"),
        (lambda x: implicit.argmin(lambda x: x.sum(), x, batch_dims=1), ValueError, r"expected to return \(3,\)"),
        (lambda x: implicit.argmin(lambda x: torch.ones(()), x), ValueError, "objective: expected a function of x"),
        (lambda x: implicit.root(lambda x: x, x, batch_dims=2), ValueError, "batch_dims: expected 0 to 1.* got 2"),
        (lambda x: implicit.root(lambda x: x, x, method="cg"), ValueError, "method: expected 'auto'.* got 'cg'"),
        (lambda x: implicit.root(lambda x: x, x, tolerance=0.0), ValueError, "tolerance: expected a positive"),
        (lambda x: implicit.root(lambda x: x, x, max_iterations=0), ValueError, "max_iterations: expected at least 1"),
        (lambda x: torch.func.vmap(lambda x: implicit.root(lambda y: y, x, method="iterative"))(x), ValueError, "inside torch.func"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call: Callable[[Tensor], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call(torch.zeros(3))


def test_a_residual_that_ignores_x_is_an_error_in_backward() -> None:
    a = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="residual: expected a function of x"):
        implicit.root(lambda x: a.clone(), torch.zeros(3)).sum().backward()

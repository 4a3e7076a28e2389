"""Every gradient mode against one finite-difference truth in float64, and what each promises."""

import pytest
import torch
from torch import Tensor

import dcem

T, N, D = 4, 30, 3


def objective(theta: Tensor):
    """Smooth and not convex, with `theta` `(D,)` inside; one minimum near `theta`."""
    return lambda x: (x - theta).square().sum(-1) + 0.3 * (2 * x * theta.flip(-1)).sin().sum(-1)


@pytest.fixture
def theta() -> Tensor:
    return torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64, requires_grad=True)


@pytest.fixture
def noise(generator) -> Tensor:
    return torch.randn(T, N, D, dtype=torch.float64, generator=generator)


def solve(theta: Tensor, noise: Tensor, gradient: dcem.GradientMode, solver: dcem.Solver | None = None, **options):
    solver = dcem.CEM(N, 5, dcem.LML(0.4), init_std=1.5) if solver is None else solver
    options.setdefault("num_iterations", T)
    options.setdefault("init", torch.full((D,), 0.3, dtype=torch.float64))
    init = options.pop("init")
    return dcem.minimize(objective(theta), init, solver, noise=noise, gradient=gradient, **options)


def finite_differences(answer, theta: Tensor, step: float = 1e-6) -> Tensor:
    """Jacobian of `answer(theta)`, `(*answer, D)`, by central differences."""
    columns = []
    for i in range(theta.numel()):
        shift = torch.zeros_like(theta)
        shift[i] = step
        with torch.no_grad():
            columns.append((answer(theta + shift) - answer(theta - shift)) / (2 * step))
    return torch.stack(columns, -1)


def jacobian(x: Tensor, theta: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(xi, theta, retain_graph=True)[0] for xi in x])


SOLVERS = [
    dcem.CEM(N, 5, dcem.LML(0.4), init_std=1.5),
    dcem.CEM(N, 5.5, dcem.ConstrainedSoftmax(0.4), init_std=1.5, smoothing=0.2),
    dcem.CEM(N, 5, dcem.ConstrainedSparsemax(0.4), init_std=1.5, keep_elites=0.4),
    dcem.CEM(N, 5, dcem.LML(0.4), standardize=False, population_decay=1.3),
    dcem.MPPI(N, 0.5),
    dcem.GradientDescent(0.1, momentum=0.5),
]


FULL = [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(T), dcem.Prune(1.0)]


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [(solver, mode) for solver in SOLVERS for mode in FULL[: 4 if isinstance(solver, dcem.SamplingSolver) else 3]],
    ids=lambda value: type(value).__name__,
)
def test_full_gradients_are_finite_differences(gradient, solver, theta, noise):
    noise = noise[:, : solver.num_samples]
    truth = finite_differences(lambda t: solve(t, noise, gradient, solver).x, theta)
    torch.testing.assert_close(jacobian(solve(theta, noise, gradient, solver).x, theta), truth, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("last", [1, 2, 3])
def test_truncated_gradient_is_that_of_the_last_iterations(last, theta, noise):
    start = solve(theta.detach(), noise[: T - last], dcem.Detach(), num_iterations=T - last).distribution
    rest = lambda t: solve(t, noise[T - last :], dcem.Unroll(), init=start, num_iterations=last).x  # noqa: E731
    x = solve(theta, noise, dcem.Truncate(last)).x
    torch.testing.assert_close(x, rest(theta))
    torch.testing.assert_close(jacobian(x, theta), finite_differences(rest, theta), rtol=1e-5, atol=1e-7)


def test_implicit_gradient_is_that_of_the_minimum(theta):
    def minimum(t: Tensor) -> Tensor:
        return dcem.minimize(
            objective(t), torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64), dcem.GradientDescent(0.3),
            num_iterations=120, gradient=dcem.Detach(),
        ).x  # fmt: skip

    truth = finite_differences(minimum, theta, 1e-5)
    solution = dcem.minimize(
        objective(theta), minimum(theta), dcem.GradientDescent(0.3), num_iterations=50, gradient=dcem.Implicit()
    )
    assert solution.status == dcem.Status.OK
    torch.testing.assert_close(jacobian(solution.x, theta), truth, rtol=1e-6, atol=1e-8)
    cem = dcem.minimize(
        objective(theta), torch.zeros(D, dtype=torch.float64), dcem.CEM(200, 40, dcem.HardTopK(), init_std=2.0),
        num_iterations=40, gradient=dcem.Implicit(), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    torch.testing.assert_close(jacobian(cem.x, theta), truth, rtol=1e-4, atol=1e-5)


def test_implicit_says_which_problem_is_not_stationary(theta):
    # a minimum, a saddle point, a slope
    starts = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.6, 0.0]], dtype=torch.float64)
    two = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    solution = dcem.minimize(
        lambda x: (x[..., 0].square() - two).square() + x[..., 1].square(), starts, dcem.GradientDescent(1e-6),
        num_iterations=1, gradient=dcem.Implicit(),
    )  # fmt: skip
    assert solution.status.tolist() == [dcem.Status.OK, dcem.Status.NOT_STATIONARY, dcem.Status.NOT_STATIONARY]
    gradients = [torch.autograd.grad(x.sum(), two, retain_graph=True)[0].item() for x in solution.x]
    assert gradients == pytest.approx([0.5, 0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 80])
def test_implicit_gives_no_gradient_where_the_curvature_is_not_finite_and_leaves_the_others_alone(dim):
    """At its minimum `|x - c|^1.5` has a value and a slope of 0, and no Hessian: there 0 times infinity is not 0."""
    center = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64).expand(dim, 3).T.clone().requires_grad_()

    def objective(x: Tensor) -> Tensor:
        one, two, three = (x - center[:, None]).unbind()
        return torch.stack([one.square(), two.abs().pow(1.5), three.square()]).sum(-1)

    solution = dcem.minimize(
        objective, center.detach(), dcem.GradientDescent(1e-3), num_iterations=1, gradient=dcem.Implicit()
    )
    assert solution.status.tolist() == [dcem.Status.OK, dcem.Status.NOT_STATIONARY, dcem.Status.OK]
    gradient = torch.autograd.grad(solution.x.sum(), center)[0]
    torch.testing.assert_close(gradient, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).expand(dim, 3).T)


@pytest.mark.parametrize("curvature", [1.0, torch.nan])
@pytest.mark.parametrize("bounds", [None, (-1.0, 0.2)])
@pytest.mark.parametrize("dim", [2, 80])
def test_implicit_requires_a_gradient_where_something_else_does(dim, bounds, curvature):
    for learned in (False, True):
        center = torch.full((dim,), 0.3, requires_grad=learned)
        x = dcem.minimize(
            lambda x, center=center: curvature * (x - center).square().sum(-1), torch.zeros(dim),
            dcem.GradientDescent(0.3), bounds=bounds, gradient=dcem.Implicit(),
        ).x  # fmt: skip
        assert x.requires_grad == learned


@pytest.mark.parametrize(("batch", "slope"), [((), 0.0), ((3,), 0.0), ((), 1.0)])
def test_a_constant_of_the_objective_has_an_implicit_gradient_of_zero(batch, slope):
    """With a slope that is a number, too: then the answer lies on a bound, and nothing else requires a gradient."""
    constant = torch.tensor(1.0, requires_grad=True)
    x = dcem.minimize(
        lambda x: (1 - slope) * x.square().sum(-1) + slope * x.sum(-1) + constant, torch.ones(*batch, 2),
        dcem.GradientDescent(0.4), event_dims=1, bounds=(-1.0, 1.0), gradient=dcem.Implicit(), num_iterations=20,
    ).x  # fmt: skip
    torch.testing.assert_close(x, torch.full((*batch, 2), -slope))
    x.sum().backward()
    assert constant.grad == 0


def test_implicit_holds_the_coordinates_on_a_bound():
    center = torch.tensor([2.0, 0.5], dtype=torch.float64, requires_grad=True)
    coupling = lambda x: (x - center).square().sum(-1) + x[..., 0] * x[..., 1]  # noqa: E731
    solution = dcem.minimize(
        coupling, torch.zeros(2, dtype=torch.float64), dcem.GradientDescent(0.2), num_iterations=100,
        bounds=(None, 1.0), gradient=dcem.Implicit(),
    )  # fmt: skip
    # x_0 = 1 is held, x_1 = c_1 - 1/2
    torch.testing.assert_close(solution.x, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-7, rtol=0)
    expected = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(jacobian(solution.x, center), expected)


@pytest.mark.parametrize(("temperature", "keep", "cosine"), [(0.1, 0.2, 0.999), (1.0, 0.4, 0.99)])
def test_pruned_gradient_points_the_same_way(temperature, keep, cosine, generator):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Softplus(), torch.nn.Linear(32, 1)).double()
    noise = torch.randn(10, 200, 4, dtype=torch.float64, generator=generator)

    def gradient_of(mode: dcem.GradientMode) -> Tensor:
        solution = dcem.minimize(
            lambda x: net(x).squeeze(-1) + (x - 0.5).square().sum(-1), torch.zeros(4, dtype=torch.float64),
            dcem.CEM(200, 20, dcem.LML(temperature)), noise=noise, gradient=mode,
        )  # fmt: skip
        weights = [net[0].weight, net[2].weight]
        return torch.cat([g.flatten() for g in torch.autograd.grad(solution.x.sum(), weights)])

    full, pruned = gradient_of(dcem.Unroll()), gradient_of(dcem.Prune(keep))
    assert torch.nn.functional.cosine_similarity(full, pruned, dim=0) > cosine


def test_unbiased_pruning_is_right_on_average(theta, noise, generator):
    """Of a few samples, where a factor that is off by one draw would show; each of the problems draws its own."""
    full = jacobian(solve(theta, noise, dcem.Unroll()).x, theta)
    num, mode = 1000, dcem.Prune(0.1, unbiased=True)
    copies = theta.detach().expand(num, 1, D).clone().requires_grad_()
    init, drawn = torch.full((num, D), 0.3, dtype=torch.float64), noise.unsqueeze(1).expand(T, num, N, D)
    x = solve(copies, drawn, mode, init=init, generator=generator).x
    draws = torch.stack([torch.autograd.grad(x[:, i].sum(), copies, retain_graph=True)[0][:, 0] for i in range(D)], 1)
    error = (draws.mean(0) - full) / (draws.std(0) / num**0.5)
    assert draws.std(0).max() > 0  # it is random ...
    assert error.abs().max() < 4  # ... and within four standard errors of the truth


def test_pruning_evaluates_with_gradient_only_what_it_keeps(theta, noise):
    with_gradient = []

    def watched(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            with_gradient.append(x.shape[0])
        return objective(theta)(x)

    dcem.minimize(watched, torch.zeros(D, dtype=torch.float64), dcem.CEM(N, 5), num_iterations=T, noise=noise,
                  gradient=dcem.Prune(0.2))  # fmt: skip
    assert with_gradient == [6] * T


def test_checkpoint_keeps_one_iteration_and_replays_randomness(theta, noise):
    saved = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    def kept(mode: dcem.GradientMode) -> int:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            solve(theta, noise, mode)
        return sum(saved)

    assert kept(dcem.Unroll()) > 5 * noise.numel()
    assert kept(dcem.Checkpoint()) <= noise.numel()  # what an iteration starts from, and nothing of its inside

    def stochastic(mode: dcem.GradientMode) -> Tensor:
        torch.manual_seed(3)
        x = dcem.minimize(
            lambda x: objective(theta)(x) * torch.rand_like(x[..., 0]), torch.zeros(D, dtype=torch.float64),
            dcem.CEM(N, 5), num_iterations=T, noise=noise, gradient=mode,
        ).x  # fmt: skip
        return jacobian(x, theta)

    torch.testing.assert_close(stochastic(dcem.Checkpoint()), stochastic(dcem.Unroll()))


def test_second_derivatives_through_an_unrolled_solve(theta, noise):
    assert torch.autograd.gradgradcheck(lambda t: solve(t, noise[:2], dcem.Unroll(), num_iterations=2).x, theta)


@pytest.mark.parametrize("centre", [0.8, 0.97, 1.0, 1.3])
def test_implicit_lets_go_of_what_only_lies_near_a_bound(centre):
    """The slope at a minimum inside is rounding, of either sign; in 50 dimensions the tolerance reaches 0.33 far."""
    size = 50
    theta = torch.full((size,), centre, dtype=torch.float64, requires_grad=True)
    solution = dcem.minimize(
        lambda x: (x - theta).square().sum(-1), torch.zeros(size, dtype=torch.float64), dcem.GradientDescent(0.2),
        num_iterations=60, bounds=(-1.0, 1.0), gradient=dcem.Implicit(),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(solution.x.sum(), theta)
    if centre != 1.0:  # where either is right
        torch.testing.assert_close(gradient, torch.full_like(theta, float(centre < 1)))


def test_implicit_holds_a_coordinate_that_has_no_room_and_no_slope():
    theta = torch.tensor([0.5, 0.4], dtype=torch.float64, requires_grad=True)
    bounds = (torch.tensor([0.5, -1.0]), torch.tensor([0.5, 1.0]))
    solution = dcem.minimize(
        lambda x: (x - theta).square().sum(-1), torch.zeros(2, dtype=torch.float64), dcem.GradientDescent(0.3),
        num_iterations=60, bounds=bounds, gradient=dcem.Implicit(),
    )  # fmt: skip
    torch.testing.assert_close(torch.autograd.grad(solution.x.sum(), theta)[0], torch.tensor([0.0, 1.0]).double())


@pytest.mark.parametrize("size", [5, 70])  # by matrices, and by products alone
def test_implicit_knows_which_bounds_hold_the_minimum_of_a_quadratic(size):
    """Against the conditions of Karush, Kuhn and Tucker, of minima that are found approximately only."""
    generator = torch.Generator().manual_seed(size)
    root = torch.randn(size, size, dtype=torch.float64, generator=generator) / size**0.5
    hessian = root @ root.T + torch.eye(size, dtype=torch.float64)
    pull = (2 * torch.randn(6, size, dtype=torch.float64, generator=generator)).requires_grad_()
    low, high = (side * (0.2 + torch.rand(size, dtype=torch.float64, generator=generator)) for side in (-1, 1))

    def objective(x):
        return 0.5 * torch.einsum("...i,ij,...j->...", x, hessian, x) - (x * pull.unsqueeze(-2)).sum(-1)

    solution = dcem.minimize(
        objective, torch.zeros(6, size, dtype=torch.float64), dcem.GradientDescent(0.2), num_iterations=100,
        bounds=(low, high), gradient=dcem.Implicit(tolerance=0.2),
    )  # fmt: skip
    x, seeds = solution.x, torch.randn(6, size, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad(x, pull, seeds)
    free = (x > low) & (x < high)
    assert 0 < free.double().mean() < 1
    for row, seed, found in zip(free, seeds, gradient, strict=True):
        expected = torch.zeros(size, dtype=torch.float64)
        expected[row] = torch.linalg.solve(hessian[row][:, row], seed[row])
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [dcem.CEM(8, 3, dcem.LML(0.5)), dcem.CEM(8, 3, dcem.ConstrainedSparsemax(0.5)), dcem.MPPI(8, standardize=True)],
)
def test_second_derivatives_where_a_sample_has_failed(solver):
    noise = torch.randn(2, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def solve(theta):
        def objective(x):
            failed = torch.arange(8) == 0
            value = ((x - theta).square() + 0.3 * torch.sin(3 * (x - theta))).sum(-1)
            return value.masked_fill(failed, torch.inf)

        start = torch.zeros(2, dtype=torch.float64)
        return dcem.minimize(objective, start, solver, num_iterations=2, noise=noise).x

    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(solve, (theta,))


def test_no_mode_drops_a_gradient_silently(theta, noise):
    mean = torch.zeros(D, dtype=torch.float64, requires_grad=True)
    for mode in (dcem.Truncate(2), dcem.Implicit()):
        with pytest.raises(ValueError, match=r"gradient: .* cannot give a gradient to the initial distribution"):
            solve(theta, noise, mode, init=mean)
    high = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)  # the start is clipped to it
    with pytest.raises(ValueError, match=r"gradient: Implicit.* cannot give a gradient to the bounds"):
        solve(theta, noise, dcem.Implicit(), bounds=(-1.0, high))
    solve(theta, noise, dcem.Truncate(T), init=mean).x.sum().backward()
    assert mean.grad is not None
    with torch.no_grad():
        solve(theta, noise, dcem.Truncate(2), init=mean)
    with pytest.raises(ValueError, match="gradient: Prune needs a solver that weighs samples"):
        solve(theta, noise[:, :1], dcem.Prune(), dcem.GradientDescent())


class Once(torch.autograd.Function):
    """The sum of squares, whose slope autograd takes for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad.unsqueeze(-1)


@pytest.mark.cpu
@pytest.mark.parametrize("smooth", [0.0, 1.0])  # alone, and beside a part that has a second derivative
@pytest.mark.parametrize("mode", [dcem.Implicit(), dcem.Unroll(), dcem.Checkpoint()])
def test_what_is_differentiable_once_gives_no_wrong_second_derivative(theta, mode, smooth):
    def once(x):
        away = x - theta
        return Once.apply(away) + smooth * away.square().sum(-1)

    says, start = "objective: expected one that is differentiable twice, got one through Once", torch.zeros(D).double()
    solver = dcem.CEM() if isinstance(mode, dcem.Implicit) else dcem.GradientDescent()
    with pytest.raises((ValueError, RuntimeError), match=says):
        dcem.minimize(once, start, solver, gradient=mode).x.sum().backward()
    with pytest.raises(ValueError, match=says):
        dcem.implicit.argmin(once, theta.detach())
    x = dcem.minimize(once, start, solver, gradient=dcem.Detach(), num_iterations=20).x
    torch.testing.assert_close(x, theta.detach(), atol=0.05, rtol=0)  # of one that is not asked for nothing is said

    def before(x):  # the first derivative of what comes before the objective is enough
        return (x - Once.apply(theta)).square().sum(-1)

    x = dcem.minimize(before, start, solver, gradient=mode, num_iterations=20).x
    torch.testing.assert_close(jacobian(x, theta)[0], 2 * theta.detach(), atol=0.05, rtol=0)


def test_the_gradient_of_the_noise_is_not_dropped_either(theta, noise):
    noise = noise.clone().requires_grad_()
    assert torch.autograd.grad(solve(theta, noise, dcem.Unroll()).x.sum(), noise)[0].flatten(1).any(1).all()
    for mode in (dcem.Truncate(2), dcem.Implicit()):
        with pytest.raises(ValueError, match=r"gradient: .* cannot give a gradient to the noise of all iterations"):
            solve(theta, noise, mode)


def test_failed_samples_give_no_gradient(theta):
    """The derivative of sqrt at a negative number is NaN, and must not reach what the objective depends on."""
    t = theta.detach()[:2].clone().requires_grad_()
    for mode in (dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(2), dcem.Prune(0.5), dcem.Prune(0.5, unbiased=True)):
        for solver in (dcem.CEM(40, 5, dcem.LML(0.5)), dcem.MPPI(40, 1.0)):
            solution = dcem.minimize(
                lambda x: (x[..., 0] - t[0]).sqrt() + (x[..., 1] - t[1]).square(),
                torch.ones(2, 2, dtype=torch.float64), solver, gradient=mode, record=True,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
            assert solution.history[0].values.isnan().any()
            (gradient,) = torch.autograd.grad(solution.x.sum(), t)
            assert gradient.isfinite().all(), (mode, solver)
            assert gradient.abs().max() > 0


def test_a_problem_whose_samples_all_fail_gives_no_gradient():
    """Nor does it spoil that of the others, which share what the objective depends on."""
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    init = torch.tensor([[1.0], [-100.0], [1.0]], dtype=torch.float64)
    noise = torch.randn(5, 3, 40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).abs()

    def answer(rows: list[int]) -> dcem.Solution:
        return dcem.minimize(
            lambda x: (x.sum(-1).sqrt() - theta).square(), init[rows], dcem.CEM(40, 5), num_iterations=5,
            noise=noise[:, rows],
        )  # fmt: skip

    three, two = answer([0, 1, 2]), answer([0, 2])
    assert three.status.tolist() == [dcem.Status.OK, dcem.Status.NONFINITE, dcem.Status.OK]
    gradients = [torch.autograd.grad(solution.x.sum(), theta)[0] for solution in (three, two)]
    torch.testing.assert_close(*gradients)


FORWARD = [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(1), dcem.Prune(1.0), dcem.Prune(0.5), dcem.Detach()]


@pytest.mark.parametrize("mode", FORWARD, ids=repr)
@pytest.mark.parametrize("solver", [*SOLVERS[:3], dcem.MPPI(N, 0.5)], ids=lambda solver: type(solver).__name__)
def test_forward_mode_is_the_reverse_derivative(mode, solver, theta, noise):
    """Of every mode its own: by `torch.func` and by `torch.autograd.forward_ad`, also inside `torch.no_grad`."""
    tangent = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64)

    def answer(t: Tensor) -> Tensor:
        return solve(t, noise[:2], mode, solver, num_iterations=2).x

    x = answer(theta)
    expected = jacobian(x, theta) @ tangent if x.requires_grad else torch.zeros(D, dtype=torch.float64)
    point = theta.detach()
    torch.testing.assert_close(torch.func.jvp(answer, (point,), (tangent,))[1], expected)
    torch.testing.assert_close(torch.func.jacfwd(answer)(point) @ tangent, expected)
    for grad_enabled in (True, False):
        with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(grad_enabled):
            dual = answer(torch.autograd.forward_ad.make_dual(point, tangent))
            found = torch.autograd.forward_ad.unpack_dual(dual).tangent
        torch.testing.assert_close(torch.zeros_like(expected) if found is None else found, expected)


@pytest.mark.parametrize(
    "solver", [dcem.GradientDescent(0.1, 0.5), dcem.GradientDescent(torch.tensor([0.2, 0.1]).double())]
)
def test_gradient_descent_in_forward_mode(solver, theta, noise):
    tangent = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64)
    expected = jacobian(solve(theta, noise[:, :1], dcem.Unroll(), solver).x, theta) @ tangent
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(theta.detach(), tangent)
        found = torch.autograd.forward_ad.unpack_dual(solve(dual, noise[:, :1], dcem.Unroll(), solver).x).tangent
    torch.testing.assert_close(found, expected)


class Renamed(dcem.HardTopK):
    """A selection of somebody else's."""


@pytest.mark.parametrize("selection", [dcem.HardTopK(), Renamed(), lambda s, k: dcem.hard_topk(s, k)])
def test_a_hard_selection_refuses_forward_mode_instead_of_a_tangent_of_zero(selection, theta, noise):
    hard = dcem.CEM(N, 5, selection)
    tangent = torch.ones_like(theta)
    answer = lambda t: solve(t, noise, dcem.Unroll(), hard).x  # noqa: E731
    for grad_enabled in (True, False):
        with torch.set_grad_enabled(grad_enabled):
            with pytest.raises(RuntimeError, match="has no gradient, and the solution was asked for one"):
                torch.func.jvp(answer, (theta.detach(),), (tangent,))
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(theta.detach(), tangent)
                with pytest.raises(RuntimeError, match="has no gradient, and the solution was asked for one"):
                    answer(dual)
    detached = torch.func.jvp(lambda t: solve(t, noise, dcem.Detach(), hard).x, (theta.detach(),), (tangent,))[1]
    assert torch.equal(detached, torch.zeros_like(theta))


@pytest.mark.parametrize("selection", [dcem.HardTopK(), Renamed(), lambda s, k: dcem.hard_topk(s, k)])
def test_nor_does_it_hide_behind_a_nested_transform(selection, theta, noise):
    hard = dcem.CEM(N, 5, selection)

    def total(t: Tensor) -> Tensor:
        return torch.func.vmap(lambda each: solve(each, noise, dcem.Unroll(), hard).x)(t.unsqueeze(0)).sum()

    with pytest.raises(RuntimeError, match="has no gradient, and the solution was asked for one"):
        torch.func.grad(total)(theta.detach())


def test_a_detached_solution_has_no_derivative_of_any_kind(theta, noise) -> None:
    """Inside a transform, or with a tangent, a tensor does not say whether it is differentiated: it is cut unasked."""

    def cut(theta: Tensor) -> Tensor:
        solution = dcem.minimize(
            objective(theta), torch.zeros_like(theta), dcem.CEM(N, 5), num_iterations=T, noise=noise
        )
        return solution.detach().x.square().sum()

    point = theta.detach()
    assert not cut(theta).requires_grad
    assert torch.func.grad(cut)(point).count_nonzero() == 0
    assert torch.func.jvp(cut, (point,), (torch.ones_like(point),))[1].count_nonzero() == 0
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(point, torch.ones_like(point))
        assert torch.autograd.forward_ad.unpack_dual(cut(dual)).tangent is None


@pytest.mark.parametrize("batch", [2, 20])  # of as many problems as samples, data are checked for their axes first
def test_what_an_objective_keeps_from_its_first_call_has_a_gradient(batch) -> None:
    centre, scale = (torch.tensor(value, requires_grad=True) for value in ([0.3, -0.4], [0.1, 0.2]))
    kept = []

    def keeping(x):
        if not kept:
            kept.append(scale.exp())
        return ((x - centre).square() * kept[0]).sum(-1)

    slopes = []
    for objective in (keeping, lambda x: ((x - centre).square() * scale.exp()).sum(-1)):
        solution = dcem.minimize(
            objective, torch.zeros(batch, 2), dcem.CEM(20, 5), num_iterations=2,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        slopes.append(torch.autograd.grad(solution.x.sum(), [centre, scale], allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*slopes)


def test_a_complex_parameter_has_a_gradient() -> None:
    real, imag = (torch.tensor(value, requires_grad=True) for value in ([1.0, 0.5], [0.3, -0.2]))
    centre = torch.complex(real, imag).detach().requires_grad_()
    slopes = []
    for given in (lambda: centre, lambda: torch.complex(real, imag)):
        solution = dcem.minimize(
            lambda x, given=given: ((x - given()).abs().square() + (x * given()).imag.sin()).sum(-1), torch.zeros(2),
            dcem.CEM(20, 5), num_iterations=2, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        slopes.append(torch.autograd.grad(solution.x.sum(), [centre, real, imag], allow_unused=True))
    torch.testing.assert_close(slopes[0][0], torch.complex(*slopes[1][1:]))


@pytest.mark.parametrize(("mode", "num_iterations"), [(dcem.Truncate(1), 5), (dcem.Unroll(), 1)])
def test_once_is_enough_where_the_candidate_is_a_constant(theta, mode, num_iterations):
    """Of the step from a start that depends on nothing the slope's own derivative by the candidate is not used."""

    def linear(x):
        return Once.apply(x) + (x * theta).sum(-1)

    solver = dcem.GradientDescent(0.05)
    x = dcem.minimize(linear, torch.ones(D).double(), solver, num_iterations=num_iterations, gradient=mode).x
    torch.testing.assert_close(torch.autograd.grad(x.sum(), theta)[0], torch.full_like(theta, -0.05))


@pytest.mark.cpu
def test_second_derivatives_under_hooks_on_saved_tensors():
    """A checkpoint around a gradient of a solve: torch.func refuses such hooks."""
    noise = torch.randn(2, 50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def penalty(theta):
        point = theta * torch.ones(1, dtype=torch.float64)
        x = dcem.minimize(
            lambda x: (x - point).square().sum(-1), torch.zeros(1, dtype=torch.float64), dcem.CEM(50, 5, dcem.LML(1.0)),
            num_iterations=2, noise=noise,
        ).x  # fmt: skip
        return torch.autograd.grad(x.sin().sum(), point, create_graph=True)[0].square().sum()

    (expected,) = torch.autograd.grad(penalty(theta), theta)
    again = torch.utils.checkpoint.checkpoint(penalty, theta, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again, theta)[0], expected)
    with torch.autograd.graph.save_on_cpu():
        kept = penalty(theta)
    torch.testing.assert_close(torch.autograd.grad(kept, theta)[0], expected)
    h = 1e-6
    slope = (penalty(theta + h) - penalty(theta - h)) / (2 * h)
    torch.testing.assert_close(expected, slope.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.cpu
@pytest.mark.parametrize(
    "selection", [dcem.LML(0.5), dcem.LML(torch.tensor(0.5, dtype=torch.float64))], ids=["fused", "not"]
)
def test_third_derivatives(selection):
    """Torch's own of a layer norm is wrong (2.13); nor may the weights alone lose theirs."""
    noise = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    way, theta = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([0.3, -0.2], dtype=torch.float64)

    def solved(theta):
        return dcem.minimize(
            lambda x: (x - theta).square().sum(-1) + (x**4).sum(-1), torch.zeros(2, dtype=torch.float64),
            dcem.CEM(20, 5, selection), num_iterations=3, noise=noise, record=True,
        )  # fmt: skip

    def second(value, theta):
        (slope,) = torch.autograd.grad(value(theta), theta, create_graph=True)
        return torch.autograd.grad(slope @ way, theta, create_graph=True)[0]

    for value in (lambda t: solved(t).x @ way, lambda t: solved(t).history[0].weights.square().sum()):
        theta = theta.detach().requires_grad_()
        (third,) = torch.autograd.grad(second(value, theta) @ way, theta)
        h = 1e-5
        for i, unit in enumerate(torch.eye(2, dtype=torch.float64)):
            ends = [second(value, (theta.detach() + side * h * unit).requires_grad_()) @ way for side in (1, -1)]
            torch.testing.assert_close(third[i], ((ends[0] - ends[1]) / (2 * h)).detach(), rtol=1e-5, atol=1e-6)

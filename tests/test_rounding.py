"""Values that differ by no more than their rounding carry no information: no selection is made of them, no gradient."""

import pytest
import torch
from torch import Tensor

import dcem

T = 20
SOFT = [dcem.LML(0.1), dcem.ConstrainedSoftmax(0.1), dcem.ConstrainedSparsemax(0.1)]
MODES = [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(T - 1)]
OFFSETS = [(1.0, torch.float32), (1e4, torch.float32), (1e5, torch.float32), (1e8, torch.float64)]


def solve(offset: float, dtype: torch.dtype, solver: dcem.Solver, mode: dcem.GradientMode, seed: int, iterations=T):
    theta = torch.ones(2, dtype=dtype, requires_grad=True)
    noise = torch.randn(T, 100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    solution = dcem.minimize(
        lambda x: offset + (x - theta).square().sum(-1), torch.zeros(2, dtype=dtype), solver, noise=noise[:iterations],
        num_iterations=iterations, gradient=mode, record=True,
    )  # fmt: skip
    return solution, torch.autograd.grad(solution.x.sum(), theta)[0].double()


def num_informed(solution: dcem.Solution) -> int:
    spreads = [
        (v.max() - v.min()) / v.abs().max() for v in (step.values.detach().double() for step in solution.history)
    ]
    return sum(bool(s > 32 * torch.finfo(solution.x.dtype).eps) for s in spreads)


@pytest.mark.parametrize(
    ("selection", "mode"), [(s, m) for s in SOFT for m in MODES if s is SOFT[0] or m is MODES[0]], ids=repr
)
@pytest.mark.parametrize(("offset", "dtype"), OFFSETS)
def test_a_converged_solve_has_the_gradient_of_its_informed_iterations(offset, dtype, selection, mode):
    """That of the same solve in float64, without the offset, up to where the rounding of the offset takes over."""
    solver = dcem.CEM(selection=selection, init_std=3.0)
    errors = []
    for seed in range(3):
        solution, gradient = solve(offset, dtype, solver, mode, seed)
        informed = num_informed(solution)
        assert 2 <= informed < T
        assert solution.status == dcem.Status.OK
        exact = dcem.Unroll() if mode == dcem.Checkpoint() else mode
        if isinstance(mode, dcem.Truncate):
            exact = dcem.Truncate(informed - 1)
        _, expected = solve(0.0, torch.float64, solver, exact, seed, informed)
        errors.append((gradient - expected).abs().max().item())
    # Rounding enters at most as one part in 32 of what selects. A sparse selection has jumps in its derivative.
    assert sorted(errors)[1] < (0.15 if isinstance(selection, dcem.ConstrainedSparsemax) else 1 / 32), errors


def test_the_example_of_an_offset_of_one():
    theta = torch.ones(2, requires_grad=True)
    solution = dcem.minimize(
        lambda x: 1 + (x - theta).square().sum(-1), torch.zeros(2), dcem.CEM(selection=dcem.LML(0.1), init_std=3.0),
        num_iterations=20, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    torch.testing.assert_close(torch.autograd.grad(solution.x.sum(), theta)[0], torch.ones(2), atol=1e-4, rtol=0)
    assert solution.status == dcem.Status.OK


@pytest.mark.cpu
def test_truncation_counts_iterations_that_say_nothing():
    solver = dcem.CEM(selection=dcem.LML(0.1), init_std=3.0)
    solution, gradient = solve(1e4, torch.float32, solver, dcem.Truncate(3), 0)
    assert num_informed(solution) < T - 3
    assert solution.status == dcem.Status.OK
    assert torch.equal(gradient, torch.zeros(2, dtype=torch.float64))
    informed = num_informed(solution)
    assert (solve(1e4, torch.float32, solver, dcem.Truncate(3), 0, informed)[1] > 0.5).all()


@pytest.mark.parametrize(("offset", "dtype"), OFFSETS)
def test_mppi_stays_where_its_values_stop_to_differ(offset, dtype):
    init = torch.ones(2, dtype=dtype)  # the minimum, with a spread below the rounding of the offset
    solver = dcem.MPPI(50, 1e-9, init_std=1e-2 * (offset * torch.finfo(dtype).eps) ** 0.5)
    theta = init.clone().requires_grad_()
    solution = dcem.minimize(lambda x: offset + (x - theta).square().sum(-1), init, solver)
    assert solution.status == dcem.Status.FLAT
    assert torch.equal(solution.x, init)
    assert torch.equal(torch.autograd.grad(solution.x.sum(), theta)[0], torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize(("offset", "dtype"), OFFSETS)
def test_an_energy_model_learns_from_its_informed_iterations(offset, dtype):
    center = torch.zeros(1, dtype=dtype, requires_grad=True)
    model = dcem.energy.EnergyModel(
        lambda x, y: offset + (y - center - x.unsqueeze(-2)).square().sum(-1), 1,
        dcem.CEM(selection=dcem.LML(0.1), init_std=3.0), num_iterations=T,
    )  # fmt: skip
    x = torch.tensor([[0.5], [-0.5]], dtype=dtype)
    y = model(x, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(y.sum(), center)
    torch.testing.assert_close(gradient, torch.full((1,), 2.0, dtype=dtype), atol=0.1, rtol=0)


COARSE = [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float64)]


def in_coarse(returned: torch.dtype, dtype: torch.dtype, mode: dcem.GradientMode, offset: float = 1.0):
    """What a solve in `dtype` makes of values in a coarser one."""
    theta = torch.tensor([0.5, 0.4], dtype=dtype, requires_grad=True)
    solution = dcem.minimize(
        lambda x: ((x - theta).square().sum(-1) + offset).to(returned), torch.zeros(2, dtype=dtype),
        dcem.CEM(selection=dcem.LML(0.1)), num_iterations=T, gradient=mode, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return solution, *torch.autograd.grad(solution.x.sum(), theta)


@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Checkpoint(), dcem.Prune(1.0)], ids=repr)
@pytest.mark.parametrize(("returned", "dtype"), COARSE)
def test_rounding_is_that_of_the_values_as_they_were_returned(returned, dtype, mode):
    """With selections by it these gradients are of 1e4 and more."""
    solution, gradient = in_coarse(returned, dtype, mode)
    assert solution.status == dcem.Status.OK
    torch.testing.assert_close(gradient, torch.ones(2, dtype=dtype), atol=0.05, rtol=0)
    torch.testing.assert_close(solution.x, torch.tensor([0.5, 0.4], dtype=dtype), atol=0.02, rtol=0)
    flat, gradient = in_coarse(returned, dtype, mode, offset=30 / torch.finfo(returned).eps)
    assert flat.status == dcem.Status.FLAT
    assert not flat.x.any()
    assert not gradient.any()


def test_of_values_that_say_nothing_no_weights_are_made():
    theta = torch.tensor([0.5, 0.4], requires_grad=True)
    solution = dcem.minimize(
        lambda x: (1e3 + (x - theta).square().sum(-1)).to(torch.bfloat16), torch.zeros(2), record=True,
        num_iterations=2,
    )  # fmt: skip
    for step in solution.history:
        torch.testing.assert_close(step.weights, torch.full((100,), 0.1))
        assert not torch.autograd.grad(step.weights.square().sum(), theta, retain_graph=True)[0].any()


def test_an_ordinary_network_under_autocast_is_such_an_objective():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    with torch.autocast("cpu", torch.bfloat16):
        solution = dcem.minimize(
            lambda x: net(x).squeeze(-1), torch.zeros(4), dcem.CEM(selection=dcem.LML(0.1)), bounds=(-1, 1),
            num_iterations=T, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    (gradient,) = torch.autograd.grad(solution.x.sum(), net[0].weight)
    assert gradient.norm() < 100  # in single precision 6, and 7e5 with selections by rounding


CHECKPOINTS_COMPILE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
MODES = [pytest.param(dcem.Checkpoint(), marks=pytest.mark.skipif(not CHECKPOINTS_COMPILE, reason="before torch 2.13"))]


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("mode", [dcem.Unroll(), *MODES], ids=repr)
def test_so_does_a_search_that_is_told_them_and_one_that_is_compiled(standardize, mode):
    x0, solver = torch.zeros(2), dcem.MPPI(50, 0.1, standardize=standardize)
    search = dcem.Search(x0, solver, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        search.tell((1e3 + search.ask().square().sum(-1)).to(torch.bfloat16))
    assert search.solution.status == dcem.Status.FLAT

    noise = torch.randn(5, 50, 2, generator=torch.Generator().manual_seed(0))

    def solve(center: Tensor) -> Tensor:
        objective = lambda x: ((x - center).square().sum(-1) + 1).to(torch.bfloat16)  # noqa: E731
        return dcem.minimize(objective, x0, solver, num_iterations=5, noise=noise, gradient=mode).x

    center = torch.tensor([0.3, -0.2], requires_grad=True)
    torch.testing.assert_close(torch.compile(solve, backend="aot_eager", fullgraph=True)(center), solve(center))
    each = torch.func.vmap(solve)(torch.stack([center, -center]))
    torch.testing.assert_close(each, torch.stack([solve(center), solve(-center)]))


def test_gradient_descent_selects_nothing_by_coarse_values():
    x = dcem.minimize(
        lambda x: (x - 1).square().sum(-1).to(torch.bfloat16), torch.zeros(2), dcem.GradientDescent(0.1),
        num_iterations=50,
    ).x  # fmt: skip
    torch.testing.assert_close(x, torch.ones(2), atol=1e-3, rtol=0)


def equal(x: Tensor) -> Tensor:
    return torch.full(x.shape[:-1], 3.0)


def subnormal(x: Tensor) -> Tensor:
    return 1e-40 * (x - 1).square().sum(-1)


@pytest.mark.parametrize(
    "solver",
    [*(dcem.CEM(selection=s) for s in (*SOFT, dcem.HardTopK())), dcem.CEM(standardize=False), dcem.CEM(smoothing=0.5),
     dcem.CEM(keep_elites=0.3), dcem.MPPI(), dcem.MPPI(standardize=True)],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize(("full", "objective"), [(False, equal), (True, equal), (False, subnormal)])
def test_equal_values_leave_the_distribution_as_it_is(solver, full, objective):
    """Also where there is room on one side only, into which clipped samples would pull."""
    init = dcem.FullGaussian(torch.zeros(2), 0.5 * torch.eye(2)) if full else dcem.Gaussian(torch.zeros(2), 0.5)
    solution = dcem.minimize(objective, init, solver, bounds=(-0.1, 1.0))
    assert solution.status == dcem.Status.FLAT
    assert torch.equal(solution.x, torch.zeros(2))
    assert torch.equal(solution.distribution.std, torch.full((2,), 0.5))


def test_a_converged_a_flat_and_a_failed_problem_are_told_apart():
    """And each is as it would be alone."""
    offsets = torch.tensor([1.0, 1.0, torch.nan, 1.0]).unsqueeze(-1)
    scales = torch.tensor([1.0, 0.0, 1.0, 1.0]).unsqueeze(-1)
    noise = torch.randn(T, 4, 100, 2, generator=torch.Generator().manual_seed(0))

    def answer(rows: list[int], iterations: int = T) -> dcem.Solution:
        return dcem.minimize(
            lambda x: offsets[rows] + scales[rows] * (x - 1).square().sum(-1), torch.zeros(len(rows), 2),
            noise=noise[:iterations, rows], num_iterations=iterations, solver=dcem.CEM(selection=dcem.LML(0.1)),
        )  # fmt: skip

    together = answer([0, 1, 2, 3])
    status = dcem.Status
    assert together.status.tolist() == [status.OK, status.FLAT, status.NONFINITE, status.OK]
    for i in range(4):
        alone = answer([i])
        assert torch.equal(alone.x[0], together.x[i])
        assert alone.status[0] == together.status[i]
    assert torch.equal(together.x[1:3], torch.zeros(2, 2))


def test_a_solve_that_finds_differences_later_is_not_flat():
    """A plateau keeps the search wide until a candidate falls off it."""
    calls = []

    def plateau(x: Tensor) -> Tensor:
        calls.append(1)
        return equal(x) if len(calls) < 4 else x.square().sum(-1)

    solution = dcem.minimize(plateau, torch.ones(2), dcem.CEM(200, 20), record=True)
    assert solution.status == dcem.Status.OK
    assert all(torch.equal(step.distribution.std, torch.ones(2)) for step in solution.history[:3])
    assert (solution.x.abs() < 0.3).all()


@pytest.mark.parametrize("standardize", [True, False])
def test_finite_values_of_any_size_are_told_apart(standardize):
    """A range that overflows, with a failed sample or without, selects like any other."""
    for failed in (False, True):
        values = 1e38 * torch.linspace(-3, 3, 100)
        values[7] = torch.nan if failed else values[7]
        solver = dcem.CEM(selection=dcem.HardTopK(), standardize=standardize)
        weights, valid = solver.weigh(values)
        assert valid is None or valid
        assert weights[:10].sum() == 10 - failed
        assert weights.sum() == 10


def test_the_doctor_says_so():
    for objective, is_flat in ((equal, True), (lambda x: x.square().sum(-1), False)):
        advice = dcem.diagnose(objective, torch.ones(2), dcem.CEM(), num_seeds=2).advice
        assert any("equal up to rounding" in sentence for sentence in advice) == is_flat


def test_numbers_keep_their_digits_in_double_precision():
    """`0.1` is no single-precision number: of settings that are tensors inside, eight digits were left."""
    state = torch.ones(1, 1, dtype=torch.float64)
    noise = torch.randn(1, 1, 20, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mpc = dcem.control.MPC(
        lambda x, u: x + u, lambda x, u: 0 * x.sum(-1), 3, 1, solver=dcem.CEM(20, 5), num_iterations=1, init_std=0.3,
        action_rate_cost=0.1,
    )  # fmt: skip
    plan = mpc(state, noise=noise, record=True)
    torch.testing.assert_close(plan.solution.history[0].samples, 0.3 * noise[0], rtol=1e-15, atol=0)
    change = plan.actions[:, 1:] - plan.actions[:, :-1]
    torch.testing.assert_close(plan.cost, 0.1 * change.square().sum((1, 2)), rtol=1e-14, atol=0)
    mpc.action_rate_cost = 0.7
    torch.testing.assert_close(mpc(state, noise=noise).cost, 0.7 * _change(mpc, state, noise), rtol=1e-14, atol=0)


def _change(mpc, state, noise):
    actions = mpc(state, noise=noise).actions
    return (actions[:, 1:] - actions[:, :-1]).square().sum((1, 2))


@pytest.mark.parametrize("standardize", [True, False])
def test_failed_samples_leave_double_precision_to_the_rest(standardize):
    """Their share was a quotient of whole numbers, which is of single precision."""
    values = torch.randn(2, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[1, ::4] = torch.nan
    kept = values[1].isfinite()
    weights, _ = dcem.CEM(13, 4, dcem.LML(0.3), standardize=standardize).weigh(values)
    alone, _ = dcem.CEM(13, 4, dcem.LML(0.3), standardize=standardize).weigh(values[1, kept])
    torch.testing.assert_close(weights[1, kept], alone, rtol=1e-13, atol=0)


def test_constants_of_the_library_keep_their_digits_in_double_precision():
    state = torch.tensor([-0.3, 0.0, 0.0, 0.0], dtype=torch.float64)
    depth = dcem.control.systems.PointMass().constraint(state)
    torch.testing.assert_close(depth[2], torch.tensor(0.3 - 0.8, dtype=torch.float64), rtol=1e-15, atol=0)
    assert dcem.control.systems.PointMass().constraint(state.float()).dtype == torch.float32

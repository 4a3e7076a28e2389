"""When a solve stops, what it refuses, and what its history says: problem by problem."""

import itertools

import pytest
import torch
from torch import Tensor

import dcem

TARGETS = torch.tensor([[0.0, 0.0], [3.0, -3.0], [0.5, 0.5]])
SOLVERS = {
    "cem": dcem.CEM(40, 5, dcem.LML(0.05), keep_elites=0.2),
    "mppi": dcem.MPPI(40, 0.01),
    "descent": dcem.GradientDescent(0.2, momentum=0.3),
}


def objective(x: Tensor) -> Tensor:
    return (x - TARGETS.to(x.device).unsqueeze(-2)).square().sum(-1)


def draws(solver: dcem.Solver, num_iterations: int) -> Tensor:
    return torch.randn(num_iterations, 3, solver.num_samples, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.cpu
@pytest.mark.parametrize("name", SOLVERS)
def test_each_problem_stops_when_it_rests(name):
    """As if a callback had stopped it alone, in the iteration in which it came to rest."""
    solver, tolerance, most = SOLVERS[name], {"mppi": 0.3}.get(name, 0.05), 40
    noise = draws(solver, most)
    options = {"solver": solver, "num_iterations": most, "noise": noise}
    whole = dcem.minimize(objective, torch.zeros(3, 2), record=True, **options)
    means = [torch.zeros(3, 2), *[iteration.distribution.mean for iteration in whole.history]]
    if name == "cem":
        rests = [(iteration.distribution.std <= tolerance).all(-1) for iteration in whole.history]
    else:
        rests = [((b - a).abs() <= tolerance).all(-1) for a, b in itertools.pairwise(means)]
    first = [next(t for t, rest in enumerate(rests) if rest[i]) for i in range(3)]
    assert len(set(first)) > 1
    stopped = dcem.minimize(objective, torch.zeros(3, 2), tolerance=tolerance, record=True, **options)
    assert len(stopped.history) == max(first) + 1
    for i, t in enumerate(first):
        assert torch.equal(stopped.x[i], means[t + 1][i])
        lowest = torch.stack([iteration.values[i].min() for iteration in whole.history[: t + 1]]).min()
        assert torch.equal(stopped.best_value[i], lowest)
        assert torch.equal(stopped.history[-1].distribution.mean[i], stopped.x[i])


@pytest.mark.parametrize("gradient", [dcem.Unroll(), dcem.Checkpoint(), dcem.Prune(1.0), dcem.Implicit()])
def test_a_stopped_problem_has_the_gradient_of_a_shorter_solve(gradient):
    solver = dcem.CEM(40, 5, dcem.LML(0.5))
    targets = TARGETS.double().requires_grad_()
    noise = draws(solver, 30).double()

    def solve(**options):
        return dcem.minimize(
            lambda x: (x - targets.unsqueeze(-2)).square().sum(-1),
            dcem.Gaussian(torch.zeros(3, 2, dtype=torch.float64), torch.tensor([0.1, 1.0, 0.3]).reshape(3, 1).double()),
            solver, gradient=gradient, **options,
        )  # fmt: skip

    stopped = solve(noise=noise, num_iterations=30, tolerance=0.2, record=True)
    counts = [
        next(t for t, it in enumerate(stopped.history, 1) if (it.distribution.std[i] <= 0.2).all()) for i in range(3)
    ]
    assert len(set(counts)) > 1
    slopes = torch.autograd.grad(stopped.x.sum(), targets)[0]
    for i, count in enumerate(counts):
        short = solve(noise=noise[:count], num_iterations=count)
        assert torch.equal(short.x[i], stopped.x[i])
        torch.testing.assert_close(torch.autograd.grad(short.x[i].sum(), targets)[0][i], slopes[i])


def test_a_failed_problem_is_not_at_rest():
    calls = []

    def failing(x: Tensor) -> Tensor:
        calls.append(0)
        return x.square().sum(-1) * (torch.nan if len(calls) < 4 else 1.0)

    solution = dcem.minimize(failing, torch.ones(2), dcem.MPPI(30, 0.01), tolerance=0.5, num_iterations=30, record=True)
    assert len(solution.history) > 3
    assert solution.x.abs().max() < 0.6
    assert solution.status == dcem.Status.NONFINITE


def test_tolerance_is_refused_where_it_has_no_meaning():
    with pytest.raises(ValueError, match=r"tolerance: expected None with Truncate\(last=3\)"):
        dcem.minimize(objective, torch.zeros(3, 2), tolerance=0.1, gradient=dcem.Truncate())
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="tolerance: expected a finite number > 0"):
            dcem.minimize(objective, torch.zeros(3, 2), tolerance=wrong)


def test_a_check_of_the_answer_does_not_change_it(generator):
    solution = dcem.minimize(
        lambda x: (x - 1).square().sum(-1),
        torch.zeros(3, 2),
        generator=generator,
        validate=lambda x: x.zero_()[..., 0] == 0,
    )
    assert bool((solution.x != 0).all())
    assert solution.status.tolist() == [dcem.Status.OK] * 3


def test_an_answer_that_does_not_pass_is_refused(generator):
    def small(x: Tensor) -> Tensor:
        assert not x.requires_grad
        return x.norm(dim=-1) < 1

    solution = dcem.minimize(objective, torch.zeros(3, 2), num_iterations=20, validate=small, generator=generator)
    assert solution.status.tolist() == [dcem.Status.OK, dcem.Status.INVALID, dcem.Status.OK]
    assert solution.x[1].norm() > 1  # to be looked at
    failed = dcem.minimize(lambda x: x.sum(-1) * torch.nan, torch.full((3, 2), 9.0), validate=small)
    assert (failed.status == dcem.Status.NONFINITE).all()
    layer = dcem.Argmin(2, decoder=lambda z: 10 * z, num_iterations=20)
    decoded = layer(lambda x: (x - 2.0).square().sum(-1), (), validate=lambda x: (x > 1).all(-1), generator=generator)
    assert decoded.status == dcem.Status.OK
    for wrong in (lambda x: x, lambda x: True, lambda x: x > 0):
        with pytest.raises(ValueError, match=r"validate: expected booleans of shape \(\*batch,\) = \(3,\), got"):
            dcem.minimize(objective, torch.zeros(3, 2), validate=wrong)
    with pytest.raises(TypeError, match="validate: expected a callable"):
        dcem.minimize(objective, torch.zeros(3, 2), validate=3)


@pytest.mark.parametrize("scale", [1.0, 1e25])
def test_a_gradient_norm_is_of_the_last_backward_pass_alone(scale, generator):
    """Of which one may reach the mean only, after one that has reached the std; and its square may overflow."""
    theta = torch.zeros(2, 3, requires_grad=True)
    solution = dcem.minimize(
        lambda x: (x - theta.unsqueeze(1)).square().sum(-1), torch.ones(2, 3), num_iterations=2, record=True,
        generator=generator,
    )  # fmt: skip
    (1e3 * solution.distribution.std.sum()).backward(retain_graph=True)
    (scale * solution.x.sum()).backward()
    torch.testing.assert_close(solution.history[-1].gradient_norm, torch.full((2,), 3.0).sqrt() * scale)


@pytest.mark.parametrize("gradient", [dcem.Unroll(), dcem.Checkpoint(), dcem.Detach()])
def test_the_history_says_std_and_gradient_norm_of_each_problem(gradient, generator):
    theta = TARGETS.clone().requires_grad_()
    solution = dcem.minimize(
        lambda x: (x - theta.unsqueeze(-2)).square().sum(-1), torch.zeros(3, 2), dcem.CEM(40, 5, dcem.LML(0.5)),
        num_iterations=3, generator=generator, gradient=gradient, record=True,
    )  # fmt: skip
    for iteration in solution.history:
        torch.testing.assert_close(iteration.std, iteration.distribution.std.detach().square().mean(-1).sqrt())
        assert iteration.gradient_norm.isnan().all()
    if isinstance(gradient, dcem.Detach):
        return
    loss = (torch.tensor([1.0, 2.0, 0.0]).unsqueeze(-1) * solution.x).sum()
    parameters = [leaf for it in solution.history for leaf in (it.distribution.mean, it.distribution.std)]
    slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    for _ in range(2):  # the last backward pass counts
        theta.grad = None
        loss.backward(retain_graph=True)
    for t, iteration in enumerate(solution.history):
        squares = [s.square().sum(-1) for s in slopes[2 * t : 2 * t + 2] if s is not None]
        torch.testing.assert_close(iteration.gradient_norm, torch.stack(squares).sum(0).sqrt())
        assert (iteration.gradient_norm[:2] > 0).all()
        assert iteration.gradient_norm[2] == 0


def test_a_family_without_a_std_has_none_in_its_history(generator):
    class Uniform(dcem.Gaussian):
        std = None

    step = dcem.Step(dcem.CEM().init(dcem.Gaussian(torch.zeros(3, 2), 1.0)), *[torch.ones(3, 4)] * 3, None)
    family = dcem.Categorical(torch.zeros(3, 2))
    assert dcem.Iteration.of(step, step.state.distribution).std.tolist() == [1.0] * 3
    assert (
        dcem.Iteration.of(step._replace(state=step.state._replace(distribution=family)), family).std.tolist()
        == [0.5] * 3
    )


@pytest.mark.cpu
@pytest.mark.parametrize("selection", [dcem.LML(1.0), dcem.LML(0.1), dcem.HardTopK()])
@pytest.mark.parametrize("size", [1, 5, 20])
def test_a_start_too_narrow_for_its_scale_is_seen_in_the_history(size, selection, generator):
    target = torch.zeros(size)
    target[0] = 700.0
    for std in (20.0, 100.0, 400.0):
        solver = dcem.CEM(100, 10, selection, init_std=std)
        solution = dcem.minimize(
            lambda x: (x - target).square().sum(-1), torch.zeros(16, size), solver, generator=generator, record=True,
            gradient=dcem.Detach(),
        )  # fmt: skip
        for iteration in solution.history:
            torch.testing.assert_close(iteration.drift, (iteration.distribution.mean.abs() / std).amax(-1))
        came, drift = solution.x[:, 0].mean(), solution.history[-1].drift.mean()
        assert came > 550 if std == 400 else came < 520  # it stops on its way, and the status does not tell
        assert (solution.status == dcem.Status.OK).all() or isinstance(selection, dcem.HardTopK)
        assert drift < 2 if std == 400 else drift > 2.7


def test_drift_is_of_the_farthest_coordinate_and_needs_a_std():
    class Start:
        mean, std = torch.zeros(2), None

    step = dcem.Step(dcem.CEM().init(dcem.Gaussian(torch.tensor([0.0, 1.0]), 1.0)), *[torch.ones(4)] * 3, None)
    assert dcem.Iteration.of(step, dcem.Gaussian(torch.zeros(2), torch.tensor([0.1, 0.5]))).drift == 2
    assert dcem.Iteration.of(step, dcem.Gaussian(torch.zeros(2), torch.tensor([0.0, 1.0]))).drift == 1  # at rest is 0
    assert dcem.Iteration.of(step, Start()).drift.isnan()


def test_a_problem_whose_values_are_equal_is_at_rest_too():
    """Its std is below the tolerance, and nothing moves it."""
    seen = []
    solution = dcem.minimize(
        lambda x: 0 * x.sum(-1), dcem.Gaussian(torch.zeros(2), 1e-3), dcem.CEM(20), num_iterations=50, tolerance=1e-2,
        callback=seen.append,
    )  # fmt: skip
    assert len(seen) == 1
    assert solution.status == dcem.Status.FLAT

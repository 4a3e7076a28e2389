"""Contract of every solver under `minimize`: a new solver inherits all of these checks."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import dcem


def quadratic(center: Tensor):
    """Minimum `center` of `(*batch, D)`, one a problem."""
    return lambda x: (x - center.unsqueeze(-2)).square().sum(-1)


class SolverContract:
    """Subclasses define `solver`, `precision` (of the minimum found on a quadratic) and `noise_axis`."""

    solver: dcem.Solver
    precision: float
    iterations = 40

    def solve(self, objective, init, **options):
        options.setdefault("num_iterations", self.iterations)
        if "noise" not in options:
            options.setdefault("generator", torch.Generator(device=init.device).manual_seed(1))
        return dcem.minimize(objective, init, self.solver, **options)

    @pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_finds_the_minimum_of_a_quadratic(self, batch, dtype):
        center = torch.linspace(-1, 2, 4, dtype=dtype) + torch.zeros(*batch, 4, dtype=dtype)
        solution = self.solve(quadratic(center), torch.zeros(*batch, 4, dtype=dtype))
        assert solution.x.shape == (*batch, 4)
        assert solution.x.dtype == dtype
        assert solution.x.device == center.device
        assert solution.status.shape == batch
        assert solution.best_value.shape == batch
        assert (solution.x - center).abs().max() < self.precision
        assert (solution.best_x - center).square().sum(-1).allclose(solution.best_value, atol=1e-6)

    @pytest.mark.cpu
    @pytest.mark.parametrize(("shape", "event_dims"), [((3,), 0), ((2, 3), 1), ((5, 2, 3), 2), ((2, 3), 2)])
    def test_events_of_any_number_of_axes(self, shape, event_dims):
        batch = shape[: len(shape) - event_dims]

        def objective(x: Tensor) -> Tensor:
            assert x.shape == (*batch, self.solver.num_samples, *shape[len(batch) :])
            y = (x - 0.5).square()
            return y.flatten(len(batch) + 1).sum(-1) if event_dims else y

        solution = self.solve(objective, torch.zeros(shape), event_dims=event_dims)
        assert solution.x.shape == shape
        assert (solution.x - 0.5).abs().max() < self.precision

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_a_failing_problem_keeps_its_distribution_and_leaves_the_others_alone(self, bad):
        center = torch.tensor([[1.0, 0.0], [0.5, -1.0], [0.0, 2.0]], requires_grad=True)
        init = torch.zeros(3, 2)
        noise = torch.randn(5, 3, self.solver.num_samples, 2, generator=torch.Generator().manual_seed(0))
        healthy = self.solve(quadratic(center), init, noise=noise, num_iterations=5)
        broken = self.solve(
            lambda x: quadratic(center)(x) + torch.tensor([0.0, bad, 0.0]).unsqueeze(-1),
            init, noise=noise, num_iterations=5,
        )  # fmt: skip
        assert broken.status.tolist() == [dcem.Status.OK, dcem.Status.NONFINITE, dcem.Status.OK]
        assert torch.equal(broken.x[1], init[1])
        assert broken.best_value[1] == torch.inf
        assert torch.equal(broken.x[::2], healthy.x[::2])
        assert torch.equal(broken.best_x[::2], healthy.best_x[::2])
        (gradient,) = torch.autograd.grad(broken.x[::2].sum(), center)
        (expected,) = torch.autograd.grad(healthy.x[::2].sum(), center)
        assert torch.equal(gradient, expected)

    def test_one_problem_does_not_depend_on_what_the_others_hold(self):
        center = torch.randn(3, 2, generator=torch.Generator().manual_seed(2))
        other = center.clone()
        other[0] = torch.tensor([1e4, -1e4])
        noise = torch.randn(5, 3, self.solver.num_samples, 2, generator=torch.Generator().manual_seed(0))
        one, two = (self.solve(quadratic(c), torch.zeros(3, 2), noise=noise, num_iterations=5) for c in (center, other))
        assert torch.equal(one.x[1:], two.x[1:])
        assert torch.equal(one.status[1:], two.status[1:])

    def test_bounds_hold_for_samples_and_answers(self):
        low, high = torch.tensor([-0.5, -torch.inf, 0.2]), torch.tensor([0.5, 0.1, torch.inf])

        def objective(x: Tensor) -> Tensor:
            assert (x >= low).all()
            assert (x <= high).all()
            return (x - torch.tensor([2.0, 2.0, -2.0])).square().sum(-1)

        solution = self.solve(objective, torch.zeros(3), bounds=(low, high))
        torch.testing.assert_close(solution.x, torch.tensor([0.5, 0.1, 0.2]), atol=self.precision, rtol=0)
        assert ((solution.x >= low) & (solution.x <= high)).all()
        assert ((solution.best_x >= low) & (solution.best_x <= high)).all()

    def test_bounds_may_be_one_sided(self):
        solution = self.solve(quadratic(torch.tensor([2.0])), torch.zeros(1), bounds=(None, 1.0))
        assert solution.x <= 1.0
        torch.testing.assert_close(solution.x, torch.tensor([1.0]), atol=self.precision, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_in_single_inside(self, dtype):
        def objective(x: Tensor) -> Tensor:
            assert x.dtype == dtype
            return (x - 0.5).square().sum(-1)

        solution = self.solve(objective, torch.zeros(2, dtype=dtype))
        assert solution.x.dtype == dtype
        assert solution.distribution.mean.dtype == torch.float32
        assert (solution.x - 0.5).abs().max() < self.precision + 0.05

    def test_a_generator_or_noise_replays_a_solve(self):
        init, objective = torch.zeros(2), quadratic(torch.ones(2))
        first, second = (self.solve(objective, init, num_iterations=3) for _ in range(2))
        assert torch.equal(first.x, second.x)

    def test_constant_values_and_equal_samples_give_finite_answers_and_gradients(self):
        theta = torch.tensor(1.0, requires_grad=True)
        solution = self.solve(lambda x: 0.0 * x.sum(-1) + theta, torch.zeros(2), num_iterations=3)
        assert solution.x.isfinite().all()
        init = dcem.Gaussian(torch.zeros(2), 0.0)
        generator = torch.Generator().manual_seed(0)
        solution = dcem.minimize(lambda x: (x - theta).square().sum(-1), init, self.solver, generator=generator)
        assert solution.x.isfinite().all()
        if solution.x.requires_grad:
            try:
                (gradient,) = torch.autograd.grad(solution.x.sum(), theta)
            except RuntimeError as error:
                assert "has no gradient" in str(error)  # noqa: PT017
            else:
                assert gradient.isfinite()

    def test_func_transforms(self):
        noise = torch.randn(3, self.solver.num_samples, 2, generator=torch.Generator().manual_seed(0))

        def answer(center: Tensor, noise: Tensor) -> Tensor:
            return self.solve(quadratic(center), torch.zeros(2), noise=noise, num_iterations=3).x

        centers = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
        mapped = torch.func.vmap(answer, in_dims=(0, None))(centers, noise)
        each = torch.stack([answer(center, noise) for center in centers])
        torch.testing.assert_close(mapped, each)
        if not isinstance(getattr(self.solver, "selection", None), dcem.HardTopK):
            jacobian = torch.autograd.functional.jacobian(lambda c: answer(c, noise), centers[0])
            torch.testing.assert_close(torch.func.jacrev(answer)(centers[0], noise), jacobian)
            torch.testing.assert_close(torch.func.jacfwd(answer)(centers[0], noise), jacobian)

    def test_detach_keeps_nothing(self):
        center = torch.ones(2, requires_grad=True)
        solution = self.solve(quadratic(center), torch.zeros(2), gradient=dcem.Detach())
        assert not solution.x.requires_grad
        assert not solution.distribution.mean.requires_grad


class TestVanillaCEM(SolverContract):
    solver = dcem.CEM(200, 40, dcem.HardTopK(), init_std=3.0)
    precision = 1e-3

    @pytest.mark.parametrize("bad", [torch.nan])
    def test_a_failing_problem_keeps_its_distribution_and_leaves_the_others_alone(self, bad):
        with pytest.raises(RuntimeError, match="HardTopK has no gradient"):
            super().test_a_failing_problem_keeps_its_distribution_and_leaves_the_others_alone(bad)


class TestLML(SolverContract):
    solver = dcem.CEM(200, 40, dcem.LML(0.1), init_std=3.0)
    precision = 2e-3


class TestConstrainedSoftmax(SolverContract):
    solver = dcem.CEM(200, 40, dcem.ConstrainedSoftmax(0.1), init_std=3.0)
    precision = 2e-3


class TestConstrainedSparsemax(SolverContract):
    solver = dcem.CEM(200, 40, dcem.ConstrainedSparsemax(0.1), init_std=3.0)
    precision = 2e-3


class TestICEM(SolverContract):
    solver = dcem.CEM(200, 40, dcem.LML(0.1), init_std=3.0, smoothing=0.1, keep_elites=0.3)
    precision = 2e-3


class TestMPPI(SolverContract):
    solver = dcem.MPPI(200, 0.05, init_std=0.5)
    precision = 0.25


class TestGradientDescent(SolverContract):
    solver = dcem.GradientDescent(0.2)
    precision = 1e-5


class TestMomentum(SolverContract):
    solver = dcem.GradientDescent(0.1, momentum=0.3)
    precision = 1e-4


def test_gradient_descent_is_torch_sgd():
    center = torch.tensor([0.5, -1.0, 0.8], dtype=torch.float64)
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.07, momentum=0.8)
    for _ in range(15):
        optimizer.zero_grad()
        (x - center).pow(4).sum().backward()
        optimizer.step()
    solver = dcem.GradientDescent(0.07, momentum=0.8)
    init = torch.zeros(3, dtype=torch.float64)
    solution = dcem.minimize(lambda x: (x - center).pow(4).sum(-1), init, solver, num_iterations=15)
    torch.testing.assert_close(solution.x, x.detach())


def test_learning_rates_one_a_step_receive_gradients():
    lr = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64, requires_grad=True)

    def answer(lr: Tensor) -> Tensor:
        init = torch.zeros(2, dtype=torch.float64)
        return dcem.minimize(quadratic(torch.ones(2)), init, dcem.GradientDescent(lr), num_iterations=4).x

    expected = 1 - (1 - 2 * lr).prod() * (1 - 2 * lr[-1])
    torch.testing.assert_close(answer(lr), expected.expand(2))
    assert torch.autograd.gradcheck(answer, lr)


def test_gradient_descent_needs_a_differentiable_objective():
    with pytest.raises(ValueError, match="differentiable in its candidates"):
        dcem.minimize(lambda x: x.detach().sum(-1), torch.zeros(2), dcem.GradientDescent())


def test_vanilla_cem_iteration_by_hand(generator):
    noise = torch.randn(1, 50, 3, dtype=torch.float64, generator=generator)
    init = dcem.Gaussian(torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), 2.0)
    solution = dcem.minimize(
        lambda x: x.square().sum(-1), init, dcem.CEM(50, 5, dcem.HardTopK()), num_iterations=1, noise=noise
    )
    samples = init.mean + 2.0 * noise[0]
    elites = samples[samples.square().sum(-1).argsort()[:5]]
    torch.testing.assert_close(solution.x, elites.mean(0))
    torch.testing.assert_close(solution.distribution.std, elites.std(0, correction=0))


def test_dcem_iteration_by_hand(generator):
    noise = torch.randn(1, 50, 3, dtype=torch.float64, generator=generator)
    init = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    solver = dcem.CEM(50, 5, dcem.LML(0.3), init_std=2.0)
    solution = dcem.minimize(lambda x: x.square().sum(-1), init, solver, num_iterations=1, noise=noise, record=True)
    samples = init + 2.0 * noise[0]
    values = samples.square().sum(-1)
    weights = dcem.lml(-(values - values.mean()) / values.std(correction=0), 5, temperature=0.3)
    mean = (weights.unsqueeze(-1) * samples).sum(0) / 5
    std = ((weights.unsqueeze(-1) * (samples - mean).square()).sum(0) / 5).sqrt()
    torch.testing.assert_close(solution.x, mean)
    torch.testing.assert_close(solution.distribution.std, std)
    torch.testing.assert_close(solution.history[0].weights, weights)
    torch.testing.assert_close(solution.history[0].effective_elites, weights.sum().square() / weights.square().sum())


def test_mppi_iteration_by_hand(generator):
    noise = torch.randn(1, 50, 3, dtype=torch.float64, generator=generator)
    solver = dcem.MPPI(50, 0.7, init_std=2.0)
    init = torch.ones(3, dtype=torch.float64)
    solution = dcem.minimize(lambda x: x.square().sum(-1), init, solver, num_iterations=1, noise=noise)
    samples = 1.0 + 2.0 * noise[0]
    weights = torch.softmax(-samples.square().sum(-1) / 0.7, 0)
    torch.testing.assert_close(solution.x, (weights.unsqueeze(-1) * samples).sum(0))
    torch.testing.assert_close(solution.distribution.std, torch.full((3,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_standardised_selection_does_not_depend_on_the_scale_of_the_objective(scale, offset, generator):
    noise = torch.randn(3, 60, 2, dtype=torch.float64, generator=generator)
    init = torch.zeros(2, dtype=torch.float64)

    def answer(scale: float, offset: float) -> Tensor:
        objective = lambda x: scale * ((x - 1).square().sum(-1) + offset)  # noqa: E731
        return dcem.minimize(objective, init, noise=noise, num_iterations=3, solver=dcem.CEM(60, 6)).x

    torch.testing.assert_close(answer(1.0, 0.0), answer(scale, offset))


@pytest.mark.parametrize("selection", [dcem.LML(0.3), dcem.ConstrainedSoftmax(0.3), dcem.HardTopK()])
@pytest.mark.parametrize("standardize", [True, False])
def test_failed_samples_count_for_nothing(selection, standardize, generator):
    """With failed samples the answer is that of the rest alone."""
    noise = torch.randn(1, 40, 2, dtype=torch.float64, generator=generator)
    failed = torch.arange(40) % 3 == 1
    solve = lambda noise, objective: dcem.minimize(  # noqa: E731
        objective, torch.zeros(2, dtype=torch.float64), noise=noise, num_iterations=1, record=True,
        solver=dcem.CEM(noise.shape[1], 5, selection, standardize=standardize),
    )  # fmt: skip
    objective = lambda x: (x - 1).square().sum(-1)  # noqa: E731
    for bad in (torch.nan, torch.inf, -torch.inf):
        with_failures = solve(noise, lambda x, bad=bad: objective(x).masked_fill(failed, bad))
        alone = solve(noise[:, ~failed], objective)
        torch.testing.assert_close(with_failures.x, alone.x)
        torch.testing.assert_close(with_failures.distribution.std, alone.distribution.std)
        assert (with_failures.history[0].weights[failed] == 0).all()
        assert torch.equal(with_failures.best_x, alone.best_x)


def test_fewer_finite_values_than_elites_is_nonfinite():
    for num_finite, status in [(4, dcem.Status.NONFINITE), (5, dcem.Status.OK)]:
        failed = torch.arange(40) >= num_finite
        solution = dcem.minimize(
            lambda x, failed=failed: x.square().sum(-1).masked_fill(failed, torch.nan), torch.ones(2), dcem.CEM(40, 5)
        )
        assert solution.status == status


def test_collapse_is_reported_and_gradients_stay_finite():
    theta = torch.ones(2, 3, requires_grad=True)
    init = dcem.Gaussian(torch.zeros(2, 3), 1.0)
    solution = dcem.minimize(
        quadratic(theta), init, dcem.CEM(200, 40, dcem.LML(0.05)), num_iterations=100,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert (solution.status == dcem.Status.COLLAPSED).all()
    assert torch.autograd.grad(solution.x.sum(), theta)[0].isfinite().all()


@pytest.mark.parametrize("num_elites", [1, 2.5, 50])
def test_any_number_of_elites_gives_finite_gradients(num_elites):
    theta = torch.ones(3, requires_grad=True)
    for temperature in (1e-6, 1e-2, 1.0, 1e6):
        solver = dcem.CEM(50, num_elites, dcem.LML(temperature))
        x = dcem.minimize(quadratic(theta), torch.zeros(3), solver, generator=torch.Generator().manual_seed(0)).x
        assert x.isfinite().all()
        assert torch.autograd.grad(x.sum(), theta)[0].isfinite().all()


def test_std_stays_between_floor_and_ceiling():
    solver = dcem.CEM(50, 5, init_std=5.0, min_std=0.2, max_std=0.5)
    for init in (torch.zeros(3), dcem.FullGaussian(torch.zeros(3), 5 * torch.eye(3))):
        solution = dcem.minimize(quadratic(torch.ones(3)), init, solver, record=True)
        for iteration in solution.history:
            assert (iteration.distribution.std >= 0.2 - 1e-6).all()
            assert (iteration.distribution.std <= 0.5 + 1e-6).all()
        assert (solution.history[0].samples.std(0) < 1).all()  # the first draw respects the ceiling as well


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (
            dcem.MPPI(20, torch.ones(4)),
            r"temperature: expected a number, or a Tensor that broadcasts to the batch shape",
        ),
        (dcem.MPPI(20, torch.ones(20)), r"temperature: expected .* got shape \(20,\)"),  # not one for each sample
        (lambda: dcem.MPPI(20, smoothing=torch.full((2,), 0.1)), r"smoothing: expected a number or a tensor of one"),
        (lambda: dcem.CEM(20, 4, smoothing=torch.full((2,), 0.1)), r"smoothing: expected .* got shape \(2,\)"),
        (lambda: dcem.GradientDescent(0.1, torch.full((2,), 0.1)), r"momentum: expected a number or a tensor of one"),
        (
            dcem.GradientDescent(torch.full((3, 5), 0.1)),
            r"lr: expected .* broadcast to .* = \(2, 2\), got shape \(3, 5\)",
        ),
    ],
)
def test_settings_of_a_shape_that_means_nothing(solver, message):
    def solve():
        given = solver if isinstance(solver, dcem.solvers.Solver) else solver()
        dcem.minimize(quadratic(torch.ones(2)), torch.zeros(2, 2), given)

    with pytest.raises(ValueError, match=message):
        solve()


def test_an_mppi_temperature_for_each_problem():
    noise = torch.randn(2, 3, 20, 2, generator=torch.Generator().manual_seed(0))
    temperature = torch.tensor([0.1, 1.0, 10.0])

    def solve(tau, noise):
        init = torch.zeros(noise.shape[1], 2)
        return dcem.minimize(quadratic(torch.ones(2)), init, dcem.MPPI(20, tau), num_iterations=2, noise=noise).x

    each = [solve(float(tau), noise[:, i : i + 1]) for i, tau in enumerate(temperature)]
    torch.testing.assert_close(solve(temperature, noise), torch.cat(each))
    with pytest.raises(ValueError, match=r"batch shape \(\) of the scores"):  # one for each of 20 samples
        dcem.minimize(quadratic(torch.ones(2)), torch.zeros(2), dcem.MPPI(20, torch.ones(20)))


def test_smoothing_keeps_part_of_the_old_parameters(generator):
    noise = torch.randn(1, 50, 3, generator=generator)
    init = dcem.Gaussian(torch.full((3,), 2.0), 1.5)
    solve = lambda smoothing: dcem.minimize(  # noqa: E731
        quadratic(torch.ones(3)), init, dcem.CEM(50, 5, smoothing=smoothing), num_iterations=1, noise=noise
    )
    new, mixed = solve(0.0), solve(0.25)
    torch.testing.assert_close(mixed.x, 0.25 * init.mean + 0.75 * new.x)
    torch.testing.assert_close(mixed.distribution.std, 0.25 * init.std + 0.75 * new.distribution.std)


def test_elites_are_kept_within_the_budget_of_evaluations():
    solver = dcem.CEM(50, 10, dcem.HardTopK(), keep_elites=0.3)
    history = dcem.minimize(quadratic(torch.ones(2)), torch.zeros(2), solver, record=True).history
    assert all(iteration.samples.shape == (50, 2) for iteration in history)
    for before, after in pairwise(history):
        best = before.samples[before.values.argsort()[:3]]
        assert torch.equal(after.samples[-3:], best)
    assert all(after.values.min() <= before.values.min() for before, after in pairwise(history))


def test_population_decays_to_twice_the_elites():
    assert dcem.CEM(121, 1, population_decay=1.1).population(2) == 100  # in spite of rounding
    solver = dcem.CEM(100, 10, population_decay=1.25)
    history = dcem.minimize(quadratic(torch.ones(2)), torch.zeros(2), solver, record=True).history
    assert [len(iteration.values) for iteration in history] == [100, 80, 64, 51, 40, 32, 26, 20, 20, 20]


def test_temperature_init_std_and_mean_receive_gradients(generator):
    noise = torch.randn(2, 30, 2, dtype=torch.float64, generator=generator)

    def answer(temperature: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        solver = dcem.CEM(30, 4, dcem.LML(temperature), init_std=std)
        return dcem.minimize(lambda x: (x - 1).pow(4).sum(-1), mean, solver, num_iterations=2, noise=noise).x

    inputs = [torch.tensor(0.7), torch.tensor([0.1, -0.2]), torch.tensor([1.0, 2.0])]
    assert torch.autograd.gradcheck(answer, [value.double().requires_grad_() for value in inputs])


@pytest.mark.parametrize("solver", [lambda t: dcem.CEM(50, 5, dcem.LML(t)), lambda t: dcem.MPPI(50, t)])
def test_a_temperature_a_problem(solver):
    temperature = torch.tensor([0.2, 1.0, 5.0], requires_grad=True)
    noise = torch.randn(4, 3, 50, 2, generator=torch.Generator().manual_seed(0))
    options = {"num_iterations": 4}
    objective = lambda x: (x - 1).square().sum(-1)  # noqa: E731
    together = dcem.minimize(objective, torch.zeros(3, 2), solver(temperature), noise=noise, **options).x
    for i, tau in enumerate([0.2, 1.0, 5.0]):
        alone = dcem.minimize(objective, torch.zeros(2), solver(tau), noise=noise[:, i], **options).x
        torch.testing.assert_close(together[i], alone)
    assert (torch.autograd.grad(together.sum(), temperature)[0] != 0).all()


def test_a_hard_selection_refuses_a_gradient_instead_of_dropping_it():
    theta = torch.ones(2, requires_grad=True)
    solution = dcem.minimize(quadratic(theta), torch.zeros(2), dcem.CEM(50, 5, dcem.HardTopK()))
    with pytest.raises(RuntimeError, match=r"HardTopK has no gradient.*soft selection"):
        solution.x.sum().backward()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: dcem.CEM(0), "num_samples"),
        (lambda: dcem.CEM(10, 11), "num_elites"),
        (lambda: dcem.CEM(10, 0), "num_elites"),
        (lambda: dcem.CEM(init_std=-1.0), "init_std"),
        (lambda: dcem.CEM(init_std=float("nan")), "init_std"),
        (lambda: dcem.CEM(min_std=-1.0), "min_std"),
        (lambda: dcem.CEM(min_std=1.0, max_std=0.5), "max_std"),
        (lambda: dcem.CEM(smoothing=1.0), "smoothing"),
        (lambda: dcem.CEM(keep_elites=1.1), "keep_elites"),
        (lambda: dcem.CEM(population_decay=0.9), "population_decay"),
        (lambda: dcem.MPPI(0), "num_samples"),
        (lambda: dcem.MPPI(10, 0.0), "temperature"),
        (lambda: dcem.MPPI(10, init_std=-1.0), "init_std"),
        (lambda: dcem.GradientDescent(0.0), "lr"),
        (lambda: dcem.GradientDescent(momentum=1.0), "momentum"),
        (lambda: dcem.Truncate(0), "last"),
        (lambda: dcem.Prune(0.0), "keep"),
        (lambda: dcem.Prune(1.5), "keep"),
        (lambda: dcem.Implicit(0.0), "tolerance"),
        (lambda: dcem.ColoredNoise(-1.0), "exponent"),
        (lambda: dcem.ColoredNoise(1.0, dim=0), "dim"),
    ],
)
def test_hyperparameters_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*got"):
        make()


def test_hyperparameters_of_the_wrong_type_are_named():
    with pytest.raises(TypeError, match=r"^num_samples: expected an int, got 10.5$"):
        dcem.CEM(10.5)
    for hundred in (100.0, np.float32(100), np.float64(100)):
        with pytest.raises(
            TypeError, match=rf"^num_samples: expected an int, got {re.escape(repr(hundred))}; 100 would"
        ):
            dcem.CEM(hundred)
    for other in (math.inf, math.nan, "100", True):
        with pytest.raises(TypeError, match=rf"^num_samples: expected an int, got {other!r}$"):
            dcem.CEM(other)
    with pytest.raises(TypeError, match="^selection: expected a callable"):
        dcem.CEM(selection="lml")


@pytest.mark.parametrize("cost", [torch.nan, torch.inf, 1e37, 3e38])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("value", [1e-6, 1.0, 1e6])
def test_a_learned_temperature_of_mppi_has_a_gradient_whatever_one_sample_costs(cost, standardize, value):
    """The derivative of the others alone: a sample without weight has no part in it."""
    noise = torch.randn(2, 20, 2, generator=torch.Generator().manual_seed(0))

    def gradient(cost: float | None) -> Tensor:
        temperature = torch.tensor(value, requires_grad=True)

        def objective(x: Tensor) -> Tensor:
            values = x.square().sum(-1)
            return values if cost is None else torch.cat([values[:-1], torch.full((1,), cost)])

        rows = noise[:1] if cost is not None else noise[:1, :-1]
        solution = dcem.minimize(
            objective, torch.ones(2), dcem.MPPI(rows.shape[1], temperature, standardize=standardize), noise=rows,
            num_iterations=1,
        )  # fmt: skip
        return torch.autograd.grad(solution.x.sum(), temperature)[0]

    if standardize and cost in (1e37, 3e38):  # a part of the mean and the std
        assert gradient(cost).isfinite()
    else:
        torch.testing.assert_close(gradient(cost), gradient(None), rtol=1e-4, atol=0)


def test_mppi_where_every_cost_overflows_its_temperature():
    solution = dcem.minimize(lambda x: 1e37 + 1e36 * x.square().sum(-1), torch.ones(2), dcem.MPPI(50, 1e-6))
    assert solution.x.isfinite().all()
    assert solution.status == dcem.Status.OK


class Boltzmann(dcem.SamplingSolver):
    """No more than the two methods that are its own."""

    def weigh(self, values):
        return (-values.argsort(-1).argsort(-1) / 3.0).softmax(-1), None

    def fit(self, distribution, samples, weights):
        return distribution.fit(samples, weights)


class Fewer(Boltzmann):
    num_samples, init_std = 30, 2.0


@pytest.mark.parametrize("solver", [Boltzmann(), Fewer()])
def test_a_solver_of_ones_own_needs_two_methods(solver, generator):
    objective = lambda x: (x - 1.0).abs().sum(-1)  # noqa: E731
    solution = dcem.minimize(objective, torch.zeros(2), solver, num_iterations=20, generator=generator, record=True)
    num_samples, std = (30, 2.0) if isinstance(solver, Fewer) else (100, 1.0)
    assert len(solution.history[0].values) == num_samples
    assert (solution.x - 1).abs().max() < 0.1
    assert solver.distribution(torch.zeros(2), 1).std.tolist() == [std, std]
    assert dcem.Search(torch.zeros(2), solver).ask().shape == (num_samples, 2)
    mpc = dcem.control.MPC(lambda x, u: x + u, lambda x, u: x.square().sum(-1), 3, 1, (-1.0, 1.0), solver)
    assert mpc(torch.ones(1), generator=generator).action < 0


@pytest.mark.parametrize(
    "solver",
    [
        dcem.CEM(10, 2, dcem.LML(torch.nn.Parameter(torch.tensor(0.3))), init_std=torch.ones(2)),
        dcem.CEM(10, 2, dcem.LML(effective=5.0)),
        dcem.CEM(10, 2, dcem.ConstrainedSoftmax()),
        dcem.CEM(10, 2, dcem.ConstrainedSparsemax()),
        dcem.CEM(10, 2, dcem.HardTopK()),
        dcem.MPPI(10, torch.tensor(0.5)),
        dcem.GradientDescent(0.1),
    ],
    ids=str,
)
def test_saved_solvers_are_data(solver, tmp_path):
    torch.save(solver, tmp_path / "solver.pt")
    assert str(torch.load(tmp_path / "solver.pt", weights_only=True)) == str(solver)


@pytest.mark.parametrize(
    ("solver", "other"),
    [
        (dcem.CEM(20, 3), dcem.CEM(20, 4)),
        (dcem.MPPI(20), dcem.MPPI(30)),
        (dcem.GradientDescent(0.1), dcem.GradientDescent(0.2)),
    ],
    ids=str,
)
def test_solvers_of_other_settings_are_others(solver, other):
    """As keys of a cache they were one and the same."""
    assert solver != other
    assert len({solver: 0, other: 1}) == 2


def test_a_std_of_the_wrong_shape_is_named_as_it_was_given():
    with pytest.raises(ValueError, match=r"^init_std: expected a shape that broadcasts to mean's \(2,\), got \(5,\)"):
        dcem.minimize(lambda x: x.square().sum(-1), torch.zeros(2), dcem.CEM(init_std=torch.ones(5)))

"""What users do to a solve that nobody planned for."""

import contextlib

import pytest
import torch
from torch import Tensor

import dcem
from dcem import _eager, _guard, _replay


def sphere(x: Tensor) -> Tensor:
    return x.square().sum(-1)


@pytest.mark.cpu
@pytest.mark.parametrize(
    "solver",
    [dcem.CEM(60, 10, dcem.HardTopK()), dcem.CEM(60, 10, dcem.ConstrainedSoftmax()), dcem.MPPI(60), dcem.CEM(60, 10)],
)
@pytest.mark.parametrize("full", [False, True])
def test_autocast_is_for_the_objective_alone(solver, full):
    linear = torch.nn.Linear(2, 2)
    seen = []

    def objective(x: Tensor) -> Tensor:
        seen.append(linear(x).dtype)
        return sphere(x - 1.0)

    init = dcem.FullGaussian(torch.zeros(2), torch.eye(2)) if full else dcem.Gaussian(torch.zeros(2), 1.0)
    noise = torch.randn(10, 60, 2, generator=torch.Generator().manual_seed(0))
    plain = dcem.minimize(lambda x: sphere(x - 1.0), init, solver, noise=noise, gradient=dcem.Detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = dcem.minimize(objective, init, solver, noise=noise, gradient=dcem.Detach())
    assert set(seen) == {torch.bfloat16}
    assert torch.equal(solution.x, plain.x)
    assert solution.distribution.mean.dtype == torch.float32


@pytest.mark.parametrize("solver", [dcem.CEM(50, 5), dcem.MPPI(50), dcem.GradientDescent()])
def test_inference_mode(solver):
    with torch.inference_mode():
        solution = dcem.minimize(lambda x: sphere(x - 1.0), torch.zeros(2), solver)
    assert (solution.x - 1).abs().max() < 0.5


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38])
def test_values_of_denormal_spread_count_as_equal(scale):
    """By such a spread the gradient of a score is no number of single precision."""
    solution = dcem.minimize(lambda x: sphere(x) * scale, torch.ones(2))
    assert solution.x.isfinite().all()
    assert solution.status == (dcem.Status.OK if scale == 1e-38 else dcem.Status.FLAT)


@pytest.mark.parametrize("mutate", [lambda x: sphere(x.mul_(2)), lambda x: x[..., 0].add_(1)])
def test_an_objective_that_changes_its_candidates_is_refused(mutate):
    with pytest.raises(ValueError, match="objective: expected to leave its candidates as they are"):
        dcem.minimize(mutate, torch.zeros(2))


def test_implicit_with_a_bound_that_the_mean_only_approaches():
    center = torch.tensor([0.3, -0.2], requires_grad=True)
    solution = dcem.minimize(
        lambda x: sphere(x - center), torch.zeros(2), dcem.CEM(100, 10, dcem.LML(0.1)), num_iterations=40,
        gradient=dcem.Implicit(), bounds=(0.0, None), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert solution.status != dcem.Status.NOT_STATIONARY
    torch.testing.assert_close(torch.autograd.grad(solution.x.sum(), center)[0], torch.tensor([1.0, 0.0]))


def test_implicit_refuses_gradients_of_hyperparameters():
    temperature = torch.tensor(0.5, requires_grad=True)
    for solver in (dcem.CEM(50, 5, dcem.LML(temperature)), dcem.GradientDescent(temperature)):
        with pytest.raises(ValueError, match="cannot give a gradient to the solver's hyperparameters"):
            dcem.minimize(sphere, torch.ones(2), solver, gradient=dcem.Implicit())


def test_when_every_sample_fails_a_training_step_goes_on():
    theta = torch.zeros(2, requires_grad=True)
    solution = dcem.minimize(lambda x: sphere(x - theta) * torch.nan, torch.ones(2))
    assert solution.status == dcem.Status.NONFINITE
    solution.x.sum().backward()
    assert theta.grad is None or theta.grad.isfinite().all()


def test_transforms_map_over_bounds_and_leave_checkpoints_out():
    noise = torch.randn(4, 30, 2, generator=torch.Generator().manual_seed(0))
    options = {"num_iterations": 4, "noise": noise, "solver": dcem.CEM(30, 5)}
    lows = torch.tensor([[0.5, 0.5], [-1.0, -1.0]])
    mapped = torch.func.vmap(lambda low: dcem.minimize(sphere, torch.ones(2), bounds=(low, 2.0), **options).x)(lows)
    each = [dcem.minimize(sphere, torch.ones(2), bounds=(low, 2.0), **options).x for low in lows]
    torch.testing.assert_close(mapped, torch.stack(each))

    def answer(theta: Tensor, mode: dcem.GradientMode) -> Tensor:
        return dcem.minimize(lambda x: sphere(x - theta), torch.ones(2), gradient=mode, **options).x.sum()

    theta = torch.tensor([0.3, -0.2])
    plain, checkpointed = (torch.func.grad(answer)(theta, mode) for mode in (dcem.Unroll(), dcem.Checkpoint()))
    torch.testing.assert_close(checkpointed, plain)
    with pytest.raises(RuntimeError, match="Implicit does not work inside"):
        torch.func.grad(answer)(theta, dcem.Implicit())
    hard = {**options, "solver": dcem.CEM(30, 5, dcem.HardTopK())}
    with pytest.raises(RuntimeError, match="HardTopK has no gradient"):
        torch.func.grad(lambda t: dcem.minimize(lambda x: sphere(x - t), torch.ones(2), **hard).x.sum())(theta)


@pytest.mark.parametrize("solver", [dcem.CEM(1, 1), dcem.CEM(2, 1), dcem.CEM(1, 0.5), dcem.CEM(2, 2), dcem.MPPI(1)])
@pytest.mark.parametrize("gradient", [dcem.Unroll(), dcem.Prune(0.5), dcem.Prune(0.5, unbiased=True)], ids=repr)
def test_a_sample_or_two(solver, gradient):
    theta = torch.ones(2, requires_grad=True)
    solution = dcem.minimize(lambda x: sphere(x - theta), torch.zeros(2), solver, gradient=gradient)
    assert solution.x.isfinite().all()
    assert torch.autograd.grad(solution.x.sum(), theta)[0].isfinite().all()


@pytest.mark.parametrize(("n", "k", "temperature"), [(10**6, 10, 1e3), (10**5, 99_999, 1.0), (10**5, 0.01, 1.0)])
def test_long_rows_keep_their_sum(n, k, temperature):
    scores = torch.randn(1, n, generator=torch.Generator().manual_seed(0))
    for x in (scores, scores.clone().requires_grad_()):
        total = dcem.lml(x, k, temperature=temperature).double().sum().item()
        assert abs(total - k) <= 1e-5 * k


def test_masked_rows_do_not_depend_on_which_others_are_masked():
    x = torch.randn(9, 13, generator=torch.Generator().manual_seed(13))
    x[4, 0] = -torch.inf
    y = x.clone()
    y[[0, 2], 0] = -torch.inf
    assert torch.equal(dcem.lml(x, 1.5)[4], dcem.lml(y, 1.5)[4])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: dcem.CEM(10, "a"), "num_elites"),
        (lambda: dcem.CEM(10, None), "num_elites"),
        (lambda: dcem.CEM(10, torch.tensor(3)), "num_elites"),
        (lambda: dcem.CEM(selection=dcem.LML), "selection"),
        (lambda: dcem.CEM(init_std="a"), "init_std"),
        (lambda: dcem.CEM(min_std=torch.tensor(0.1)), "min_std"),
        (lambda: dcem.CEM(max_std="a"), "max_std"),
        (lambda: dcem.CEM(smoothing=None), "smoothing"),
        (lambda: dcem.CEM(keep_elites="a"), "keep_elites"),
        (lambda: dcem.CEM(population_decay=None), "population_decay"),
        (lambda: dcem.MPPI(10, "a"), "temperature"),
        (lambda: dcem.GradientDescent([0.1]), "lr"),
        (lambda: dcem.Prune("a"), "keep"),
        (lambda: dcem.Implicit("a"), "tolerance"),
        (lambda: dcem.Gaussian(torch.zeros(2), "a"), "std"),
        (lambda: dcem.minimize(sphere, torch.zeros(2), generator=0), "generator"),
        (lambda: dcem.minimize(sphere, torch.zeros(2), callback=3), "callback"),
        (lambda: dcem.minimize(sphere, torch.zeros(2), noise=torch.zeros(10, 100, 2).long()), "noise"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(make, name):
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        make()


@pytest.mark.cpu
def test_sources_and_selections_of_the_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"noise: expected the source to return \(100, 2\), got \(3,\)"):
        dcem.minimize(sphere, torch.zeros(2), noise=lambda shape, **options: torch.zeros(3))
    with pytest.raises(ValueError, match=r"selection: expected to return weights of shape \(100,\), got NoneType"):
        dcem.minimize(sphere, torch.zeros(2), dcem.CEM(selection=lambda scores, k: None))
    with pytest.raises(ValueError, match="init: expected a std >= 0"):
        dcem.minimize(sphere, dcem.Gaussian(torch.zeros(2), torch.tensor([1.0, -1.0])))


def test_dtypes_of_parameters_follow_the_mean():
    mean = torch.zeros(2, dtype=torch.float64)
    assert dcem.Gaussian(mean, torch.ones(2)).std.dtype == torch.float64
    assert dcem.FullGaussian(mean, torch.eye(2)).scale_tril.dtype == torch.float64
    for solver in (dcem.MPPI(20, torch.tensor(1.0).double()), dcem.GradientDescent(torch.tensor([0.1]).double())):
        assert dcem.minimize(sphere, torch.ones(2), solver).x.dtype == torch.float32


def test_gradient_descent_that_has_diverged_says_so():
    """Where every problem has, as where one has: its iterate stays, and there is no gradient of nothing."""
    theta = torch.tensor(1.0, requires_grad=True)
    solution = dcem.minimize(lambda x: (x - theta).pow(4).sum(-1), torch.full((2, 2), 1e6), dcem.GradientDescent(1.0))
    assert (solution.status == dcem.Status.NONFINITE).all()
    assert solution.x.isfinite().all()
    solution.x.sum().backward()
    assert theta.grad is None or theta.grad.isfinite()


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_step_out_of_the_range_of_numbers_is_not_taken(iterations):
    """Value and slope are finite where it starts."""
    theta = torch.ones(2, requires_grad=True)
    steepness = torch.tensor([[1e30], [1e-21]])
    solution = dcem.minimize(
        lambda x: steepness * (x - theta).square().sum(-1), torch.zeros(2, 2), dcem.GradientDescent(1e20),
        num_iterations=iterations,
    )  # fmt: skip
    assert solution.status.tolist() == [dcem.Status.NONFINITE, dcem.Status.OK]
    assert torch.equal(solution.x[0], torch.zeros(2))
    expected = 1 - 0.8**iterations
    (gradient,) = torch.autograd.grad(solution.x.sum(), theta)
    torch.testing.assert_close(solution.x[1], torch.full((2,), expected))
    torch.testing.assert_close(gradient, torch.full((2,), expected))


@pytest.mark.parametrize("learned", ["lr", "momentum"])
@pytest.mark.parametrize("steep", [False, True])
def test_a_learned_step_has_a_gradient_though_one_problem_fails(learned, steep):
    step = torch.tensor(0.1, requires_grad=True)
    solver = dcem.GradientDescent(**{learned: step})
    shift = torch.tensor([0.0, torch.nan, 1.0]).unsqueeze(-1)

    def objective(x: Tensor) -> Tensor:
        if not steep:
            return sphere(x - 1.0) + shift
        root = torch.where(shift.isnan(), x[..., 0] - 1, 1.0)
        return sphere(x - 1.0) + torch.where(root > 0, root.sqrt(), 0.0)

    solution = dcem.minimize(objective, torch.zeros(3, 2), solver)
    assert solution.status.tolist() == [dcem.Status.OK, dcem.Status.NONFINITE, dcem.Status.OK]
    alone = dcem.minimize(lambda x: sphere(x - 1.0), torch.zeros(2, 2), solver)
    found, expected = (torch.autograd.grad(x.sum(), step)[0] for x in (solution.x[::2], alone.x))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("solver", [dcem.CEM(30, 5, dcem.LML(0.5)), dcem.MPPI(30)], ids=repr)
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(1), dcem.Prune(1.0)], ids=repr)
@pytest.mark.parametrize("learned_start", [False, True])
def test_an_infinite_slope_behind_a_finite_value_is_said_when_the_gradient_is_asked_for(
    solver, iterations, mode, learned_start
):
    if learned_start and mode == dcem.Truncate(1) and iterations > 1:
        return
    theta = torch.tensor(0.5, requires_grad=True)
    steep = torch.tensor([False, True, False]).unsqueeze(-1)
    start = torch.zeros(1, 2, requires_grad=learned_start)

    def objective(x: Tensor) -> Tensor:
        root = torch.where(steep, x[..., 0] * theta, 1.0)
        return sphere(x - theta) + torch.where(root > 0, root.sqrt(), 0.0)

    solution = dcem.minimize(
        objective, start.expand(3, 2), solver, gradient=mode, num_iterations=iterations,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert solution.status.tolist() == [dcem.Status.OK] * 3
    solution.x.sum().backward()
    assert theta.grad.isnan()
    assert solution.status.tolist() == [dcem.Status.OK, dcem.Status.NONFINITE, dcem.Status.OK]
    if learned_start:
        assert start.grad.isfinite().all()


def test_a_loss_that_is_nan_is_not_the_objectives_fault():
    theta = torch.tensor(0.5, requires_grad=True)
    solution = dcem.minimize(lambda x: sphere(x - theta), torch.zeros(2))
    (solution.x.sum() * torch.nan).backward()
    assert theta.grad.isnan()
    assert solution.status == dcem.Status.OK


def made_in_inference_mode() -> list:
    """Objectives whose parts autograd cannot keep: parameters, features and constants made in inference mode."""
    features = torch.randn(3, 4)
    models = [
        dcem.energy.EnergyModel(energy, 2, dcem.GradientDescent(0.05), num_iterations=3, **options)
        for energy, options in [
            (dcem.energy.MLPEnergy(4, 2), {}), (dcem.energy.ICNN(4, 2), {}), (dcem.energy.SPEN(4, 2), {}),
            (dcem.energy.FeedForwardEnergy(torch.nn.Linear(4, 2)), {}), (dcem.energy.ICNN(4, 2), {"decoder": torch.nn.Sigmoid()}),
            (dcem.energy.MLPEnergy(4, 2), {"decoder": torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Softmax(-1))}),
        ]
    ]  # fmt: skip
    constant = torch.randn(2)
    plain = lambda: dcem.minimize(lambda x: (x * constant).cos().sum(-1), torch.ones(2), dcem.GradientDescent()).x  # noqa: E731
    return [plain, *(lambda m=m: m(features) for m in models)]


@pytest.mark.parametrize("inside", [True, False])
def test_gradient_descent_works_in_inference_mode_as_without_gradients(inside):
    """Also where the model itself was made in it."""
    torch.manual_seed(0)
    with torch.inference_mode(inside):
        solves = made_in_inference_mode()
        if inside:
            answers = [solve() for solve in solves]
    torch.manual_seed(0)
    if not inside:
        with torch.inference_mode():
            answers = [solve() for solve in solves]
    torch.manual_seed(0)
    with torch.no_grad():
        expected = [solve() for solve in made_in_inference_mode()]
    for ours, theirs in zip(answers, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.isfinite().all()


def test_data_without_the_axis_of_candidates_are_refused_where_as_many_problems_hide_it():
    targets = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    with pytest.raises(ValueError, match=r"expected values .* = \(8, 1\) .* got \(8, 8\): .* \.unsqueeze\(1\)"):
        dcem.minimize(lambda x: (x - targets).square().sum(-1), torch.zeros(8, 2), dcem.CEM(8, 2), generator=generator)
    assert torch.equal(generator.get_state(), before)
    decoded = dcem.Argmin(2, dcem.CEM(8, 2), decoder=torch.nn.Linear(3, 2), latent_shape=3)
    with pytest.raises(ValueError, match=r"objective: .*\.unsqueeze\(1\)"):
        decoded(lambda x: (x - targets).square().sum(-1), (8,))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"\.unsqueeze\(1\)"):
        dcem.minimize(lambda x: (x - targets).square().sum(-1), torch.zeros(8, 2), dcem.CEM(8, 2), generator=generator)
    seen = []

    def right(x):
        seen.append(x.shape)
        return (x - targets.unsqueeze(1)).square().sum(-1) + torch.rand(x.shape[:-1], generator=generator)

    def solve():
        generator.manual_seed(0)
        return dcem.minimize(right, torch.zeros(8, 2), dcem.CEM(8, 2), generator=generator)

    assert torch.equal(solve().x, solve().x)
    assert seen[:2] == [(8, 1, 2), (8, 8, 2)]
    seen.clear()
    dcem.minimize(right, torch.zeros(8, 2), dcem.CEM(9, 2))  # nothing hides it: the objective's shape tells
    assert seen[0] == (8, 9, 2)
    fixed = lambda x: x.reshape(8, 8, 2).square().sum(-1)  # noqa: E731
    dcem.minimize(fixed, torch.zeros(8, 2), dcem.CEM(8, 2))  # one candidate is not for everyone


class Times(dcem.LML):
    """Weights that are none: NaN, all 0, or negative."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, scores, k):
        return super().forward(scores, k) * self.factor


@pytest.mark.cpu
@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_selection_without_weights_is_named(factor):
    with pytest.raises(ValueError, match="^selection: expected finite weights >= 0 that are not all 0, got from"):
        dcem.minimize(lambda x: x.square().sum(-1), torch.ones(3, 2), dcem.CEM(20, 4, Times(factor)))
    failing = dcem.minimize(lambda x: x.sum(-1) * torch.nan, torch.ones(3, 2), dcem.CEM(20, 4, Times(1.0)))
    assert (failing.status == dcem.Status.NONFINITE).all()  # for which no selection is to blame


def test_remedies_are_said():
    with pytest.raises(ValueError, match=r"num_elites: expected a whole number for a hard selection, got 10\.5"):
        dcem.CEM(100, 10.5, dcem.HardTopK())
    assert dcem.CEM(100, 10.5).num_elites == 10.5
    with pytest.raises(ValueError, match="to search for one number give event_dims=0"):
        dcem.minimize(torch.square, torch.tensor(0.0), dcem.CEM())
    own = (torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"got \(3, 2\); for a box of each problem search a share z of it"):
        dcem.minimize(lambda x: x.square().sum(-1), torch.zeros(3, 2), dcem.CEM(), bounds=own)


@pytest.mark.cpu
def test_masks_of_a_tracer_hold_no_answer():
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dcem._eager import all_true

    assert all_true(torch.ones(3, dtype=torch.bool))
    with FakeTensorMode():
        assert not all_true(torch.ones(3, dtype=torch.bool))  # asked for its numbers, it raises


@pytest.mark.parametrize(
    "gradient", [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(2), dcem.Prune(), dcem.Implicit()]
)
def test_unchecked_solves_have_the_same_numbers_and_make_no_look(gradient, generator):
    theta = torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)
    noise = torch.randn(6, 3, 40, 2, dtype=torch.float64, generator=generator)

    def solve(scale):
        solution = dcem.minimize(
            lambda x: scale * sphere(x - theta), torch.zeros(3, 2, dtype=torch.float64), dcem.CEM(40, 8), noise=noise,
            num_iterations=6, gradient=gradient,
        )  # fmt: skip
        return solution, torch.autograd.grad(solution.x.square().sum(), theta)[0]

    checked, slope = solve(1.0)
    with dcem.unchecked():
        same, same_slope = solve(1.0)
        failed, _ = solve(torch.tensor([[1.0], [torch.nan], [1.0]]))
    assert torch.equal(same.x, checked.x)
    torch.testing.assert_close(same_slope, slope)
    assert failed.status.tolist() == [0, int(dcem.Status.NONFINITE), 0]
    torch.testing.assert_close(solve(1.0)[1], slope)  # and afterwards it is as it was


RECOMPUTING = [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(2), dcem.Prune()]


@pytest.mark.parametrize("gradient", RECOMPUTING)
def test_unchecked_solves_make_no_look(gradient, monkeypatch):
    """Neither in the solve nor when it is differentiated, wherever that is."""
    looks = []
    monkeypatch.setattr(_guard, "may_look", lambda x: looks.append("guard") or True)
    monkeypatch.setattr(_replay, "may_look", lambda x: looks.append("replay") or True)
    theta, noise = torch.ones(2, requires_grad=True), torch.randn(4, 20, 2, generator=torch.Generator().manual_seed(0))

    def solve():
        return dcem.minimize(
            lambda x: sphere(x - theta), torch.zeros(2), dcem.CEM(20, 4), noise=noise, num_iterations=4,
            gradient=gradient,
        ).x  # fmt: skip

    with dcem.unchecked():
        x = solve()
    torch.autograd.grad(x.sum(), theta)
    assert looks == []
    torch.autograd.grad(solve().sum(), theta)
    assert "guard" in looks


@pytest.mark.parametrize("gradient", RECOMPUTING)
@pytest.mark.parametrize("inside", ["forward", "backward", "both"])
def test_a_promise_holds_where_it_is_differentiated(gradient, inside):
    """Some candidates fail: what is computed again in the backward pass is what was computed before."""
    theta, noise = (
        torch.tensor(0.3, requires_grad=True),
        torch.randn(3, 30, 2, generator=torch.Generator().manual_seed(0)),
    )

    def objective(x):
        return torch.where(x[..., 0] > 1, torch.nan, sphere(x - theta))

    with dcem.unchecked() if inside != "backward" else contextlib.nullcontext():
        x = dcem.minimize(
            objective, torch.zeros(2), dcem.CEM(30, 5), noise=noise, num_iterations=3, gradient=gradient
        ).x
    with dcem.unchecked() if inside != "forward" else contextlib.nullcontext():
        (slope,) = torch.autograd.grad(x.sum(), theta)
    expected = dcem.minimize(
        objective, torch.zeros(2), dcem.CEM(30, 5), noise=noise, num_iterations=3, gradient=gradient
    ).x
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), theta)[0])


def test_promises_within_promises():
    """One that is made again, or of a function, and one that an error ends."""
    again = dcem.unchecked()
    with again, again:
        assert _eager.is_unchecked()
        assert dcem.unchecked()(_eager.is_unchecked)()
        assert _eager.is_unchecked()
    assert not _eager.is_unchecked()
    with pytest.raises(ZeroDivisionError), again:
        1 / 0  # noqa: B018
    assert not _eager.is_unchecked()
    again.__enter__()
    with _eager.as_promised(True), _eager.as_promised(False):
        assert not _eager.is_unchecked()
        again.__exit__(None, None, None)  # by another thread, while a backward pass is under way
    assert not _eager.is_unchecked()


@pytest.mark.cpu
def test_errors_in_what_is_given_are_raised_as_ever():
    model = dcem.world.LatentModel(3, 2)
    with dcem.unchecked(), pytest.raises(ValueError, match="observation: expected finite numbers"):
        model.observe(model.initial(), torch.zeros(2), torch.full((3,), torch.nan))


def test_unchecked_inside_capture():
    """What was compiled before is compiled anew where the promise is made, and evaluates once."""
    theta = torch.tensor([0.5, -0.3], requires_grad=True)
    noise = torch.randn(3, 40, 2, generator=torch.Generator().manual_seed(0))
    sizes = []

    def backend_that_counts(graph, _):
        sizes.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph

    captured = dcem.capture(dcem.CEM(40, 8), backend=backend_that_counts)

    def solve():
        x = dcem.minimize(lambda x: sphere(x - theta), torch.zeros(2), captured, num_iterations=3, noise=noise).x
        return torch.autograd.grad(x.sum(), theta)[0]

    slope = solve()
    checked = max(sizes)
    sizes.clear()
    with dcem.unchecked():
        torch.testing.assert_close(solve(), slope)
        assert 0 < max(sizes) < checked
        compiled = len(sizes)
        with dcem.unchecked():
            solve()
        assert len(sizes) == compiled  # how often it is promised does not matter

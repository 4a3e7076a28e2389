"""The boundary of `minimize`: what it takes, what it refuses, what it gives back."""

import numpy as np
import pytest
import torch
from torch import Tensor

import dcem


def sphere(x: Tensor) -> Tensor:
    return x.square().sum(-1)


ZEROS = torch.zeros(2, 3)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"objective": 3}, TypeError, r"objective: expected a callable .*got 3"),
        ({"init": [0.0]}, TypeError, r"init: expected a Tensor of means or a dcem distribution, got list"),
        ({"init": torch.zeros(3, dtype=torch.int64)}, TypeError, r"init: expected a floating-point tensor, got torch.int64"),
        ({"init": torch.tensor([0.0, torch.nan])}, ValueError, r"init: expected finite parameters"),
        ({"init": dcem.Gaussian(torch.zeros(2), torch.tensor(torch.inf))}, ValueError, r"init: expected finite parameters"),
        ({"init": torch.zeros(2, 0)}, ValueError, r"init: expected at least one element, got shape \(2, 0\)"),
        ({"solver": dcem.LML()}, TypeError, r"solver: expected a dcem solver .*got LML"),
        ({"gradient": "unroll"}, TypeError, r"gradient: expected a gradient mode .*got 'unroll'"),
        ({"gradient": dcem.Unroll}, TypeError, r"gradient: expected a gradient mode"),
        ({"num_iterations": 0}, ValueError, r"num_iterations: expected at least 1, got 0"),
        ({"num_iterations": 2.5}, TypeError, r"num_iterations: expected an int, got 2.5"),
        ({"event_dims": 3}, ValueError, r"event_dims: expected an int from 0 to 2 .*got 3"),
        ({"event_dims": -1}, ValueError, r"event_dims: expected an int from 0 to 2 .*got -1"),
        ({"bounds": 1.0}, TypeError, r"bounds: expected a pair \(low, high\) or None, got 1.0"),
        ({"bounds": (1.0, -1.0)}, ValueError, r"bounds: expected low <= high, got low=1.0, high=-1.0"),
        ({"bounds": (torch.tensor([0.0, 2.0, 0.0]), 1.0)}, ValueError, r"bounds: expected low <= high"),
        ({"bounds": (torch.zeros(2), None)}, ValueError, r"bounds\[0\]: .*broadcasts to the event \(3,\), got \(2,\)"),
        ({"bounds": (None, float("nan"))}, ValueError, r"bounds\[1\]: expected a number, got NaN"),
        ({"bounds": ("a", None)}, TypeError, r"bounds\[0\]: expected None, a number or a Tensor, got str"),
        ({"noise": torch.zeros(10, 2, 99, 3)}, ValueError, r"noise: expected .* = \(10, 2, 100, 3\), got \(10, 2, 99, 3\)"),
        ({"noise": "white"}, TypeError, r"noise: expected a Tensor, a noise source or None, got 'white'"),
    ],
)  # fmt: skip
def test_each_bad_argument_is_named(options, error, message):
    arguments = {"objective": sphere, "init": ZEROS, **options}
    with pytest.raises(error, match=message):
        dcem.minimize(**arguments)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("objective", "error", "message"),
    [
        (lambda x: x, ValueError, r"objective: expected values of shape \(\*batch, N\) = \(2, 100\) .*got \(2, 100, 3\)"),
        (lambda x: sphere(x).sum(), ValueError, r"got \(\)"),
        (lambda x: sphere(x)[..., :5], ValueError, r"got \(2, 5\)"),
        (lambda x: None, TypeError, r"objective: expected a Tensor of values of shape \(2, 100\), got NoneType"),
        (lambda x: sphere(x).long(), TypeError, r"objective: expected floating-point values, got torch.int64"),
        (lambda x: sphere(x) > 1, TypeError, r"objective: expected floating-point values, got torch.bool"),
        (lambda x: sphere(x).to("meta"), ValueError, r"objective: expected values on cpu like the candidates, got meta"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("gradient", [dcem.Unroll(), dcem.Checkpoint(), dcem.Prune(), dcem.Detach()], ids=repr)
def test_bad_values_are_named(objective, error, message, gradient):
    with pytest.raises(error, match=message):
        dcem.minimize(objective, ZEROS, gradient=gradient)


def test_an_objective_that_raises_is_heard():
    def broken(x: Tensor) -> Tensor:
        raise KeyError("simulator")

    with pytest.raises(KeyError, match="simulator"):
        dcem.minimize(broken, ZEROS)


def test_values_in_double_precision_are_taken():
    """Simulators answer in float64 whatever they are asked in."""
    solution = dcem.minimize(lambda x: sphere(x).double(), ZEROS)
    assert solution.x.dtype == torch.float32
    assert solution.best_value.dtype == torch.float32


def test_the_answer_of_the_contract():
    solution = dcem.minimize(sphere, ZEROS, num_iterations=7, record=True)
    assert isinstance(solution, dcem.Solution)
    assert solution.x.shape == solution.best_x.shape == (2, 3)
    assert solution.best_value.shape == solution.status.shape == (2,)
    assert torch.equal(solution.x, solution.distribution.mean)
    assert len(solution.history) == 7
    for iteration in solution.history:
        assert iteration.samples.shape == (2, 100, 3)
        assert iteration.values.shape == iteration.weights.shape == (2, 100)
        assert iteration.effective_elites.shape == (2,)
    lowest = torch.stack([iteration.values.min(-1).values for iteration in solution.history]).min(0).values
    assert torch.equal(solution.best_value, lowest)
    assert torch.equal(sphere(solution.best_x), lowest)
    assert solution.history[-1].distribution is solution.distribution
    assert dcem.minimize(sphere, ZEROS).history == []


def test_the_best_sample_is_detached_and_the_answer_is_not():
    theta = torch.zeros(3, requires_grad=True)
    solution = dcem.minimize(lambda x: sphere(x - theta), ZEROS)
    assert solution.x.requires_grad
    assert not solution.best_x.requires_grad
    assert not solution.best_value.requires_grad


def test_a_solve_continues_from_its_distribution(generator):
    noise = torch.randn(6, 2, 100, 3, generator=generator)
    whole = dcem.minimize(lambda x: sphere(x - 1), ZEROS, num_iterations=6, noise=noise)
    half = dcem.minimize(lambda x: sphere(x - 1), ZEROS, num_iterations=3, noise=noise[:3])
    rest = dcem.minimize(lambda x: sphere(x - 1), half.distribution, num_iterations=3, noise=noise[3:])
    assert torch.equal(rest.x, whole.x)


def test_a_generator_draws_the_same_noise_as_explicit_values():
    seeded = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    source = seeded()
    noise = torch.stack([torch.randn(2, 100, 3, generator=source) for _ in range(10)])
    drawn = dcem.minimize(sphere, ZEROS, generator=seeded())
    given = dcem.minimize(sphere, ZEROS, noise=noise)
    assert torch.equal(drawn.x, given.x)


def test_the_callback_sees_each_iteration_and_may_stop():
    seen = []
    dcem.minimize(sphere, ZEROS, callback=seen.append)
    assert len(seen) == 10
    assert all(isinstance(iteration, dcem.Iteration) for iteration in seen)
    seen.clear()
    solution = dcem.minimize(sphere, ZEROS, callback=lambda it: bool(seen.append(it) or len(seen) == 4), record=True)
    assert len(seen) == len(solution.history) == 4


WRITES = {
    "samples": lambda it: it.samples.zero_(),
    "values": lambda it: it.values.detach().mul_(-1),
    "weights": lambda it: it.weights[..., 0].fill_(0.0),
    "distribution": lambda it: it.distribution.mean.add_(1.0),
    "std": lambda it: it.distribution.std.detach().mul_(2.0),
}


@pytest.mark.parametrize("solver", [dcem.CEM(20, 5), dcem.CEM(20, 5, keep_elites=0.5), dcem.MPPI(20)])
@pytest.mark.parametrize("what", WRITES)
def test_a_callback_that_writes_to_its_iteration_is_refused(what, solver):
    """The answer would be another in silence: by the best sample, the kept elites or the next iteration's start."""
    with pytest.raises(ValueError, match="callback: expected to leave its iteration as it is, got it changed in place"):
        dcem.minimize(sphere, ZEROS, solver, callback=WRITES[what])


def test_a_callback_may_write_to_copies_and_ask_for_gradients():
    theta = torch.ones(3, requires_grad=True)

    def objective(x):
        return (x - theta).square().sum(-1)

    def writes(iteration):
        iteration.samples.clone().zero_()
        iteration.distribution.mean.detach().clone().zero_()
        torch.autograd.grad(iteration.distribution.mean.sum(), theta, retain_graph=True)

    seeded = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    solutions = [dcem.minimize(objective, ZEROS, generator=seeded(), callback=what) for what in (None, writes)]
    assert torch.equal(solutions[0].x, solutions[1].x)


def test_init_outside_the_bounds_is_brought_inside():
    solution = dcem.minimize(sphere, torch.full((3,), 9.0), bounds=(-1.0, 1.0), record=True)
    assert (solution.history[0].samples <= 1.0).all()


def test_status_names_are_fixed():
    assert [status.name for status in dcem.Status][:3] == ["OK", "COLLAPSED", "NONFINITE"]


def test_effective_elites_show_the_softness(generator):
    """PAPER: with N = 100, k = 10 and tau = 1 about 55 candidates share the weight, and k of them as tau -> 0."""
    values = torch.randn(200, 100, generator=generator)

    effective = []
    for temperature in (1.0, 0.01):
        step = dcem.minimize(
            lambda x: values + 0 * sphere(x), torch.zeros(200, 1), dcem.CEM(100, 10, dcem.LML(temperature)),
            num_iterations=1, record=True,
        ).history[0]  # fmt: skip
        effective.append(step.effective_elites.mean().item())
    assert effective[0] == pytest.approx(55, abs=3)
    assert effective[1] == pytest.approx(10, abs=0.5)


def test_embed_is_the_objective_after_the_decoder():
    decoder = torch.nn.Linear(2, 5)
    target = decoder(torch.tensor([0.3, -0.2])).detach()
    objective = dcem.embed(lambda x: sphere(x - target), decoder)
    solver = dcem.CEM(200, 40, dcem.LML(0.1))
    solution = dcem.minimize(objective, torch.zeros(2), solver, num_iterations=30)
    torch.testing.assert_close(decoder(solution.x), target, atol=5e-3, rtol=0)
    solution.x.sum().backward()
    assert decoder.weight.grad.abs().sum() > 0
    for arguments, name in [((1, decoder), "objective"), ((sphere, 1), "decoder")]:
        with pytest.raises(TypeError, match=f"{name}: expected a callable"):
            dcem.embed(*arguments)


def test_everything_public_is_there():
    assert {"control", "embed", "embedding", "energy"} < set(dcem.__all__)
    assert all(hasattr(dcem, name) for name in dcem.__all__)
    assert callable(dcem.control.MPC)
    with pytest.raises(AttributeError, match="module 'dcem' has no attribute 'contrl'"):
        dcem.contrl  # noqa: B018


@pytest.mark.parametrize("stop", [True, np.True_, np.bool_(1), torch.tensor(True), torch.tensor([True])], ids=repr)
def test_the_callback_stops_with_any_true(stop):
    seen = []
    dcem.minimize(sphere, ZEROS, callback=lambda iteration: (seen.append(iteration), stop)[1])
    assert len(seen) == 1


def test_a_stop_is_refused_where_the_gradient_of_the_last_iterations_was_asked_for():
    """The iterations that were to carry it are not made: the answer would have none, or that of fewer, in silence."""
    at = torch.ones(3, requires_grad=True)

    def solve(made, **options):
        seen = []
        stop = lambda iteration: bool(seen.append(iteration) or len(seen) == made)  # noqa: E731
        return dcem.minimize(
            lambda x: sphere(x - at), ZEROS, generator=torch.Generator().manual_seed(0), callback=stop, **options
        )

    for made in (2, 8):
        with pytest.raises(
            ValueError, match=rf"^callback: expected no stop with Truncate\(last=3\).* after {made} of 10"
        ):
            solve(made, gradient=dcem.Truncate(3))
        with torch.no_grad():
            stopped = solve(made, gradient=dcem.Truncate(3)).x
        assert torch.equal(stopped, solve(made).x)
    whole = [torch.autograd.grad(solve(made, gradient=dcem.Truncate(3)).x.sum(), at)[0] for made in (10, 0)]
    assert torch.equal(*whole)


@pytest.mark.parametrize("go_on", [None, False, np.False_, torch.tensor(False), 1, 0.5, "yes", torch.ones(3)], ids=repr)
def test_the_callback_goes_on_with_anything_else(go_on):
    seen = []
    dcem.minimize(sphere, ZEROS, num_iterations=3, callback=lambda iteration: (seen.append(iteration), go_on)[1])
    assert len(seen) == 3


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, torch.tensor], ids=lambda i: i.__name__)
def test_integers_of_any_library_are_integers(integer):
    solver = dcem.CEM(integer(20), integer(5).item(), dcem.HardTopK())
    solution = dcem.minimize(sphere, ZEROS, solver, num_iterations=integer(2), event_dims=integer(1), record=True)
    assert solution.history[1].samples.shape == (2, 20, 3)
    assert (dcem.Truncate(integer(2)), dcem.MPPI(integer(5)).num_samples) == (dcem.Truncate(2), 5)
    model = dcem.energy.EnergyModel(lambda x, y: sphere(y), integer(2), solver)
    assert (model.event_shape, dcem.energy.MLPEnergy(integer(1), [integer(2)]).event_shape) == ((2,), (2,))


def test_numbers_of_numpy_are_numbers():
    for number in (np.float32(5), np.float64(5), np.int64(5)):
        assert dcem.CEM(20, number).num_elites == 5
    assert isinstance(dcem.CEM(20, np.int64(5), dcem.HardTopK()).num_elites, int)
    assert dcem.minimize(sphere, ZEROS, dcem.CEM(20, np.float32(5), min_std=np.float32(0.1))).x.shape == (2, 3)


@pytest.mark.parametrize("number", [np.int64, np.int32, np.float32, np.float64])
def test_numbers_of_numpy_select(number):
    scores = torch.arange(12.0).reshape(3, 4)
    for project, module in ((dcem.lml, dcem.LML), (dcem.constrained_softmax, dcem.ConstrainedSoftmax)):
        expected = project(scores, 2, temperature=1.0, dim=0)
        assert torch.equal(project(scores, number(2), temperature=number(1), dim=np.int64(0)), expected)
        assert torch.equal(module(number(1))(scores.mT, number(2)).mT, expected)
        assert torch.equal(module(effective=number(3))(scores, 2), module(effective=3)(scores, 2))
    assert dcem.LML(np.float32(0.5)).temperature == 0.5
    if issubclass(number, np.integer):
        assert torch.equal(dcem.hard_topk(scores, number(2), dim=np.int64(-1)), dcem.hard_topk(scores, 2))
    else:
        with pytest.raises(TypeError, match="^k: expected an int, got"):
            dcem.hard_topk(scores, number(2))


@pytest.mark.parametrize(
    "wrong", [True, np.True_, 2.0, np.float32(2), "2", None, torch.tensor(2.0), torch.tensor(True)], ids=repr
)
def test_what_is_no_integer_is_refused(wrong):
    for make, name in [
        (lambda: dcem.CEM(wrong), "num_samples"), (lambda: dcem.MPPI(wrong), "num_samples"),
        (lambda: dcem.Truncate(wrong), "last"), (lambda: dcem.minimize(sphere, ZEROS, num_iterations=wrong), "num_iterations"),
        (lambda: dcem.minimize(sphere, ZEROS, event_dims=wrong), "event_dims"),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match=f"^{name}: expected an int, got"):
            make()


def test_flags_are_true_or_false():
    for make, name in [
        (lambda: dcem.minimize(sphere, ZEROS, record="a"), "record"), (lambda: dcem.CEM(standardize="a"), "standardize"),
        (lambda: dcem.MPPI(standardize=1), "standardize"), (lambda: dcem.Prune(unbiased=None), "unbiased"),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match=f"^{name}: expected True or False, got"):
            make()


def of(value: float) -> Tensor:
    return torch.tensor([value], requires_grad=True)


@pytest.mark.cpu
@pytest.mark.parametrize("value", [-1.0, float("nan")])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (dcem.MPPI, "temperature"), (lambda temperature: dcem.CEM(selection=dcem.LML(temperature)), "temperature"),
        (lambda temperature: dcem.CEM(selection=dcem.ConstrainedSoftmax(temperature)), "temperature"),
        (dcem.GradientDescent, "lr"), (dcem.GradientDescent, "momentum"), (dcem.MPPI, "smoothing"), (dcem.CEM, "smoothing"),
        (dcem.CEM, "init_std"), (dcem.MPPI, "init_std"),
    ],
)  # fmt: skip
def test_tensors_out_of_range_are_refused_whenever_they_became_so(make, name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*got|^init: expected .*got"):
        dcem.minimize(sphere, ZEROS, make(**{name: of(value)}))
    learned = of(0.5)
    solver = make(**{name: learned})
    dcem.minimize(sphere, ZEROS, solver)
    with torch.no_grad():
        learned.fill_(value)
    with pytest.raises(ValueError, match=f"^{name}: expected .*got|^init: expected .*got"):
        dcem.minimize(sphere, ZEROS, solver)


@pytest.mark.cpu
@pytest.mark.parametrize("init", [torch.zeros(2), dcem.FullGaussian(torch.zeros(2), torch.eye(2))])
def test_a_noise_source_of_another_dtype_does_not_change_that_of_the_solve(init):
    """One that draws by NumPy draws doubles."""
    numbers = np.random.default_rng(0)

    def source(shape, *, dtype=None, device=None, generator=None):
        return torch.from_numpy(numbers.standard_normal(shape))

    solution = dcem.minimize(lambda x: x.square().sum(-1), init, dcem.CEM(20, 5), noise=source)
    assert {leaf.dtype for leaf in (solution.x, solution.distribution.mean, solution.best_value)} == {torch.float32}
    with pytest.raises(TypeError, match="noise: expected the source to return floating-point draws, got torch.int64"):
        dcem.minimize(
            lambda x: x.square().sum(-1), init, dcem.CEM(20, 5),
            noise=lambda shape, **_: torch.ones(shape, dtype=torch.int64),
        )  # fmt: skip


@pytest.mark.cpu
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize(
    "make",
    [
        lambda one: dcem.CEM(20, 4, smoothing=one), lambda one: dcem.MPPI(20, 0.5, smoothing=one),
        lambda one: dcem.GradientDescent(0.1, one),
    ],
)  # fmt: skip
def test_a_tensor_of_one_number_is_a_number_whatever_its_axes(make, shape):
    noise = torch.randn(3, 20, 2)
    plain, given = make(0.25), make(torch.full(shape, 0.25))
    solutions = [
        dcem.minimize(
            lambda x: (x - 0.3).square().sum(-1), torch.zeros(2), solver, num_iterations=3,
            noise=noise if solver.num_samples > 1 else None,
        )
        for solver in (plain, given)
    ]  # fmt: skip
    torch.testing.assert_close(solutions[1].x, solutions[0].x)

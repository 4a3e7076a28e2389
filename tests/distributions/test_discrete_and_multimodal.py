"""Choices, several basins, and mixed candidates: what the contract does not ask of every family."""

import math

import pytest
import torch
from torch import Tensor

import dcem


def test_choices_come_with_their_probabilities_to_the_tails(generator):
    """Down to a probability that a float32 uniform would not resolve; a forbidden choice never comes."""
    logits = torch.tensor([0.0, 1.0, -2.0, -20.0, -math.inf])
    g = dcem.Categorical(logits)
    x = g.rsample(torch.randn(100_000, 5, generator=generator))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert (x.sum(-1) == 1).all()
    assert (x.mean(0) - g.mean).abs().max() < 0.01
    assert x[:, 4].sum() == 0
    extreme = torch.tensor([[38.0, -38.0, 0.0, 0.0, 0.0]])
    for samples in dcem.distributions.categorical.SAMPLES:
        hot = dcem.Categorical(logits, samples=samples).rsample(extreme)
        assert hot.isfinite().all()
        assert hot[0, 0] > 0.99


@pytest.mark.cpu
def test_what_is_forbidden_stays_forbidden():
    cost = torch.tensor([3.0, 2.0, 1.0])
    init = dcem.Categorical(torch.tensor([0.0, 0.0, -math.inf]))
    for solver in (dcem.CEM(50, 10, smoothing=0.1), dcem.CEM(50, 10, dcem.HardTopK())):
        solution = dcem.minimize(
            lambda x: (x * cost).sum(-1), init, solver, generator=torch.Generator().manual_seed(0), record=True
        )
        assert all((iteration.samples[:, 2] == 0).all() for iteration in solution.history)
        assert solution.best_x.tolist() == [0, 1, 0]
        assert (solution.distribution.mean[:2] - torch.tensor([0.0, 1.0])).abs().max() < 1e-3
    for bad in ([math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]):
        with pytest.raises(ValueError, match="^init: expected finite logits"):
            dcem.minimize(lambda x: x.sum(-1), dcem.Categorical(torch.tensor(bad)))


def test_straight_through_samples_are_choices_with_the_derivative_of_relaxed_ones(generator):
    logits = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    noise = torch.randn(3, 20, 4, dtype=torch.float64, generator=generator)
    relaxation = torch.tensor(0.6, dtype=torch.float64)
    gradients = []
    for samples in ("straight-through", "relaxed"):
        inputs = logits.clone().requires_grad_(), relaxation.clone().requires_grad_()
        x = dcem.Categorical(inputs[0], samples=samples, relaxation=inputs[1]).rsample(noise)
        if samples == "straight-through":
            assert torch.equal(x, dcem.Categorical(logits).rsample(noise))
        gradients.append(torch.autograd.grad((x * torch.arange(4)).sum(), inputs))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    forbidden = logits.clone()
    forbidden[:, 0] = -math.inf
    inputs = forbidden.requires_grad_(), relaxation.requires_grad_()
    x = dcem.Categorical(inputs[0], samples="relaxed", relaxation=inputs[1]).rsample(noise)
    assert all(g.isfinite().all() for g in torch.autograd.grad((x * torch.arange(4)).sum(), inputs))


def test_a_relaxation_is_one_of_each_problem(generator):
    """Also of as many problems as choices, and where one fails: what is kept of it is its own."""
    noise = torch.randn(3, 5, 3, generator=generator)
    relaxations = torch.tensor([0.1, 1.0, 10.0])
    together = dcem.Categorical(torch.zeros(3, 3), samples="relaxed", relaxation=relaxations).rsample(noise)
    for i, relaxation in enumerate(relaxations):
        alone = dcem.Categorical(torch.zeros(3), samples="relaxed", relaxation=float(relaxation)).rsample(noise[i])
        assert torch.allclose(together[i], alone)
    fails = torch.tensor([True, False, False])
    init = dcem.Categorical(torch.zeros(3, 3), samples="relaxed", relaxation=torch.tensor([0.5]))
    solution = dcem.minimize(
        lambda x: x[..., 0].masked_fill(fails.unsqueeze(-1), math.nan), init, generator=generator, num_iterations=2
    )
    assert solution.distribution.relaxation.tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"^relaxation: expected .* batch shape \(2,\), got shape \(3,\)"):
        dcem.Categorical(torch.zeros(2, 3), relaxation=torch.ones(3))


@pytest.mark.parametrize("num_choices", [2, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_choice_at_its_floor_is_collapsed_among_any_number(num_choices, dtype, generator):
    """The likeliest one's std is that of all others together."""
    cost = torch.arange(num_choices, dtype=dtype)
    for min_std in (1e-3, 1e-2) if dtype.itemsize == 2 else (1e-6, 1e-3):
        solution = dcem.minimize(
            lambda x: (x * cost).sum(-1), dcem.Categorical(torch.zeros_like(cost)),
            dcem.CEM(400, 10, dcem.HardTopK(), min_std=min_std), generator=generator,
        )  # fmt: skip
        assert solution.status == dcem.Status.COLLAPSED
        certain = dcem.Categorical(torch.zeros_like(cost).index_fill(-1, torch.tensor(1), 1e4))
        assert certain.clamp_std(min_std, None).is_collapsed(min_std)
        nearly = solution.distribution.clamp_std(1.1 * min_std, None)
        assert not nearly.is_collapsed(min_std)


def test_the_std_of_a_certain_choice_has_no_gradient():
    for logits in ([0.0, -200.0], [0.0, -math.inf, 1.0]):
        leaf = torch.tensor(logits, requires_grad=True)
        (gradient,) = torch.autograd.grad(dcem.Categorical(leaf).std.sum(), leaf)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("samples", ["straight-through", "relaxed"])
def test_a_gradient_reaches_the_logits_through_the_candidates(samples):
    """Of an objective that is differentiable between the choices; of hard samples it comes from the selection alone."""
    logits = torch.zeros(4, requires_grad=True)
    cost = torch.tensor([3.0, 1.0, 2.0, 4.0], requires_grad=True)
    for kind, reached in (("hard", False), (samples, True)):
        solution = dcem.minimize(
            lambda x: (x * cost).sum(-1), dcem.Categorical(logits, samples=kind), dcem.CEM(50, 10),
            num_iterations=2, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        expected_cost = (solution.x * cost.detach()).sum()
        by_cost, by_logits = torch.autograd.grad(expected_cost, (cost, logits), allow_unused=True)
        assert by_cost.abs().max() > 1e-3
        by_logits = torch.zeros(4) if by_logits is None else by_logits
        assert by_logits.isfinite().all()
        assert (by_logits.abs().max() > 1e-3) == reached


def test_a_certain_choice_is_collapsed_and_keeps_finite_gradients():
    cost = torch.tensor([[3.0, 1.0, 2.0], [0.0, 2.0, 1.0]], requires_grad=True)
    for selection in (dcem.LML(0.01), dcem.HardTopK()):
        solution = dcem.minimize(
            lambda x: (x * cost.unsqueeze(-2)).sum(-1), dcem.Categorical(torch.zeros(2, 3)),
            dcem.CEM(60, 6, selection), num_iterations=20, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        torch.testing.assert_close(solution.x, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), atol=1e-4, rtol=0)
        if not isinstance(selection, dcem.HardTopK):
            assert torch.autograd.grad(solution.x[:, 0].sum(), cost)[0].isfinite().all()
    certain = dcem.Categorical(torch.tensor([0.0, 80.0, 0.0])).clamp_std(1e-6, None)
    assert certain.is_collapsed(1e-6)
    assert not certain.clamp_std(1e-2, None).is_collapsed(1e-6)
    assert certain.clamp_std(1e-2, None).std.min() > 0.9e-2


def test_projected_gradient_descent_on_probabilities_is_that_of_the_simplex():
    """Against the minimum of a quadratic on the simplex by its optimality conditions."""
    target = torch.tensor([0.9, 0.5, -0.3, 0.1], dtype=torch.float64)
    solution = dcem.minimize(
        lambda x: (x - target).square().sum(-1), dcem.Categorical(torch.zeros(4, dtype=torch.float64)),
        dcem.GradientDescent(0.1), num_iterations=300,
    )  # fmt: skip
    torch.testing.assert_close(solution.x, torch.tensor([0.7, 0.3, 0.0, 0.0], dtype=torch.float64))


def test_coloured_noise_makes_choices_persist():
    source = dcem.ColoredNoise(2.0, dim=-2)
    noise = source((200, 30, 3), generator=torch.Generator().manual_seed(0))
    x = dcem.Categorical(torch.zeros(30, 3), event_dims=2).rsample(noise)
    kept = (x[:, 1:] * x[:, :-1]).sum(-1).mean()
    assert kept > 0.6  # a third without it


def two_wells(tilt: float):
    """Minima of 0 at -1 and 1, and a tilt."""
    return lambda x: (x.square() - 1).square().sum(-1) + tilt * x.sum(-1)


@pytest.mark.parametrize("selection", [dcem.HardTopK(), dcem.LML(0.1), dcem.LML(1.0)], ids=repr)
@pytest.mark.parametrize("tilt", [0.0, 0.2])
def test_a_mixture_keeps_two_basins_and_answers_with_the_better_one(selection, tilt):
    init = dcem.Mixture(torch.tensor([[-0.5], [0.5]]).expand(32, 2, 1), 1.0)
    solution = dcem.minimize(
        two_wells(tilt), init, dcem.CEM(200, 20, selection), num_iterations=20, gradient=dcem.Detach(),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    means = solution.distribution.means.squeeze(-1)
    assert (means - torch.tensor([-1.0, 1.0])).abs().max() < 0.05
    assert (solution.distribution.weights >= 0.24).all()
    assert (solution.x.abs() - 1).abs().max() < 0.05
    if tilt:
        assert (solution.x < 0).all()
        assert (solution.distribution.weights[:, 0] > 0.5).all()


def test_one_gaussian_averages_what_a_mixture_keeps_apart():
    """Many elites of a soft selection lie in both wells: their mean is in neither."""
    solver = dcem.CEM(200, 40, dcem.LML(1.0))
    values = []
    for init in (
        dcem.Gaussian(torch.zeros(16, 1), 1.0),
        dcem.Mixture(torch.tensor([[-0.5], [0.5]]).expand(16, 2, 1), 1.0),
    ):
        x = dcem.minimize(two_wells(0.0), init, solver, generator=torch.Generator().manual_seed(0)).x
        values.append(two_wells(0.0)(x).mean().item())
    assert values[0] > 0.5
    assert values[1] < 0.01


def test_a_component_without_elites_stays_as_it_is():
    """One of three has no sample that is nearer to it than to the others, or none with a finite value."""
    means = torch.tensor([[-1.0], [1.0], [50.0]])
    init = dcem.Mixture(means, 0.5, torch.tensor([0.0, 0.0, -200.0]))
    solution = dcem.minimize(
        two_wells(0.0), init, dcem.CEM(60, 10), num_iterations=1, generator=torch.Generator().manual_seed(0)
    )
    assert solution.distribution.means[2] == 50
    assert solution.distribution.stds[2] == 0.5
    failing = dcem.minimize(
        lambda x: torch.where(x.squeeze(-1) > 0, torch.nan, two_wells(0.0)(x)),
        dcem.Mixture(means[:2], 0.5), dcem.CEM(60, 10), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert failing.status == dcem.Status.OK
    assert failing.distribution.means[1] == 1
    assert (failing.x + 1).abs() < 0.05
    assert failing.distribution.weights[0].item() == pytest.approx(0.75)


def test_a_mixture_with_kept_elites_proposals_and_bounds():
    solver = dcem.CEM(60, 10, dcem.LML(0.1), keep_elites=0.5, smoothing=0.2, population_decay=1.1)
    solution = dcem.minimize(
        two_wells(0.2), dcem.Mixture(torch.tensor([[-0.3], [0.3]]), 1.0), solver, num_iterations=20,
        bounds=(-0.8, 0.9), proposals=torch.tensor([[0.85], [5.0]]), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert solution.x.item() == pytest.approx(-0.8)
    torch.testing.assert_close(solution.distribution.means, torch.tensor([[-0.8], [0.9]]), atol=0.02, rtol=0)


def test_a_product_refits_its_parts_together():
    """The throttle that is right depends on the gear."""
    best = torch.tensor([2.0, 0.5, 1.0])

    def objective(x: Tensor) -> Tensor:
        return (x[..., 0] - x[..., 1:] @ best).abs() - x[..., 2]

    init = dcem.Product([dcem.Gaussian(torch.zeros(4, 1), 1.0), dcem.Categorical(torch.zeros(4, 3))])
    solution = dcem.minimize(
        objective, init, dcem.CEM(200, 20, dcem.LML(0.1)), num_iterations=20, bounds=(torch.tensor([0.0] * 4), 3.0),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    torch.testing.assert_close(solution.x, torch.tensor([[0.5, 0.0, 1.0, 0.0]]).expand(4, 4), atol=1e-3, rtol=0)
    assert [type(part) for part in solution.distribution.parts] == [dcem.Gaussian, dcem.Categorical]
    moved = dcem.minimize(objective, init, dcem.MPPI(200, 0.1), generator=torch.Generator().manual_seed(0))
    assert (moved.x[:, 1:].sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dcem.Categorical(torch.zeros(3).long()), TypeError, "logits: expected a floating-point"),
        (lambda: dcem.Categorical(torch.zeros(3), event_dims=0), ValueError, "event_dims: expected at least 1"),
        (lambda: dcem.Categorical(torch.zeros(3), event_dims=2), ValueError, "event_dims: expected 0 to 1"),
        (lambda: dcem.Categorical(torch.zeros(3), samples="soft"), ValueError, "samples: expected one of hard"),
        (lambda: dcem.Categorical(torch.zeros(3), relaxation=0.0), ValueError, "relaxation: expected"),
        (lambda: dcem.Mixture([0.0], 1.0), TypeError, "means: expected a Tensor, got list"),
        (lambda: dcem.Mixture(torch.zeros(2), 1.0), ValueError, r"means: expected \(\*batch, M, \*event\), got \(2,\)"),
        (lambda: dcem.Mixture(torch.zeros(2, 1), torch.ones(3)), ValueError, r"stds: .*\(2, 1\), got \(3,\)"),
        (lambda: dcem.Mixture(torch.zeros(2, 1), 1.0, torch.zeros(3)), ValueError, r"logits: .*\(2,\), got \(3,\)"),
        (lambda: dcem.Mixture(torch.zeros(2, 1), -1.0), ValueError, "stds: expected a finite number >= 0"),
        (lambda: dcem.Mixture(torch.zeros(2, 1), 1.0, min_weight=1.5), ValueError, r"min_weight: expected .*\[0, 1\]"),
        (lambda: dcem.Product([]), ValueError, "parts: expected one or more"),
        (lambda: dcem.Product(dcem.Gaussian(torch.zeros(2), 1.0)), TypeError, "parts: expected a sequence"),
        (lambda: dcem.Product([torch.zeros(2)]), TypeError, "parts: expected dcem distributions, got Tensor"),
        (
            lambda: dcem.Product([dcem.Gaussian(torch.zeros(2, 1), 1.0), dcem.Gaussian(torch.zeros(3, 1), 1.0)]),
            ValueError,
            r"parts: .*got shapes and event_dims \[\(\(2, 1\), 1\), \(\(3, 1\), 1\)\]",
        ),
    ],
)
def test_bad_parameters_are_named(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_no_component_falls_below_its_least_weight():
    """The floor holds after the weights are brought to a sum of 1, too, and others keep their proportions above it."""
    two = dcem.Mixture(torch.tensor([[-1.0], [1.0]]), 0.5, min_weight=0.5)
    samples = torch.tensor([-1.0] * 9 + [1.0]).unsqueeze(-1)
    torch.testing.assert_close(two.fit(samples, torch.full((10,), 0.1)).weights, torch.tensor([0.75, 0.25]))
    many = dcem.Mixture(torch.linspace(-3, 3, 8).unsqueeze(-1), 0.3, min_weight=0.5)
    solution = dcem.minimize(
        lambda x: (x + 3).square().sum(-1), dcem.Product((many, dcem.Gaussian(torch.zeros(1), 1.0))), dcem.CEM(80, 5),
        num_iterations=6, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    weights = solution.distribution.parts[0].weights
    assert weights.min() >= 0.5 / 8 - 1e-6
    assert weights.sum().item() == pytest.approx(1.0)


def test_a_component_that_weighs_next_to_nothing_has_its_gradient():
    """In single precision, too, where `min_weight=0` leaves it a weight by which slopes overflowed."""

    def fitted(dtype: torch.dtype) -> Tensor:
        theta = torch.tensor(-8.0, dtype=dtype, requires_grad=True)
        means = torch.tensor([[-8.0, -8.0], [8.0, 8.0]], dtype=dtype, requires_grad=True)
        solution = dcem.minimize(
            lambda x: (x - theta).square().sum(-1), dcem.Mixture(means, 1.0, min_weight=0.0),
            dcem.CEM(200, 20, dcem.LML(0.01)), num_iterations=1,
            noise=torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(0)),
        )  # fmt: skip
        light = torch.stack([solution.distribution.means[1], solution.distribution.stds[1]]).flatten()
        assert solution.distribution.weights[1] < 1e-18
        slopes = [torch.autograd.grad(number, [theta, means], retain_graph=True) for number in light]
        assert solution.status == dcem.Status.OK
        return torch.stack([torch.cat([of_theta.reshape(1), of_means[1]]) for of_theta, of_means in slopes])

    torch.testing.assert_close(fitted(torch.float32), fitted(torch.float64).float(), atol=1e-5, rtol=1e-3)


def test_a_mixture_that_selects_nothing_has_no_gradient_and_leaves_its_mates_alone():
    """Beside a large constant all values are equal up to rounding, once the search has converged."""
    theta, beside = torch.tensor(0.3, requires_grad=True), torch.tensor([[0.0], [1.0]])
    init = dcem.Mixture(torch.tensor([[[-1.0], [1.0]]] * 2), 0.3)
    solution = dcem.minimize(
        lambda x: beside + (x.square().sum(-1) - 1 - theta).square(), init, dcem.CEM(40, 4, dcem.LML(0.1)),
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    (slope,) = torch.autograd.grad(solution.x[0].sum(), theta)
    assert abs(slope.item()) == pytest.approx(0.5 / 1.3**0.5, rel=0.05)


def test_components_with_too_few_samples_each_share_the_elites_of_all():
    init = dcem.Mixture(torch.tensor([[-5.0], [0.0], [5.0]]), 0.3)
    solution = dcem.minimize(
        lambda x: (x - 0.3).square().sum(-1), init, dcem.CEM(12, 5), num_iterations=1, record=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert solution.status == dcem.Status.OK
    (first,) = solution.history
    assert first.weights.sum() > 4
    assert not torch.equal(solution.distribution.means, init.means)


def test_a_density_is_0_where_one_of_its_parts_says_so():
    """Though another part has all of its mass there, where its density is infinite."""
    inf, nothing = torch.inf, dcem.Gaussian(torch.zeros(1), 0.0)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert dcem.Product((nothing, nothing)).log_prob(x).tolist() == [inf, -inf, -inf, -inf]
    assert dcem.Gaussian(torch.zeros(2), 0.0).log_prob(x).tolist() == [inf, -inf, -inf, -inf]
    choice = dcem.Categorical(torch.tensor([0.0, -inf]))
    assert dcem.Product((nothing, choice)).log_prob(torch.tensor([[0.0, 0.0, 1.0]])).tolist() == [-inf]
    mixture = dcem.Mixture(torch.tensor([[-1.0], [1.0]]), 0.0, torch.tensor([0.0, -inf]))
    assert mixture.log_prob(torch.tensor([[1.0], [-1.0], [0.0]])).tolist() == [-inf, inf, -inf]

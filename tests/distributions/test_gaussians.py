"""Sampling distributions and noise."""

import functools

import numpy as np
import pytest
import torch

import dcem


@pytest.mark.parametrize("batch", [(), (4,)])
def test_full_gaussian_samples_and_fits_its_covariance(batch, generator):
    root = torch.tensor([[1.0, 0.0], [0.8, 0.3]], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64).expand(*batch, 2)
    g = dcem.FullGaussian(mean, root)
    samples = g.rsample(torch.randn(*batch, 50_000, 2, dtype=torch.float64, generator=generator))
    weights = torch.full(samples.shape[:-1], 1 / 50_000, dtype=torch.float64)
    fitted = g.fit(samples, weights)
    torch.testing.assert_close(fitted.mean, mean, atol=0.02, rtol=0)
    torch.testing.assert_close(fitted.covariance, (root @ root.T).expand(*batch, 2, 2), atol=0.02, rtol=0)
    torch.testing.assert_close(fitted.std, fitted.covariance.diagonal(dim1=-2, dim2=-1).sqrt())


@pytest.mark.parametrize("make", [lambda m: dcem.Gaussian(m, 1.0), lambda m: dcem.FullGaussian(m, torch.eye(3).to(m))])
def test_fit_maximises_the_weighted_likelihood(make, generator):
    """Moments are compared with the maximum that a numerical optimiser finds for `Σ w log g(X)`."""
    samples = torch.randn(40, 3, dtype=torch.float64, generator=generator)
    samples[:, 1] += 0.7 * samples[:, 0]
    weights = torch.rand(40, dtype=torch.float64, generator=generator)
    weights = weights / weights.sum()
    fitted = make(torch.zeros(3, dtype=torch.float64)).fit(samples, weights)

    def log_likelihood(mean, scale):
        law = torch.distributions.MultivariateNormal(mean, scale_tril=scale)
        return (weights * law.log_prob(samples)).sum()

    scale = fitted.scale_tril if isinstance(fitted, dcem.FullGaussian) else torch.diag(fitted.std)
    best = log_likelihood(fitted.mean, scale)
    for _ in range(100):
        nudge = 1e-3 * torch.randn(3, 3, dtype=torch.float64, generator=generator).tril()
        nudge = nudge if isinstance(fitted, dcem.FullGaussian) else nudge.diag().diag()
        shift = 1e-3 * torch.randn(3, dtype=torch.float64, generator=generator)
        assert log_likelihood(fitted.mean + shift, scale + nudge) < best


def test_full_gaussian_with_fewer_elites_than_dimensions_stays_finite():
    theta = torch.ones(6, requires_grad=True)
    init = dcem.FullGaussian(torch.zeros(6), torch.eye(6))
    solution = dcem.minimize(
        lambda x: (x - theta).square().sum(-1), init, dcem.CEM(50, 3, dcem.LML(0.01)), num_iterations=15,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert solution.x.isfinite().all()
    assert torch.autograd.grad(solution.x.sum(), theta)[0].isfinite().all()


def test_full_gaussian_follows_a_valley_that_the_diagonal_one_does_not():
    """A narrow valley along the diagonal: only correlated samples stay inside it."""

    def valley(x):
        return 1e2 * (x[..., 0] - x[..., 1]).square() + (x.sum(-1) - 2).square()

    solver = dcem.CEM(200, 50, dcem.HardTopK())
    options = {"num_iterations": 40, "gradient": dcem.Detach()}
    errors = []
    for init in (dcem.FullGaussian(torch.zeros(8, 2), torch.eye(2)), dcem.Gaussian(torch.zeros(8, 2), 1.0)):
        x = dcem.minimize(valley, init, solver, generator=torch.Generator().manual_seed(0), **options).x
        errors.append((x - 1).abs().mean().item())
    assert errors[0] < 1e-3
    assert errors[1] > 0.1


def test_event_axes_of_a_distribution():
    g = dcem.Gaussian(torch.zeros(4, 5, 2), torch.ones(2), event_dims=2)
    assert g.batch_shape == (4,)
    assert g.event_shape == (5, 2)
    assert g.std.shape == (4, 5, 2)
    assert dcem.FullGaussian(torch.zeros(4, 5, 2), torch.eye(10), event_dims=2).scale_tril.shape == (4, 10, 10)
    solution = dcem.minimize(lambda x: (x - 1).square().sum((-1, -2)), g)
    assert solution.x.shape == (4, 5, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dcem.Gaussian([0.0], 1.0), TypeError, "mean: expected a Tensor, got list"),
        (lambda: dcem.Gaussian(torch.zeros(2).long(), 1.0), TypeError, "mean: expected a floating-point tensor"),
        (lambda: dcem.Gaussian(torch.zeros(2), torch.ones(3)), ValueError, r"std: .*\(2,\), got \(3,\)"),
        (lambda: dcem.Gaussian(torch.zeros(2), 1.0, event_dims=2), ValueError, "event_dims: expected 0 to 1"),
        (lambda: dcem.FullGaussian(torch.zeros(2), 1.0), TypeError, "scale_tril: expected a Tensor, got float"),
        (lambda: dcem.FullGaussian(torch.zeros(2), torch.eye(3)), ValueError, r"scale_tril: .*\(2, 2\), got \(3, 3\)"),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("full", [False, True])
def test_fit_is_right_to_the_rounding_of_the_spread_not_of_the_mean(full, dtype, generator):
    """Samples of std 1e-5 around 1: what the rounding of the mean leaves in `X - mean` would be a hundredth of it."""
    noise = torch.randn(50, 3, dtype=torch.float64, generator=generator)
    weights = torch.softmax(torch.randn(50, dtype=torch.float64, generator=generator), 0)

    def fit(dtype, center):
        samples = (1.0 + 1e-5 * noise).to(dtype).requires_grad_()
        w = weights.to(dtype).requires_grad_()
        mean = torch.full((3,), center, dtype=dtype)
        g = dcem.FullGaussian(mean, torch.eye(3, dtype=dtype)) if full else dcem.Gaussian(mean, 1.0)
        std = g.fit(samples, w).std
        return std, *torch.autograd.grad(std.square().sum(), (samples, w))

    given, w = (1.0 + 1e-5 * noise).to(dtype).double(), weights.to(dtype).double()
    w = w / w.sum()
    deviation = given - (w.unsqueeze(-1) * given).sum(0)
    std, by_samples, by_weights = fit(dtype, 1.0)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(
        std.double(), (w.unsqueeze(-1) * deviation.square()).sum(0).sqrt(), rtol=tolerance, atol=0
    )
    expected = 2 * w.unsqueeze(-1) * deviation
    assert (by_samples.double() - expected).abs().max() < tolerance * expected.abs().max()
    # Weights move along the simplex only: what all components of their gradient share has no meaning.
    expected = deviation.square().sum(-1)
    off = by_weights.double() - expected
    assert (off - off.mean()).abs().max() < tolerance * expected.max()


@pytest.mark.cpu
@pytest.mark.parametrize("selection", [dcem.HardTopK(), dcem.LML(0.1), dcem.ConstrainedSoftmax(0.1)])
@pytest.mark.parametrize(
    "make",
    [
        lambda of: dcem.Gaussian(torch.zeros(2), of),
        lambda of: dcem.FullGaussian(torch.zeros(2), of * torch.eye(2)),
        lambda of: dcem.Mixture(torch.tensor([[-0.1, 0.0], [0.1, 0.0]]) * of, of),
    ],
)
def test_a_search_in_any_unit_is_the_same(make, selection, generator):
    """Also where squares of the samples are beyond single precision, and a weight of 0 makes NaN of them."""
    noise = torch.randn(5, 100, 2, generator=generator)
    found = {}
    for unit in (1.0, 1e-30, 1e19, 1e30):
        theta = torch.ones((), requires_grad=True)
        solution = dcem.minimize(
            lambda x, unit=unit, theta=theta: (x / unit - theta).square().sum(-1), make(unit),
            dcem.CEM(100, 10, selection, min_std=0.0), num_iterations=5, noise=noise, record=True,
        )  # fmt: skip
        stds = torch.stack([iteration.std for iteration in solution.history])
        found[unit] = [solution.x.detach() / unit, solution.distribution.std.detach() / unit, stds / unit]
        assert solution.status == dcem.Status.OK
        if solution.x.requires_grad and not isinstance(selection, dcem.HardTopK):
            found[unit] += torch.autograd.grad((solution.x / unit).sum(), theta)
        torch.testing.assert_close(found[unit], found[1.0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "family", [lambda: dcem.Gaussian(torch.zeros(2), 1.0), lambda: dcem.Mixture(torch.zeros(1, 2), 1.0)]
)
def test_what_has_no_weight_may_be_anywhere(family, generator):
    """Its square is beyond single precision; the unit that squares are then taken in is of those that count."""
    x, weights = torch.randn(8, 2, generator=generator), torch.full((8,), 1 / 7)
    weights[0] = 0.0
    expected = family().fit(x, weights)
    for size in (1e18, 1e21, 1e25):
        x[0] = size
        torch.testing.assert_close(family().fit(x, weights).std, expected.std)


@pytest.mark.parametrize("mean", [0.0, 10.0, 1e3])
@pytest.mark.parametrize("factor", [[[1.0, 0.0], [2.0, 0.0]], [[1e-3, 0.0], [2e-3, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
def test_samples_of_a_singular_gaussian_lie_on_its_support(mean, factor, generator):
    g = dcem.FullGaussian(torch.full((2,), mean), torch.tensor(factor))
    x = g.rsample(torch.randn(200, 2, generator=generator))
    assert (g.log_prob(x) == torch.inf).all()
    off = x + torch.tensor([0.0, 1e-2 * (1 + mean)])
    assert (g.log_prob(off) == -torch.inf).all()


def test_a_weighted_mean_is_right_to_its_own_rounding(generator):
    """Of squared deviations, say: it must not be taken as a difference from the distribution's mean."""
    g = dcem.Gaussian(torch.ones(3), 1.0)
    x = 1e-12 * torch.rand(50, 3, generator=generator)
    weights = torch.softmax(torch.randn(50, generator=generator), 0)
    expected = (weights.double().unsqueeze(-1) * x.double()).sum(0)
    torch.testing.assert_close(g.weighted_mean(x, weights).double(), expected, rtol=1e-5, atol=0)


D = 10


def rotated_ellipsoid(dtype):
    q = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    scales = torch.logspace(0, 6, D, dtype=torch.float64)
    return lambda x: ((x @ q.to(dtype)).square() * scales.to(dtype)).sum(-1)


@pytest.mark.parametrize(
    ("selection", "dtype"), [(dcem.HardTopK(), torch.float32), (dcem.LML(0.1), torch.float64)], ids=repr
)
def test_full_gaussian_solves_a_rotated_ellipsoid_of_condition_a_million(selection, dtype):
    objective = rotated_ellipsoid(dtype)
    solver = dcem.CEM(20 * D, 5 * D, selection, smoothing=0.5, min_std=1e-12)
    values = []
    for init in (
        dcem.FullGaussian(torch.ones(2, D, dtype=dtype), torch.eye(D)),
        dcem.Gaussian(torch.ones(2, D, dtype=dtype), 1.0),
    ):
        generator = torch.Generator().manual_seed(0)
        solution = dcem.minimize(
            objective, init, solver, num_iterations=100, generator=generator, gradient=dcem.Detach()
        )
        values.append(objective(solution.x).max().item())
    assert values[0] < 1e-5
    assert values[1] > 1e2


def test_full_gaussian_does_not_end_before_the_minimum_of_a_sphere():
    solver = dcem.CEM(20 * D, 5 * D, dcem.HardTopK(), min_std=1e-12)
    solution = dcem.minimize(
        lambda x: x.square().sum(-1), dcem.FullGaussian(torch.ones(2, D).double(), torch.eye(D)), solver,
        num_iterations=50, generator=torch.Generator().manual_seed(0), gradient=dcem.Detach(),
    )  # fmt: skip
    assert solution.x.square().sum(-1).max() < 1e-10


@pytest.mark.parametrize("batch", [(), (3,)])
def test_an_iteration_of_full_gaussian_takes_the_covariance_about_the_old_mean(batch, generator):
    noise = torch.randn(1, *batch, 60, 4, dtype=torch.float64, generator=generator)
    root = torch.randn(4, 4, dtype=torch.float64, generator=generator).tril()
    init = dcem.FullGaussian(torch.ones(*batch, 4, dtype=torch.float64), root)
    solution = dcem.minimize(
        lambda x: x.square().sum(-1), init, dcem.CEM(60, 12, dcem.LML(0.3)), num_iterations=1, noise=noise, record=True
    )
    weights = (solution.history[0].weights / 12).unsqueeze(-1)
    deviation = solution.history[0].samples - init.mean.unsqueeze(-2)
    expected = deviation.mT @ (weights * deviation)
    torch.testing.assert_close(solution.distribution.covariance, expected, rtol=1e-9, atol=1e-9)


def test_full_gaussian_with_a_bound_narrows_across_it():
    """The step that a bound takes away must not keep the covariance wide."""
    init = dcem.FullGaussian(torch.zeros(8, 2).double(), 0.5 * torch.eye(2))
    solution = dcem.minimize(
        lambda x: (x[..., 0] - 1.5).square() + (x[..., 1] - 0.3).square(), init,
        dcem.CEM(200, 50, dcem.LML(0.1), smoothing=0.5), num_iterations=60, bounds=(-1.0, 1.0),
        generator=torch.Generator().manual_seed(0), gradient=dcem.Detach(),
    )  # fmt: skip
    assert (solution.x[:, 0] == 1).all()
    assert (solution.x[:, 1] - 0.3).abs().max() < 1e-3
    assert solution.distribution.std.max() < 1e-3


def test_full_gaussian_keeps_small_scales_beside_large_ones():
    scales = torch.tensor([1e3, 1.0, 1e-2])
    init = dcem.FullGaussian(torch.zeros(3), torch.diag(scales))
    solution = dcem.minimize(
        lambda x: (x / scales - 0.5).square().sum(-1), init, dcem.CEM(100, 25, dcem.HardTopK(), smoothing=0.5),
        num_iterations=40, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    torch.testing.assert_close(solution.x / scales, torch.full((3,), 0.5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 60])
@pytest.mark.parametrize("rank", [1, 2, 60])
@pytest.mark.parametrize("num_samples", [60, 5000])
def test_full_gaussian_fits_any_covariance(dtype, size, rank, num_samples, generator):
    """Of few samples, of many in a line, with a dimension that does not vary, on scales from 1e-3 to 1e3."""
    low_rank = torch.randn(2, num_samples, rank, dtype=dtype, generator=generator)
    low_rank[:, rank:] = 0
    scales = 10 ** (6 * torch.rand(size, dtype=dtype, generator=generator) - 3)
    samples = low_rank @ torch.randn(rank, size, dtype=dtype, generator=generator) * scales
    samples[..., -1:] *= size == 1
    weights = torch.softmax(3 * torch.randn(2, num_samples, dtype=dtype, generator=generator), -1)
    samples.requires_grad_()
    fitted = dcem.FullGaussian(torch.zeros(2, size, dtype=dtype), torch.eye(size)).fit(samples, weights)
    wide, w = samples.detach().double(), weights.double().unsqueeze(-1)
    deviation = wide - (w * wide).sum(-2, keepdim=True)
    expected = deviation.mT @ (w * deviation)
    std = expected.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = (std.unsqueeze(-1) * std.unsqueeze(-2)).clamp(min=1e-30)
    error = (fitted.covariance.double() - expected).abs() / unit
    assert error.max() < 17 * torch.finfo(dtype).eps ** 0.5
    assert error.diagonal(dim1=-2, dim2=-1).max() < 1e3 * torch.finfo(dtype).eps
    (gradient,) = torch.autograd.grad(fitted.std.sum(), samples)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("min_std", [1e-6, 0.0])
def test_full_gaussian_without_spread_is_one_that_a_solver_can_start_from(min_std):
    init = dcem.FullGaussian(torch.ones(2), torch.zeros(2, 2))
    solution = dcem.minimize(lambda x: x.square().sum(-1), init, dcem.CEM(50, 10, min_std=min_std))
    assert solution.status != dcem.Status.NONFINITE
    assert (solution.x - 1).abs().max() < 1e-3
    assert (solution.distribution.std >= min_std * (1 - 1e-6)).all()
    one_flat = dcem.FullGaussian(torch.ones(2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    solution = dcem.minimize(lambda x: x.square().sum(-1), one_flat, dcem.CEM(50, 10), num_iterations=30)
    assert solution.x[0].abs() < 0.1
    assert (solution.x[1] - 1).abs() < 1e-3


@pytest.mark.parametrize("length", [1, 2, 15, 64])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5, 40.0, 1e3, 1e6])
def test_coloured_noise_has_unit_variance_everywhere(length, exponent, generator):
    noise = dcem.ColoredNoise(exponent, dim=-2)((4000, length, 3), generator=generator)
    assert noise.shape == (4000, length, 3)
    # The standard error of a variance over 12 000 draws is 0.013.
    assert (noise.var((0, 2)) - 1).abs().max() < 0.07
    assert noise.mean((0, 2)).abs().max() < 0.05


def test_coloured_noise_has_its_power_spectrum(generator):
    length = 128
    noise = dcem.ColoredNoise(1.5)((4000, length), generator=generator, dtype=torch.float64)
    power = torch.fft.rfft(noise).abs().square().mean(0)[1:-1]
    frequency = torch.fft.rfftfreq(length, dtype=torch.float64)[1:-1]
    slope = ((frequency.log() - frequency.log().mean()) * power.log()).sum() / (
        frequency.log() - frequency.log().mean()
    ).square().sum()
    assert slope.item() == pytest.approx(-1.5, abs=0.03)


def test_coloured_noise_in_a_solve():
    """Sequences drawn smooth: a solve uses the source along the axis it names."""
    source = dcem.ColoredNoise(3.0, dim=-2)
    solution = dcem.minimize(
        lambda x: x.square().sum((-1, -2)), torch.zeros(3, 30, 2), event_dims=2, noise=source, record=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    samples = solution.history[0].samples
    assert (samples.diff(dim=-2).std() / samples.std()) < 0.5
    assert (samples.diff(dim=-1).std() / samples.std()) > 1.0
    with pytest.raises(ValueError, match="dim: expected at least -2"):
        dcem.ColoredNoise(1.0, dim=-3)((4, 5))


class SteeperNoise(dcem.ColoredNoise):
    """A subclass is checked like its base."""


@pytest.mark.parametrize("kind", [dcem.ColoredNoise, SteeperNoise])
def test_noise_that_would_correlate_candidates_is_refused(kind):
    def sum_of_squares(event_dims):
        return lambda x: x.square().flatten(-event_dims).sum(-1) if event_dims else x.square()

    for shape, event_dims, dim in [((3,), 0, -1), ((3, 30), 1, -2), ((30, 2), 2, -3)]:
        with pytest.raises(ValueError, match=f"^dim: expected at least {-event_dims}, an axis of the event.*got {dim}"):
            dcem.minimize(
                sum_of_squares(event_dims), torch.zeros(shape), noise=kind(2.0, dim=dim), event_dims=event_dims
            )
    for action_shape, dim in [((), -2), (2, -3)]:
        with pytest.raises(ValueError, match="^dim: expected at least"):
            dcem.control.MPC(lambda x, u: x, lambda x, u: u, 5, action_shape, noise=kind(2.0, dim=dim))
    decoder = dcem.embedding.MLPDecoder(4, (5, 2), (8,))
    with pytest.raises(ValueError, match="^dim: expected at least -1"):
        dcem.control.MPC(lambda x, u: x, lambda x, u: u, 5, 2, decoder=decoder, noise=kind(2.0, dim=-2))


@pytest.mark.parametrize(("shape", "dim"), [((30,), -1), ((30, 2), -2), ((2, 30), -1)])
def test_coloured_noise_correlates_along_its_axis_alone(shape, dim):
    draws = []
    dcem.minimize(
        lambda x: x.square().flatten(1).sum(-1), torch.zeros(shape), dcem.CEM(2000, 20), num_iterations=1,
        noise=dcem.ColoredNoise(2.0, dim=dim), event_dims=len(shape), generator=torch.Generator().manual_seed(0),
        callback=lambda iteration: draws.append(iteration.samples),
    )  # fmt: skip
    x = draws[0].movedim(dim, -1)
    assert (x[..., 1:] * x[..., :-1]).mean() > 0.7
    assert (x[1:] * x[:-1]).mean().abs() < 0.05
    if len(shape) == 2:
        assert (x[:, 0] * x[:, 1]).mean().abs() < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_coloured_noise_in_any_dtype(dtype, generator):
    noise = dcem.ColoredNoise(2.0)((1000, 16), dtype=dtype, generator=generator)
    assert noise.dtype == dtype
    assert (noise.double().var(0) - 1).abs().max() < 0.2


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: dcem.ColoredNoise(float("inf")), ValueError),
        (lambda: dcem.ColoredNoise(float("nan")), ValueError),
        (lambda: dcem.ColoredNoise("pink"), TypeError),
        (lambda: dcem.ColoredNoise(True), TypeError),
        (lambda: dcem.ColoredNoise(1.0, dim=-1.0), TypeError),
    ],
)
def test_exponents_and_axes_that_make_no_noise_are_refused(make, error):
    with pytest.raises(error, match="^(exponent|dim): expected"):
        make()


def test_the_density_of_a_gaussian_without_a_std_is_at_its_mean_alone():
    g = dcem.Gaussian(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
    x = torch.tensor([[1.0, 2.5], [1.1, 2.0]])
    assert g.log_prob(x).tolist() == [float("inf"), float("-inf")]
    both = dcem.Gaussian(torch.tensor([1.0, 2.0]), 0.0)
    assert both.log_prob(torch.tensor([[1.0, 2.0], [1.0, 2.5]])).tolist() == [float("inf"), float("-inf")]


def test_so_is_that_of_a_mixture_and_of_a_full_covariance():
    inf = float("inf")
    mixture = dcem.Mixture(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]))
    at_mean, off = mixture.log_prob(torch.tensor([[0.0], [0.5]])).tolist()
    wide = torch.distributions.Normal(1.0, 1.0).log_prob(torch.tensor(0.5)) + torch.tensor(0.5).log()
    assert at_mean == inf
    assert off == pytest.approx(wide.item())
    assert dcem.Mixture(torch.zeros(2, 1), 0.0).log_prob(torch.tensor([[0.5]])).tolist() == [-inf]
    root = torch.tensor([[0.3, 0.0, 0.0], [0.7, 0.0, 0.0], [0.1, 0.0, 2.0]])  # the second follows from the first
    full = dcem.FullGaussian(torch.tensor([0.1, 0.2, 0.3]), root)
    along = full.rsample(torch.tensor([[1.0, 0.0, 0.5], [-2.0, 0.0, 1.0]]))
    assert full.log_prob(along).tolist() == [inf, inf]
    assert full.log_prob(along + torch.tensor([0.0, 0.01, 0.0])).tolist() == [-inf, -inf]


def test_samples_of_any_singular_covariance_lie_on_its_support(generator):
    """Whatever the scales of the rows, which enlarge the rounding of those before them."""
    for _ in range(40):
        scales = 10 ** (4 * torch.rand(5, 1, generator=generator) - 2)
        missing = torch.rand(5, generator=generator) < 0.4
        missing[torch.randint(5, (), generator=generator)] = True
        root = torch.randn(5, 5, generator=generator).tril() * scales * ~missing
        mean = torch.randn(5, generator=generator)
        full = dcem.FullGaussian(mean, root)
        x = full.rsample(torch.randn(20, 5, generator=generator))
        assert (full.log_prob(x) == float("inf")).all()
        within = 0.01 * (mean.abs() + full.std)  # moved by as much as it is large: some coordinate of it is determined
        assert (full.log_prob(x + within * missing) == float("-inf")).any()


@pytest.mark.parametrize("event_dims", [0, 1, 2])
def test_log_densities_are_those_of_torch(event_dims, generator):
    mean, x = torch.randn(4, 2, 3, generator=generator), torch.randn(4, 2, 3, generator=generator)
    std = torch.rand(4, 2, 3, generator=generator) + 0.1
    g = dcem.Gaussian(mean, std, event_dims)
    expected = torch.distributions.Independent(torch.distributions.Normal(mean, std), event_dims).log_prob(x)
    samples = x.unsqueeze(g.sample_dim)
    torch.testing.assert_close(g.log_prob(samples).squeeze(-1), expected)
    if event_dims:
        size = g.event_shape.numel()
        root = torch.randn(*g.batch_shape, size, size, generator=generator).tril()
        law = torch.distributions.MultivariateNormal(mean.flatten(-event_dims), scale_tril=root.abs())
        torch.testing.assert_close(
            dcem.FullGaussian(mean, root.abs(), event_dims).log_prob(samples).squeeze(-1),
            law.log_prob(x.flatten(-event_dims)), rtol=1e-4, atol=1e-4,
        )  # fmt: skip


def test_numbers_of_numpy_are_taken():
    noise = dcem.ColoredNoise(np.float32(2.0), dim=np.int64(-2))
    assert noise == dcem.ColoredNoise(2.0, dim=-2)
    assert dcem.Gaussian(torch.zeros(2, 3), np.float64(0.5), event_dims=np.int64(2)).event_dims == 2
    assert dcem.Categorical(torch.zeros(2, 3), event_dims=np.int64(2), relaxation=np.float32(0.5)).batch_shape == ()
    assert dcem.Mixture(torch.zeros(2, 3), np.float32(1.0), min_weight=np.float64(0.1)).event_shape == (3,)
    for event_dims in (True, 1.0, "1"):
        with pytest.raises(TypeError, match="^event_dims: expected an int"):
            dcem.Gaussian(torch.zeros(2), 1.0, event_dims=event_dims)


def rotated(wide: float, narrow: float, dtype: torch.dtype) -> torch.Tensor:
    """A factor `A` with `A Aᵀ = Σ` of two stds along axes that are turned by 0.7."""
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    return (turn * torch.tensor([wide, narrow], dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["fit", "interpolate", "stretch"])
def test_a_narrow_direction_beside_a_wide_one_is_kept_where_both_are_turned(how: str, dtype: torch.dtype) -> None:
    """Stds of 1e3 and 1e-2: in single precision a covariance has eight digits of 1e6, and no 1e-4."""
    factor = rotated(1e3, 1e-2, torch.float64)
    axes = torch.cat([factor, -factor], 1).mT.to(dtype)  # four samples at one std
    found = dcem.FullGaussian(torch.zeros(2, dtype=dtype), torch.eye(2)).fit(axes, torch.full((4,), 0.25, dtype=dtype))
    expected = [1e3 / 2**0.5, 1e-2 / 2**0.5]
    if how == "interpolate":
        found = found.interpolate(found, 0.5)
    if how == "stretch":  # along the wide direction
        expected[0] = (1e6 / 2 + 1e6) ** 0.5
        found = dcem.FullGaussian(factor[:, 0].to(dtype), found.scale_tril).stretch(found, lambda x: x)
    values = torch.linalg.svdvals(found.scale_tril.double())
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=2e-2, atol=0)


def test_single_precision_finds_and_differentiates_what_double_does_in_a_narrow_valley() -> None:
    noise = torch.randn(60, 40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def solve(dtype: torch.dtype, num_iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
        factor = rotated(1e3, 1e-2, torch.float64)
        slope = torch.linalg.inv(factor)
        theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        init = dcem.FullGaussian((factor @ torch.tensor([1.5, 1.5], dtype=torch.float64)).to(dtype), 1e3 * torch.eye(2))
        solution = dcem.minimize(
            lambda x: (x.double() @ slope.mT - theta).square().sum(-1).to(dtype), init,
            dcem.CEM(40, 10, dcem.LML(0.1), smoothing=0.5, min_std=1e-9),
            num_iterations=num_iterations, noise=noise[:num_iterations].to(dtype),
        )  # fmt: skip
        (gradient,) = torch.autograd.grad((slope @ solution.x.double())[1], theta)
        return solution.best_value, gradient

    assert solve(torch.float32, 60)[0] < 1e-6
    torch.testing.assert_close(solve(torch.float32, 20)[1], solve(torch.float64, 20)[1], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-6, 1e-4, 1e-3])
def test_where_one_sample_has_all_the_weight_the_gradient_is_finite(dtype, temperature):
    """A fitted variance is then that of weights next to the smallest number, whose slopes overflow."""
    for init in (
        dcem.Gaussian(torch.zeros(15, 2, dtype=dtype), 1.0),
        dcem.FullGaussian(torch.zeros(15, 2, dtype=dtype), torch.eye(2, dtype=dtype)),
    ):
        target = torch.ones(15, 2, dtype=dtype, requires_grad=True)
        solution = dcem.minimize(
            lambda x, target=target: (x - target.unsqueeze(1)).square().sum(-1), init,
            dcem.CEM(100, 1, dcem.LML(temperature)), num_iterations=10, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert torch.autograd.grad(solution.x.sum(), target)[0].isfinite().all()
        assert (solution.status != dcem.Status.NONFINITE).all()


def test_a_matrix_that_is_not_triangular_is_refused():
    """Samples would have its covariance, and densities that of its triangle."""
    with pytest.raises(ValueError, match="^scale_tril: expected a lower triangular matrix, got"):
        dcem.FullGaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))


def test_a_fit_to_nearly_one_sample_has_a_finite_gradient():
    g = dcem.FullGaussian(torch.zeros(2).double(), torch.eye(2).double())
    weights = torch.tensor([1.2e-308, 1.0], dtype=torch.float64, requires_grad=True)
    samples = torch.tensor([[0.1, 0.2], [0.0, 0.0]], dtype=torch.float64)
    for fitted in (g.fit(samples, weights), g.fit(samples, weights).clamp_std(1e-6, None)):
        assert torch.autograd.grad(fitted.scale_tril.sum(), weights, retain_graph=True)[0].isfinite().all()
    lost = g.fit(samples * float("nan"), weights)
    assert lost.scale_tril.diagonal().isnan().all()


def test_a_matrix_is_looked_at_once(monkeypatch):
    """What is fitted is triangular: only what a user gives is checked."""
    looks = []
    original = torch.Tensor.triu
    monkeypatch.setattr(torch.Tensor, "triu", lambda self, *given: looks.append(1) or original(self, *given))
    start = dcem.FullGaussian(torch.zeros(2), torch.eye(2))
    assert looks
    given = len(looks)
    fitted = start.fit(torch.randn(10, 2), torch.full((10,), 0.1)).clamp_std(1e-3, 2.0).interpolate(start, 0.5)
    assert len(looks) == given
    assert fitted.scale_tril.triu(1).abs().sum() == 0


def test_what_a_subclass_has_computed_is_not_that_of_what_is_fitted():
    class Precise(dcem.FullGaussian):
        @functools.cached_property
        def precision(self):
            return self.covariance.inverse()

    start = Precise(torch.zeros(2), torch.eye(2))
    assert start.precision.equal(torch.eye(2))
    fitted = start.fit(0.1 * torch.randn(50, 2), torch.full((50,), 0.02))
    assert type(fitted) is Precise
    assert fitted.precision.diagonal().min() > 10

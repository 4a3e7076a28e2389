"""Sampling distributions and noise."""

import pytest
import torch

import dcem


@pytest.mark.parametrize("batch", [(), (4,)])
def test_full_gaussian_samples_and_fits_its_covariance(batch, generator):
    root = torch.tensor([[1.0, 0.0], [0.8, 0.3]], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64).expand(*batch, 2)
    g = dcem.FullGaussian(mean, root)
    samples = g.rsample(torch.randn(*batch, 200_000, 2, dtype=torch.float64, generator=generator))
    weights = torch.full(samples.shape[:-1], 1 / 200_000, dtype=torch.float64)
    fitted = g.fit(samples, weights)
    torch.testing.assert_close(fitted.mean, mean, atol=0.01, rtol=0)
    torch.testing.assert_close(fitted.covariance, (root @ root.T).expand(*batch, 2, 2), atol=0.01, rtol=0)
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


@pytest.mark.parametrize("length", [1, 2, 15, 64])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_coloured_noise_has_unit_variance_everywhere(length, exponent, generator):
    noise = dcem.ColoredNoise(exponent, dim=-2)((4000, length, 3), generator=generator)
    assert noise.shape == (4000, length, 3)
    # the standard error of a variance over 12 000 draws is 0.013
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

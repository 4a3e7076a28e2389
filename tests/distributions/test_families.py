"""The contract, once for every family; and for one of a stranger's, which defines nothing but what it must."""

from dataclasses import dataclass, replace

import pytest
import torch
from distribution_contract import DistributionContract
from torch import Tensor

import dcem


def random(shape, dtype, seed):
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class TestGaussian(DistributionContract):
    target = torch.tensor([0.4, -0.3, 0.8], dtype=torch.float64)

    def make(self, batch=(), dtype=torch.float64, seed=0):
        return dcem.Gaussian(0.3 * random((*batch, 3), dtype, seed), 0.5 + 0.2 * random((*batch, 3), dtype, seed + 9))


class TestGaussianOfManyAxes(DistributionContract):
    target = torch.tensor([[0.4, -0.3], [0.8, 0.1]], dtype=torch.float64)

    def make(self, batch=(), dtype=torch.float64, seed=0):
        mean, std = 0.3 * random((*batch, 2, 2), dtype, seed), 0.5 + 0.2 * random((*batch, 2, 2), dtype, seed + 9)
        return dcem.Gaussian(mean, std, event_dims=2)


class TestFullGaussian(DistributionContract):
    target = torch.tensor([[0.4, -0.3, 0.8]], dtype=torch.float64)

    def make(self, batch=(), dtype=torch.float64, seed=0):
        root = (0.5 * torch.eye(3, dtype=dtype) + 0.2 * random((*batch, 3, 3), dtype, seed + 9)).tril()
        return dcem.FullGaussian(0.3 * random((*batch, 1, 3), dtype, seed), root, event_dims=2)

    def with_leaves(self, g, values):
        mean, root = values
        return dcem.FullGaussian(mean, root.tril(), event_dims=2)


class Discrete(DistributionContract):
    """One-hot vectors of three choices in two places."""

    target = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    moves = False
    samples = "hard"

    def make(self, batch=(), dtype=torch.float64, seed=0):
        return dcem.Categorical(0.4 * random((*batch, 2, 3), dtype, seed), 2, self.samples, relaxation=0.7)

    def bounds(self):  # probabilities know no others
        return torch.zeros(2, 3), torch.ones(2, 3)


class TestCategorical(Discrete):
    is_continuous = False


class TestRelaxedCategorical(Discrete):
    samples = "relaxed"
    is_maximum_likelihood = has_density = False  # fits the mean
    precision = 0.05

    def variance(self, g):  # smaller than that of choices
        x = self.draw(g, 20_000, seed=1)
        return x.var(1)

    def expectation(self, g):  # which relaxation moves a little
        return self.draw(g, 20_000, seed=1).mean(1)


class TestMixture(DistributionContract):
    """Two components that are well apart; the first is the heavier one."""

    target = torch.tensor([0.9, 0.8], dtype=torch.float64)
    is_maximum_likelihood = False  # each component is fitted to what is nearest to it

    def make(self, batch=(), dtype=torch.float64, seed=0):
        means = torch.tensor([[1.5, 1.5], [-1.5, -1.5]], dtype=dtype) + 0.2 * random((*batch, 2, 2), dtype, seed)
        logits = torch.tensor([0.5, 0.0], dtype=dtype) + 0.1 * random((*batch, 2), dtype, seed + 5)
        return dcem.Mixture(means, 0.4 + 0.1 * random((*batch, 2, 2), dtype, seed + 9), logits)

    def expectation(self, g):
        return (g.weights.unsqueeze(-1) * g.means).sum(-2)

    def variance(self, g):
        off = g.means - self.expectation(g).unsqueeze(-2)
        return (g.weights.unsqueeze(-1) * (g.stds.square() + off.square())).sum(-2)


class TestProduct(DistributionContract):
    """A pair of numbers, correlated numbers, and a choice."""

    target = torch.tensor([0.4, -0.3, 0.2, 0.5, 0.0, 1.0, 0.0], dtype=torch.float64)
    is_continuous = moves = False

    def make(self, batch=(), dtype=torch.float64, seed=0):
        root = (0.5 * torch.eye(2, dtype=dtype) + 0.2 * random((*batch, 2, 2), dtype, seed + 9)).tril()
        return dcem.Product(
            [
                dcem.Gaussian(0.3 * random((*batch, 2), dtype, seed), 0.5),
                dcem.FullGaussian(0.3 * random((*batch, 2), dtype, seed + 1), root),
                dcem.Categorical(0.4 * random((*batch, 3), dtype, seed + 2)),
            ]
        )

    def bounds(self):
        low, high = super().bounds()
        return torch.cat([low[:4], torch.zeros(3)]), torch.cat([high[:4], torch.ones(3)])

    def test_samples_are_differentiable_in_the_parameters(self):
        pytest.skip("as its parts")

    def test_fit_is_differentiable_in_samples_and_weights(self):
        pytest.skip("as its parts")


@dataclass(frozen=True)
class Laplace(dcem.Distribution):
    """A stranger's family: its mean has another name, and there is nothing but what has to be."""

    location: Tensor
    scale: Tensor
    event_dims: int = 1

    @property
    def mean(self):
        return self.location

    @property
    def std(self):
        return 2**0.5 * self.scale

    def rsample(self, noise):
        tail = torch.special.log_ndtr(-noise.abs()) + 0.6931471805599453
        spread = self.scale.unsqueeze(self.sample_dim) * -tail * noise.sign()
        return self.location.unsqueeze(self.sample_dim) + spread

    def fit(self, samples, weights):
        mean, deviations = self.weighted_deviations(samples, weights)
        variance = torch.matmul(weights.unsqueeze(-2), deviations.square()).reshape(mean.shape)
        return replace(self, location=mean, scale=(variance / 2).clamp(min=1e-24).sqrt())


class TestStranger(DistributionContract):
    target = torch.tensor([0.4, -0.3, 0.8], dtype=torch.float64)
    is_maximum_likelihood = has_density = False

    def make(self, batch=(), dtype=torch.float64, seed=0):
        return Laplace(0.3 * random((*batch, 3), dtype, seed), 0.4 + 0.1 * random((*batch, 3), dtype, seed + 9))

    def test_bounds_hold_for_the_mean(self):
        pytest.skip("a family that defines no clip lives inside the bounds")


class TestShifted(TestStranger):
    def make(self, batch=(), dtype=torch.float64, seed=0):
        base = super().make(batch, dtype, seed)
        return dcem.distributions.Shifted(base, base.mean + 0.1 * random((*batch, 3), dtype, seed + 3))

    def test_bounds_hold_for_the_mean(self):
        DistributionContract.test_bounds_hold_for_the_mean(self)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("family", ["full", "mixture"])
def test_a_shifted_family_is_searched_as_the_same_family_elsewhere(family, smoothing):
    """It selects, widens and interpolates in its own way."""
    shift, means = random((3,), torch.float64, 1), torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64)
    base, moved = {
        "full": tuple(dcem.FullGaussian(mean, 0.5 * torch.eye(3)) for mean in (means[0], shift)),
        "mixture": tuple(dcem.Mixture(of, 0.5, torch.tensor([0.1, 0.0])) for of in (means, means + shift)),
    }[family]
    options = {"num_iterations": 8, "noise": random((8, 40, 3), torch.float64, 2)}
    ours, theirs = (
        dcem.minimize(
            lambda x: (x - 2).square().sum(-1) + 10 * (x[..., 0] + x[..., 1]).square(), init,
            dcem.CEM(40, 8, dcem.LML(0.2), smoothing=smoothing), **options,
        )
        for init in (dcem.distributions.Shifted(base, shift), moved)
    )  # fmt: skip
    torch.testing.assert_close(ours.x, theirs.x, atol=1e-10, rtol=0)
    torch.testing.assert_close(ours.best_x, theirs.best_x, atol=1e-10, rtol=0)

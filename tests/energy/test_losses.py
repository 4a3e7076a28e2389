"""Losses of energy models, the likelihood by quadrature, and what `EnergyModel` registers and refuses."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dcem
from dcem.energy import EnergyModel, MLPEnergy, contrastive_loss, end_to_end_loss, log_likelihood

CEM = dcem.CEM(num_samples=30, num_elites=6)


def quadratic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * (y - x.unsqueeze(-2)).square().sum(-1)


@pytest.mark.parametrize("size", [1, 2])
def test_likelihood_of_a_gaussian(size: int) -> None:
    x, y = torch.randn(3, 4, size).double(), torch.randn(3, 4, size).double()
    for beta in (1.0, 4.0):
        truth = torch.distributions.Normal(x, beta**-0.5).log_prob(y).sum(-1)
        ours = log_likelihood(quadratic, x, y, low=-12, high=12, num_points=200, inverse_temperature=beta)
        torch.testing.assert_close(ours, truth)


def test_likelihood_trains_the_energy() -> None:
    energy = MLPEnergy(1, 1, (8,)).double()
    x, y = torch.zeros(2, 1).double(), torch.zeros(2, 1).double()
    log_likelihood(energy, x, y, low=-1, high=1).sum().backward()
    assert energy.first.weight.grad.any()
    shift = torch.tensor(3.0).double()
    torch.testing.assert_close(
        log_likelihood(lambda x, y: energy(x, y) + shift, x, y, low=-1, high=torch.ones(1)),
        log_likelihood(energy, x, y, low=-1, high=1),
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"y": torch.zeros(2, 3)}, r"y: expected \(\*batch, d\) with d of 1 or 2, got \(2, 3\)"),
        ({"y": torch.full((2, 1), 5.0)}, r"y: expected values between low=-1 and high=1, got 5 to 5"),
        ({"low": 1}, r"low, high: expected finite low < high"),
        ({"num_points": 0}, r"num_points: expected at least 1, got 0"),
        ({"energy": lambda x, y: y}, r"energy: expected values \(\*batch, N\) = \(2, 513\)"),
    ],
)
def test_likelihood_refuses(options: dict, match: str) -> None:
    given = {"energy": quadratic, "x": torch.zeros(2, 1), "y": torch.zeros(2, 1), "low": -1, "high": 1, **options}
    with pytest.raises(ValueError, match=match):
        log_likelihood(**given)


@pytest.mark.parametrize("solver", [CEM, dcem.GradientDescent(0.1, 0.0)])
@pytest.mark.parametrize("num_starts", [1, 3])
@pytest.mark.parametrize("decoder", [None, nn.Linear(2, 4)])
def test_contrastive_loss_trains_the_energy_alone(solver, num_starts: int, decoder, generator) -> None:
    latent = None if decoder is None else 2
    model = EnergyModel(MLPEnergy(3, 4, (8,)), 4, solver, decoder=decoder, latent_shape=latent)
    options = {"num_starts": num_starts, "num_negatives": 7}
    loss = contrastive_loss(model, torch.randn(2, 5, 3), torch.randn(2, 5, 4), generator=generator, **options)
    loss.backward()
    assert 0 < loss.item() < 20
    assert model.energy.first.weight.grad.any()
    assert decoder is None or decoder.weight.grad is None
    unbatched = contrastive_loss(model, torch.randn(3), torch.randn(4), generator=generator, **options)
    assert unbatched.shape == ()


def test_more_starts_of_gradient_descent_find_other_negatives(generator) -> None:
    model = EnergyModel(quadratic, 1, dcem.GradientDescent(0.5), num_iterations=2, init_std=1.0)
    x, y = torch.zeros(1, 1), torch.zeros(1, 1)
    one, many = (contrastive_loss(model, x, y, num_starts=n, num_negatives=999, generator=generator) for n in (1, 40))
    assert one.item() == pytest.approx(math.log(3))  # two negatives, both at the target
    assert many.item() > math.log(20)


@pytest.mark.parametrize("num_starts", [1, 2])
def test_corrected_contrastive_loss_estimates_the_likelihood(num_starts: int, generator) -> None:
    model = EnergyModel(quadratic, 2, dcem.CEM(1000, 200, dcem.LML(1.0)), num_iterations=4, init_std=3.0).double()
    x, y = torch.zeros(20, 2).double(), torch.randn(20, 2, generator=generator).double()
    loss = contrastive_loss(
        model, x, y, num_negatives=10_000, correction=True, num_starts=num_starts, generator=generator
    )
    likelihood = log_likelihood(quadratic, x, y, low=-9, high=9, num_points=100).mean()
    assert loss.item() == pytest.approx(-likelihood.item(), abs=0.05)


def corrected(model: EnergyModel, generator, x=None, **options) -> float:
    """The corrected loss of targets at 1 for inputs of 0, minus what it estimates."""
    x = torch.zeros(20, 1).double() if x is None else x
    y = torch.ones(20, 1).double()
    options = {"num_negatives": 10_000, "correction": True, "generator": generator, **options}
    likelihood = log_likelihood(model.energy, x, y, low=-12, high=12, num_points=500).mean()
    return contrastive_loss(model, x, y, **options).item() + likelihood.item()


def test_the_density_is_that_of_the_draws(generator) -> None:
    """With a solver replaced, started elsewhere, with fewer candidates an iteration, or without spread at the end."""
    solver = dcem.CEM(1000, 200, dcem.LML(1.0), init_std=nn.Parameter(torch.tensor(0.5)), population_decay=1.3)
    model = EnergyModel(quadratic, 1, solver, num_iterations=3).double()
    replaced = {"solver_init_std": torch.tensor(3.0).double()}

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> torch.Tensor:
            return torch.tensor(corrected(self.model, generator))

    named = {f"model.{name}": value for name, value in replaced.items()}
    assert abs(torch.func.functional_call(Loss(), named, ()).item()) < 0.05
    model.solver = dcem.CEM(1000, 200, dcem.LML(1.0), init_std=3.0)
    assert abs(corrected(model, generator)) < 0.05
    model.solver = dcem.MPPI(1000, 1.0, init_std=3.0)
    assert abs(corrected(model, generator)) < 0.05
    noise = torch.randn(3, 20, 1000, 1, generator=generator).double()
    assert abs(corrected(model, generator, noise=noise)) < 0.05
    collapsed = dcem.CEM(400, 1, dcem.HardTopK(), init_std=3.0, min_std=0.0)
    model = EnergyModel(quadratic, 1, collapsed, num_iterations=8).double()
    solution = model.solve(torch.zeros(20, 1).double(), generator=generator)
    assert (solution.distribution.std == 0).all()
    assert abs(corrected(model, generator)) < 0.2


def test_a_collapsed_gaussian_has_all_of_its_mass_at_the_mean() -> None:
    law = dcem.Gaussian(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 0.0]))
    x = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.5], [0.0, 2.0, 0.0]])
    assert law.log_prob(x).tolist() == [math.inf, -math.inf, -math.inf]
    truth = torch.distributions.Normal(law.mean, 0.7).log_prob(x).sum(-1)
    torch.testing.assert_close(dcem.Gaussian(law.mean, 0.7).log_prob(x), truth)


def test_the_density_of_other_families(generator) -> None:
    class Wide(dcem.CEM):
        def distribution(self, mean, event_dims):
            return dcem.FullGaussian(mean, 3.0 * torch.eye(1).to(mean), event_dims)

    model = EnergyModel(quadratic, 1, Wide(1000, 200, dcem.LML(1.0)), num_iterations=3).double()
    assert abs(corrected(model, generator)) < 0.05


@pytest.mark.parametrize("num_starts", [1, 2])
@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_fails_is_left_out(correction: bool, num_starts: int, bad: float, generator) -> None:
    weight, temperature = torch.ones(1, requires_grad=True), torch.ones((), requires_grad=True)

    def energy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        away = (y - weight * x.unsqueeze(-2)).square().sum(-1)
        return torch.where(away < 4, away + (4 - away).sqrt(), bad)  # the derivative of the root is NaN beyond

    model = EnergyModel(energy, 1, dcem.CEM(50, 10, init_std=2.0), num_iterations=3)
    options = {"correction": correction, "num_starts": num_starts, "temperature": temperature}
    x, y = torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([[0.5], [1.0], [7.0]])  # the third target fails
    loss = contrastive_loss(model, x, y, generator=generator, **options)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, (weight, temperature)):
        assert gradient.isfinite().all()
        assert gradient.any()
    noise = torch.randn(3, *([num_starts] if num_starts > 1 else []), 3, 50, 1, generator=generator)
    both = [
        contrastive_loss(model, x[:n], y[:n], noise=noise[..., :n, :, :], num_negatives=999, **options) for n in (2, 3)
    ]
    torch.testing.assert_close(both[0], both[1])
    nothing = contrastive_loss(model, x[2:], y[2:], generator=generator, **options)
    assert nothing.isnan()
    assert torch.autograd.grad(nothing, weight, allow_unused=True)[0] in (None, 0)


def test_sums_of_a_loss_are_single_precision_under_autocast(generator) -> None:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)

    def energy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return net(y).squeeze(-1)  # bfloat16, and exact for these

    y = torch.zeros(3, 1)
    model = EnergyModel(energy, 1, dcem.CEM(400, 40, init_std=torch.zeros(())), num_iterations=1, init_mean=4.0)
    plain = contrastive_loss(model, y, y, num_negatives=333, generator=generator)
    integral = log_likelihood(energy, y, y, low=-1.0, high=1.0, num_points=64)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = contrastive_loss(model, y, y, num_negatives=333, generator=generator)
        torch.testing.assert_close(log_likelihood(energy, y, y, low=-1.0, high=1.0, num_points=64), integral)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain)
    half = EnergyModel(lambda x, y: y.square().sum(-1), 1, dcem.GradientDescent(0.1), init_mean=1.0)
    x = torch.zeros(3001, 1, dtype=torch.bfloat16)
    y = torch.linspace(0, 1, 3001).bfloat16().unsqueeze(-1)
    prediction = half(x)
    assert prediction.dtype == torch.bfloat16
    loss = end_to_end_loss(half, x, y, lambda a, b: (a - b).square().sum())
    torch.testing.assert_close(loss, (prediction.float() - y.float()).square().sum())


def test_likelihood_of_whole_numbers() -> None:
    x, y = torch.zeros(3, 1), torch.tensor([[-1], [0], [1]])
    ours = log_likelihood(quadratic, x, y, low=-1.5, high=1.25)
    torch.testing.assert_close(ours, log_likelihood(quadratic, x, y.float(), low=-1.5, high=1.25))
    assert log_likelihood(quadratic, x.double(), y, low=-1.5, high=1.25).dtype == torch.float64


@pytest.mark.cpu
@pytest.mark.parametrize("bad", [0, -1.0, torch.tensor(-1.0), torch.tensor(0.0), math.nan, math.inf])
def test_temperatures_and_rates_are_positive(bad) -> None:
    model, x = EnergyModel(quadratic, 1, CEM), torch.zeros(2, 1)
    with pytest.raises(ValueError, match="temperature: expected .* > 0.*, got"):
        contrastive_loss(model, x, x, temperature=bad)
    with pytest.raises(ValueError, match="inverse_temperature: expected .* > 0.*, got"):
        log_likelihood(quadratic, x, x, low=-1, high=1, inverse_temperature=bad)
    with pytest.raises(ValueError, match="lr: expected .* > 0.*, got"):
        dcem.GradientDescent(bad)


@pytest.mark.cpu
@pytest.mark.parametrize("temperatures", [torch.tensor([0.2, 3.0]), torch.tensor([[0.2], [3.0]])])
def test_a_temperature_of_each_problem(temperatures: torch.Tensor) -> None:
    """Of as many as candidates, one for each of these is refused."""
    model = EnergyModel(quadratic, 1, dcem.CEM(2, 1), num_iterations=1)
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5], [1.0]])
    noise = torch.randn(1, 2, 2, 1)
    of_each = [
        contrastive_loss(model, x[[i]], y[[i]], temperature=float(t), noise=noise[:, [i]])
        for i, t in enumerate(temperatures)
    ]
    ours = contrastive_loss(model, x, y, temperature=temperatures, noise=noise)
    torch.testing.assert_close(ours, torch.stack(of_each).mean())
    box = {"low": -9.0, "high": 9.0}
    densities = [
        log_likelihood(quadratic, x[i], y[i], **box, inverse_temperature=float(b)) for i, b in enumerate(temperatures)
    ]
    ours = log_likelihood(quadratic, x, y, **box, inverse_temperature=temperatures)
    torch.testing.assert_close(ours, torch.stack(densities))
    with pytest.raises(ValueError, match=r"^temperature: expected .* batch shape \(2,\).*, got shape \(3,\)"):
        contrastive_loss(model, x, y, temperature=torch.ones(3), noise=noise)
    with pytest.raises(ValueError, match=r"^inverse_temperature: expected .*, got shape \(513,\)"):
        log_likelihood(quadratic, x, y, **box, inverse_temperature=torch.ones(513))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("solver", "decoder", "options"),
    [
        (CEM, None, {"correction": True}),
        (CEM, nn.Linear(1, 1), {"num_starts": 2}),
        (dcem.GradientDescent(0.1), None, {"num_starts": 2}),
    ],
)
def test_contrastive_loss_of_a_model_of_half_precision(dtype, solver, decoder, options, generator) -> None:
    model = EnergyModel(MLPEnergy(1, 1, (8,)), 1, solver, decoder=copy.deepcopy(decoder), num_iterations=3)
    x, y = torch.zeros(4, 1), torch.tensor([[-1.0], [0.0], [0.5], [1.0]])
    state = generator.get_state()
    single = contrastive_loss(model, x, y, num_negatives=999, generator=generator, **options)
    half = contrastive_loss(
        model.to(dtype), x.to(dtype), y.to(dtype), num_negatives=999, generator=generator.set_state(state), **options
    )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, atol=0.05, rtol=0.02)
    half.backward()
    assert model.energy.first.weight.grad.any()


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_likelihood_in_half_precision_has_the_cells_of_a_single_one(dtype: torch.dtype) -> None:
    seen = []

    def energy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(y.dtype)
        return 200 * (y.float() - 3).square().sum(-1)

    x, y = torch.zeros(1, dtype=dtype), torch.tensor([3.0], dtype=dtype)
    ours = log_likelihood(energy, x, y, low=0.0, high=10.0, num_points=4000)
    assert abs(ours.item() - 0.5 * math.log(400 / (2 * math.pi))) < 5e-4
    assert seen == [dtype]
    edge = torch.tensor([0.3], dtype=dtype)  # rounded, it is outside
    log_likelihood(energy, x, edge, low=0.0, high=0.3)


@pytest.mark.cpu
def test_contrastive_loss_finds_both_answers(generator) -> None:
    torch.manual_seed(0)
    energy = MLPEnergy(1, 1, (32, 32), nn.SiLU)
    model = EnergyModel(energy, 1, dcem.CEM(50, 5), num_iterations=5, init_std=1.5)
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-2)
    for _ in range(100):
        y = torch.randint(2, (32, 1), generator=generator) * 2.0 - 1
        y = y + 0.2 * torch.randn(32, 1, generator=generator)
        loss = contrastive_loss(model, torch.zeros(32, 1), y, correction=True, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    low = energy(torch.zeros(1), torch.tensor([[-1.0], [0.0], [1.0]]))
    assert low[1] > low[0] + 1
    assert low[1] > low[2] + 1


class Elsewhere(dcem.CEM):
    def sample(self, state, noise):
        return super().sample(state, noise).abs()


BOXED = EnergyModel(quadratic, 2, CEM, bounds=(torch.tensor([0.0, -1.0]), 1.0))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: end_to_end_loss(BOXED, torch.zeros(5, 2), torch.zeros(5, 3)),
            r"y: expected targets .* \(5, 2\), got \(5, 3\)",
        ),
        (
            lambda: end_to_end_loss(BOXED, torch.zeros(5, 2), -torch.ones(5, 2)),
            r"y: expected targets inside the model's",
        ),
        (
            lambda: end_to_end_loss(
                EnergyModel(quadratic, 2, CEM, bounds=SimpleNamespace(low=-1.0, high=torch.ones(2))),
                torch.zeros(2),
                torch.full((2,), 3.0),
            ),
            r"y: expected targets inside the model's bounds \(-1.0, \[1.0, 1.0\]\), got values from 3 to 3",
        ),
        (lambda: contrastive_loss(BOXED, torch.zeros(2), torch.ones(2), num_negatives=0), r"num_negatives: .* got 0"),
        (
            lambda: contrastive_loss(BOXED, torch.zeros(2), torch.ones(2), correction=True),
            r"correction: .* without bounds",
        ),
        (
            lambda: contrastive_loss(
                EnergyModel(quadratic, 2, dcem.GradientDescent()), torch.zeros(2), torch.ones(2), correction=True
            ),
            r"correction: expected a sampling solver",
        ),
        (
            lambda: contrastive_loss(
                EnergyModel(quadratic, 2, CEM), torch.zeros(2), torch.ones(2), correction=True, bounds=(-1, 1)
            ),
            r"correction: .* without bounds",
        ),
        (
            lambda: contrastive_loss(
                EnergyModel(quadratic, 2, CEM),
                torch.zeros(2),
                torch.ones(2),
                correction=True,
                noise=dcem.ColoredNoise(),
            ),
            r"correction: expected independent draws, got noise=ColoredNoise",
        ),
        (
            lambda: contrastive_loss(
                EnergyModel(quadratic, 2, CEM),
                torch.zeros(2),
                torch.ones(2),
                correction=True,
                proposals=torch.ones(3, 2),
            ),
            r"correction: expected no proposals",
        ),
        (
            lambda: contrastive_loss(
                EnergyModel(quadratic, 2, Elsewhere(30, 6)), torch.zeros(2), torch.ones(2), correction=True
            ),
            r"correction: expected a solver that draws from its distribution, got Elsewhere",
        ),
        (lambda: EnergyModel(lambda x, y: y, 2, CEM)(torch.zeros(5, 2)), r"energy: expected values .* \(5, 30\)"),
        (
            lambda: EnergyModel(quadratic, 2, CEM, latent_shape=3),
            r"latent_shape: expected None without a decoder, got 3",
        ),
        (
            lambda: EnergyModel(quadratic, 2, CEM, decoder=nn.Linear(3, 3), latent_shape=3)(torch.zeros(5, 2)),
            r"decoder: expected candidates .* \(5, 30, 2\), got \(5, 30, 3\)",
        ),
        (
            lambda: EnergyModel(quadratic, 2, CEM, decoder=nn.Linear(3, 2), latent_shape=3, init_mean=torch.ones(2)),
            r"init_mean: .* latent \(3,\), got \(2,\)",
        ),
    ],
)
def test_errors_name_the_argument(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
    with pytest.raises(TypeError, match="decoder: expected a callable"):
        EnergyModel(quadratic, 2, CEM, decoder=3)


def test_what_the_solver_learns_is_the_models() -> None:
    steps, tau = nn.Parameter(torch.full((10,), 0.3)), nn.Parameter(torch.tensor(1.0))
    descent = EnergyModel(quadratic, 2, dcem.GradientDescent(steps))
    assert dict(descent.named_parameters()).keys() == {"solver_lr"}
    descent(torch.ones(4, 2)).sum().backward()
    assert steps.grad.all()
    other = copy.deepcopy(descent).double()
    assert other.solver.lr is other.solver_lr
    other.load_state_dict({**descent.state_dict(), "solver_lr": torch.full((10,), 0.5)})
    assert other(torch.ones(2).double()).tolist() == pytest.approx([1 - 0.5**10] * 2)
    soft = EnergyModel(quadratic, 2, dcem.CEM(20, 5, dcem.LML(tau)))
    assert dict(soft.named_parameters()).keys() == {"solver_selection.temperature"}
    plain = EnergyModel(quadratic, 2, dcem.CEM(20, 5, dcem.LML(1.0)))
    assert plain.state_dict().keys() == {"init_mean"}


def test_decoded_predictions(generator) -> None:
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(-1, (4, 2)))
    model = EnergyModel(
        lambda x, y: y.square().sum((-1, -2)),
        (4, 2),
        CEM,
        decoder=decoder,
        latent_shape=3,
        init_std=2.0,
        bounds=(-1, 1),
    )
    solution = model.solve(torch.zeros(2, 5, 1), generator=generator, record=True)
    assert solution.x.shape == solution.best_x.shape == (2, 5, 4, 2)
    assert solution.distribution.mean.shape == (2, 5, 3)
    assert solution.history[0].samples.abs().max() <= 1
    torch.testing.assert_close(solution.x, decoder(solution.distribution.mean))
    torch.testing.assert_close(solution.best_x.square().sum((-1, -2)), solution.best_value)
    solution.x.sum().backward()
    assert decoder[0].weight.grad.any()
    again = model.solve(torch.zeros(2, 5, 1), init=solution.distribution, num_iterations=1, generator=generator)
    assert again.best_value.mean() <= solution.best_value.mean() + 2e-2


def test_the_simplex_by_a_softmax(generator) -> None:
    target = torch.tensor([0.7, 0.2, 0.1])
    for solver in (dcem.CEM(100, 10, dcem.LML(0.1), init_std=2.0), dcem.GradientDescent(3.0)):
        model = EnergyModel(quadratic, 3, solver, num_iterations=60, decoder=nn.Softmax(-1))
        answer = model(target, generator=generator)
        assert answer.sum().item() == pytest.approx(1)
        torch.testing.assert_close(answer, target, rtol=0, atol=1e-2)


def test_event_of_several_axes_with_a_given_std(generator) -> None:
    energy = MLPEnergy(1, (3, 2), (4,))
    model = EnergyModel(energy, (3, 2), CEM, init_std=torch.ones(2))
    assert model(torch.zeros(5, 1), generator=generator).shape == (5, 3, 2)

"""`EnergyModel` and `MLPEnergy`: shapes, gradients, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dcem
from dcem.energy import (
    EnergyModel,
    FeedForwardEnergy,
    MLPEnergy,
    contrastive_loss,
    end_to_end_loss,
    log_likelihood,
)

SOLVERS = [dcem.CEM(num_samples=20, num_elites=5), dcem.GradientDescent(lr=0.1)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize(("feature", "event"), [(3, 2), ((2, 2), (3, 1)), ((), ())])
def test_mlp_energy_is_an_mlp_on_both(batch: tuple[int, ...], feature, event) -> None:
    energy = MLPEnergy(feature, event, hidden=(8, 8))
    x, y = torch.randn((*batch, *energy.feature_shape)), torch.randn(*batch, 7, *energy.event_shape)
    wide = x.reshape(*batch, 1, -1).expand(*batch, 7, -1)
    whole = energy.rest(energy.first(torch.cat([wide, y.reshape(*batch, 7, -1)], -1))).squeeze(-1)
    torch.testing.assert_close(energy(x, y), whole)


@pytest.mark.parametrize("solver", SOLVERS)
def test_predictions_have_the_event_shape_and_train_the_energy(solver: dcem.Solver) -> None:
    model = EnergyModel(MLPEnergy((2, 2), (3, 1), hidden=(8,)), (3, 1), solver, num_iterations=3, feature_dims=2)
    y = model(torch.randn(2, 5, 2, 2), generator=generator())
    assert y.shape == (2, 5, 3, 1)
    y.square().sum().backward()
    grads = [p.grad for name, p in model.named_parameters() if name != "energy.rest.1.bias"]
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in grads)
    assert model(torch.randn(2, 2), num_iterations=1, generator=generator()).shape == (3, 1)


def test_gradient_against_finite_differences() -> None:
    torch.manual_seed(0)
    model = EnergyModel(
        MLPEnergy(1, 1, hidden=(4,)), 1, dcem.CEM(num_samples=12, num_elites=3), num_iterations=2, init_std=2.0
    ).double()
    x, noise = torch.randn(3, 1).double(), torch.randn(2, 3, 12, 1).double()
    weight = model.energy.first.weight
    model(x, noise=noise).sum().backward()
    with torch.no_grad():
        truth = torch.zeros_like(weight)
        for i in range(weight.numel()):
            sides = []
            for h in (1e-6, -2e-6):
                weight.view(-1)[i] += h
                sides.append(model(x, noise=noise).sum())
            weight.view(-1)[i] += 1e-6
            truth.view(-1)[i] = (sides[0] - sides[1]) / 2e-6
    torch.testing.assert_close(weight.grad, truth, rtol=1e-5, atol=1e-7)


def test_initial_distribution_learns_and_is_saved() -> None:
    std = nn.Parameter(torch.tensor([2.0, 3.0]))
    model = EnergyModel(MLPEnergy(1, 2, hidden=(4,)), 2, SOLVERS[0], init_mean=torch.tensor([1.0, -1.0]), init_std=std)
    model(torch.zeros(3, 1), generator=generator()).sum().backward()
    assert std.grad is not None
    assert std.grad.any()
    assert {"init_mean", "init_std"} <= set(model.state_dict())
    before = model(torch.zeros(3, 1), generator=generator())
    with torch.no_grad():
        std.neg_()  # where an optimiser's step may end
    assert torch.equal(model(torch.zeros(3, 1), generator=generator()), before)


def test_predictions_respect_bounds() -> None:
    model = EnergyModel(lambda x, y: -y.sum(-1), 2, SOLVERS[0], bounds=(-1.0, torch.tensor([0.5, 2.0])))
    solution = model.solve(torch.zeros(3, 1), generator=generator())
    assert (solution.x <= torch.tensor([0.5, 2.0])).all()
    assert (solution.x >= -1).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: MLPEnergy(1, 1, hidden=()), r"hidden: expected .* got \(\)"),
        (lambda: MLPEnergy(2, 1)(torch.zeros(5, 3), torch.zeros(5, 7, 1)), r"x: expected .* got \(5, 3\)"),
        (lambda: MLPEnergy(2, 1)(torch.zeros(5, 2), torch.zeros(4, 7, 1)), r"y: expected .* got \(4, 7, 1\)"),
        (lambda: MLPEnergy(2, 1)(torch.zeros(5, 2), torch.zeros(5, 1)), r"y: expected .* got \(5, 1\)"),
        (lambda: EnergyModel(MLPEnergy(1, 2), 2, SOLVERS[0], init_std=torch.ones(3)), r"init_std: .* got \(3,\)"),
        (lambda: EnergyModel(MLPEnergy(1, 2), 2, SOLVERS[0])(torch.tensor(1.0)), r"x: expected .* got \(\)"),
    ],
)
def test_errors_name_the_argument(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("activation", ["relu", nn.ReLU()])
@pytest.mark.parametrize("make", [MLPEnergy, dcem.energy.SPEN, dcem.energy.ICNN, dcem.embedding.MLPDecoder])
def test_an_activation_is_what_makes_a_module(make, activation) -> None:
    with pytest.raises(TypeError, match=r"activation: expected what makes a module, .* got"):
        make(2, 2, activation=activation)
    with pytest.raises(TypeError, match=r"activation: expected what makes a module, .* got"):
        dcem.energy.ConvEnergy((1, 8, 4), (1, 8, 4), activation=activation)


@pytest.mark.parametrize("decoder", [None, nn.Linear(3, 2)])
@pytest.mark.parametrize("solver", [dcem.CEM(8, 2), dcem.MPPI(8)])
def test_an_input_without_the_axis_of_candidates_is_refused_where_as_many_problems_hide_it(solver, decoder) -> None:
    """Input `i` would meet candidate `i` of every problem. Nothing is drawn for it, and it is looked at once a solve."""
    seen = []

    def energy(x, y):
        seen.append(tuple(y.shape))
        return (y - x).square().sum(-1)

    model = EnergyModel(energy, 2, solver, decoder=decoder, latent_shape=None if decoder is None else 3)
    x = torch.randn(8, 2)
    with pytest.raises(ValueError, match=r"energy: expected values .* = \(8, 1\) .* got \(8, 8\): .* \.unsqueeze\(1\)"):
        model(x)
    with pytest.raises(ValueError, match="energy: expected values .*unsqueeze"):
        dcem.energy.contrastive_loss(model, x, torch.randn(8, 2), num_negatives=8)
    right = EnergyModel(
        lambda x, y: energy(x.unsqueeze(-2), y), 2, solver, decoder=decoder, latent_shape=model.latent_shape
    )
    seen.clear()
    twice = [right(x, generator=torch.Generator().manual_seed(0), num_iterations=3) for _ in range(2)]
    assert torch.equal(*twice)
    assert seen == [(8, 1, 2), (8, 8, 2), (8, 8, 2), (8, 8, 2)] * 2


@pytest.mark.cpu
@pytest.mark.parametrize("energy", [None, 3, "e", MLPEnergy, EnergyModel(MLPEnergy(1, 1), 1, SOLVERS[0])])
@pytest.mark.parametrize(
    "call",
    [
        lambda energy, x: EnergyModel(energy, 1, SOLVERS[0]),
        lambda energy, x: log_likelihood(energy, x, x, low=-1, high=1),
    ],
)
def test_an_energy_that_is_no_function_is_named(energy, call) -> None:
    with pytest.raises(TypeError, match=r"^energy: expected a callable \(x, y\) -> \(\*batch, N\), got"):
        call(energy, torch.zeros(5, 1))


MODEL = EnergyModel(MLPEnergy(1, 2), 2, SOLVERS[0])


@pytest.mark.parametrize("loss", [end_to_end_loss, contrastive_loss])
@pytest.mark.parametrize("given", [MODEL.energy, EnergyModel, None])
def test_a_loss_wants_a_model(loss, given) -> None:
    with pytest.raises(
        TypeError, match=r"^model: expected a dcem.energy.EnergyModel, got (MLPEnergy$|<class|NoneType$)"
    ):
        loss(given, torch.zeros(5, 1), torch.zeros(5, 2))


def test_a_loss_takes_a_compiled_model() -> None:
    assert contrastive_loss(torch.compile(MODEL, backend="eager"), torch.zeros(5, 1), torch.zeros(5, 2)).isfinite()


@pytest.mark.cpu  # arrays are of the CPU
@pytest.mark.parametrize("made", [torch.Tensor.numpy, torch.Tensor.tolist])
@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (lambda x, y: MODEL(x), "x"),
        (lambda x, y: MODEL.energy(x, torch.zeros(5, 1, 2)), "x"),
        (lambda x, y: MODEL.energy(torch.zeros(5, 1), y), "y"),
        (lambda x, y: FeedForwardEnergy(nn.Linear(1, 2))(torch.zeros(5, 1), y), "y"),
        *((lambda x, y, loss=loss: loss(MODEL, x, y), "xy") for loss in (end_to_end_loss, contrastive_loss)),
        (lambda x, y: log_likelihood(lambda x, y: y.sum(-1), x, y, low=-1, high=1), "xy"),
    ],
)
def test_what_is_no_tensor_is_named(call, wrong: str, made) -> None:
    for name in wrong:
        given = {"x": torch.zeros(5, 1), "y": torch.zeros(5, 2)}
        given[name] = made(given[name])
        match = rf"^{name}: expected a Tensor .*, got (ndarray; make a Tensor .* torch.from_numpy\(...\)|list)$"
        with pytest.raises(TypeError, match=match):
            call(**given)


@pytest.mark.parametrize("trained", [True, False])
def test_solver_tensors_are_seen_as_they_are_now(trained: bool) -> None:
    """Replaced by `functional_call`, or loaded by `load_state_dict(assign=True)`, a parameter or a plain tensor."""
    rate = torch.tensor(0.5)
    solver = dcem.GradientDescent(lr=nn.Parameter(rate) if trained else rate)
    model = EnergyModel(lambda x, y: (y - x.unsqueeze(-2)).square().sum(-1), 2, solver, num_iterations=1)
    x = torch.tensor([1.0, -2.0])
    torch.testing.assert_close(model(x).detach(), x)  # one Newton step
    called = torch.func.functional_call(model, {"solver_lr": torch.tensor(0.25)}, (x,))
    torch.testing.assert_close(called.detach(), x / 2)
    model.load_state_dict({**model.state_dict(), "solver_lr": torch.tensor(0.125)}, assign=True)
    torch.testing.assert_close(model(x).detach(), x / 4)


@pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*")
@pytest.mark.parametrize(
    "wrap", [nn.utils.spectral_norm, nn.utils.weight_norm, nn.utils.parametrizations.spectral_norm]
)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_weights_that_a_hook_makes_are_trained(wrap, solver: dcem.Solver) -> None:
    energy = MLPEnergy(4, 1, hidden=(8,))
    wrap(energy.first)
    model = EnergyModel(energy, 1, solver, num_iterations=2)
    x = torch.randn(3, 4)
    with torch.no_grad():
        energy.eval()
        both = torch.cat([x[:, None].expand(3, 5, 4), torch.linspace(0, 1, 5).expand(3, 5)[..., None]], -1)
        torch.testing.assert_close(energy(x, both[..., 4:]), energy.rest(energy.first(both)).squeeze(-1))
        energy.train()
    for _ in range(2):  # what a hook made for one update is not that of the next
        model(x, generator=generator()).sum().backward()
    for name, parameter in energy.first.named_parameters():
        assert parameter.grad.abs().sum() > 0 or (name == "bias" and isinstance(solver, dcem.GradientDescent)), name


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_layer_is_called() -> None:
    energy = MLPEnergy(3, 1, hidden=(8,))
    x, y = torch.randn(2, 3), torch.randn(2, 5, 1)
    before = energy(x, y)
    energy.first = torch.jit.script(energy.first)
    torch.testing.assert_close(energy(x, y), before)

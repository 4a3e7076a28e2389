"""`dcem.Argmin`: the same as `minimize`, what it holds, where it starts, and what it refuses."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dcem

CEM = dcem.CEM(20, 5, dcem.LML(0.5), init_std=2.0)


def to(target: Tensor):
    """The squared distance of candidates `(*batch, N, 2)` from points `(*batch, 2)`."""
    return lambda x: (x - target.unsqueeze(-2)).square().sum(-1)


@pytest.fixture
def target(generator):
    return torch.randn(3, 2, generator=generator).requires_grad_()


@pytest.mark.parametrize("gradient", [dcem.Unroll(), dcem.Truncate(2), dcem.Detach()])
@pytest.mark.parametrize("bounds", [None, (-0.5, torch.tensor([0.5, 2.0]))])
@pytest.mark.parametrize("solver", [CEM, dcem.GradientDescent(0.1), dcem.MPPI(20, 0.5)])
def test_it_is_minimize(solver, bounds, gradient, target):
    layer = dcem.Argmin(2, solver, num_iterations=3, gradient=gradient, bounds=bounds, init=0.3)
    noise = torch.randn(3, 3, solver.num_samples, 2)
    ours = layer(to(target), (3,), noise=noise, record=True)
    truth = dcem.minimize(
        to(target), torch.full((3, 2), 0.3), solver, num_iterations=3, gradient=gradient, bounds=bounds, noise=noise
    )
    for name in ("x", "best_x", "best_value", "status"):
        assert torch.equal(getattr(ours, name), getattr(truth, name))
    assert len(ours.history) == 3
    if ours.x.requires_grad:
        gradients = [torch.autograd.grad(solution.x.sin().sum(), target)[0] for solution in (ours, truth)]
        assert torch.equal(*gradients)
    again = layer(to(target), (3,), init=ours.distribution, num_iterations=1, noise=noise[:1], gradient=dcem.Detach())
    expected = dcem.minimize(to(target), ours.distribution, solver, num_iterations=1, bounds=bounds, noise=noise[:1])
    assert torch.equal(again.x, expected.x)
    assert not again.x.requires_grad


def test_no_batch_many_axes_and_numbers(generator):
    assert dcem.Argmin(2)(lambda x: x.square().sum(-1), generator=generator).x.shape == (2,)
    square = dcem.Argmin((2, 3), CEM)(lambda x: x.square().sum((-1, -2)), (4, 1), generator=generator)
    assert square.x.shape == (4, 1, 2, 3)
    assert dcem.Argmin((), CEM)(lambda x: x.square(), (4,), generator=generator).x.shape == (4,)


@dataclass(frozen=True)
class Two(dcem.Distribution):
    """Two Gaussians, half of the samples each: a family whose mean is derived."""

    parts: tuple[dcem.Gaussian, dcem.Gaussian]
    event_dims: int = 1

    @property
    def mean(self):
        return (self.parts[0].mean + self.parts[1].mean) / 2

    def rsample(self, noise):
        return torch.cat([part.rsample(half) for part, half in zip(self.parts, noise.chunk(2, -2), strict=True)], -2)

    def fit(self, samples, weights):
        halves = zip(self.parts, samples.chunk(2, -2), weights.chunk(2, -1), strict=True)
        return replace(self, parts=tuple(p.fit(x, w / w.sum(-1, keepdim=True)) for p, x, w in halves))


STARTS = {
    "number": (1.5, (1.5, 2.0)),
    "mean": (torch.tensor([1.0, -1.0]), (torch.tensor([1.0, -1.0]), 2.0)),
    "mean and std": ((1.0, torch.tensor([0.5, 0.7])), (1.0, torch.tensor([0.5, 0.7]))),
    "mean and no std": ((0.5, None), (0.5, 2.0)),
    "Gaussian": (dcem.Gaussian(torch.ones(2), 0.7), (1.0, 0.7)),
}


@pytest.mark.parametrize("name", STARTS)
def test_where_it_starts(name, target):
    init, (mean, std) = STARTS[name]
    layer = dcem.Argmin(2, CEM, num_iterations=2, init=init)
    noise = torch.randn(2, 3, 20, 2)
    start = dcem.Gaussian(torch.as_tensor(mean).expand(3, 2), torch.as_tensor(std))
    expected = dcem.minimize(to(target), start, CEM, num_iterations=2, noise=noise)
    assert torch.equal(layer(to(target), (3,), noise=noise).x, expected.x)
    assert "init_mean" in layer.state_dict()
    double = copy.deepcopy(layer).double()
    assert double(to(target.double()), (3,), noise=noise.double()).x.dtype == torch.float64
    other = dcem.Argmin(2, CEM, num_iterations=2, init=copy.deepcopy(init))
    with torch.no_grad():
        for tensor in layer.buffers():
            tensor.mul_(0.5)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(to(target), (3,), noise=noise).x, other(to(target), (3,), noise=noise).x)
    assert not torch.equal(layer(to(target), (3,), noise=noise).x, expected.x)


def test_starts_learn(target, generator):
    mean, std = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor(-2.0))
    layer = dcem.Argmin(2, CEM, num_iterations=2, init=(mean, std))
    assert {name for name, _ in layer.named_parameters()} == {"init_mean", "init_std"}
    layer(to(target.detach()), (3,), generator=generator).x.sum().backward()
    assert mean.grad.all()
    assert std.grad != 0
    for family in (
        dcem.FullGaussian(torch.ones(2), torch.eye(2)),
        dcem.Mixture(torch.eye(2), 1.0),
        dcem.Categorical(torch.zeros(2)),
    ):
        started = dcem.Argmin(2, CEM, num_iterations=2, init=family)(to(target.detach()), (3,), generator=generator)
        assert type(started.distribution) is type(family)
    family = Two((dcem.Gaussian(nn.Parameter(torch.ones(2)), 1.0), dcem.Gaussian(-torch.ones(2), 1.0)))
    layer = dcem.Argmin(2, CEM, num_iterations=2, init=family)
    assert {name for name, _ in layer.named_parameters()} == {"init_parts_0_mean"}
    assert set(layer.state_dict()) == {f"init_parts_{i}_{name}" for i in (0, 1) for name in ("mean", "std")}
    solution = layer(to(target.detach()), (3,), generator=generator)
    assert isinstance(solution.distribution, Two)
    (gradient,) = torch.autograd.grad(solution.x.sum(), layer.init_parts_0_mean)
    assert gradient.all()


class Slower(dcem.GradientDescent):
    """A subclass of a solver is held like the solver."""


@pytest.mark.parametrize("kind", [dcem.GradientDescent, Slower])
@pytest.mark.parametrize("trained", [True, False])
def test_the_solver_is_what_the_layer_holds_now(trained, kind, target):
    rate = torch.tensor(0.25)
    layer = dcem.Argmin(2, kind(nn.Parameter(rate) if trained else rate), num_iterations=1)
    goal = target.detach()

    def moved(layer):
        return (layer(to(goal.to(layer.solver_lr)), (3,)).x / goal).mean().item()

    assert moved(layer) == pytest.approx(0.5)
    called = torch.func.functional_call(layer, {"solver_lr": torch.tensor(0.5)}, (to(goal), (3,)))
    torch.testing.assert_close(called.x, goal)
    layer.load_state_dict({**layer.state_dict(), "solver_lr": torch.tensor(0.125)}, assign=True)
    assert moved(layer) == pytest.approx(0.25)
    other = copy.deepcopy(layer).double()
    assert other.solver.lr.dtype == torch.float64
    assert type(other.solver) is kind
    assert other(to(goal.double()), (3,)).x.dtype == torch.float64
    layer.solver = dcem.GradientDescent(nn.Parameter(torch.tensor(0.375)), momentum=torch.tensor(0.5))
    assert moved(layer) == pytest.approx(0.75)
    assert {name for name, _ in layer.named_parameters()} == {"solver_lr"}
    assert {"solver_lr", "solver_momentum"} <= set(layer.state_dict())
    layer.solver = dcem.CEM(20, 5, dcem.LML(nn.Parameter(torch.tensor(0.5))))
    assert {name for name, _ in layer.named_parameters()} == {"solver_selection.temperature"}
    assert set(layer.state_dict()) == {"init_mean", "solver_selection.temperature"}
    with pytest.raises(TypeError, match="solver: expected a dcem solver"):
        layer.solver = 3


def test_a_decoder_is_learned_through_the_answer(generator):
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    layer = dcem.Argmin(2, CEM, num_iterations=3, decoder=decoder, latent_shape=3, bounds=(-2, 2))
    goal = torch.randn(4, 2, generator=generator)
    solution = layer(to(goal), (4,), generator=generator, record=True)
    assert solution.x.shape == solution.best_x.shape == (4, 2)
    assert solution.distribution.mean.shape == (4, 3)
    assert solution.history[0].samples.abs().max() <= 2
    torch.testing.assert_close(solution.x, decoder(solution.distribution.mean))
    torch.testing.assert_close(to(goal)(solution.best_x.unsqueeze(-2)).squeeze(-1), solution.best_value)
    assert not solution.best_x.requires_grad
    solution.x.sum().backward()
    assert decoder[0].weight.grad.any()
    named = dcem.Argmin((6, 2), decoder=dcem.embedding.MLPDecoder(3, (6, 2), (4,)))
    assert named.latent_shape == (3,)
    assert dcem.Argmin(3, decoder=nn.Softmax(-1)).latent_shape == (3,)


class Wrong(dcem.embedding.MLPDecoder):
    def decode(self, z):
        return z


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: dcem.Argmin((2, 0)), ValueError, r"event_shape: expected positive sizes, got \(2, 0\)"),
        (lambda: dcem.Argmin(2, 3), TypeError, "solver: expected a dcem solver such as .* got 3"),
        (lambda: dcem.Argmin(2, num_iterations=0), ValueError, "num_iterations: expected at least 1, got 0"),
        (lambda: dcem.Argmin(2, gradient="unroll"), TypeError, "gradient: expected a gradient mode .* got 'unroll'"),
        (lambda: dcem.Argmin(2, bounds=(0, torch.ones(3))), ValueError, r"bounds\[1\]: .* event \(2,\), got \(3,\)"),
        (lambda: dcem.Argmin(2, bounds=(1, 0)), ValueError, "bounds: expected low <= high"),
        (lambda: dcem.Argmin(2, init=torch.ones(3)), ValueError, r"^init: .* event \(2,\), got \(3,\)"),
        (lambda: dcem.Argmin(2, init=(0, torch.ones(3))), ValueError, r"init_std: .* event \(2,\), got \(3,\)"),
        (lambda: dcem.Argmin(2, init=(0, -1.0)), ValueError, "init_std: expected .* >= 0"),
        (lambda: dcem.Argmin(2, init="here"), TypeError, "^init: expected a number or a tensor, got 'here'"),
        (lambda: dcem.Argmin(2, init=dcem.Gaussian(torch.ones(3), 1)), ValueError, r"init: .* \(2,\), got .* \(3,\)"),
        (lambda: dcem.Argmin(2, init=dcem.Gaussian(torch.ones(3, 2), 1)), ValueError, r"init: .* got the batch \(3,\)"),
        (lambda: dcem.Argmin(2, decoder=3), TypeError, "decoder: expected a callable"),
        (lambda: dcem.Argmin(2, latent_shape=3), ValueError, "latent_shape: expected None without a decoder, got 3"),
        (
            lambda: dcem.Argmin(2, decoder=dcem.embedding.MLPDecoder(3, 2), latent_shape=4),
            ValueError,
            r"latent_shape: expected that of the decoder, \(3,\), got \(4,\)",
        ),
        (
            lambda: dcem.Argmin(2, decoder=dcem.embedding.MLPDecoder(3, 4)),
            ValueError,
            r"decoder: expected one that gives event = \(2,\), got one that gives \(4,\)",
        ),
        (
            lambda: dcem.Argmin(2, CEM, decoder=nn.Linear(3, 4), latent_shape=3)(lambda x: x.sum(-1)),
            ValueError,
            r"decoder: expected candidates .* = \(20, 2\), got \(20, 4\)",
        ),
        (
            lambda: dcem.Argmin(2, CEM, decoder=lambda z: 1)(lambda x: x.sum(-1)),
            TypeError,
            "decoder: expected to return a Tensor, got int",
        ),
        (
            lambda: dcem.Argmin(2, CEM, decoder=lambda z: z.add_(1))(lambda x: x.sum(-1)),
            ValueError,
            "decoder: expected to leave its latents as they are",
        ),
        (lambda: dcem.Argmin(2, init=(0.0, 1.0, 2.0)), ValueError, r"init: expected a pair \(mean, std\), got 3"),
        (lambda: dcem.Argmin(2)(lambda x: x.sum(-1), 2.5), TypeError, "batch_shape: expected an int or a sequence"),
        (
            lambda: dcem.Argmin(2.0),
            TypeError,
            "event_shape: expected an int or a sequence of ints, got 2.0; 2 would do",
        ),
        (lambda: setattr(dcem.Argmin(2), "event_shape", (3,)), AttributeError, "event_shape: expected to stay"),
        (lambda: dcem.Argmin(2, CEM)(lambda x: x), ValueError, r"objective: expected values of shape"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_batch_of_one_axis_is_an_int(generator):
    assert dcem.Argmin(2, CEM)(lambda x: x.square().sum(-1), 3, generator=generator).x.shape == (3, 2)


def test_inside_another_module(generator):
    """As a layer of a model: trained together, saved together."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)
            self.argmin = dcem.Argmin(
                2, dcem.GradientDescent(nn.Parameter(torch.tensor(0.2))), init=nn.Parameter(torch.zeros(2))
            )

        def forward(self, x):
            center = self.net(x).unsqueeze(-2)
            return self.argmin(lambda y: (y - center).square().sum(-1), x.shape[:-1]).x

    torch.manual_seed(0)
    model = Model()
    x = torch.randn(5, 3, generator=generator)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    other = Model()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
    assert math.isfinite(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))


X = torch.arange(48.0).reshape(16, 3)
ARRAY = np.arange(48.0).reshape(16, 3)
FROM_NUMPY = r"; make a Tensor of an array with torch\.from_numpy\(\.\.\.\)$"


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: dcem.Argmin(4)(X), r"^objective: expected a callable .*, got a Tensor of shape \(16, 3\)$"),
        (
            lambda: dcem.Argmin(4)(lambda x: x.sum(-1), X),
            r"^batch_shape: .*, got a Tensor of shape \(16, 3\); of inputs x \(\*batch, n\) it is x.shape\[:-1\]$",
        ),
        (lambda: dcem.Argmin(4, X), r"^solver: .*, got a Tensor of shape \(16, 3\)$"),
        (
            lambda: dcem.Argmin(4, bounds=[X, X, X]),
            r"^bounds: .*, got a list of a Tensor of shape \(16, 3\), a T.*3\)$",
        ),
        (lambda: dcem.Argmin(ARRAY), r"^event_shape: .*, got an ndarray of shape \(16, 3\); its shape is \(16, 3\)$"),
        (lambda: dcem.CEM(init_std=[1.0, 2.0]), r"^init_std: expected a number or a Tensor, got \[1.0, 2.0\]$"),
        (
            lambda: dcem.CEM(init_std=ARRAY),
            r"^init_std: expected a number or a Tensor, got an ndarray of shape \(16, 3\)",
        ),
        (lambda: dcem.CEM(init_std=-X), r"^init_std: expected numbers >= 0 and finite, got -1 among 48 numbers$"),
        (lambda: dcem.lml(X, torch.full((16,), 4)), r"^k: expected numbers with 0 < k <= 3, .*, got 4$"),
        (lambda: dcem.minimize(lambda x: x.sum(-1), ARRAY), f"^init: expected a Tensor of means .*ndarray{FROM_NUMPY}"),
        (lambda: dcem.minimize(lambda x: x.sum(-1).numpy(), X), f"^objective: expected a Tensor .*ndarray{FROM_NUMPY}"),
    ],
)
def test_numbers_are_not_listed_and_arrays_have_a_remedy(call, match):
    with pytest.raises((TypeError, ValueError), match=match):
        call()


MANY = torch.zeros(900)


class Pair(NamedTuple):
    low: Tensor
    high: Tensor


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("bounds", "came"),
    [
        ([[MANY]], "a list of a list of a Tensor of shape (900,)"),
        ([[[[[[[[MANY]]]]]]]], "a list of a list of a list of a list of a list"),
        ({"low": [MANY.cpu().numpy()]}, "a dict of a list of an ndarray of shape (900,)"),
        (Pair(MANY, [MANY]), "a list of a Tensor of shape (900,)"),
        ([Pair(MANY, MANY)], "a list of a Pair of a Tensor of shape (900,), a Tensor of shape (900,)"),
        (dcem.CEM(init_std=MANY), "a CEM of 100, 10, LML(temperature=1), a Tensor of shape (900,), True"),
        ((MANY, MANY * torch.nan), "bounds[1]: expected numbers, got NaN among 900"),
        (([*map(str, range(900))], None), "'49', '50'"),
        ([MANY] * 1000, "a list of a Tensor of shape (900,), a Tensor"),
    ],
)
def test_nor_are_those_of_what_holds_tensors(bounds, came):
    with pytest.raises((TypeError, ValueError)) as error:
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(900), bounds=bounds)
    assert came in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.cpu
def test_of_a_start_that_is_not_finite_one_number_is_shown():
    with pytest.raises(ValueError, match="^init: expected finite parameters, got nan among 900 numbers$"):
        dcem.minimize(lambda x: x.sum(-1), MANY * torch.nan)


@pytest.mark.cpu
def test_values_with_an_axis_too_many_have_a_remedy():
    net = nn.Linear(4, 1)
    with pytest.raises(ValueError, match=r"objective: expected values .*, got \(100, 1\); append \.squeeze\(-1\)$"):
        dcem.minimize(net, torch.zeros(4))
    with pytest.raises(ValueError, match=r"objective: expected values .*, got \(100, 2\)$"):
        dcem.minimize(lambda x: x[:, :2], torch.zeros(4))
    with pytest.raises(ValueError, match=r"cost: expected values .*, got \(5, 100, 1\); append \.squeeze\(-1\)$"):
        dcem.control.MPC(lambda s, a: s, lambda s, a: s[..., :1], 5, 2)(torch.zeros(4))
    with pytest.raises(ValueError, match=r"energy: expected values .*, got \(3, 100, 1\); append \.squeeze\(-1\)$"):
        dcem.energy.EnergyModel(lambda x, y: net(y), 4, dcem.CEM())(torch.zeros(3, 2))


def of_learned_std():
    return dcem.Argmin(2, CEM, init=(0.0, nn.Parameter(torch.tensor(-1.5))))


def test_the_magnitude_of_a_learned_std_counts_whether_or_not_it_is_learned_now():
    """Frozen, called with other parameters, exported or in an ensemble, a layer is the one that was trained."""
    layer, noise = of_learned_std(), torch.randn(10, 20, 2)
    goal = to(torch.tensor([2.0, 1.0]))
    trained = layer(goal, noise=noise).x.detach()
    assert torch.equal(copy.deepcopy(layer).requires_grad_(False)(goal, noise=noise).x, trained)
    state = {name: value.detach() for name, value in layer.state_dict().items()}
    assert torch.equal(torch.func.functional_call(layer, state, (goal,), {"noise": noise}).x, trained)
    twice = {name: torch.stack([value, value]) for name, value in state.items()}
    with torch.no_grad():
        both = torch.func.vmap(lambda state: torch.func.functional_call(layer, state, (goal,), {"noise": noise}).x)(
            twice
        )
    torch.testing.assert_close(both, trained.expand(2, 2))


WHOLE = [
    lambda: dcem.Gaussian(nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))),
    lambda: dcem.FullGaussian(nn.Parameter(torch.zeros(2)), nn.Parameter(torch.eye(2))),
    lambda: dcem.Mixture(
        nn.Parameter(torch.tensor([[-1.0, 0.0], [1.0, 0.4]])),
        nn.Parameter(torch.ones(2, 2)),
        nn.Parameter(torch.zeros(2)),
    ),
    lambda: dcem.Categorical(
        nn.Parameter(torch.zeros(2)), samples="relaxed", relaxation=nn.Parameter(torch.tensor(0.5))
    ),
]


@pytest.mark.parametrize("make", WHOLE)
def test_the_parameters_of_a_distribution_to_start_from_are_the_layers(make):
    family = make()
    layer = dcem.Argmin(2, CEM, init=family)
    given = [leaf for leaf in vars(family).values() if isinstance(leaf, nn.Parameter)]
    assert {id(leaf) for leaf in layer.parameters()} == {id(leaf) for leaf in given}
    copied = copy.deepcopy(layer)
    for parameter in layer.parameters():
        parameter.data.mul_(0.5)
    copied.load_state_dict(layer.state_dict())
    noise = torch.randn(10, 20, 2)
    goal = to(torch.tensor([0.2, 0.1]))
    assert torch.equal(copied(goal, noise=noise).x, layer(goal, noise=noise).x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dcem.Mixture(torch.tensor([[-1.0, 0.0], [1.0, 0.4]]), 1.0),
        lambda: dcem.Gaussian(torch.zeros(2), torch.tensor(1.0)),
        lambda: (torch.tensor(0.5).expand(2), torch.tensor(1.0).expand(2)),
    ],
)
def test_a_start_that_was_broadcast_is_loaded(make):
    layer = dcem.Argmin(2, CEM, init=make())
    layer.load_state_dict(dcem.Argmin(2, CEM, init=make()).state_dict())
    copy.deepcopy(layer)


def test_layers_that_were_made_of_the_same_tensor_do_not_share_it():
    std = torch.ones(2)
    layers = [dcem.Argmin(2, CEM, init=(0.0, std)) for _ in range(2)]
    layers[0].init_std.fill_(3.0)
    assert layers[1].init_std.equal(torch.ones(2))
    assert std.equal(torch.ones(2))


def test_a_parameter_that_was_broadcast_is_refused_and_what_is_computed_is_not():
    """No optimiser would find it, and no copy or checkpoint would have it. A network that says where to start has its own
    parameters."""
    family = dcem.Gaussian(nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(ValueError, match=r"^init: expected parameters in the full shape, \(2,\) of std, got one"):
        dcem.Argmin(2, CEM, init=family)
    start = nn.Parameter(torch.zeros(2))
    layer = dcem.Argmin(2, CEM, init=dcem.Gaussian(start.tanh(), torch.ones(2)), num_iterations=1)
    (slope,) = torch.autograd.grad(layer(to(torch.ones(2)), noise=torch.randn(1, 20, 2)).x.sum(), start)
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("make", [lambda p: (p, None), lambda p: dcem.Gaussian(p, torch.ones(2))])
def test_a_frozen_parameter_is_a_parameter(make):
    parameter = nn.Parameter(torch.zeros(2), requires_grad=False)
    layer = dcem.Argmin(2, CEM, init=make(parameter))
    layer.requires_grad_(True)
    assert dict(layer.named_parameters())["init_mean"] is parameter


def test_what_a_subclass_calls_its_own_stays_when_the_start_changes():
    class Amortised(dcem.control.MPC):
        def __init__(self, *given):
            super().__init__(*given)
            self.init_net = nn.Linear(2, 2)

    mpc = Amortised(torch.add, lambda x, u: x.square().sum(-1), 3, 1)
    mpc.init = dcem.Mixture(torch.zeros(2, 3, 1), 1.0, event_dims=2)
    mpc.init = dcem.Mixture(torch.ones(2, 3, 1), 1.0, event_dims=2)  # which has no mean of its own
    assert isinstance(mpc.init_net, nn.Linear)
    assert mpc.init.mean.equal(torch.ones(3, 1))

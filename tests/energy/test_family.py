"""The contract of every energy of the library, and what each promises beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dcem
from dcem.energy import ICNN, SPEN, ConditionedEnergy, ConvEnergy, EnergyModel, FeedForwardEnergy, MLPEnergy


class Adapter(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1.0


class EnergyContract:
    """A subclass says how its energy is made and the shapes that it takes."""

    feature: tuple[int, ...] = (3,)
    event: tuple[int, ...] = (4,)

    def make(self) -> ConditionedEnergy:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def energy(self) -> ConditionedEnergy:
        torch.manual_seed(0)
        self.made = self.make().double()
        return self.made

    def inputs(self, *batch: int, num: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(*batch, *self.feature, dtype=torch.float64)
        return x, torch.rand(*batch, num, *self.event, dtype=torch.float64)

    def test_layers_of_another_class_count(self) -> None:
        """As a low-rank adapter is an `nn.Linear` that adds something to it."""
        x, y = self.inputs(5)
        layers = [module for module in self.made.modules() if type(module) is nn.Linear]
        handles = [layer.register_forward_hook(lambda layer, given, result: result + 1.0) for layer in layers]
        expected = self.made(x, y)
        for layer, handle in zip(layers, handles, strict=True):
            handle.remove()
            layer.__class__ = Adapter
        torch.testing.assert_close(self.made(x, y), expected)

    @pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
    def test_shape(self, batch: tuple[int, ...]) -> None:
        x, y = self.inputs(*batch)
        assert self.made(x, y).shape == (*batch, 6)
        assert self.made(x, y.narrow(len(batch), 0, 0)).shape == (*batch, 0)

    def test_problems_and_candidates_are_independent(self) -> None:
        x, y = self.inputs(5)
        together = self.made(x, y)
        torch.testing.assert_close(self.made(x[2], y[2]), together[2])
        torch.testing.assert_close(self.made(x, y[:, 3:4]), together[:, 3:4])
        y[2] = torch.nan
        torch.testing.assert_close(self.made(x, y)[[0, 1, 3, 4]], together[[0, 1, 3, 4]])

    def test_conditioned_once_is_the_same(self) -> None:
        x, y = self.inputs(5)
        of_y = self.made.condition(x)
        assert torch.equal(of_y(y), self.made(x, y))
        assert torch.equal(of_y(y[:, :2]), self.made(x, y[:, :2]))

    @pytest.mark.parametrize("hook", ["after", "before", "instance"])
    def test_what_is_hooked_counts_in_a_solve(self, hook: str) -> None:
        """A hook that changes the input or the values, or a `forward` of the instance, is of the energy."""
        x, y = self.inputs(5)
        if hook == "after":
            self.made.register_forward_hook(lambda module, given, values: -3 * values)
        elif hook == "before":
            self.made.register_forward_pre_hook(lambda module, given: (2 * given[0], given[1]))
        else:
            own = self.made.forward
            self.made.forward = lambda x, y: -own(x, 1 - y)
        of_y = EnergyModel(self.made, self.event, dcem.CEM(6, 2), feature_dims=len(self.feature)).objective(x)
        torch.testing.assert_close(of_y(y), self.made(x, y))

    def test_gradients_reach_every_parameter_and_the_input(self) -> None:
        x, y = self.inputs(5)
        x.requires_grad_()
        y.requires_grad_()
        self.made(x, y).square().sum().backward()
        tensors = [x, y, *self.made.parameters()]
        assert all(t.grad is not None and t.grad.isfinite().all() and t.grad.any() for t in tensors)

    @pytest.mark.cpu
    def test_gradient_in_the_candidates(self) -> None:
        x, y = self.inputs(2, num=3)
        assert torch.autograd.gradcheck(lambda y: self.made(x, y), y.requires_grad_())

    @pytest.mark.parametrize("solver", [dcem.CEM(20, 5), dcem.GradientDescent(nn.Parameter(torch.full((3,), 0.05)))])
    def test_trains_through_solvers(self, solver: dcem.Solver) -> None:
        dims = len(self.feature)
        model = EnergyModel(self.made, self.event, solver, num_iterations=3, bounds=(0, 1), feature_dims=dims).double()
        x, y = self.inputs(4, num=1)
        loss = dcem.energy.end_to_end_loss(model, x, y[:, 0], generator=torch.Generator().manual_seed(0))
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads
        assert all(grad.isfinite().all() for grad in grads)
        assert any(grad.any() for grad in grads)

    def test_refuses_wrong_shapes(self) -> None:
        x, y = self.inputs(5)
        for wrong_x, wrong_y in [(x[:4], y), (x, y[:, :, :-1]), (x, y[:, 0]), (x[..., :-1], y)]:
            with pytest.raises((ValueError, RuntimeError), match=r"[xy]: expected|cannot be multiplied"):
                self.made(wrong_x, wrong_y)


class TestMLPEnergy(EnergyContract):
    def make(self) -> ConditionedEnergy:
        return MLPEnergy(3, 4, (8, 8))


class TestFeedForwardEnergy(EnergyContract):
    def make(self) -> ConditionedEnergy:
        return FeedForwardEnergy(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)))

    @pytest.mark.parametrize(
        ("solver", "iterations", "gradient", "error"),
        [
            (dcem.GradientDescent(lr=0.5), 1, dcem.Unroll(), 1e-12),
            (dcem.CEM(200, 20, dcem.LML(0.1), init_std=3.0), 25, dcem.Unroll(), 1e-3),
            (dcem.GradientDescent(lr=0.2), 60, dcem.Implicit(), 1e-12),
        ],
    )
    def test_argmin_is_the_net(self, solver, iterations: int, gradient, error: float, generator) -> None:
        model = EnergyModel(self.made, 4, solver, num_iterations=iterations, gradient=gradient)
        x, _ = self.inputs(5)
        prediction = model(x, generator=generator)
        torch.testing.assert_close(prediction, self.made.f(x), rtol=0, atol=error)
        if error < 1e-6:  # and so is its gradient
            weight = self.made.f[0].weight
            torch.testing.assert_close(
                torch.autograd.grad(prediction.square().sum(), weight),
                torch.autograd.grad(self.made.f(x).square().sum(), weight),
            )

    def test_numbers_and_images(self) -> None:
        assert FeedForwardEnergy(lambda x: x.sum(-1), 0)(torch.ones(5, 3), torch.ones(5, 2)).tolist() == [[4, 4]] * 5
        assert FeedForwardEnergy(lambda x: x, 2)(torch.ones(5, 3, 2), torch.zeros(5, 7, 3, 2))[0, 0] == 6


class TestSPEN(EnergyContract):
    def make(self) -> ConditionedEnergy:
        return SPEN(3, 4, (8,), (6, 5), conditional=True, entropy=0.1)

    def test_linear_terms_are_linear(self) -> None:
        x, y = self.inputs(5)
        with torch.no_grad():
            self.made.entropy = 0.0
            self.made.rest[-1][-1].weight.zero_()
        of_y = self.made.condition(x)
        torch.testing.assert_close(of_y(2 * y) - of_y(y), of_y(y) - of_y(0 * y))

    def test_entropy_keeps_the_minimiser_inside_and_its_gradient_finite(self) -> None:
        y = torch.tensor([[0.0, 0.5, 1.0, 0.3]], requires_grad=True)
        energy = SPEN(3, 4, (8,), entropy=1.0)
        (gradient,) = torch.autograd.grad(energy(torch.zeros(3), y).sum(), y)
        assert gradient.isfinite().all()
        local = lambda entropy: SPEN(1, 1, (4,), (4,), entropy=entropy)  # noqa: E731
        for weight, inside in ((0.0, False), (1.0, True)):
            torch.manual_seed(0)
            model = EnergyModel(
                local(weight), 1, dcem.GradientDescent(0.1), num_iterations=200, init_mean=0.5, bounds=(0, 1)
            )
            answer = model(torch.ones(1)).item()
            assert (0.01 < answer < 0.99) is inside


class TestICNN(EnergyContract):
    def make(self) -> ConditionedEnergy:
        return ICNN(3, 4, (8, 7), strong_convexity=1.0)

    @settings(max_examples=25)
    @given(
        seed=st.integers(0, 2**31),
        lr=st.sampled_from([0.01, 1.0, 10.0, 100.0]),
        optimizer=st.sampled_from([torch.optim.SGD, torch.optim.Adam]),
        activation=st.sampled_from([nn.Softplus, nn.ReLU, nn.ELU]),
    )
    def test_convex_wherever_an_optimiser_goes(self, seed: int, lr: float, optimizer, activation) -> None:
        torch.manual_seed(seed)
        energy = ICNN(3, 4, (8, 7), strong_convexity=0.0, activation=activation).double()
        steps = optimizer(energy.parameters(), lr=lr)
        for _ in range(3):
            x, y = torch.randn(5, 3).double(), torch.randn(5, 6, 4).double()
            objective = (energy(x, y) * torch.randn(5, 6).double()).mean()
            steps.zero_grad()
            objective.backward()
            nn.utils.clip_grad_norm_(energy.parameters(), 1.0)
            steps.step()
        x, ends = torch.randn(5, 3).double(), 10 * torch.randn(2, 5, 6, 4).double()
        weight = torch.rand(5, 6, 1).double()
        between = energy(x, weight * ends[0] + (1 - weight) * ends[1])
        values = torch.stack([energy(x, end) for end in ends])
        chord = weight[..., 0] * values[0] + (1 - weight[..., 0]) * values[1]
        scale = values.abs().amax(0).clamp(min=1)
        assert (between <= chord + 1e-8 * scale).all()

    def test_implicit_gradient_is_that_of_a_long_unrolled_solve(self) -> None:
        x, _ = self.inputs(5)
        grads = []
        for gradient in (dcem.Implicit(), dcem.Unroll()):
            model = EnergyModel(self.made, 4, dcem.GradientDescent(0.2), num_iterations=120, gradient=gradient)
            assert (model.solve(x).status == dcem.Status.OK).all()
            wanted = [p for p in self.made.parameters() if p.requires_grad]
            grads.append(torch.autograd.grad(model(x).square().sum(), wanted, allow_unused=True))
        for implicit, unrolled in zip(*grads, strict=True):
            if implicit is not None and unrolled is not None:
                torch.testing.assert_close(implicit, unrolled, rtol=1e-5, atol=1e-9)

    @pytest.mark.parametrize(
        "activation", [nn.GELU, nn.Tanh, nn.SiLU, nn.SELU, nn.Sigmoid, nn.PReLU, lambda: nn.Softmax(0)]
    )
    def test_refuses_activations_that_would_not_be_convex(self, activation: Callable[[], nn.Module]) -> None:
        with pytest.raises(ValueError, match="activation: expected a convex, non-decreasing function, got"):
            ICNN(3, 4, activation=activation)

    @pytest.mark.parametrize("activation", [nn.ReLU, nn.Softplus, nn.ELU, nn.LeakyReLU, nn.Identity])
    def test_takes_those_that_are(self, activation: Callable[[], nn.Module]) -> None:
        ICNN(3, 4, activation=activation)


class TestConvEnergy(EnergyContract):
    feature = (1, 6, 3)
    event = (1, 6, 4)

    def make(self) -> ConditionedEnergy:
        return ConvEnergy(self.feature, self.event, axis=2, channels=(3, 4), hidden=(5,))


class TestConvEnergyOfChannels(EnergyContract):
    feature = (2, 5, 5)
    event = (1, 5, 5)

    def make(self) -> ConditionedEnergy:
        return ConvEnergy(self.feature, self.event, channels=(3,), hidden=())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: SPEN(1, 2, ()), r"hidden: expected .* got \(\)"),
        (lambda: SPEN(1, 2, global_hidden=(0,)), r"global_hidden: expected .* got \(0,\)"),
        (lambda: SPEN(1, 2, entropy=-1), r"entropy: expected .* got -1"),
        (lambda: SPEN(1, (2, 0)), r"event_shape: expected positive sizes, got \(2, 0\)"),
        (lambda: MLPEnergy(1, 2, (3, 0)), r"hidden: expected .* got \(3, 0\)"),
        (
            lambda: EnergyModel(lambda x, y: y, 1, dcem.CEM(), feature_dims=-1),
            r"feature_dims: expected at least 0, got -1",
        ),
        (lambda: ICNN(1, 2, strong_convexity=-1), r"strong_convexity: expected .* got -1"),
        (lambda: ICNN(1, 2, strong_convexity=torch.tensor(-1.0)), r"strong_convexity: expected .* got -1"),
        (lambda: ICNN(1, 2, strong_convexity=torch.ones(2)), r"strong_convexity: expected .* got shape \(2,\)"),
        (lambda: ConvEnergy((1, 8), (1, 8, 4)), r"feature_shape: expected \(channels, height, width\), got \(1, 8\)"),
        (lambda: ConvEnergy((1, 8, 4), (1, 7, 4), axis=2), r"event_shape: expected \(1, 8, 4\) .* got \(1, 7, 4\)"),
        (lambda: ConvEnergy((1, 8, 4), (1, 8, 4), axis=3), r"axis: expected .* got 3"),
        (lambda: FeedForwardEnergy(lambda x: x, -1), r"event_dims: expected at least 0, got -1"),
        (lambda: FeedForwardEnergy(lambda x: x, 3)(torch.ones(2), torch.ones(2)), r"event_dims: expected at most"),
    ],
)
def test_errors_name_the_argument(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: SPEN(1, 2, entropy=None), "entropy: expected a number or a Tensor, got None"),
        (lambda: SPEN(1, 2, conditional=math.nan), "conditional: expected True or False, got nan"),
        (lambda: ICNN(1, 2, strong_convexity="x"), "strong_convexity: expected a number or a Tensor, got 'x'"),
        (
            lambda: EnergyModel(lambda x, y: y, 1, dcem.CEM(), feature_dims=0.5),
            "feature_dims: expected an int, got 0.5",
        ),
        (
            lambda: EnergyModel(lambda x, y: y, 1, dcem.CEM(), feature_dims=None),
            "feature_dims: expected an int, got None",
        ),
    ],
)
def test_wrong_types_name_the_argument(call, match: str) -> None:
    with pytest.raises(TypeError, match=f"^{match}"):
        call()


def test_widths_may_be_integers_of_any_library() -> None:
    for integer in (np.int64, torch.tensor):
        assert MLPEnergy(1, 2, (integer(3),))(torch.zeros(4, 1), torch.zeros(4, 5, 2)).shape == (4, 5)
        assert ICNN(1, 2, [integer(3)])(torch.zeros(4, 1), torch.zeros(4, 5, 2)).shape == (4, 5)


def test_an_overridden_energy_is_called_as_it_is() -> None:
    class Regularised(MLPEnergy):
        def forward(self, x, y):
            return super().forward(x, y) + 1e6 * (y - 0.25).square().sum(-1)

    model = EnergyModel(Regularised(1, 1, (4,)), 1, dcem.GradientDescent(5e-7))
    assert abs(model(torch.ones(1)).item() - 0.25) < 1e-3


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda w: ICNN(2, 2, strong_convexity=w), "strong_convexity"), (lambda w: SPEN(2, 2, entropy=w), "entropy")],
)
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_weights_can_be_learned(make, name: str, start: float) -> None:
    """A parameter is one of the energy's, and is the number that it holds."""
    weight = torch.nn.Parameter(torch.tensor(start))
    torch.manual_seed(0)
    learned = make(weight)
    torch.manual_seed(0)
    fixed = make(start)
    assert dict(learned.named_parameters())[name] is weight
    x, y = torch.randn(3, 2), torch.rand(3, 5, 2)
    torch.testing.assert_close(learned(x, y), fixed(x, y))
    (slope,) = torch.autograd.grad(learned(x, y).sum(), weight)
    torch.manual_seed(0)
    above = make(start + 1.0)
    torch.testing.assert_close(slope, (above(x, y) - fixed(x, y)).sum())  # the energy is linear in it

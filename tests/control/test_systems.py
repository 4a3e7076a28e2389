"""The systems: what all of them promise, and each against its twin or a closed form."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcem.control.systems import Cartpole, Pendulum, System

SYSTEMS = {
    "pendulum": (Pendulum, {"gravity": 9.0, "mass": 1.2, "length": 0.9, "damping": 0.1, "constant_torque": 0.2}),
    "cartpole": (
        Cartpole,
        {"gravity": 9.0, "cart_mass": 1.1, "pole_mass": 0.2, "half_length": 0.6, "damping": 0.05},
    ),
}
"""A class and parameters that are all present."""
CIRCLES = {"pendulum": (0,), "cartpole": (2,)}
"""Where the states hold the cosine of an angle; its sine follows."""


@pytest.fixture(params=SYSTEMS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def system(name: str) -> System:
    kind, parameters = SYSTEMS[name]
    return kind(**parameters)


def drawn(system: System, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Initial states and actions strictly inside the bounds."""
    generator = torch.Generator().manual_seed(seed)
    states = system.sample_states(math.prod(batch), generator=generator, dtype=dtype)
    low, high = system.bounds
    unit = torch.rand(*batch, *system.action_shape, generator=generator, dtype=dtype)
    return states.reshape(*batch, *system.state_shape), low + (high - low) * (0.05 + 0.9 * unit)


class TestEverySystem:
    def test_any_leading_axes(self, system: System) -> None:
        state, action = drawn(system, 4, 3)
        following, cost = system(state, action), system.cost(state, action)
        assert following.shape == state.shape
        assert cost.shape == (4, 3)
        torch.testing.assert_close(system(state[1, 2], action[1, 2]), following[1, 2])
        torch.testing.assert_close(system.cost(state[1, 2], action[1, 2]), cost[1, 2])
        torch.testing.assert_close(system(state[:, :1], action), system(state[:, :1].expand_as(state), action))
        torch.testing.assert_close(system(state, action[:1]), system(state, action[:1].expand_as(action)))

    def test_moves_and_the_action_matters(self, system: System) -> None:
        state, action = drawn(system, 8)
        following = system(state, action)
        assert (following != state).any(-1).all()
        assert (following != system(state, 0.5 * action)).any(-1).all()

    def test_angles_stay_on_the_unit_circle(self, name: str, system: System) -> None:
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
            state, action = drawn(system, 16, dtype=dtype)
            for _ in range(100):
                state = system(state, action)
            for i in CIRCLES[name]:
                assert (state[:, i : i + 2].norm(dim=-1) - 1).abs().max() < tolerance

    def test_gradients_in_state_action_and_parameters_twice(self, name: str) -> None:
        kind, parameters = SYSTEMS[name]
        values = tuple(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in parameters.values())
        state, action = drawn(kind(), 3)

        def step_and_cost(state: Tensor, action: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
            system = kind(**dict(zip(parameters, values, strict=True)))
            following = system(state, action)
            return following, system.cost(following, action)

        inputs = (state.requires_grad_(), action.requires_grad_(), *values)
        assert torch.autograd.gradcheck(step_and_cost, inputs)
        assert torch.autograd.gradgradcheck(step_and_cost, inputs)
        following, cost = step_and_cost(*inputs)
        gradients = torch.autograd.grad(following.sum() + cost.sum(), inputs)
        assert all(gradient.abs().max() > 0 for gradient in gradients)

    def test_vmap(self, system: System) -> None:
        state, action = drawn(system, 4, 3)
        torch.testing.assert_close(torch.vmap(system)(state, action), system(state, action))
        torch.testing.assert_close(torch.vmap(system.cost)(state, action), system.cost(state, action))

    def test_actuators_saturate(self, system: System) -> None:
        state, action = drawn(system, 5)
        for bound, beyond in zip(system.bounds, (-1e3, 1e3), strict=True):
            at, past = torch.full_like(action, bound), torch.full_like(action, bound + beyond)
            assert torch.equal(system(state, at), system(state, past))
            assert torch.equal(system.cost(state, at), system.cost(state, past))
            action_at = at.requires_grad_()
            assert torch.autograd.grad(system(state, action_at).sum(), action_at)[0].abs().max() > 0

    def test_initial_states_follow_the_generator(self, system: System) -> None:
        draws = [system.sample_states(6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        assert draws[0].shape == (6, *system.state_shape)
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert system.sample_states(2, dtype=torch.float64).dtype == torch.float64

    def test_float32_is_float64_rounded(self, system: System) -> None:
        state, action = drawn(system, 32)
        single = system(state.float(), action.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), system(state, action), rtol=1e-5, atol=1e-5)

    def test_numbers_keep_their_precision(self, name: str) -> None:
        kind, parameters = SYSTEMS[name]
        state, action = drawn(kind(), 8)
        exact = {key: torch.tensor(value, dtype=torch.float64) for key, value in parameters.items()}
        expected = kind(**exact)(state, action)
        torch.testing.assert_close(kind(**parameters).float()(state, action), expected, rtol=1e-13, atol=1e-13)

    def test_parameters_and_buffers_register(self, name: str) -> None:
        kind, parameters = SYSTEMS[name]
        tensors = {key: torch.tensor(value) for key, value in parameters.items()}
        assert dict(kind(**tensors).named_buffers()).keys() == parameters.keys()
        learned = kind(**{key: nn.Parameter(value) for key, value in tensors.items()})
        assert dict(learned.named_parameters()).keys() == parameters.keys()
        assert not list(kind(**parameters).named_buffers())
        assert all(key in repr(learned) for key in parameters)

    def test_a_parameter_a_problem(self, name: str) -> None:
        kind, parameters = SYSTEMS[name]
        state, action = drawn(kind(), 3, 4)
        scales = torch.tensor([1.0, 1.2, 1.5], dtype=torch.float64)
        together = kind(**{key: value * scales[:, None] for key, value in parameters.items()})(state, action)
        for i, scale in enumerate(scales):
            alone = kind(**{key: value * scale for key, value in parameters.items()})
            torch.testing.assert_close(together[i], alone(state[i], action[i]))

    def test_wrong_shapes(self, system: System) -> None:
        state, action = drawn(system, 3)
        n, m = *system.state_shape, *system.action_shape
        for call in (system, system.cost):
            with pytest.raises(ValueError, match=rf"state: expected shape \(\*batch, {n}\), got \(3, {n - 1}\)"):
                call(state[:, 1:], action)
            with pytest.raises(ValueError, match=rf"action: expected shape \(\*batch, {m}\), got \(\)"):
                call(state, action[0, 0])

    def test_wrong_arguments(self, name: str) -> None:
        kind, parameters = SYSTEMS[name]
        first = next(iter(parameters))
        with pytest.raises(TypeError, match=f"{first}: expected a number or a Tensor, got str"):
            kind(**{first: "heavy"})
        with pytest.raises(ValueError, match="dt: expected seconds above 0, got 0"):
            kind(dt=0)


class TestPendulum:
    @pytest.mark.parametrize("gravity", [10.0, 9.81])
    def test_steps_as_gymnasium(self, gravity: float) -> None:
        gymnasium = pytest.importorskip("gymnasium")
        env = gymnasium.make("Pendulum-v1", g=gravity).unwrapped
        env.reset(seed=0)
        system, torques = Pendulum(gravity), np.random.default_rng(0).uniform(-3, 3, 200)  # some beyond the bounds
        torques[:60] = 2.0 * np.sign(np.sin(np.arange(60) / 8))  # far enough to meet the limit on the speed
        fastest = 0.0
        for torque in torques:
            angle, speed = env.state
            state = torch.tensor([math.cos(angle), math.sin(angle), speed], dtype=torch.float64)
            action = torch.tensor([torque], dtype=torch.float64)
            _, reward, *_ = env.step(np.array([torque]))
            angle, speed = env.state
            expected = torch.tensor([math.cos(angle), math.sin(angle), speed], dtype=torch.float64)
            torch.testing.assert_close(system(state, action), expected, rtol=1e-12, atol=1e-12)
            assert float(system.cost(state, action)) == pytest.approx(-reward, rel=1e-12)
            fastest = max(fastest, abs(speed))
        assert fastest > 4

    def test_the_speed_is_limited(self) -> None:
        state = torch.tensor([0.0, 1.0, 7.9])
        assert float(Pendulum()(state, torch.tensor([2.0]))[-1]) == 8.0

    def test_damping_and_constant_torque(self) -> None:
        state, rest = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        pendulum = Pendulum(damping=0.3, constant_torque=0.1, mass=2.0, length=0.5)
        inertia = 2.0 * 0.5**2 / 3
        assert float(pendulum(state, rest)[-1]) == pytest.approx(2.0 + 0.05 * (0.1 - 0.3 * 2.0) / inertia)


class TestCartpole:
    def test_steps_as_gymnasium(self) -> None:
        gymnasium = pytest.importorskip("gymnasium")
        env = gymnasium.make("CartPole-v1").unwrapped
        env.reset(seed=0)
        env.tau = 0.05
        system, random = Cartpole(), np.random.default_rng(0)
        for start in random.uniform([-0.5, -0.5, -math.pi, -1], [0.5, 0.5, math.pi, 1], (4, 4)):
            env.state, env.steps_beyond_terminated = tuple(start), None
            state = polar_to_columns(start)
            for force in random.uniform(-100, 100, 25):
                env.force_mag, env.steps_beyond_terminated = force, None
                env.step(1)
                state = system(state, torch.tensor([force], dtype=torch.float64))
                expected = polar_to_columns(env.state)
                torch.testing.assert_close(state, expected, rtol=1e-9, atol=1e-9)

    def test_cost(self) -> None:
        state = torch.tensor([2.0, 5.0, 0.6, 0.8, 3.0])
        assert float(Cartpole().cost(state, torch.tensor([50.0]))) == pytest.approx(-(0.6 - 0.4 - 0.025))

    def test_damping_is_a_torque_in_the_hinge(self) -> None:
        """Without it the pole hangs as a pendulum on a cart too heavy to move."""
        still = torch.zeros(1, dtype=torch.float64)
        state = torch.tensor([0, 0, -1, 0, 2], dtype=torch.float64)
        system = Cartpole(cart_mass=1e9, pole_mass=0.2, half_length=0.4, damping=0.03)
        inertia = 4 / 3 * 0.2 * 0.4**2
        assert float(system(state, still)[-1]) == pytest.approx(2 - 0.05 * 0.03 * 2 / inertia, rel=1e-6)


def polar_to_columns(state: tuple[float, ...]) -> Tensor:
    """Gymnasium's ``(x, ẋ, θ, θ̇)`` as ours."""
    x, velocity, angle, speed = map(float, state)
    return torch.tensor([x, velocity, math.cos(angle), math.sin(angle), speed], dtype=torch.float64)

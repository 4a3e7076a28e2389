"""The systems: what all of them promise, and each against its twin or a closed form."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dcem
from dcem.control import closed_loop
from dcem.control.systems import Acrobot, Cartpole, Pendulum, PointMass, Quadrotor, System
from dcem.control.systems.drawing import Line

SYSTEMS = {
    "pendulum": (Pendulum, {"gravity": 9.0, "mass": 1.2, "length": 0.9, "damping": 0.1, "constant_torque": 0.2}),
    "cartpole": (
        Cartpole,
        {"gravity": 9.0, "cart_mass": 1.1, "pole_mass": 0.2, "half_length": 0.6, "damping": 0.05},
    ),
    "acrobot": (
        Acrobot,
        {"gravity": 9.0, "mass1": 1.1, "mass2": 0.9, "length1": 1.2, "length2": 0.8}
        | {"centre1": 0.6, "centre2": 0.4, "inertia1": 0.5, "inertia2": 0.3},
    ),
    "quadrotor": (Quadrotor, {"gravity": 9.0, "mass": 1.2, "arm": 0.25, "inertia": 0.05}),
    "point_mass": (PointMass, {"mass": 1.3}),
}
"""A class and parameters that are all present."""
CIRCLES: dict[str, tuple[int, ...]] = {
    "pendulum": (0,),
    "cartpole": (2,),
    "acrobot": (0, 2),
    "quadrotor": (2,),
    "point_mass": (),
}
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

    def test_an_action_on_its_bound_has_the_derivative_of_those_inside(self, system: System) -> None:
        state, _ = drawn(system, 1)
        for side, outward in ((system.bounds[0], -1.0), (system.bounds[1], 1.0)):
            action = torch.full((1, *system.action_shape), side, dtype=torch.float64, requires_grad=True)
            (on,) = torch.autograd.grad(system(state, action).sum(), action)
            for by in (-1e-6, 1e-6):
                near = (action.detach() + outward * by).requires_grad_()
                (beside,) = torch.autograd.grad(system(state, near).sum(), near)
                torch.testing.assert_close(beside, on if by < 0 else torch.zeros_like(on), rtol=1e-4, atol=1e-6)

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
        state, action = drawn(kind(), 2)

        def step_and_cost(state: Tensor, action: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
            system = kind(**dict(zip(parameters, values, strict=True)))
            following = system(state, action)
            return following, system.cost(following, action)

        inputs = (state.requires_grad_(), action.requires_grad_(), *values)
        assert torch.autograd.gradcheck(step_and_cost, inputs)
        assert torch.autograd.gradgradcheck(step_and_cost, inputs, fast_mode=True)
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
        always = dict(kind(**parameters).named_buffers()).keys()  # what is a tensor by default
        assert not always & parameters.keys()
        assert dict(kind(**tensors).named_buffers()).keys() == parameters.keys() | always
        learned = kind(**{key: nn.Parameter(value) for key, value in tensors.items()})
        assert dict(learned.named_parameters()).keys() == parameters.keys()
        assert all(key in repr(learned) for key in parameters)

    def test_a_parameter_a_problem(self, name: str) -> None:
        kind, parameters = SYSTEMS[name]
        state, action = drawn(kind(), 3, 4)
        scales = torch.tensor([1.0, 1.2, 1.5], dtype=torch.float64)
        together = kind(**{key: value * scales[:, None] for key, value in parameters.items()})(state, action)
        for i, scale in enumerate(scales):
            alone = kind(**{key: value * scale for key, value in parameters.items()})
            torch.testing.assert_close(together[i], alone(state[i], action[i]))

    def test_shapes_to_draw_are_plain_and_within_view(self, system: System) -> None:
        left, right, bottom, top = system.view
        for state in drawn(system, 5)[0]:
            for shape in system.shapes(state):
                points = shape.points if isinstance(shape, Line) else (shape.centre,)
                for x, y in points:
                    assert isinstance(x, float)
                    assert isinstance(y, float)
                    assert shape.role == "ground" or (left <= x <= right and bottom <= y <= top)

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
        with pytest.raises(TypeError, match=f"{first}: expected a number or a Tensor, got 'heavy'"):
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


class TestAcrobot:
    def test_steps_as_gymnasium(self) -> None:
        """Its own Runge-Kutta step of its own equations, with torques between its three."""
        module = pytest.importorskip("gymnasium.envs.classic_control.acrobot")
        env, system, random = module.AcrobotEnv(), Acrobot(), np.random.default_rng(0)
        low, high = np.array([-3, -3, -6, -9]), np.array([3, 3, 6, 9])
        for start in random.uniform(low, high, (4, 4)):
            env.state, state = start.copy(), self.columns(start)
            for torque in random.uniform(-1, 1, 10):
                env.AVAIL_TORQUE = [torque]
                env.step(0)
                state = system(state, torch.tensor([torque], dtype=torch.float64))
                torch.testing.assert_close(state, self.columns(env.state), rtol=1e-8, atol=1e-8)

    def test_speeds_are_limited(self) -> None:
        state = torch.tensor([1.0, 0.0, 1.0, 0.0, 12.5, -28.2])
        pushed = Acrobot(max_torque=1e3, dt=0.01)(state, torch.tensor([-1e3]))
        assert pushed[4:].tolist() == pytest.approx([4 * math.pi, -9 * math.pi])

    def test_energy_is_kept(self) -> None:
        kind, parameters = SYSTEMS["acrobot"]
        system = kind(**parameters, dt=0.01)
        state = system.sample_states(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        state[:, 4:] *= 30
        before = self.energy(state, parameters)
        for _ in range(100):
            state = system(state, torch.zeros(8, 1, dtype=torch.float64))
        torch.testing.assert_close(self.energy(state, parameters), before, rtol=1e-6, atol=1e-6)

    def test_cost_is_least_upright(self) -> None:
        upright, rest = torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]), torch.zeros(1)
        assert float(Acrobot().cost(upright, rest)) == 0
        assert float(Acrobot().cost(torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0]), rest)) == 4
        bent = self.columns(np.array([2.0, 0.7, 3.0, -4.0]))
        height = -math.cos(2.0) - math.cos(2.7)
        expected = 2 - height + 0.01 * 25 + 0.001 * 0.25
        assert float(Acrobot().cost(bent, 0.5 + rest)) == pytest.approx(expected)

    @staticmethod
    def columns(state: np.ndarray) -> Tensor:
        angle1, angle2, *speeds = map(float, state)
        angles = (math.cos(angle1), math.sin(angle1), math.cos(angle2), math.sin(angle2))
        return torch.tensor([*angles, *speeds], dtype=torch.float64)

    @staticmethod
    def energy(state: Tensor, of: dict[str, float]) -> Tensor:
        """Kinetic from the velocities of the two centres of mass, and potential."""
        cos1, sin1, cos2, sin2, speed1, speed2 = state.unbind(-1)
        cos12, sin12 = cos1 * cos2 - sin1 * sin2, sin1 * cos2 + cos1 * sin2
        both = speed1 + speed2
        velocity = of["length1"] * speed1 * cos1 + of["centre2"] * both * cos12
        rise = of["length1"] * speed1 * sin1 + of["centre2"] * both * sin12
        first = of["mass1"] * (of["centre1"] * speed1).square() + of["inertia1"] * speed1.square()
        second = of["mass2"] * (velocity.square() + rise.square()) + of["inertia2"] * both.square()
        height = of["mass1"] * of["centre1"] * cos1 + of["mass2"] * (of["length1"] * cos1 + of["centre2"] * cos12)
        return (first + second) / 2 - of["gravity"] * height


class TestQuadrotor:
    def test_falls_freely(self) -> None:
        """Closed form: a parabola, and the energy is kept, whatever the tilt and turn."""
        system = Quadrotor()
        start, _ = drawn(system, 6)
        state = start
        for _ in range(20):
            state = system(state, torch.zeros(6, 2, dtype=torch.float64))
        x, z, cos, sin, velocity_x, velocity_z, turn = start.unbind(-1)
        angle = torch.atan2(sin, cos) + turn
        expected = (x + velocity_x, z + velocity_z - 4.9, angle.cos(), angle.sin(), velocity_x, velocity_z - 9.8, turn)
        torch.testing.assert_close(state, torch.stack(expected, -1))
        energies = [9.8 * at[:, 1] + at[:, 4:6].square().sum(-1) / 2 for at in (start, state)]
        torch.testing.assert_close(*energies)

    def test_turns_on_the_spot(self) -> None:
        """Closed form: opposite changes of the thrusts turn it at a constant angular acceleration."""
        system = Quadrotor(mass=0.5, arm=0.2, inertia=0.04, gravity=0.0)
        state = torch.tensor([0, 0, 1, 0, 0, 0, 0.3], dtype=torch.float64)
        difference = torch.tensor([0.0, 0.8], dtype=torch.float64)
        after = system(state, difference)
        acceleration, dt = 0.8 * 0.2 / 0.04, 0.05
        angle = 0.3 * dt + acceleration * dt**2 / 2
        assert after[2:4].tolist() == pytest.approx([math.cos(angle), math.sin(angle)])
        assert float(after[6]) == pytest.approx(0.3 + acceleration * dt)

    def test_thrust_is_along_the_bars_normal(self) -> None:
        system = Quadrotor(gravity=0.0, mass=2.0)
        tilted = torch.tensor([0, 0, 0.6, 0.8, 0, 0, 0], dtype=torch.float64)
        thrust = torch.full((2,), 4.0, dtype=torch.float64)
        velocity = torch.tensor([0.05 * 4 * -0.8, 0.05 * 4 * 0.6], dtype=torch.float64)
        after = system(tilted, thrust)
        torch.testing.assert_close(after[4:6], velocity)
        torch.testing.assert_close(after[:2], velocity * 0.05 / 2)

    def test_cost_is_least_hovering_at_the_origin(self) -> None:
        system = Quadrotor()
        hover = torch.tensor([0, 0, 1, 0, 0, 0, 0], dtype=torch.float64), torch.full((2,), 4.9, dtype=torch.float64)
        assert float(system.cost(*hover)) == pytest.approx(0)
        state = torch.tensor([1, 2, 0.6, 0.8, 3, 4, 5], dtype=torch.float64)
        expected = 1 + 4 + 0.4 + 0.1 * (9 + 16 + 25) + 0.01 * (1 + 4)
        action = torch.tensor([5.9, 2.9], dtype=torch.float64)
        assert float(system.cost(state, action)) == pytest.approx(expected)


class TestPointMass:
    def test_is_a_double_integrator(self) -> None:
        system = PointMass(mass=2.0, dt=0.25)
        start, force = drawn(system, 5)
        state = start
        for _ in range(8):  # 2 s
            state = system(state, force)
        velocity = start[:, 2:] + force
        expected = torch.cat((start[:, :2] + 2 * start[:, 2:] + force, velocity), -1)
        torch.testing.assert_close(state, expected)

    def test_constraint_is_the_depth_inside_an_obstacle(self) -> None:
        obstacles = torch.tensor([[0.0, 0.0, 1.0], [3.0, 4.0, 2.0]], dtype=torch.float64, requires_grad=True)
        states = torch.tensor([[0, 0, 9, 9], [0.6, 0.8, 9, 9], [3, 4, 9, 9]], dtype=torch.float64, requires_grad=True)
        constraint = PointMass(obstacles=obstacles).constraint
        expected = torch.tensor([[1, -3], [0, -2], [-4, 2]], dtype=torch.float64)
        torch.testing.assert_close(constraint(states), expected)
        for gradient in torch.autograd.grad(constraint(states).sum(), (obstacles, states)):
            assert gradient.isfinite().all()  # also in a centre
            assert gradient.abs().max() > 0
        assert constraint(states.reshape(3, 1, 4)).shape == (3, 1, 2)

    def test_cost(self) -> None:
        state, action = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, -0.5])
        assert float(PointMass().cost(state, action)) == pytest.approx(5 + 0.1 * 25 + 0.01 * 1.25)

    def test_the_way_is_blocked_and_both_ends_are_free(self) -> None:
        system = PointMass()
        assert (system.constraint(system.sample_states(200)) < 0).all()
        assert (system.constraint(torch.zeros(4)) < 0).all()
        straight = torch.cat((torch.linspace(-2, 0, 100)[:, None], torch.zeros(100, 3)), -1)
        assert (system.constraint(straight) > 0).any()

    def test_wrong_obstacles(self) -> None:
        with pytest.raises(ValueError, match=r"obstacles: expected shape \(n, 3\), rows of x, y, radius, got \(2,\)"):
            PointMass(obstacles=torch.zeros(2))


def polar_to_columns(state: tuple[float, ...]) -> Tensor:
    """Gymnasium's ``(x, ẋ, θ, θ̇)`` as ours."""
    x, velocity, angle, speed = map(float, state)
    return torch.tensor([x, velocity, math.cos(angle), math.sin(angle), speed], dtype=torch.float64)


def test_the_plant_of_a_closed_loop_knows_the_time():
    """However many actions of an answer are applied."""

    def plant(x, u, t):
        return x + t

    for ahead in (1, 2, 4):
        states, _ = closed_loop(lambda x, ahead=ahead: torch.zeros(ahead, 1), plant, torch.zeros(1), 4)
        assert states.flatten().tolist() == [0.0, 0.0, 1.0, 3.0, 6.0]


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (lambda x: torch.zeros(1), ValueError, r"policy: expected actions .* got \(1,\)"),
        (
            lambda x: torch.zeros(2, 1, 1),
            ValueError,
            r"policy: expected actions .* of the batch \(\), .* got \(2, 1, 1\)",
        ),
        (lambda x: dcem.control.MPC(torch.add, lambda x, u: x.sum(-1), 2, 1)(x), TypeError, "policy: .* got Plan"),
    ],
)
def test_policies_of_a_closed_loop_that_give_something_else(answer, error, says):
    with pytest.raises(error, match=says):
        closed_loop(answer, torch.add, torch.zeros(1), 4)


def test_numbers_of_numpy_are_parameters():
    assert Pendulum(mass=np.float32(1.5)).mass == 1.5
    assert Pendulum(mass=np.int64(2)).mass == 2

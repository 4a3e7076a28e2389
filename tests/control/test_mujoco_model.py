"""The MuJoCo simulator as dynamics: exact, batched, failing as it should, and opaque to gradients."""

import copy
import os
from types import SimpleNamespace

os.environ.setdefault("MUJOCO_GL", "disabled")

import numpy as np
import pytest
import torch
from torch import nn

import dcem
from dcem.control import MPC
from dcem.control.mujoco_model import MujocoModel

mujoco = pytest.importorskip("mujoco")
suite = pytest.importorskip("dm_control.suite")

PENDULUM = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <body name="arm" pos="0 0 1">
      <joint name="hinge" type="hinge" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.5" size="0.02" mass="1"/>
      <site name="tip" pos="0 0 -0.5"/>
    </body>
  </worldbody>
  <actuator><motor name="torque" joint="hinge" ctrlrange="-2 2" ctrllimited="true"/></actuator>
  <sensor><framepos name="tip" objtype="site" objname="tip"/><jointvel name="speed" joint="hinge"/></sensor>
</mujoco>
"""
UNSTABLE = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody><body><joint name="x" type="slide" axis="1 0 0" stiffness="1e6"/><geom size="0.1" mass="1"/></body></worldbody>
  <actuator><motor joint="x"/></actuator>
</mujoco>
"""


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def pendulum(**options) -> MujocoModel:
    return MujocoModel(mujoco.MjModel.from_xml_string(PENDULUM), **options)


@pytest.mark.parametrize(("domain", "task"), [("cartpole", "swingup"), ("cheetah", "run"), ("reacher", "hard")])
def test_trajectories_are_those_of_dm_control(domain: str, task: str) -> None:
    env = suite.load(domain, task, task_kwargs={"random": 1}, environment_kwargs={"control_timestep": 0.04})
    env.reset()
    model = MujocoModel(env)
    assert model.frame_skip == round(0.04 / env.physics.timestep())
    assert model.dt == pytest.approx(0.04)
    assert repr(model).endswith(f"action_shape={model.action_shape}, dt=0.04)")
    assert model.state_shape == (env.physics.model.nq + env.physics.model.nv,)
    env.physics.data.qacc_warmstart[:] = 0  # contacts are solved from there; a rollout starts from nothing
    state = model.state_of(env)
    actions = torch.rand(12, *model.action_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    by_hand = [state]
    for action in actions:
        env.step(action.cpu().numpy())
        by_hand.append(model.state_of(env))
    torch.testing.assert_close(model.rollout(state, actions), torch.stack(by_hand), rtol=1e-9, atol=1e-9)


def test_rollout_is_repeated_steps() -> None:
    model = pendulum(frame_skip=3, sensors=("tip", "speed"), num_carried=1)
    start = torch.tensor([0.3, -0.2, 0, 0, 0, 0, 7.0])
    actions = torch.linspace(-2, 2, 5).unsqueeze(-1)
    states = model.rollout(start, actions)
    one = states[0]
    for t, action in enumerate(actions):
        one = model(one, action)
        torch.testing.assert_close(one, states[t + 1])
    assert (states[:, -1] == 7.0).all()


def test_sensors_are_those_of_the_same_state() -> None:
    model = pendulum(frame_skip=2, sensors=("speed", "tip"))
    state = torch.tensor([0.4, 1.0]).repeat(3)[:6]
    states = model.rollout(state, torch.ones(6, 1))
    angle = states[:, 0]
    torch.testing.assert_close(states[:, 2], states[:, 1])
    torch.testing.assert_close(states[:, 3], -0.5 * angle.sin())
    torch.testing.assert_close(states[:, 5], 1 - 0.5 * angle.cos())


def test_state_of_reads_physics_sensors_and_what_is_carried() -> None:
    model = pendulum(sensors=("tip",), num_carried=2)
    data = mujoco.MjData(model.model)
    data.qpos[:], data.qvel[:] = 0.5, 0.1
    mujoco.mj_forward(model.model, data)
    expected = torch.tensor([0.5, 0.1, -0.5 * np.sin(0.5), 0.0, 1 - 0.5 * np.cos(0.5), 3.0, 4.0])
    torch.testing.assert_close(model.state_of(data, carried=(3.0, 4.0)), expected)
    with pytest.raises(ValueError, match=r"carried: expected 2 numbers"):
        model.state_of(data)


def test_an_environment_of_gymnasium_is_a_source() -> None:
    raw = mujoco.MjModel.from_xml_string(PENDULUM)
    data = mujoco.MjData(raw)
    data.qpos[:] = 0.25
    env = SimpleNamespace(unwrapped=SimpleNamespace(model=raw, data=data, frame_skip=4))  # what MujocoEnv offers
    model = MujocoModel(env)
    assert (model.frame_skip, model.dt) == (4, pytest.approx(0.08))
    assert model.state_of(env).tolist() == [0.25, 0.0]


def test_batch_axes_are_independent() -> None:
    model = pendulum()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 1, 3, 2, generator=generator)
    actions = torch.randn(2, 4, 3, 5, 1, generator=generator)
    together = model.rollout(states.expand(2, 4, 3, 2), actions)
    assert together.shape == (2, 4, 3, 6, 2)
    assert torch.equal(together, model.rollout(states, actions))  # the batch broadcasts
    for i in range(2):
        assert torch.equal(together[i, 3, 1], model.rollout(states[i, 0, 1], actions[i, 3, 1]))


@pytest.mark.parametrize("domain", ["cheetah"])
def test_threads_do_not_change_the_result(domain: str) -> None:
    env = suite.load(domain, "run", task_kwargs={"random": 0})
    env.reset()
    one, three = MujocoModel(env, num_threads=1), MujocoModel(env, num_threads=3)
    state = one.state_of(env)
    actions = torch.rand(40, 10, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = one.rollout(state, actions)
    assert torch.equal(first, three.rollout(state, actions))
    assert torch.equal(first, three.rollout(state, actions))  # the pool again


def test_precision_and_copies() -> None:
    model = pendulum()
    state, actions = torch.tensor([0.1, 0.2]), torch.ones(4, 1)
    states = model.rollout(state, actions)
    single = model.rollout(state.float(), actions.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), states, rtol=1e-6, atol=1e-6)
    assert torch.equal(copy.deepcopy(model).rollout(state, actions), states)


def test_what_diverges_is_nan_from_there_on(capfd, tmp_path, monkeypatch, request) -> None:
    monkeypatch.chdir(tmp_path)
    before = mujoco.get_mju_user_warning()  # dm_control has its own; MuJoCo's writes to the terminal and to a file
    mujoco.set_mju_user_warning(None)
    request.addfinalizer(lambda: mujoco.set_mju_user_warning(before))
    model = MujocoModel(mujoco.MjModel.from_xml_string(UNSTABLE))
    actions = torch.zeros(5, 6, 1)
    actions[1, 2] = 1e9  # the spring throws it beyond what MuJoCo accepts
    actions[2, 3], actions[3, 5] = torch.nan, 1e12
    start = torch.zeros(5, 2)
    start[4, 1] = torch.inf
    states = model.rollout(start, actions)
    assert (states[0] == 0).all()
    assert states[1, :4].isfinite().all()
    assert states[1, 4:].isnan().all()
    assert states[2:4, 0].isfinite().all()
    assert states[2:4, 1:].isnan().all()
    assert states[4, 1:].isnan().all()
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    slower = MujocoModel(model.model, frame_skip=3)
    slow_actions = torch.zeros(3, 1)
    slow_actions[1] = 1e8  # diverges within the second of its three steps
    assert slower.rollout(torch.zeros(2), slow_actions).isfinite().all(-1).tolist() == [True, True, False, False]


def test_a_planner_takes_divergence_as_failure() -> None:
    model = MujocoModel(mujoco.MjModel.from_xml_string(UNSTABLE))
    mpc = MPC(
        model,
        lambda state, action: 0 * state.sum(-1) + action.square().sum(-1),
        *(4, 1),
        solver=dcem.CEM(50, 5, dcem.HardTopK()),
        gradient=dcem.Detach(),
        init_std=2e4,
    )
    plan = mpc(torch.zeros(2), generator=torch.Generator().manual_seed(0), record=True)
    assert not plan.solution.history[0].values.isfinite().all()  # of which the last state alone has diverged, mostly
    assert plan.status == dcem.Status.OK
    assert plan.cost.isfinite()
    assert plan.states.isfinite().all()
    candidates = mpc(torch.zeros(2), generator=torch.Generator().manual_seed(0), record=True).solution.history[0]
    assert candidates.values.isnan().any()
    failed = mpc(torch.tensor([torch.nan, 0.0]), generator=torch.Generator().manual_seed(0))
    assert failed.status == dcem.Status.NONFINITE


class Goal(nn.Module):
    """A cost with parameters, of the tip's place and the torque."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3, 0.8, 0.05]))

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        tip = state[..., [2, 4]]
        return (tip - self.theta[:2]).square().sum(-1) + self.theta[2] * action.square().sum(-1)


@pytest.mark.parametrize("answer", ["action", "actions"])
def test_gradients_reach_the_cost_through_the_weights(answer: str) -> None:
    model, cost = pendulum(frame_skip=2, sensors=("tip",)), Goal()
    solver = dcem.CEM(20, 5, dcem.LML(temperature=1.0))
    mpc = MPC(model, cost, 5, 1, (-2.0, 2.0), solver, num_iterations=3, gradient=dcem.Truncate(last=1))
    state = torch.tensor([[0.5, 0.0], [-1.0, 0.3]])
    state = torch.cat([state, torch.zeros(2, 3)], -1)
    noise = torch.randn(3, 2, 20, 5, 1, generator=torch.Generator().manual_seed(0))
    towards = torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(1))
    towards = towards[:, 0] if answer == "action" else towards
    plan = mpc(state, noise=noise)
    assert plan.states.requires_grad
    loss = (getattr(plan, answer) * towards).sum()
    (gradient,) = torch.autograd.grad(loss, cost.theta)

    # What truncation means: the last iteration with θ, those before it with a copy that stays.
    warm = mpc(state, noise=noise[:2], num_iterations=2, gradient=dcem.Detach())
    last = dcem.Gaussian(warm.distribution.mean, warm.distribution.std, event_dims=2)

    def loss_of(theta: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            cost.theta.copy_(theta)

            def objective(actions: torch.Tensor) -> torch.Tensor:
                states = model.rollout(state.unsqueeze(1).expand(-1, 20, -1), actions)
                return cost(states[..., :-1, :], actions).sum(-1)

            solution = dcem.minimize(objective, last, solver, num_iterations=1, noise=noise[2:], bounds=(-2.0, 2.0))
            x = solution.x[:, 0] if answer == "action" else solution.x
            return (x * towards).sum()

    theta = cost.theta.detach().clone()
    steps = 1e-5 * torch.eye(3)
    numeric = torch.stack([(loss_of(theta + step) - loss_of(theta - step)) / 2e-5 for step in steps])
    assert gradient.abs().min() > 1e-4
    torch.testing.assert_close(gradient, numeric, rtol=1e-4, atol=1e-7)


def test_a_gradient_through_the_simulator_is_refused() -> None:
    model, cost = pendulum(sensors=("tip",)), Goal()
    solver = dcem.CEM(20, 5, dcem.LML(temperature=1.0))
    mpc = MPC(model, cost, 4, 1, (-2.0, 2.0), solver, num_iterations=2, gradient=dcem.Unroll())
    state = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0])
    plan = mpc(state, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        RuntimeError, match=r"MujocoModel.*gradient=Detach\(\).*Truncate\(last=1\).*differentiable ones"
    ):
        plan.action.sum().backward()
    actions = torch.zeros(4, 1, requires_grad=True)
    states = model.rollout(state, actions)
    assert states.requires_grad
    with pytest.raises(RuntimeError, match=r"black box"):
        states.sum().backward()
    assert not mpc(state, gradient=dcem.Detach()).action.requires_grad


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"source: expected a mujoco.MjModel.*got str"):
        MujocoModel("cartpole")
    with pytest.raises(ValueError, match=r"sensors: expected some of tip, speed; got 'nose'"):
        pendulum(sensors=("nose",))
    with pytest.raises(TypeError, match=r"sensors: expected a sequence of names, got 'tip'"):
        pendulum(sensors="tip")
    with pytest.raises(ValueError, match=r"frame_skip: expected at least 1"):
        pendulum(frame_skip=0)
    model = pendulum()
    with pytest.raises(ValueError, match=r"state: expected \(\*batch, 2\) as state_of\(env\) returns it, got \(3,\)"):
        model.rollout(torch.zeros(3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"actions: expected \(\*batch, H, 1\), got \(4, 2\)"):
        model.rollout(torch.zeros(2), torch.zeros(4, 2))
    for observation in (np.zeros(2), {"position": np.zeros(2)}):  # run(..., state_of=model.state_of) gives these
        with pytest.raises(TypeError, match=r"source: expected an environment, .* got (ndarray|dict)"):
            model.state_of(observation)


def test_bounds_and_shapes() -> None:
    model = pendulum()
    assert (model.state_shape, model.action_shape) == ((2,), (1,))
    assert [bound.tolist() for bound in model.bounds] == [[-2.0], [2.0]]
    unlimited = MujocoModel(mujoco.MjModel.from_xml_string(UNSTABLE))
    assert [bound.tolist() for bound in unlimited.bounds] == [[-torch.inf], [torch.inf]]


def test_sensors_of_a_state_that_mujoco_sets_back_are_a_failure() -> None:
    """A speed beyond 1e10 makes MuJoCo start anew and read its sensors at rest: 0 is not what the state has."""
    xml = UNSTABLE.replace(' stiffness="1e6"', "").replace(
        "</mujoco>", '<sensor><jointvel name="speed" joint="x"/></sensor></mujoco>'
    )
    model = MujocoModel(mujoco.MjModel.from_xml_string(xml), sensors=("speed",))
    without = MujocoModel(model.model)
    mass = float(model.model.body_mass[1])
    start, actions = torch.tensor([0.0, 0.995e10, 0.0]), torch.tensor([[[0.0]], [[9e9 * min(mass, 1.0)]]])
    for states in (model.rollout(start, actions), without.rollout(start[:2], actions)):
        assert states[0].isfinite().all()
        assert states[1, 0].isfinite().all()
        assert states[1, 1, 1:].isnan().all()
    torch.testing.assert_close(model.rollout(start, actions)[0, 1], torch.tensor([0.995e8, 0.995e10, 0.995e10]))


def test_sensors_are_read_of_the_present_state() -> None:
    model = pendulum(sensors=("tip", "speed"))
    data = mujoco.MjData(model.model)
    data.qvel[:] = 2.0
    mujoco.mj_step(model.model, data)
    assert data.sensordata[3] == pytest.approx(2.0, abs=1e-12)  # MuJoCo's own are those before the step
    state = model.state_of(data)
    torch.testing.assert_close(state, model.rollout(state, torch.zeros(1, 1))[0])
    assert state[5] == data.qvel[0] != data.sensordata[3]


@pytest.mark.parametrize("name", ["xfrc_applied", "qfrc_applied", "mocap_pos", "mocap_quat", "eq_active"])
def test_inputs_that_a_rollout_lacks_are_refused(name: str) -> None:
    xml = PENDULUM.replace("<worldbody>", '<worldbody><body name="hand" mocap="true" pos="1 2 3"/>').replace(
        "<actuator>", '<equality><joint joint1="hinge" active="false"/></equality><actuator>'
    )
    model = MujocoModel(mujoco.MjModel.from_xml_string(xml))
    data = mujoco.MjData(model.model)
    model.state_of(data)
    getattr(data, name).flat[1 if name == "mocap_quat" else 0] += 1
    with pytest.raises(ValueError, match=f"source: expected {name} as the model has it"):
        model.state_of(data)


def test_wrappers_that_change_actions_are_refused() -> None:
    from dm_control.suite.wrappers import action_scale

    env = suite.load("cartpole", "swingup")
    with pytest.raises(ValueError, match=r"source: expected an environment whose actions are the model's controls"):
        MujocoModel(action_scale.Wrapper(env, minimum=-2.0, maximum=2.0))
    same = action_scale.Wrapper(env, minimum=-1.0, maximum=1.0)
    assert MujocoModel(same).action_shape == MujocoModel(env).action_shape


def test_gymnasiums_wrappers_that_change_actions_are_refused() -> None:
    gymnasium = pytest.importorskip("gymnasium")

    class Env(gymnasium.Env):
        def __init__(self) -> None:
            self.model = mujoco.MjModel.from_xml_string(PENDULUM)
            self.data, self.frame_skip = mujoco.MjData(self.model), 2
            self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,))
            self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    class Half(gymnasium.ActionWrapper):
        def action(self, action):
            return action / 2

    assert MujocoModel(gymnasium.wrappers.TimeLimit(Env(), 5)).frame_skip == 2
    assert MujocoModel(gymnasium.wrappers.ClipAction(Env())).frame_skip == 2
    rescaled = gymnasium.wrappers.RescaleAction(Env(), np.float32(-1), np.float32(1))
    for wrapped in (Half(Env()), rescaled, gymnasium.wrappers.TimeLimit(Half(Env()), 5)):
        with pytest.raises(ValueError, match=r"source: expected an environment whose actions .*, which changes them"):
            MujocoModel(wrapped)
        MujocoModel(wrapped.unwrapped)


def test_an_environment_that_compiles_anew_is_followed() -> None:
    heavy = PENDULUM.replace('mass="1"', 'mass="4"')
    physics = SimpleNamespace(model=mujoco.MjModel.from_xml_string(PENDULUM))
    model = MujocoModel(physics)
    copied = copy.deepcopy(model)
    state, actions = torch.tensor([0.3, 0.0]), torch.ones(5, 1)
    light = model.rollout(state, actions)
    physics.model = mujoco.MjModel.from_xml_string(heavy)
    expected = MujocoModel(mujoco.MjModel.from_xml_string(heavy)).rollout(state, actions)
    assert torch.equal(model.rollout(state, actions), expected)
    assert not torch.equal(light, expected)
    assert torch.equal(copied.rollout(state, actions), light)


def test_what_others_are_derived_of_refuses_to_be_set() -> None:
    model = pendulum(frame_skip=3)
    for name in ("frame_skip", "sensors", "num_carried", "num_threads", "state_shape", "dt", "bounds", "model"):
        with pytest.raises(AttributeError):
            setattr(model, name, getattr(model, name))
    with pytest.raises(
        AttributeError, match="frame_skip: expected to stay as constructed, 5 needs another MujocoModel"
    ):
        model.frame_skip = 5
    model.model.opt.timestep = 0.01
    assert model.dt == pytest.approx(0.03)


def test_whole_numbers_are_a_state():
    """They are not what all states are rounded to."""
    model = MujocoModel(mujoco.MjModel.from_xml_string(PENDULUM))
    state, actions = torch.tensor([1, 0]), torch.ones(4, 1)
    assert torch.equal(model.rollout(state, actions), model.rollout(state.to(torch.get_default_dtype()), actions))
    for wrong, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="^num_carried: expected"):
            MujocoModel(mujoco.MjModel.from_xml_string(PENDULUM), num_carried=wrong)

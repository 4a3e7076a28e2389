"""The controller as a plain function, in a loop of one's own and in `dcem.control.run`."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import dcem
from dcem.control import MPC, run

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("torchrl")

from rl_cases import Filter, filter_mpc, pendulum_mpc, short_pendulum_env  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.collectors import Collector  # noqa: E402
from torchrl.envs import SerialEnv  # noqa: E402

from dcem.rl import policy  # noqa: E402
from dcem.world import RSSM, LatentModel, WorldModel  # noqa: E402


def test_a_loop_of_ones_own():
    act, env = policy(pendulum_mpc(), seed=0), gymnasium.make("Pendulum-v1")
    observation, _ = env.reset(seed=0)
    mpc, plan, generator = pendulum_mpc(), None, torch.Generator().manual_seed(0)
    for _ in range(5):
        action = act(observation)
        plan = mpc(torch.from_numpy(observation), warm_start=plan, generator=generator)
        np.testing.assert_allclose(action, plan.action.numpy(), rtol=1e-6)
        observation, *_ = env.step(action)
    act.reset()
    fresh = policy(pendulum_mpc())
    torch.manual_seed(3)
    first = policy(pendulum_mpc())(observation)
    torch.manual_seed(3)
    assert fresh(observation) == pytest.approx(first)


def test_a_seed_replays_a_model_that_draws():
    torch.manual_seed(0)
    model = RSSM(3, 1, deterministic_size=8, stochastic_size=4, hidden_sizes=(8,), carry="sample")
    mpc = dcem.control.MPC(model.imagine, model.cost, 3, 1, (-2.0, 2.0), dcem.CEM(8, 2), num_iterations=2)
    seen, played = torch.randn(3, 3), []
    for seed in (0, 0, 1):
        act = policy(mpc, model, seed=seed)
        played.append(torch.stack([act(observation) for observation in seen]))
    assert torch.equal(played[0], played[1])
    assert not torch.equal(played[0], played[2])


def test_run_resets_it_where_episodes_begin():
    model = Filter()
    act = policy(filter_mpc(model), model, seed=0)
    seen = []
    reset = act.reset

    def noting(where=None):
        seen.append(where.clone())
        reset(where)

    act.reset = noting
    envs = [gymnasium.make("Pendulum-v1", max_episode_steps=n) for n in (3, 4)]
    episodes = run(act, envs, num_steps=5, seed=0, record=True)
    assert episodes.error is None
    assert [where.tolist() for where in seen] == [[True, True], [True, False], [False, True]]
    # What it believes now is what the filter believes that has seen the present episode alone.
    with torch.no_grad():
        belief, action = model.initial(()), torch.zeros(1)
        for t in (3, 4):
            belief = model.observe(belief, action, episodes.states[t, 0])
            action = episodes.actions[t, 0]
        torch.testing.assert_close(act.memory.belief["mean"][0], belief["mean"])
        torch.testing.assert_close(act.memory.belief["sum"][0], belief["sum"])


def test_a_policy_that_has_acted_may_be_run_in_another_number_of_environments():
    env = gymnasium.make("Pendulum-v1", max_episode_steps=4)
    act = policy(pendulum_mpc(), seed=0)
    act(np.tile(np.array([1.0, 0.0, 0.0]), (3, 1)))
    assert run(act, env, seed=0).error is None
    act.reset(np.array([True, True, True]))
    assert act(np.zeros((3, 3))).shape == (3, 1)


def test_run_plays_it_as_it_plays_the_controller():
    envs = [gymnasium.make("Pendulum-v1", max_episode_steps=20) for _ in range(2)]
    plain = run(policy(pendulum_mpc(), seed=0), envs, seed=0)
    direct = run(pendulum_mpc(), envs, seed=0)
    torch.testing.assert_close(plain.returns, direct.returns)


def test_batches_arrays_tensors_states_and_residuals():
    act = policy(pendulum_mpc(), state_of=lambda x: x * 1.0, residual=nn.Linear(3, 1), seed=0)
    observations = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    tensor = act(observations)
    act.reset()
    assert isinstance(tensor, torch.Tensor)
    assert isinstance(act(observations.numpy().astype(np.float64)), np.ndarray)
    assert not tensor.requires_grad


def test_input_that_makes_no_sense_loses_nothing():
    act = policy(pendulum_mpc(), seed=0)
    act(torch.tensor([1.0, 0.0, 0.0]))
    memory = act.memory
    with pytest.raises(ValueError, match="observation: expected finite numbers, got 1 that are not, the first nan"):
        act(torch.tensor([1.0, float("nan"), 0.0]))
    with pytest.raises(ValueError, match=r"observation: expected a batch \(\) as before, got \(2,\)"):
        act(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"state: expected shape \(\*batch, 3\)"):
        act(torch.zeros(4))
    with pytest.raises(TypeError, match="observation: expected an array or a tensor, got dict"):
        act({"position": 1.0})
    assert act.memory is memory
    with pytest.raises(TypeError, match="mpc: expected a dcem.control.MPC"):
        policy(lambda x: x)
    with pytest.raises(TypeError, match="envs: expected a Box of continuous actions"):
        run(act, gymnasium.make("CartPole-v1"))


def test_an_observation_that_was_refused_at_first_decides_nothing():
    """Neither how many environments there are nor what is drawn."""
    model = LatentModel(3, 1, latent_size=16, hidden=16)
    mpc = dcem.control.MPC(model.imagine, lambda z, u: u.sum(-1), 2, 1, (-1.0, 1.0), dcem.CEM(8, 2), num_iterations=1)
    act, fresh = policy(mpc, model, seed=0), policy(mpc, model, seed=0)
    for refused in (np.zeros((2, 4)), np.full((4, 3), np.nan)):
        with pytest.raises(ValueError, match="observation: expected"):
            act(refused)
    assert act.memory is act.generator is None
    np.testing.assert_array_equal(act(np.zeros(3)), fresh(np.zeros(3)))


def test_a_decision_that_raised_leaves_the_next_one_as_it_would_have_been():
    def residual(state):
        if raises:
            raise ArithmeticError
        return torch.zeros(1)

    failing, other = (policy(pendulum_mpc(), residual=residual, seed=0) for _ in range(2))
    observation, raises = np.array([1.0, 0.0, 0.5]), False
    assert failing(observation) == other(observation)
    raises = True
    with pytest.raises(ArithmeticError):
        failing(observation)
    raises = False
    assert failing(observation) == other(observation)


def test_episodes_that_begin_are_told_as_environments_tell_them():
    act = policy(pendulum_mpc(), seed=0)
    observations = np.tile(np.array([1.0, 0.0, 0.0]), (4, 1))
    act(observations)
    act.reset(np.array([True, False, False, True]))
    assert act.memory.started.tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match=r"where: expected the shape \(4,\) of the batch, got \(2,\)"):
        act.reset(torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"got \(\)"):  # would have been broadcast
        act.reset(True)
    with pytest.raises(TypeError, match=r"where: expected booleans, got torch\.int64"):
        act.reset(torch.tensor([1, 0, 0, 1]))
    assert act.memory.started.tolist() == [False, True, True, False]
    np.testing.assert_array_equal(act(observations[:, ::-1]).shape, (4, 1))  # torch takes no reversed views


@pytest.mark.parametrize(
    "model",
    [
        LatentModel(3, 1, latent_size=16, hidden=16),
        RSSM(3, 1, deterministic_size=8, stochastic_size=4, hidden_sizes=(8,)),
    ],
)
def test_observations_are_taken_in_the_precision_of_the_model(model):
    for dtype, seen in (
        (torch.float32, torch.zeros(3).double()),
        (torch.float64, np.zeros(3)),
        (torch.bfloat16, [0.0] * 3),
    ):
        model = model.to(dtype)
        mpc = dcem.control.MPC(model.imagine, model.cost, 2, 1, (-1.0, 1.0), dcem.CEM(8, 2), num_iterations=1)
        assert np.isfinite(np.asarray(policy(mpc, model, seed=0)(seen))).all()


def test_the_model_observes_what_was_applied():
    model = Filter()
    mpc = dcem.control.MPC(
        model.imagine, lambda b, u: -u.sum(-1), 4, 1, (-20.0, 20.0), dcem.CEM(12, 3), num_iterations=2
    )
    act = policy(mpc, model, seed=0)
    with pytest.raises(RuntimeError, match="applied: expected an action to have been decided"):
        act.applied([1.0])
    total = 0.0
    for step in range(3):
        act(np.zeros(3))
        assert act.memory.belief["sum"].item() == pytest.approx(total)
        act.applied(np.array([0.25 * step]))  # whatever was decided
        total += 0.25 * step
    buffer, before = np.zeros(1, np.float32), act(np.zeros(3, np.float32))
    act.applied(buffer)
    buffer[:], before[:] = 99.0, 99.0  # what others do with their memory
    assert act.memory.action.item() == 0.0
    with pytest.raises(ValueError, match=r"action: expected the shape \(1,\) of the last one, got \(2,\)"):
        act.applied(np.zeros(2))
    # `run` says it: the environment clips to 2.
    episodes = run(act, gymnasium.make("Pendulum-v1"), num_steps=4, seed=0, record=True)
    assert episodes.num_clipped > 0
    believed = act.memory.belief["sum"][0]
    torch.testing.assert_close(believed, episodes.actions[:3, 0].sum(0).to(believed))


class _Over(gymnasium.Wrapper):
    """After two steps it is over, and shows no numbers."""

    def step(self, action):
        self.taken = getattr(self, "taken", 0) + 1
        observation, reward, *_ = self.env.step(action)
        over = self.taken >= 2
        return np.full_like(observation, np.nan) if over else observation, reward, over, False, {}


def test_an_environment_that_is_over_and_shows_no_numbers_does_not_stop_the_others():
    envs = [_Over(gymnasium.make("Pendulum-v1")), gymnasium.make("Pendulum-v1", max_episode_steps=5)]
    episodes = run(policy(pendulum_mpc(), seed=0), envs, seed=0)
    assert episodes.lengths.tolist() == [2, 5]
    assert episodes.returns.isfinite().all()


class _Blinking(gymnasium.Wrapper):
    """Shows no numbers after its second step, and goes on."""

    def step(self, action):
        self.taken = [*getattr(self, "taken", []), float(action[0])]
        observation, *rest = self.env.step(action)
        return np.full_like(observation, np.nan) if len(self.taken) == 2 else observation, *rest


@pytest.mark.parametrize("with_model", [False, True])
def test_an_observation_without_numbers_costs_one_decision(with_model):
    def make(model):
        mpc = pendulum_mpc() if model is None else dcem.control.MPC(
            model.imagine, model.cost, 3, 1, (-2.0, 2.0), dcem.CEM(12, 3), num_iterations=1
        )  # fmt: skip
        return policy(mpc, model, seed=0)

    act = make(RSSM(3, 1, deterministic_size=8, stochastic_size=4, hidden_sizes=(8,)) if with_model else None)
    resets = []
    forget = act.reset
    act.reset = lambda where: (resets.append(where.tolist()), forget(where))
    envs = [_Blinking(gymnasium.make("Pendulum-v1", max_episode_steps=5)),
            gymnasium.make("Pendulum-v1", max_episode_steps=5)]  # fmt: skip
    episodes = run(act, envs, seed=0)
    assert episodes.error is None
    assert episodes.lengths.tolist() == [5, 5]
    assert episodes.num_replaced == 1
    assert envs[0].taken[2] == 0.0 != envs[0].taken[3]
    assert resets == [[True, True], [True, False]]  # the next decision starts afresh, in that environment alone


def test_a_solve_that_failed_is_not_remembered():
    mpc = dcem.control.MPC(
        lambda x, u: x + u, lambda x, u: torch.where(x[..., 0] > 5, torch.nan, 1.0) + u[..., 0], 3, 1
    )
    act = policy(mpc, seed=0)
    act(torch.zeros(1))
    assert bool(act.memory.started)
    act(torch.full((1,), 9.0))
    assert not bool(act.memory.started)


def test_a_controller_as_a_plain_policy_of_torchrl() -> None:
    """In `env.rollout` and in a collector, over ends of episodes: the action for each observation is that of its plan."""
    mpc, noise = pendulum_mpc(1.0), torch.randn(2, 1, 12, 5, 1, generator=torch.Generator().manual_seed(0))

    def plan(observation: torch.Tensor) -> torch.Tensor:
        each = noise.expand(2, observation.numel() // 3, 12, 5, 1)
        return mpc(observation, noise=each.reshape(2, *observation.shape[:-1], 12, 5, 1)).action

    env, planner = SerialEnv(2, short_pendulum_env), TensorDictModule(plan, ["observation"], ["action"])
    data = env.rollout(7, planner, break_when_any_done=False)
    torch.testing.assert_close(data["action"], plan(data["observation"]), rtol=1e-3, atol=1e-3)
    assert data["next", "done"].any()
    collector = Collector(env, planner, frames_per_batch=14, total_frames=28, auto_register_policy_transforms=True)
    for data in collector:
        torch.testing.assert_close(data["action"], plan(data["observation"]), rtol=1e-3, atol=1e-3)
    collector.shutdown()


@pytest.mark.parametrize("as_array", [True, False])
def test_a_belief_that_is_what_was_seen_is_not_the_callers_buffer(as_array):
    class LastTwo(WorldModel):
        """Believes the last two observations."""

        def __init__(self):
            super().__init__(1, 1)

        def initial(self, batch_shape=()):
            return torch.zeros(*batch_shape, 1), torch.zeros(*batch_shape, 1)

        def observe(self, belief, action, observation):
            return observation, belief[0]

        def imagine(self, belief, action):
            return belief[0] + (belief[0] - belief[1]) + 0.5 * action, belief[0]

        def cost(self, belief, action):
            return belief[0].square().sum(-1)

        def loss(self, sequences):
            raise NotImplementedError

    model = LastTwo()
    mpc = MPC(model.imagine, model.cost, 4, 1, (-1.0, 1.0), dcem.CEM(64, 8), num_iterations=2)

    def play(reuse):
        act, actions = dcem.rl.policy(mpc, model, seed=0), []
        buffer = np.zeros(1, np.float32) if as_array else torch.zeros(1)
        for place in (1.0, 0.6, 0.3, 0.1):
            buffer[:] = place
            actions.append(act(buffer if reuse else copy.deepcopy(buffer)).item())
        return actions

    assert play(reuse=True) == play(reuse=False)


def test_a_controller_in_double_precision_is_given_doubles():
    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x, u):
            return x + self.layer(torch.cat([x, u], -1))

    mpc = MPC(Step(), lambda x, u: x.square().sum(-1), 4, 1, (-2.0, 2.0), dcem.CEM(16, 3), num_iterations=2).double()
    for controller in (mpc, dcem.rl.policy(mpc)):
        env = gymnasium.make("Pendulum-v1", max_episode_steps=3)
        assert dcem.control.run(controller, env, seed=0, record=True).states.dtype == torch.float64
    assert dcem.rl.policy(mpc)(np.zeros((2, 3))[::-1]).dtype == np.float64
    step = TensorDict(observation=torch.zeros(2, 3, dtype=torch.float64), batch_size=[2])
    assert dcem.rl.Actor(mpc)(step)["loc"].dtype == torch.float64

"""What goes wrong with recurrent policies in TorchRL, and does not here; input that makes no sense."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import dcem

pytest.importorskip("torchrl")
pytest.importorskip("gymnasium")

import gymnasium
from rl_cases import Filter, collected, filter_mpc, pendulum_env, pendulum_mpc
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import Bounded
from torchrl.envs import ExplorationType, GymEnv, SerialEnv, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from dcem.rl import Actor, policy
from dcem.rl.storage import _is_wider
from dcem.world import RSSM


def filtering_actor(std=0.3):
    model = Filter()
    return Actor(filter_mpc(model), model, std=std)


def belief_critic(actor):
    torch.manual_seed(1)
    return TensorDictSequential(actor.observer(), ValueOperator(MLP(4, 1, num_cells=[8]), in_keys=["state"]))


def test_gae_finds_at_each_next_step_the_belief_that_the_actor_found_there():
    """Also where an episode ends, and for the last step of a batch: nothing is filled in from the root, no ``is_init``
    wipes it."""
    actor = filtering_actor()
    data, critic = collected(actor), belief_critic(actor)
    assert "is_init" in data  # the collector's; GAE lets it leak into the next step
    assert "is_init" not in critic.in_keys
    GAE(gamma=0.9, lmbda=0.8, value_network=critic, deactivate_vmap=True)(data)
    # An independent account: the filter run along each episode, one step beyond its end.
    net, model = critic[1].module, actor.controller.model
    with torch.no_grad():
        for env in range(2):
            belief, action = model.initial(()), torch.zeros(1)
            for t in range(data.shape[1]):
                step = data[env, t]
                if not step["started"]:
                    belief, action = model.initial(()), torch.zeros(1)
                belief, action = model.observe(belief, action, step["observation"]), step["action"]
                value = net(torch.cat([belief["mean"], belief["sum"]]))
                torch.testing.assert_close(step["state_value"], value)
                after = model.observe(belief, action, step["next", "observation"])
                value = net(torch.cat([after["mean"], after["sum"]]))
                torch.testing.assert_close(step["next", "state_value"], value)


def test_gae_with_a_solve_in_the_value():
    actor = filtering_actor()
    data = collected(actor)
    planned = ValueOperator(nn.Linear(1, 1), in_keys=["loc"])
    GAE(gamma=0.9, lmbda=0.8, value_network=TensorDictSequential(actor.planner, planned), deactivate_vmap=True)(data)
    with torch.no_grad():
        torch.testing.assert_close(data["state_value"], planned.module(data["loc"]))
        inside = ~data["next", "done"].squeeze(-1)[:, :-1]
        torch.testing.assert_close(data["next", "state_value"][:, :-1][inside], data["state_value"][:, 1:][inside])


def test_without_a_primer_a_model_does_not_forget_silently():
    actor = filtering_actor()
    with pytest.raises(
        Exception, match=r"previous_action: expected this key in the tensordict.*make_tensordict_primer"
    ):
        pendulum_env().rollout(3, actor)
    with pytest.raises(Exception, match="make_tensordict_primer"):
        belief_critic(actor)(TensorDict(observation=torch.zeros(2, 3), batch_size=[2]))


def test_a_collector_registers_the_primer_once():
    actor = filtering_actor()
    env = TransformedEnv(pendulum_env(), actor.make_tensordict_primer())
    collector = Collector(env, actor, frames_per_batch=4, total_frames=4, auto_register_policy_transforms=True)
    names = [type(transform).__name__ for transform in collector.env.transform]
    collector.shutdown()
    assert names.count("Primer") == 1


def test_an_episode_begins_without_the_memory_of_the_one_before():
    actor = filtering_actor()
    data = collected(actor)
    begin = ~data["started"].squeeze(-1)
    assert begin.sum() == 6
    with torch.no_grad():
        fresh = TensorDict(observation=data["observation"][begin], batch_size=[6])
        fresh = TensorDict(
            {**fresh, "started": torch.zeros(6, 1, dtype=torch.bool), "previous_action": torch.full((6, 1), 9.0),
             "belief": {"0": torch.full((6, 3), 9.0), "1": torch.full((6, 1), 9.0)}, "plan": torch.full((6, 4, 1), 9.0)},
            batch_size=[6],
        )  # fmt: skip
        torch.testing.assert_close(actor.planner(fresh)["loc"], data["loc"][begin])


def test_what_was_applied_is_remembered_whoever_chose_it():
    actor = filtering_actor()
    env = TransformedEnv(pendulum_env(), actor.make_tensordict_primer())
    step = env.reset()
    with torch.no_grad():
        step = actor(step)
        step["action"] = step["action"] + 0.25  # exploration from outside
        step = env.step(step)
    torch.testing.assert_close(step["next", "previous_action"], step["action"])
    after = env.step_mdp(step)
    assert bool(after["started"])
    random = env.rand_step(after)  # a step that the actor did not decide: its belief has a gap
    assert not bool(random["next", "started"])


def test_random_frames_before_the_policy_begins():
    actor = filtering_actor()
    data = collected(actor, init_random_frames=24, frames=24, make=pendulum_env)
    assert not data["started"].any()
    data = collected(actor, frames=24, make=pendulum_env)
    assert data["started"].sum() == 22


def test_stored_inputs_are_read_with_new_weights_consistently():
    """Stale beliefs are a bias, not an inconsistency: the ratio compares two policies on the same stored inputs."""
    actor = filtering_actor()
    data = collected(actor)
    with torch.no_grad():
        actor.controller.model.goal += 0.3
        flat = data.reshape(-1)
        whole = actor.get_dist(flat.copy()).log_prob(flat["action"])
        order = torch.randperm(24)
        shuffled = actor.get_dist(flat[order]).log_prob(flat["action"][order])
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole, flat["action_log_prob"], atol=1e-2)


def test_workers_do_not_keep_old_weights():
    """In one process policy and collector share them; between processes see ``test_actor``."""
    actor = filtering_actor()
    collector = Collector(
        SerialEnv(2, pendulum_env), actor, frames_per_batch=8, total_frames=16, auto_register_policy_transforms=True
    )
    for data in collector:
        with torch.no_grad():
            torch.testing.assert_close(actor.get_dist(data.copy()).log_prob(data["action"]), data["action_log_prob"])
            actor.controller.model.goal += 0.5
    collector.shutdown()


def test_a_failed_simulator_is_an_error_that_names_the_observation():
    actor = Actor(pendulum_mpc(nn.Parameter(torch.tensor(1.3))))
    before = {name: value.clone() for name, value in actor.state_dict().items() if isinstance(value, torch.Tensor)}
    broken = TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0], [1.0, float("nan"), 0.0]]), batch_size=[2])
    with pytest.raises(
        Exception, match=r"observation: expected finite numbers, got 1 that are not, the first nan at \(1, 1\)"
    ):
        actor(broken)
    assert all(torch.equal(value, before[name]) for name, value in actor.state_dict().items() if name in before)


def test_observations_of_the_wrong_kind():
    actor, model = Actor(pendulum_mpc()), filtering_actor()
    with pytest.raises(Exception, match=r"state: expected shape \(\*batch, 3\), got \(2, 1, 4\)|expected shape"):
        actor(TensorDict(observation=torch.zeros(2, 4), batch_size=[2]))
    data = collected(model, frames=4, num=1).reshape(-1)
    data["observation"] = torch.zeros(4, 5)
    with pytest.raises(Exception, match=r"observation: expected shape \(4, 3\), got \(4, 5\)"):
        model(data)
    with pytest.raises(Exception, match=r"observation: expected this key, got \['position'\]"):
        actor(TensorDict(position=torch.zeros(2, 3), batch_size=[2]))
    with pytest.raises(
        Exception, match=r"observation: expected a floating-point tensor \(\*batch, o\), got torch.uint8"
    ):
        actor(TensorDict(observation=torch.zeros(2, 3, dtype=torch.uint8), batch_size=[2]))


def test_an_actor_says_where_it_belongs():
    actor = Actor(pendulum_mpc())
    with pytest.raises(KeyError, match=r"got \['velocity'\]; append CatTensors\(\[...\], .observation.\)"):
        actor(TensorDict(velocity=torch.zeros(2, 3), batch_size=[2]))
    for given in (actor, filtering_actor()):
        with pytest.raises(
            TypeError, match=r"policy: .*got Actor, which decides for tensordicts: give dcem.rl.policy\(mpc"
        ):
            dcem.control.run(given, gymnasium.make("Pendulum-v1"))


def test_environments_whose_actions_do_not_fit():
    actor = Actor(pendulum_mpc())
    says = r"(?s)action: expected an environment of continuous actions \(1,\), got .*; discrete actions are planned .*Categ"
    with pytest.raises(TypeError, match=says):
        TransformedEnv(GymEnv("CartPole-v1"), actor.make_tensordict_primer())
    choices = dcem.Categorical(torch.zeros(3, 2), event_dims=2)
    for init in (choices, dcem.Product([dcem.Gaussian(torch.zeros(3, 1), 1.0, 2), choices])):
        mpc = dcem.control.MPC(lambda x, u: x, lambda x, u: x.sum(-1), 3, init.event_shape[-1], init=init)
        with pytest.raises(ValueError, match=r"mpc: expected .* continuous actions.* got one of choices, .*rl.policy"):
            Actor(mpc)
        assert dcem.rl.policy(mpc)(torch.zeros(3)).shape == init.event_shape[-1:]
    two = Actor(dcem.control.MPC(lambda x, u: x, lambda x, u: x.sum(-1), 3, 2))
    with pytest.raises(ValueError, match=r"action: expected an environment of actions of shape \(2,\), got \(1,\)"):
        TransformedEnv(pendulum_env(), two.make_tensordict_primer())
    for bounds, fits in (
        ((-2, 2), True),
        ((-1, 2), True),
        ((-2, 2.5), False),
        ((-2.5, 1), False),
        (None, False),
        ((-1, None), False),
    ):
        wide = Actor(dcem.control.MPC(lambda x, u: x, lambda x, u: x.sum(-1), 3, 1, bounds))
        with (
            nullcontext()
            if fits
            else pytest.raises(
                ValueError,
                match=r"action: expected .* takes the controller's actions, between \[-(2|1|inf).* give these to MPC as its bounds",
            )
        ):
            TransformedEnv(pendulum_env(), wide.make_tensordict_primer())
    for low, high, fits in ((0.0, torch.inf, False), (-1.0, torch.inf, True), (0.0, 1e6, False), (-1e6, 1.0, True)):
        assert _is_wider((torch.tensor([-1.0]), torch.tensor([1.0])), Bounded(low, high, (3, 1))) is not fits
    for low, high, fits in ((-torch.inf, torch.inf, True), (-3e38, 3e38, False), (-torch.inf, 1.0, False)):
        free = torch.tensor([-torch.inf]), torch.tensor([torch.inf])
        assert _is_wider(free, Bounded(low, high, (3, 1))) is not fits
    everywhere = torch.finfo(torch.float32)
    assert not _is_wider(free, Bounded(everywhere.min, everywhere.max, (3, 1)))
    with pytest.raises(TypeError, match="action: expected an environment of continuous actions"):
        Collector(
            GymEnv("CartPole-v1"), actor, frames_per_batch=2, total_frames=2, auto_register_policy_transforms=True
        )


@pytest.mark.parametrize(
    "std", [0.0, 0, -1.0, float("nan"), float("inf"), torch.zeros(1), nn.Parameter(torch.zeros(()))]
)
def test_a_std_that_is_none(std):
    with pytest.raises(ValueError, match="std: expected finite numbers > 0, got"):
        Actor(pendulum_mpc(), std=std)


@pytest.mark.cpu  # on a GPU the host would wait for it
@pytest.mark.parametrize(("became", "got"), [(float("nan"), "nan"), (float("inf"), "inf"), (0.0, "0")])
def test_a_learned_std_that_became_none_decides_nothing(became, got):
    actor = Actor(pendulum_mpc(), std=nn.Parameter(torch.tensor(-0.2)))
    seen = TensorDict(observation=torch.zeros(1, 3), batch_size=[1])
    assert actor(seen.copy())["scale"].item() == pytest.approx(0.2)
    actor.std.data.fill_(became)
    for call in (actor, actor.get_dist):
        with pytest.raises(Exception, match=f"std: expected numbers > 0 and finite, got {got}"):
            call(seen.copy())


def test_arguments_of_the_wrong_kind():
    with pytest.raises(TypeError, match="mpc: expected a dcem.control.MPC, got function"):
        Actor(lambda x: x)
    with pytest.raises(TypeError, match="model: expected a world model with a method initial, got Linear"):
        Actor(pendulum_mpc(), nn.Linear(1, 1))
    with pytest.raises(TypeError, match="std: expected a number, got '1'"):
        Actor(pendulum_mpc(), std="1")
    with pytest.raises(ValueError, match=r"std: expected a shape that broadcasts to the action \(1,\), got \(2,\)"):
        Actor(pendulum_mpc(), std=torch.ones(2))
    with pytest.raises(ValueError, match="state_of: expected None with a model"):
        Actor(filter_mpc(Filter()), Filter(), state_of=lambda x: x)
    with pytest.raises(TypeError, match="residual: expected a callable or None, got 3"):
        Actor(pendulum_mpc(), residual=3)
    with pytest.raises(Exception, match=r"residual: expected a correction \(\*batch, \*a\) = \(2, 1\), got \(2, 3\)"):
        Actor(pendulum_mpc(), residual=nn.Identity())(TensorDict(observation=torch.zeros(2, 3), batch_size=[2]))


def test_settings_of_the_controller_that_change_later():
    mpc = pendulum_mpc()
    actor = Actor(mpc, std=1.0)
    step = TensorDict(observation=torch.tensor([-1.0, 0.0, 0.0]).expand(64, 3), batch_size=[64])
    mpc.bounds = (-0.1, 0.2)
    with set_exploration_type(ExplorationType.RANDOM):
        drawn = actor(step.clone())
    assert bool(((drawn["action"] >= -0.1) & (drawn["action"] <= 0.2)).all())
    assert bool(drawn["action_log_prob"].isfinite().all())
    for name, value in (("num_iterations", 3), ("solver", dcem.CEM(20, 3))):
        before = getattr(mpc, name)
        setattr(mpc, name, value)
        with pytest.raises(Exception, match="mpc: expected num_iterations and num_samples to stay .* make another"):
            actor(step.clone())
        setattr(mpc, name, before)
    with pytest.raises(TypeError, match="seed: expected an int, got None"):
        Actor(mpc, seed=None)


def test_a_checkpoint_of_another_controller():
    model = Filter()
    actor = Actor(filter_mpc(model), model)
    others = {
        "search": Actor(filter_mpc(Filter(), num_iterations=3), Filter()),
        "task": Actor(pendulum_mpc()),
    }
    for other in others.values():
        with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|Missing key|expected"):
            other.load_state_dict(actor.state_dict())


def test_a_residual_that_leaves_the_bounds_can_come_back():
    shift = nn.Linear(3, 1)
    with torch.no_grad():
        shift.weight.zero_()
        shift.bias.fill_(9.0)
    actor = Actor(pendulum_mpc(), std=0.3, residual=shift)
    data = TensorDict(observation=torch.tensor([[1.0, 0.0, 0.0]]), batch_size=[1])
    with set_exploration_type(ExplorationType.RANDOM):
        step = actor(data)
    assert step["loc"] == 2
    assert step["action"] < 2
    dist = actor.get_dist(step)
    (-dist.log_prob(torch.tensor([[1.0]]))).sum().backward()
    assert shift.bias.grad > 0  # descent pulls it down to where good actions are


def test_a_loss_made_before_knows_the_bounds_of_today():
    """It holds the actor's tensors, so that bounds kept in one would be those of the day it was made."""
    mpc = pendulum_mpc()
    actor = Actor(mpc, std=0.5)
    loss = ClipPPOLoss(actor, ValueOperator(nn.Linear(3, 1), in_keys=["observation"]), entropy_bonus=False)
    seen = torch.tensor([-1.0, 0.0, 0.0]).expand(64, 3)
    for bounds in ((-0.4, 0.4), (-5.0, 5.0)):
        mpc.bounds = bounds
        loss(_judged(actor, seen))  # and it may be the first to see them
        data = _judged(actor, seen)
        assert bool((data["action"].abs() <= bounds[1]).all())
        assert loss(data)["kl_approx"].abs() < 1e-5


def _judged(actor, seen):
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        data = actor(TensorDict(observation=seen, batch_size=[len(seen)]))
    zeros = torch.zeros(len(seen), 1)
    return data.update({"advantage": zeros, "value_target": zeros})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planned_and_corrected_actions_on_a_bound_that_has_no_exact_number(dtype):
    """0.3 is between two floats: what is clipped to them is inside, and has a density."""
    for residual in (None, lambda state: torch.full_like(state[..., :1], 7.3)):
        mpc = dcem.control.MPC(
            lambda x, u: x + u, lambda x, u: -u.sum(-1), 2, 1, (-0.3, 0.3), dcem.CEM(16, 4, dcem.HardTopK())
        )
        actor = Actor(mpc, std=0.2, residual=residual).to(dtype)
        data = TensorDict(observation=torch.linspace(0, 1, 50, dtype=dtype).unsqueeze(-1), batch_size=[50])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            step = actor(data)
        low, high = actor.controller.bounds(step["loc"])
        assert bool(((step["action"] >= low) & (step["action"] <= high)).all())
        assert bool(step["action_log_prob"].isfinite().all())


def test_a_model_that_draws_beliefs_is_no_model_of_an_actor():
    model = RSSM(3, 1, carry="sample")
    mpc = dcem.control.MPC(model.imagine, model.cost, 2, 1, (-2.0, 2.0), dcem.CEM(8, 2), num_iterations=1)
    with pytest.raises(ValueError, match="model: expected carry='mean'"):
        Actor(mpc, model)


def test_an_action_that_is_a_single_number():
    mpc = dcem.control.MPC(lambda x, u: x + u.unsqueeze(-1), lambda x, u: (x[..., 0] - u).square(), 3, (), (-1.0, 1.0))
    actor = Actor(mpc, std=0.3)
    step = actor(TensorDict(observation=torch.zeros(5, 1), batch_size=[5]))
    assert step["action"].shape == step["action_log_prob"].shape == (5,)
    assert policy(mpc)(np.zeros(1)).shape == ()


class Blinded(Filter):
    """Believes in no numbers once it has seen a certain one."""

    def observe(self, belief, action, observation):
        belief = super().observe(belief, action, observation)
        lost = (observation[..., :1] - 3.0).abs() < 0.5
        return {**belief, "mean": torch.where(lost, torch.nan, belief["mean"])}


def test_a_solve_that_failed_is_not_remembered():
    """Neither by an actor nor by a policy: the next decision starts afresh, and has a gradient."""
    model = Blinded()
    actor, act = Actor(filter_mpc(model), model, std=0.3), policy(filter_mpc(model), model)
    step = TransformedEnv(pendulum_env(), actor.make_tensordict_primer()).reset().unsqueeze(0)
    step = step.select(*actor.in_keys)
    for t, fails in enumerate([False, False, False, True, False, False]):
        step = step.set("observation", torch.full((1, 3), float(t)))
        with torch.no_grad():
            decided = actor(step.copy())
        act(step["observation"])
        assert decided["next", "started"].item() is not fails
        assert act.memory.started.item() is not fails
        assert bool(decided["next", "belief", "0"].isnan().any()) is fails
        last, step = step, decided["next"].copy()
    actor.get_dist(last).log_prob(torch.zeros(1, 1)).sum().backward()
    assert model.goal.grad.isfinite()
    assert model.goal.grad != 0
    with torch.no_grad():  # two steps after the failure it believes what it would have, had it begun there
        belief, action = model.initial((1,)), torch.zeros(1, 1)
        belief = model.observe(belief, action, torch.full((1, 3), 4.0))
    torch.testing.assert_close(last["belief", "0"], belief["mean"])


@pytest.mark.parametrize("make", [filtering_actor, lambda: Actor(pendulum_mpc(), std=0.3)])
def test_an_actor_of_few_keys_forgets_nothing(make):
    whole = collected(make())
    actor = make().select_out_keys("action", "action_log_prob")
    torch.manual_seed(0)
    few = collected(actor)
    assert "loc" not in few
    assert few["started"].sum() == whole["started"].sum() > 0
    inside = few["started"].squeeze(-1)[:, 1:]
    for after in actor.remembered:
        assert torch.equal(few[after[1:]][:, 1:][inside], few[after][:, :-1][inside])
    actor.reset_out_keys()
    assert "loc" in collected(actor)


def test_observations_that_are_no_vectors():
    state_of = nn.Sequential(nn.Flatten(-3), nn.Linear(48, 2))
    mpc = dcem.control.MPC(lambda x, u: x + u, lambda x, u: x.square().sum(-1), 3, 2, (-1.0, 1.0), dcem.CEM(8, 2))
    actor, images = Actor(mpc, state_of=state_of), torch.randn(2, 3, 4, 4)
    says = r"observation: expected vectors \(\*batch, o\) \(flatten images, .*got \(2, 3, 4, 4\)"
    primed = actor.make_tensordict_primer().primers.expand(2).zero()
    for given in (TensorDict({}, [2]), primed):
        with pytest.raises(Exception, match=says):
            actor(given.set("observation", images))
    with pytest.raises(ValueError, match=says):
        policy(mpc, state_of=state_of)(images)
    flat = nn.Sequential(nn.Unflatten(-1, (3, 4, 4)), state_of)
    assert Actor(mpc, state_of=flat)(primed.set("observation", images.flatten(1)))["action"].shape == (2, 2)
    assert policy(mpc, state_of=flat)(images.flatten(1)).shape == (2, 2)


def test_what_is_no_system_is_no_environment():
    with pytest.raises(TypeError, match="^system: expected a system such as .*, got None, without state_shape"):
        dcem.rl.SystemEnv(None, 1)

"""The controller as a TorchRL policy: stored inputs, exploration, gradients, and where it fits in."""

import copy
import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn

import dcem
from dcem.control import MPC
from dcem.control.systems import Pendulum

tensordict = pytest.importorskip("tensordict")
pytest.importorskip("torchrl")
pytest.importorskip("gymnasium")

from rl_cases import Filter, exact_pendulum_env, filter_mpc, pendulum_env, pendulum_mpc, short_pendulum_env  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from tensordict.nn import TensorDictModule, TensorDictSequential  # noqa: E402
from torchrl.collectors import Collector, MultiSyncCollector  # noqa: E402
from torchrl.envs import (  # noqa: E402
    ExplorationType,
    ParallelEnv,
    SerialEnv,
    TransformedEnv,
    check_env_specs,
    set_exploration_type,
)
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator  # noqa: E402
from torchrl.objectives import ClipPPOLoss, SACLoss, SoftUpdate  # noqa: E402
from torchrl.objectives.value import GAE  # noqa: E402

from dcem.rl import Actor  # noqa: E402

MODES = [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(1), dcem.Prune(0.5), dcem.Prune(0.5, unbiased=True)]


def learned_pendulum(**options):
    return pendulum_mpc(nn.Parameter(torch.tensor(1.3)), **options)


def critic(size=3, keys=("observation",)):
    return ValueOperator(MLP(in_features=size, out_features=1, num_cells=[8]), in_keys=list(keys))


@torch.no_grad()
def rollout(actor, steps=12, make=pendulum_env, explore=ExplorationType.RANDOM):
    env = TransformedEnv(make(), actor.make_tensordict_primer())
    env.set_seed(0)
    with set_exploration_type(explore):
        return env.rollout(steps, actor, break_when_any_done=False)


def ratio(actor, data):
    """Of probabilities now and when the actions were drawn."""
    return (actor.get_dist(data.copy()).log_prob(data["action"]) - data["action_log_prob"]).exp()


def actor_of_a_model():
    model = Filter()
    return Actor(filter_mpc(model), model, std=0.3)


def actor_with_a_decoder():
    decoder = nn.Sequential(nn.Linear(2, 5), nn.Unflatten(-1, (5, 1)))
    decoder.latent_shape = (2,)
    return Actor(learned_pendulum(decoder=decoder), std=0.3)


ACTORS = {
    "observation": lambda: Actor(learned_pendulum(), std=0.3),
    "learned std": lambda: Actor(learned_pendulum(), std=nn.Parameter(torch.tensor([0.3]))),
    "state_of": lambda: Actor(learned_pendulum(), std=0.3, state_of=lambda observation: observation * 1.0),
    "residual": lambda: Actor(learned_pendulum(), std=0.3, residual=nn.Linear(3, 1)),
    "decoder": actor_with_a_decoder,
    "coloured noise": lambda: Actor(learned_pendulum(noise=dcem.ColoredNoise(1.0, dim=-2)), std=0.3),
    "action rate": lambda: Actor(learned_pendulum(action_rate_cost=0.1), std=0.3),
    "spline": lambda: Actor(learned_pendulum(decoder=dcem.embedding.SplineDecoder(3, (5, 1))), std=0.3),
    "iCEM": lambda: Actor(
        learned_pendulum(solver=dcem.CEM(12, 3, dcem.LML(0.1), keep_elites=0.3, population_decay=1.25)), std=0.3
    ),
    "MPPI": lambda: Actor(learned_pendulum(solver=dcem.MPPI(12, 1.0)), std=0.3),
    "proposals": lambda: Actor(
        learned_pendulum(
            proposals=lambda x, horizon, num: torch.randn(*x.shape[:-1], num, horizon, 1), num_proposals=3
        ),
        std=0.3,
    ),
    "model": actor_of_a_model,
}


@pytest.mark.parametrize("name", ACTORS)
def test_the_first_ratio_is_one_in_any_shuffled_minibatch(name):
    actor = ACTORS[name]().double()
    with torch.no_grad():
        collector = Collector(
            SerialEnv(2, exact_pendulum_env), actor, frames_per_batch=14, total_frames=14,
            auto_register_policy_transforms=True,
        )  # fmt: skip
        collector.set_seed(0)
        (data,) = list(collector)
        collector.shutdown()
    assert data["started"].sum() == 14 - 2 * 2  # episodes of five steps: 0, 5
    shuffled = data.reshape(-1)[torch.randperm(14)]
    for batch in (data, shuffled, shuffled[:5], shuffled[3]):
        torch.testing.assert_close(ratio(actor, batch), torch.ones(batch.batch_size).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "std", "dtype"),
    [(1.0, 0.3, torch.bfloat16), (1.0, 0.3, torch.float16), (1000.0, 0.1, torch.float32), (1.0, 0.3, torch.float64)],
)
def test_a_plan_that_moves_is_seen_to_move_in_any_precision_and_unit(size, std, dtype):
    goal = torch.tensor(0.8 * size, dtype=dtype)
    solver = dcem.CEM(64, 8, dcem.LML(0.1))
    mpc = MPC(
        lambda x, u: x, lambda x, u: ((u - goal) / size).square().sum(-1), 2, 1, (-size, size), solver,
        num_iterations=8, init_std=size / 2,
    )  # fmt: skip
    actor = Actor(mpc, std=std).to(dtype)
    data = actor(TensorDict(observation=torch.zeros(3, 1, dtype=dtype), batch_size=[3]))
    assert torch.equal(ratio(actor, data), torch.ones(3, dtype=dtype))
    goal -= 0.5 * std
    moved = actor.get_dist(data.exclude("loc")).loc
    assert bool((moved - data["loc"]).abs().min() > 0.2 * std)
    assert torch.equal(actor.get_dist(data).loc, moved)


def test_shifting_the_plan_is_what_a_closed_loop_does():
    actor = Actor(pendulum_mpc(), std=0.3)
    data, plan = rollout(actor, 4), None
    mpc, noise = actor.controller.mpc, actor.planner.noise
    for step in range(4):
        plan = mpc(data["observation"][step], warm_start=plan, noise=noise)
        torch.testing.assert_close(data["loc"][step], plan.action)
        torch.testing.assert_close(data["next", "plan"][step], plan.actions)


def test_a_belief_is_the_filter_run_over_what_was_seen_and_applied():
    model = Filter()
    actor = Actor(filter_mpc(model), model, std=0.3)
    data = rollout(actor, 6)
    with torch.no_grad():
        belief, action = model.initial(()), torch.zeros(1)
        for step in range(6):
            belief = model.observe(belief, action, data["observation"][step])
            action = data["action"][step]
            torch.testing.assert_close(data["next", "belief", "0"][step], belief["mean"])
            torch.testing.assert_close(data["next", "belief", "1"][step], belief["sum"])
            torch.testing.assert_close(data["next", "previous_action"][step], action)


def test_exploration_types():
    actor = Actor(pendulum_mpc(), std=0.3)
    assert isinstance(actor, ProbabilisticActor)
    for explore in (ExplorationType.DETERMINISTIC, ExplorationType.MODE):
        data = rollout(actor, 3, explore=explore)
        assert torch.equal(data["action"], data["loc"])
    data = rollout(actor, 30)
    off = data["action"] - data["loc"]
    assert 0.05 < off.std() < 0.4
    assert bool((data["action"].abs() <= 2).all())
    mean = rollout(actor, 3, explore=ExplorationType.MEAN)
    torch.testing.assert_close(mean["action"], actor.get_dist(mean.copy()).mean)
    median = rollout(actor, 3, explore=ExplorationType.MEDIAN)
    torch.testing.assert_close(median["action"], actor.get_dist(median.copy()).median)


def test_a_rollout_without_exploration_type_is_that_of_the_plan():
    actor = Actor(pendulum_mpc(), std=0.3)
    with torch.no_grad():
        data = pendulum_env().rollout(3, actor)  # and without a primer
    assert torch.equal(data["action"], data["loc"])


def forked(num, make):
    """Workers that need not import torch again."""
    return ParallelEnv(num, make, mp_start_method="fork")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # of forking beside threads
@pytest.mark.parametrize(("make", "num"), [(SerialEnv, 2), (forked, 1)])
def test_batched_environments(make, num):
    actor = Actor(pendulum_mpc(), std=0.3)
    env = make(num, pendulum_env)
    try:
        with torch.no_grad():
            data = TransformedEnv(env, actor.make_tensordict_primer()).rollout(4, actor, break_when_any_done=False)
    finally:
        env.close()
    assert data.batch_size == (num, 4)
    assert data["started"].squeeze(-1).tolist() == [[False, True, True, True]] * num
    assert torch.equal(data["plan"][:, 1:], data["next", "plan"][:, :-1])


def test_an_environment_with_the_primer_meets_its_specs():
    model = Filter()
    for actor in (Actor(pendulum_mpc()), Actor(filter_mpc(model), model)):
        check_env_specs(TransformedEnv(pendulum_env(), actor.make_tensordict_primer()))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_ppo_trains_through_the_solve_in_every_gradient_mode(mode):
    actor = Actor(learned_pendulum(gradient=mode), std=nn.Parameter(torch.tensor(0.3)))
    data, value = rollout(actor), critic()
    GAE(gamma=0.99, lmbda=0.95, value_network=value, deactivate_vmap=True)(data)
    data["advantage"] = data["advantage"].roll(1, 0)
    before = data.clone()
    losses = ClipPPOLoss(actor, value)(data)
    sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
    mass = actor.controller.mpc.dynamics.mass
    assert mass.grad.abs() > 0
    assert actor.std.grad.abs() > 0
    for key in before.keys(True, True):
        assert torch.equal(before[key], data[key]), f"the loss overwrote {key}"


def test_implicit_and_detached_plans():
    mpc = learned_pendulum(gradient=dcem.Implicit(), num_iterations=8, solver=dcem.CEM(64, 6, dcem.HardTopK()))
    for gradient, expected in ((dcem.Implicit(), True), (dcem.Detach(), False)):
        mpc.gradient = gradient
        mpc.dynamics.mass.grad = None
        actor = Actor(mpc, std=nn.Parameter(torch.tensor(0.3)))
        near = torch.tensor([[0.999, 0.0447, 0.0], [0.9996, -0.028, 0.1]])  # upright: the plan is inside the bounds
        data = TensorDict(observation=near, batch_size=[2])
        actor.get_dist(data).log_prob(torch.zeros(2, 1)).sum().backward()
        assert (mpc.dynamics.mass.grad is not None and bool(mpc.dynamics.mass.grad != 0)) == expected
        assert actor.std.grad.abs() > 0


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
    mass = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    actor = Actor(pendulum_mpc(mass), std=0.3).double()
    data = rollout(actor, 6)
    data["advantage"] = torch.linspace(-1, 1, 6, dtype=torch.float64).unsqueeze(-1)
    loss = ClipPPOLoss(actor, None, entropy_bonus=False, critic_coeff=None)

    def objective(value):
        with torch.no_grad():
            mass.copy_(value)
        return loss(data)["loss_objective"]

    (slope,) = torch.autograd.grad(objective(mass.detach().clone()), mass)
    at, h = mass.detach().clone(), 1e-6
    difference = (objective(at + h) - objective(at - h)) / (2 * h)
    assert slope.item() == pytest.approx(difference.item(), rel=1e-4)


def test_sac_solves_at_the_next_step_too():
    model = Filter()
    for actor, size in ((Actor(learned_pendulum(), std=0.3), 4), (Actor(filter_mpc(model), model, std=0.3), 4)):
        data = rollout(actor)
        before = data.clone()
        loss = SACLoss(actor, critic(size, ("observation", "action")))
        SoftUpdate(loss, tau=0.01)
        losses = loss(data)
        sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
        assert any(p.grad is not None and bool((p.grad != 0).any()) for p in actor.parameters())
        for key in before.keys(True, True):
            assert torch.equal(before[key], data[key]), f"the loss overwrote {key}"
        # What SAC finds at the next step is what the actor found there when it got there.
        after = actor.get_dist(data["next"].copy())
        torch.testing.assert_close(after.loc[:-1], data["loc"][1:])


def test_an_optimiser_moves_the_policy_that_collects():
    actor, value = Actor(learned_pendulum(), std=0.3), critic()
    data = rollout(actor)
    loss = ClipPPOLoss(actor, value)
    GAE(gamma=0.99, lmbda=0.95, value_network=value, deactivate_vmap=True)(data)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    sum(value for name, value in loss(data).items() if name.startswith("loss_")).backward()
    optimizer.step()
    assert actor.controller.mpc.dynamics.mass.item() != pytest.approx(1.3, abs=1e-3)
    assert not torch.allclose(ratio(actor, data), torch.ones(12), atol=1e-3)


def test_functional_calls():
    actor = Actor(learned_pendulum(), std=0.3)
    upright = TensorDict(observation=torch.tensor([0.995, 0.0998, 0.1]), batch_size=[])  # the plan is inside the bounds
    step = actor(upright).update(
        {"started": torch.tensor([True]), "previous_action": torch.zeros(1), "plan": torch.zeros(5, 1)}
    )
    heavier = {name: p * 1.5 for name, p in actor.named_parameters()}
    step = step.select(*actor.in_keys)
    called = torch.func.functional_call(actor, heavier, (step.clone(),))
    params = TensorDict.from_module(actor)
    with params.apply(lambda p: p * 1.5 if p.requires_grad else p).to_module(actor):
        swapped = actor(step.clone())
    torch.testing.assert_close(called["loc"], swapped["loc"])
    assert not torch.allclose(called["loc"], actor(step.clone())["loc"])

    def loc(of, data):
        with of.to_module(actor):
            return actor.planner(data)["loc"]

    both = torch.stack([params.data, params.data.apply(lambda p: p * 1.5 if p.dim() == 0 else p)])
    mapped = torch.vmap(loc, (0, None))(both, step)
    for of, mean in zip(both.unbind(0), mapped, strict=True):
        torch.testing.assert_close(loc(of, step.clone()), mean)


def test_copies_and_pickles_are_of_one_piece():
    model = Filter()
    actor = Actor(filter_mpc(model), model, std=0.3)
    data = rollout(actor, 3)
    sent = pickle.loads(
        ForkingPickler.dumps(actor)
    )  # as to a process that is spawned, with which it shares its weights
    torch.testing.assert_close(sent.get_dist(data.copy()).loc, data["loc"])
    for other in (copy.deepcopy(actor), pickle.loads(pickle.dumps(actor))):
        torch.testing.assert_close(other.get_dist(data.copy()).loc, data["loc"])
        with torch.no_grad():
            other.controller.model.goal += 0.7  # the methods that its MPC calls are those of its own model
        assert not torch.allclose(other.get_dist(data.copy()).loc, data["loc"])
    torch.testing.assert_close(actor.get_dist(data.copy()).loc, data["loc"])


def test_where_a_torchrl_planner_is_used():
    """On TorchRL's own model-based environment, as CEMPlanner and MPPIPlanner are."""
    from torchrl.data import Bounded, Composite, Unbounded
    from torchrl.envs import ModelBasedEnvBase
    from torchrl.modules import CEMPlanner

    system = Pendulum()

    class Env(ModelBasedEnvBase):
        def __init__(self):
            world = TensorDictModule(
                lambda x, u: (system(x, u), -system.cost(x, u).unsqueeze(-1)),
                ["observation", "action"],
                ["observation", "reward"],
            )
            super().__init__(world, batch_size=torch.Size([]))
            self.observation_spec = Composite(observation=Unbounded(3))
            self.state_spec = Composite(observation=Unbounded(3))
            self.action_spec, self.reward_spec = Bounded(-2.0, 2.0, (1,)), Unbounded(1)

        def _reset(self, tensordict=None):
            return TensorDict(observation=torch.tensor([-1.0, 0.0, 0.0]), batch_size=[])

    env = Env()
    actor = Actor(pendulum_mpc(1.0))
    with torch.no_grad():
        for policy in (CEMPlanner(env, 5, 2, 12, 3), actor):
            data = env.rollout(4, policy)
            assert data["action"].shape == (4, 1)
            assert data["next", "reward"].shape == (4, 1)
        data = TransformedEnv(env, actor.make_tensordict_primer()).rollout(4, actor)
    assert torch.equal(data["plan"][1:], data["next", "plan"][:-1])


def test_actors_in_sequences_and_by_keyword():
    actor = Actor(pendulum_mpc(), std=0.3)
    observation = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    data = TensorDictSequential(actor, TensorDictModule(lambda a: 2 * a, ["action"], ["twice"]))(
        TensorDict(observation=observation, batch_size=[2])
    )
    assert torch.equal(data["twice"], 2 * data["action"])
    names = {"observation": observation, "started": torch.zeros(2, 1, dtype=torch.bool)}
    found = actor(**names, previous_action=torch.zeros(2, 1), plan=torch.zeros(2, 5, 1))
    assert any(torch.equal(value, data["loc"]) for value in found if isinstance(value, torch.Tensor))


def test_double_precision_and_actions_of_any_rank():
    def dynamics(x, u):
        return x + 0.1 * u.flatten(-2)

    mpc = MPC(dynamics, lambda x, u: x.square().sum(-1), 3, (2, 2), (-1.0, torch.full((2, 2), 0.5)),
              dcem.CEM(8, 2, dcem.LML(1.0)), num_iterations=2)  # fmt: skip
    actor = Actor(mpc, std=torch.full((2, 2), 0.1)).double()
    data = TensorDict(observation=torch.randn(6, 4, dtype=torch.float64), batch_size=[6])
    with set_exploration_type(ExplorationType.RANDOM):
        data = actor(data)
    assert data["action"].dtype == torch.float64
    assert data["action"].shape == (6, 2, 2)
    assert data["action_log_prob"].shape == (6,)
    assert bool((data["action"] <= 0.5).all())


@pytest.fixture
def by_forking():
    """Processes that need not import torch again."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # of forking beside threads
@pytest.mark.usefixtures("by_forking")
def test_a_multi_process_collector_keeps_the_memory_and_takes_new_weights():
    actor = Actor(learned_pendulum(), std=0.3)
    collector = MultiSyncCollector(
        [short_pendulum_env], actor, frames_per_batch=20, total_frames=40,
        auto_register_policy_transforms=True,
    )  # fmt: skip
    collector.set_seed(0)  # somewhere else all plans are at their bounds, whatever the mass
    try:
        for i, data in enumerate(collector):
            assert data["started"].sum() == 20 - 4
            torch.testing.assert_close(ratio(actor, data), torch.ones(data.batch_size), rtol=0, atol=1e-5)
            if i == 0:
                with torch.no_grad():
                    actor.controller.mpc.dynamics.mass.mul_(0.5)
                assert not torch.allclose(ratio(actor, data), torch.ones(data.batch_size), atol=1e-3)
                collector.update_policy_weights_()
    finally:
        collector.shutdown()


def test_saved_and_loaded():
    actor, other = (
        Actor(learned_pendulum(), std=0.3, seed=1),
        Actor(pendulum_mpc(nn.Parameter(torch.tensor(0.9))), std=0.2),
    )
    data = rollout(actor, 3)
    other.load_state_dict(actor.state_dict())
    torch.testing.assert_close(ratio(other, data), torch.ones(3), rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("learn_std", [False, True])
def test_a_controller_on_a_gpu_acts_in_an_environment_on_the_cpu(learn_std):
    """The actor is where its controller is; a collector brings observations there and actions back."""
    std = nn.Parameter(torch.tensor(0.3, device="cuda")) if learn_std else 0.3
    actor = Actor(learned_pendulum().cuda(), std=std)
    assert {tensor.device.type for tensor in (*actor.parameters(), *actor.buffers())} == {"cuda"}
    on_cpu = Actor(learned_pendulum(), std=0.3)
    assert torch.equal(actor.planner.noise.cpu(), on_cpu.planner.noise)
    collector = Collector(
        short_pendulum_env, actor, frames_per_batch=20, total_frames=20, policy_device="cuda", env_device="cpu",
        storing_device="cuda",
        auto_register_policy_transforms=True,
    )  # fmt: skip
    try:
        (data,) = collector
    finally:
        collector.shutdown()
    data = data.to("cuda")
    assert data["started"].sum() == 20 - 4
    found = ratio(actor, data)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-5)
    (slope,) = torch.autograd.grad(found.sum(), actor.controller.mpc.dynamics.mass)
    assert slope.isfinite()
    assert slope != 0

"""A decision is a function of what is stored: what it draws it draws again, wherever it is made once more."""

import numpy as np
import pytest
import torch
from torch import nn

import dcem
from dcem.control import MPC
from dcem.control.systems import Pendulum

pytest.importorskip("torchrl")
pytest.importorskip("gymnasium")

from rl_cases import Filter, collected, filter_mpc, pendulum_env, pendulum_mpc, short_pendulum_env
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.data import MultiStep
from torchrl.envs import ParallelEnv, SerialEnv, TransformedEnv
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import A2CLoss, REDQLoss, SoftUpdate
from torchrl.objectives.value import VTrace

from dcem.rl import Actor, policy
from dcem.world import LatentModel


def latent_actor(std=0.1, **options):
    model = LatentModel(3, 1, (-2.0, 2.0), latent_size=16, hidden=16)
    for net in (model.reward, *model.values):
        nn.init.normal_(net[-1].weight, std=0.3)
    settings = {"terminal_cost": model.terminal_cost, "proposals": model.propose, "num_proposals": 3, **options}
    solver = dcem.CEM(8, 2, dcem.LML(0.1))
    return Actor(MPC(model.imagine, model.cost, 3, 1, (-2.0, 2.0), solver, num_iterations=2, **settings), model, std)


def of_global_draws(x, horizon, num):
    return 2 * torch.rand(*x.shape[:-1], num, horizon, 1) - 1 + 0 * x[..., None, None, :1]


def of_no_axis_of_the_state(x, horizon, num, generator):
    """Draws all at once, whatever it is given."""
    return torch.randn(*x.shape[:-1], num, horizon, 1, generator=generator).clamp(-2, 2)


def of_a_library(x, horizon, num):
    """By NumPy, of no draws."""
    angle = np.arctan2(x.numpy()[..., 1], x.numpy()[..., 0])
    actions = np.sin(angle[..., None, None] + np.arange(num)[:, None] + np.arange(horizon))
    return torch.from_numpy(actions).to(x).unsqueeze(-1)


ACTORS = {
    "latent": latent_actor,
    **{
        fn.__name__: lambda fn=fn: Actor(pendulum_mpc(proposals=fn, num_proposals=4, init_std=0.3), std=0.1)
        for fn in (of_global_draws, of_no_axis_of_the_state, of_a_library)
    },
}


@torch.no_grad()
def change(actor, data):
    """Of the log-probability of the actions, at most."""
    return (actor.get_dist(data).log_prob(data["action"]) - data["action_log_prob"]).abs().max().item()


@pytest.mark.parametrize("name", ACTORS)
def test_the_inputs_are_all_that_a_decision_depends_on(name):
    actor = ACTORS[name]()
    data = collected(actor, frames=20)
    assert not any("proposals" in key for key in data.keys(True, True))
    inputs = data.select(*actor.in_keys, "action", "action_log_prob")
    rows = inputs.reshape(-1)
    shuffled = rows[torch.randperm(20)]
    for batch in (inputs, rows, shuffled, shuffled[:3], shuffled[4], inputs.reshape(2, 5, 2)):
        assert change(actor, batch) < 0.01
    before = torch.get_rng_state()
    with torch.no_grad():
        actor.planner(rows.copy())
    assert torch.equal(torch.get_rng_state(), before)


def test_proposals_are_of_the_state_that_is_seen():
    """Not of one that the tensordict still holds something of."""
    actor = latent_actor()
    seen = TransformedEnv(pendulum_env(), actor.make_tensordict_primer()).reset()
    with torch.no_grad():
        step = actor(seen.clone())
        for observation in (torch.tensor([3.0, -1.0, 2.0]), seen["observation"]):
            other = step.clone().set("observation", observation)
            fresh = seen.clone().set("observation", observation)
            assert torch.equal(actor.planner(other)["loc"], actor.planner(fresh)["loc"])


def test_proposals_take_part():
    proposals = {name: lambda x, horizon, num, to=to: x.new_full((*x.shape[:-1], num, horizon, 1), to)
                 for name, to in (("low", -1.5), ("high", 1.5))}  # fmt: skip
    seen = TensorDict(observation=torch.tensor([[-1.0, 0.0, 0.0]]), batch_size=[1])
    found = {
        name: Actor(pendulum_mpc(proposals=fn, num_proposals=9, init_std=0.1)).planner(seen.copy())["loc"].item()
        for name, fn in proposals.items()
    }
    assert found["low"] < found["high"] - 0.5


def test_losses_and_estimators_that_select_the_inputs():
    actor = latent_actor()
    data = collected(actor)
    critic = TensorDictSequential(actor.observer(), ValueOperator(nn.Linear(16, 1), in_keys=["state"]))
    found = []
    for _ in range(2):
        judged = data.clone()
        VTrace(gamma=0.9, actor_network=actor, value_network=critic)(judged)
        found.append(judged["advantage"])
    assert torch.equal(*found)
    a2c = A2CLoss(actor, critic, entropy_bonus=False)
    losses = [a2c(judged.reshape(-1).clone())["loss_objective"] for _ in range(2)]
    assert torch.equal(*losses)
    stored = -(judged["action_log_prob"].unsqueeze(-1) * judged["advantage"]).mean()
    torch.testing.assert_close(losses[0], stored, rtol=1e-3, atol=1e-3)


def test_several_steps_at_once():
    actor = latent_actor()
    assert change(actor, collected(actor, postproc=MultiStep(gamma=0.9, n_steps=3)).reshape(-1)) < 0.01


def test_a_loss_that_maps_over_actors():
    actor = latent_actor()
    data = collected(actor).reshape(-1)
    q = ValueOperator(MLP(4, 1, num_cells=[8]), in_keys=["observation", "action"])
    loss = REDQLoss(actor, q, target_entropy=-1.0)
    SoftUpdate(loss, tau=0.01)
    loss(data)["loss_actor"].mean().backward()
    assert actor.controller.model.reward[-1].weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # of forking beside threads
def test_workers_that_carry_the_memory_themselves():
    actor = latent_actor()

    def make():
        return TransformedEnv(pendulum_env(), actor.make_tensordict_primer())

    env = ParallelEnv(2, make, mp_start_method="fork")
    try:
        with torch.no_grad():
            data = env.rollout(7, actor, break_when_any_done=False)
    finally:
        env.close()
    assert change(actor, data) < 0.01


def of_a_branch(x, horizon, num):
    return torch.randn(*x.shape[:-1], num, horizon, 1) + (1.0 if x.sum().item() > 0 else 0.0)


def around_a_mean(x, horizon, num):
    return torch.distributions.Normal(x[..., :1], 0.5).sample((num, horizon)).movedim((0, 1), (-3, -2))


@pytest.mark.parametrize("proposals", [of_a_branch, around_a_mean])
def test_proposals_that_draw_and_cannot_be_mapped(proposals):
    """They are asked problem by problem: the same in any batch."""
    actor = Actor(pendulum_mpc(proposals=proposals, num_proposals=3, init_std=0.3))
    observations = torch.tensor([[1.0, 0.0, 0.3], [-1.0, 0.1, 0.0], [0.0, 1.0, -2.0]])
    state = torch.get_rng_state()
    with torch.no_grad():
        together = actor(TensorDict(observation=observations, batch_size=[3]))["loc"]
        alone = [actor(TensorDict(observation=each, batch_size=[]))["loc"] for each in observations]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_residual_that_draws_is_refused():
    residual = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    actor = Actor(pendulum_mpc(), std=0.2, residual=residual)
    observation = TensorDict(observation=torch.tensor([1.0, 0.0, 0.3]), batch_size=[])
    with pytest.raises(Exception, match="mpc: expected a decision that is the same"):
        actor(observation)
    residual.eval()
    assert "loc" in actor(observation)


def noisy_pendulum(noise=torch.randn_like, more=int, **options):
    step = Pendulum()
    solver = dcem.CEM(12, 3, dcem.LML(0.1))
    return Actor(MPC(
        lambda x, u: step(x, u) + 0.1 * noise(x), lambda x, u: step.cost(x, u) + more(), 5, 1, step.bounds, solver, num_iterations=2, num_particles=4,
        **options,
    ))  # fmt: skip


def noisy_belief():
    model = Filter()
    observe = model.observe

    def noisy(*given):
        belief = observe(*given)
        return {**belief, "mean": belief["mean"] + torch.randn_like(belief["mean"])}

    model.observe = noisy
    return Actor(filter_mpc(model), model)


DRAWING = {
    "dynamics": noisy_pendulum,
    "dynamics, Prune": lambda: noisy_pendulum(gradient=dcem.Prune()),
    "residual": lambda: Actor(
        pendulum_mpc(), residual=nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)), state_of=nn.Dropout(0.5)
    ),
    "model": noisy_belief,
}


@pytest.mark.parametrize("name", DRAWING)
def test_what_draws_in_a_decision_is_refused(name):
    actor = DRAWING[name]()
    env = TransformedEnv(pendulum_env(), actor.make_tensordict_primer())
    with torch.no_grad(), pytest.raises(Exception, match=r"mpc: expected a decision that is the same .*policy\(mpc\)"):
        env.rollout(3, actor)
    model, mpc = actor.controller.model, actor.controller.mpc
    assert np.isfinite(policy(mpc, model)(np.ones(3))).all()


def test_draws_that_are_kept_or_change_nothing_are_no_reason():
    kept = torch.randn(4, 3)
    actor = noisy_pendulum(lambda x: kept.reshape(4, *(1,) * (x.dim() - 2), 3), lambda: 0 * torch.rand(()))
    assert change(actor, collected(actor)) < 0.01
    with torch.enable_grad():
        unbiased = Actor(pendulum_mpc(nn.Parameter(torch.tensor(1.3)), gradient=dcem.Prune(0.5, unbiased=True)))
        unbiased(TensorDict(observation=torch.zeros(2, 3), batch_size=[2]))["loc"].sum().backward()


@pytest.mark.parametrize("proposes", [False, True])
def test_a_compiled_actor(proposes):
    torch._dynamo.reset()
    actor = latent_actor(**({} if proposes else {"proposals": None}))
    seen = TransformedEnv(SerialEnv(2, short_pendulum_env), actor.make_tensordict_primer()).reset()
    with torch.no_grad():
        plain, compiled = actor.planner(seen.clone()), torch.compile(actor.planner, backend="eager")(seen.clone())
    torch.testing.assert_close(compiled["loc"], plain["loc"])
    torch.testing.assert_close(compiled["next", "started"], plain["next", "started"])

"""Which parts train, at which rate, by which sum of losses."""

from functools import partial

import pytest
import torch
from torch import nn

import dcem

pytest.importorskip("torchrl")

from rl_cases import Filter, filter_mpc, pendulum_mpc
from torchrl.modules import MLP, ValueOperator

from dcem.control import MPC
from dcem.control.systems import Pendulum
from dcem.rl import Actor, parameter_groups, parts, total_loss
from dcem.world import RSSM, LatentModel


class Cost(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, x, u):
        return 1 - x[..., 0] + self.weight * x[..., 2].square()


def everything():
    decoder = nn.Sequential(nn.Linear(2, 5), nn.Unflatten(-1, (5, 1)))
    decoder.latent_shape = (2,)
    temperature = nn.Parameter(torch.tensor(1.0))
    mpc = pendulum_mpc(
        nn.Parameter(torch.tensor(1.3)), decoder=decoder, solver=dcem.CEM(12, 3, dcem.LML(temperature)),
        terminal_cost=nn.Linear(3, 1),
    )  # fmt: skip
    mpc.cost = Cost()
    return Actor(mpc, std=nn.Parameter(torch.tensor(0.2)), residual=nn.Linear(3, 1))


def test_every_parameter_is_in_one_part():
    actor, critic = everything(), ValueOperator(MLP(3, 1, num_cells=[4]), in_keys=["observation"])
    found = parts(actor, critic)
    assert set(found) == {"dynamics", "reward", "value", "decoder", "residual", "search", "std", "critic"}
    listed = [id(p) for of in found.values() for p in of]
    assert sorted(listed) == sorted(id(p) for p in [*actor.parameters(), *critic.parameters()])
    assert [p.shape for p in found["dynamics"]] == [()]


class Value(nn.Module):
    """Of a state that is one tensor or two."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, x, *_):
        return self.weight * (x if isinstance(x, torch.Tensor) else torch.cat(x, -1)).sum(-1)


class Enlarged(RSSM):
    """With a parameter and heads that the class does not know."""

    def __init__(self):
        super().__init__(3, 1, deterministic_size=8, stochastic_size=4, hidden_sizes=(8,))
        self.start = nn.Parameter(torch.zeros(8))
        self.decoder, self.frozen = nn.Linear(12, 5), nn.Linear(12, 5).requires_grad_(False)


def latent_model(**options):
    return LatentModel(3, 1, bounds=(-2.0, 2.0), latent_size=16, group_size=8, hidden=8, **options)


def planned(model, **options):
    return MPC(model.imagine, model.cost, 3, 1, (-2.0, 2.0), dcem.CEM(12, 3), num_iterations=1, **options)


def encoded():
    return Actor(pendulum_mpc(nn.Parameter(torch.tensor(1.3))), state_of=nn.Linear(4, 3))


def with_modules_beside(model):
    mpc = planned(model, terminal_cost=Value(), constraint=Value(), continues=Value(), proposals=nn.Linear(3, 1))
    mpc.cost = Value()
    return Actor(mpc, model)


def by_methods_alone():
    model = latent_model(terminates=True)
    return Actor(
        planned(model, terminal_cost=model.terminal_cost, continues=model.continues, proposals=model.propose),
        state_of=partial(model.encode),
    )


def partials():
    model, cost = Pendulum(mass=nn.Parameter(torch.tensor(1.3))), partial(lambda value, x, u: value(x), Value())
    return Actor(MPC(partial(model), cost, 5, 1, model.bounds))


OF_RSSM = {"dynamics", "encoder", "reward", "observation", "continuation"}
OF_LATENT = {"dynamics", "encoder", "reward", "value", "policy"}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (encoded, {"encoder", "dynamics"}),
        (lambda: with_modules_beside(latent_model()), OF_LATENT | {"continuation"}),
        (lambda: with_modules_beside(Enlarged()), OF_RSSM | {"decoder", "value", "policy"}),
        (lambda: (lambda model: Actor(planned(model), model))(Enlarged()), OF_RSSM | {"decoder"}),
        (by_methods_alone, OF_LATENT | {"continuation"}),
        (partials, {"dynamics", "reward"}),
    ],
)
def test_whatever_an_actor_is_made_of_each_of_its_parameters_is_in_one_part(make, names):
    actor = make()
    found = parts(actor)
    assert set(found) == names
    listed = [id(p) for of in found.values() for p in of]
    assert len(set(listed)) == len(listed)
    assert {id(p) for p in actor.parameters() if p.requires_grad} <= set(listed)
    assert all(p.requires_grad for of in found.values() for p in of)  # neither targets nor what is frozen
    parameter_groups(actor, dict.fromkeys(names, 1e-3))


def test_modules_beside_a_model_and_what_a_subclass_adds_are_with_what_they_do():
    model = Enlarged()
    actor, alone = with_modules_beside(model), Actor(planned(latent_model()))
    found, mpc = parts(actor), actor.controller.mpc
    assert any(p is model.start for p in found["dynamics"])
    assert found["decoder"] == [*model.decoder.parameters()]
    assert {id(p) for p in found["reward"]} - {id(p) for p in model.reward_net.parameters()} == {
        id(mpc.cost.weight), id(mpc.constraint.weight)
    }  # fmt: skip
    assert found["value"] == [mpc.terminal_cost.weight]
    assert set(parts(alone)) == OF_LATENT


@pytest.mark.parametrize("make", [
    latent_model,
    lambda: RSSM(3, 1, deterministic_size=8, stochastic_size=4, hidden_sizes=(8,)),
    Filter,
])  # fmt: skip
def test_the_parts_of_models(make):
    model = make()
    actor = Actor(filter_mpc(model), model)
    found = parts(actor)
    assert isinstance(model, Filter) or {"reward", "dynamics", "encoder"} <= set(found)
    assert "std" not in found
    learned = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for of in found.values() for p in of if p.requires_grad} == learned


def test_only_what_is_named_moves_and_at_its_rate():
    actor = everything()
    before = {name: [p.detach().clone() for p in of] for name, of in parts(actor).items()}
    optimizer = torch.optim.SGD(parameter_groups(actor, {"reward": 1e-3, "std": 1e-2}))
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("reward", 1e-3), ("std", 1e-2)]
    for p in actor.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, of in parts(actor).items():
        moved = {"reward": 1e-3, "std": 1e-2}.get(name, 0.0)
        for p, old in zip(of, before[name], strict=True):
            torch.testing.assert_close(p.detach(), old - moved)


def test_unknown_parts_and_rates_are_refused():
    actor = Actor(pendulum_mpc(nn.Parameter(torch.tensor(1.3))))
    theta = nn.Parameter(torch.ones(()))
    plain = Actor(dcem.control.MPC(lambda x, u: x + theta * u, lambda x, u: x.sum(-1), 3, 1))
    with pytest.raises(
        ValueError, match=r"rates: expected an actor with parameters to train, got .* a function does not"
    ):
        parameter_groups(plain, {"dynamics": 0.1})
    with pytest.raises(ValueError, match=r"rates: expected names among dynamics, got 'encoder'"):
        parameter_groups(actor, {"encoder": 1e-3})
    with pytest.raises(ValueError, match=r"rates\['dynamics'\]: expected a finite number > 0, got 0"):
        parameter_groups(actor, {"dynamics": 0.0})
    with pytest.raises(ValueError, match=r"got 'critic'; give the critic as third argument$"):
        parameter_groups(actor, {"critic": 1e-3})
    with pytest.raises(TypeError, match=r'^rates: expected a mapping .*, such as {"dynamics": 0.001}, got 0.001$'):
        parameter_groups(actor, 1e-3)


def test_losses_are_weighted_and_those_of_weight_zero_not_computed():
    policy = {"loss_objective": torch.tensor(2.0), "loss_critic": torch.tensor([1.0]), "ESS": torch.tensor(7.0)}

    def never():
        raise AssertionError("asked for")

    assert total_loss({"policy": 2.0, "likelihood": 0.0}, {"policy": policy, "likelihood": never}) == 6
    assert (
        total_loss(
            {"policy": 1.0, "likelihood": 0.5}, {"policy": policy, "likelihood": lambda: {"loss_x": torch.tensor(4.0)}}
        )
        == 5
    )
    with pytest.raises(ValueError, match="weights: expected one for each of policy, got likelihood"):
        total_loss({"likelihood": 1.0}, {"policy": policy})
    with pytest.raises(ValueError, match="weights: expected at least one that is not 0"):
        total_loss({"policy": 0.0}, {"policy": policy})


def test_likelihood_and_policy_loss_in_one_step():
    from tensordict import TensorDict
    from torchrl.objectives import ClipPPOLoss

    model = Filter()
    actor = Actor(filter_mpc(model), model, std=0.3)
    memory = {"started": torch.ones(6, 1, dtype=torch.bool), "previous_action": torch.zeros(6, 1)}
    belief = {"0": torch.randn(6, 3), "1": torch.zeros(6, 1)}
    data = TensorDict(observation=torch.randn(6, 3), **memory, belief=belief, plan=torch.zeros(6, 4, 1), batch_size=[6])
    with torch.no_grad():
        data = actor(data)
    data["advantage"] = torch.linspace(-1, 1, 6).unsqueeze(-1)
    ppo = ClipPPOLoss(actor, None, entropy_bonus=False, critic_coeff=None)
    gradients = []
    for weights in (
        {"policy": 1.0, "likelihood": 0.0},
        {"policy": 0.0, "likelihood": 1.0},
        {"policy": 2.0, "likelihood": 3.0},
    ):
        loss = total_loss(weights, {"policy": ppo(data), "likelihood": model.loss(data)})
        gradients.append(torch.autograd.grad(loss, model.goal)[0])
    torch.testing.assert_close(gradients[2], 2 * gradients[0] + 3 * gradients[1])
    assert gradients[0] != 0

"""Planning over choices, and over choices and numbers together."""

import itertools
import math

import gymnasium
import numpy as np
import pytest
import torch

import dcem
from dcem.control import MPC

GEARS = torch.tensor([0.2, 1.0, 3.0])


def drive(state, action):
    """A car whose acceleration is the throttle times the gear's ratio: state (place, speed), action (throttle, gear)."""
    throttle, gear = action[..., 0], action[..., 1:]
    force = throttle * (gear @ GEARS.to(action))
    speed = state[..., 1] + 0.5 * force
    return torch.stack([state[..., 0] + 0.5 * speed, speed], -1)


def cost(state, action):
    """To place 1; a high gear is dear."""
    return (state[..., 0] - 1).square() + 0.1 * state[..., 1].square() + 0.05 * (action[..., 1:] @ GEARS.to(action))


def mixed(horizon, **options):
    init = dcem.Product(
        [dcem.Gaussian(torch.zeros(horizon, 1), 1.0, 2), dcem.Categorical(torch.zeros(horizon, 3), event_dims=2)]
    )
    bounds = torch.tensor([-1.0, 0.0, 0.0, 0.0]), torch.ones(4)
    return MPC(drive, cost, horizon, 4, bounds, dcem.CEM(300, 30, dcem.LML(0.1)), init=init, **options)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_choices_are_those_of_enumeration(batch):
    """Steering by one of three pushes: all 243 plans are tried."""
    pushes = torch.tensor([-1.0, 0.0, 1.0])
    horizon = 5

    def push(x, u):
        return x + (u @ pushes.to(u)).unsqueeze(-1)

    def to_two(x, u):
        return (x.squeeze(-1) - 2).square() + 0.1 * (u @ pushes.to(u)).square()

    every = torch.tensor(list(itertools.product(range(3), repeat=horizon)))
    plans = torch.nn.functional.one_hot(every, 3).float()
    state = torch.tensor([-0.4, 5.3])[: math.prod(batch)].reshape(*batch, 1)
    mpc = MPC(
        push, to_two, horizon, 3, (0.0, 1.0), dcem.CEM(200, 20, dcem.LML(0.1)), answer="best",
        init=dcem.Categorical(torch.zeros(horizon, 3), event_dims=2),
    )  # fmt: skip
    plan = mpc(state, generator=torch.Generator().manual_seed(0))
    for i, x in enumerate(state.reshape(-1, 1)):
        total, now = torch.zeros(len(plans)), x.expand(len(plans), 1)
        for t in range(horizon):
            total = total + to_two(now, plans[:, t])
            now = push(now, plans[:, t])
        torch.testing.assert_close(plan.cost.reshape(-1)[i], total.min())
    assert set(plan.actions.unique().tolist()) == {0.0, 1.0}
    assert (plan.actions.sum(-1) == 1).all()


def test_what_errors_about_choices_say_plays_them():
    """Cartpole, whose actions are two pushes, through the wrapper and the start that the errors name."""

    def push(x, u):
        return x + 0.1 * (u[..., 1:] - u[..., :1]) * torch.ones(4)

    mpc = MPC(
        push, lambda x, u: x.square().sum(-1), 3, 2, solver=dcem.CEM(40, 5), num_iterations=2, answer="best",
        init=dcem.Categorical(torch.zeros(3, 2), event_dims=2),
    )  # fmt: skip
    one_hot = gymnasium.spaces.Box(0, 1, (2,))
    env = gymnasium.wrappers.TransformAction(gymnasium.make("CartPole-v1"), np.argmax, one_hot)
    episodes = dcem.control.run(mpc, env, seed=0, num_steps=5, record=True)
    assert set(episodes.actions.unique().tolist()) == {0.0, 1.0}
    assert (episodes.actions.sum(-1) == 1).all()


@pytest.mark.parametrize("of", ["space", "spec", "subclass"])
def test_spaces_of_choices_are_answered_with_what_to_use(of):
    class Gears(gymnasium.spaces.Discrete):
        pass

    space = {"space": gymnasium.spaces.MultiDiscrete([3, 2]), "subclass": Gears(3)}.get(of)
    if of == "spec":
        space = pytest.importorskip("torchrl.data").OneHot(3)
    for options in ({"bounds": space}, {"action_shape": space}):
        with pytest.raises(TypeError, match=r"(?s)^(bounds|action_shape): expected .*MPC\(.*init=dcem.Categorical"):
            MPC(drive, cost, 5, **{"action_shape": 3, **options})


def test_a_car_changes_gears_in_closed_loop():
    mpc = mixed(6, answer="best", num_iterations=8)
    state, plan, generator = torch.zeros(2, 2), None, torch.Generator().manual_seed(0)
    state[1, 0] = 3.0
    gears = []
    for _ in range(10):
        plan = mpc(state, warm_start=plan, generator=generator)
        assert (plan.action[:, 0].abs() <= 1).all()
        assert (plan.action[:, 1:].sum(-1) == 1).all()
        gears.append(plan.action[:, 1:].argmax(-1))
        state = drive(state, plan.action)
    assert (state[:, 0] - 1).abs().max() < 0.1
    assert len(torch.stack(gears).unique()) > 1  # high ones to go, low ones to stay


def test_a_warm_start_leaves_choices_open_and_a_reset_starts_afresh():
    mpc = mixed(4, answer="best")
    state, generator = torch.zeros(2, 2), torch.Generator().manual_seed(0)
    plan = mpc(state, generator=generator)
    again = mpc(
        state, warm_start=plan, reset=torch.tensor([False, True]), num_iterations=1, generator=generator, record=True
    )
    gears = again.solution.history[0].samples[..., 1:]
    shifted = torch.cat([plan.actions[:, 1:, 1:], plan.actions[:, -1:, 1:]], 1)
    agree = (gears * shifted.unsqueeze(1)).sum(-1).mean((1, 2))
    assert 0.6 < agree[0] < 0.75  # half for sure, and a third of the other half
    assert 0.25 < agree[1] < 0.45


def test_costs_and_dynamics_can_be_learned_through_mixed_plans():
    """The gradient of a plan's cost with respect to a parameter, against finite differences with the same noise."""
    noise = torch.randn(3, 300, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def planned(goal):
        mpc = mixed(3, num_iterations=3)
        mpc.cost = lambda x, u: (x[..., 0] - goal).square() + 0.05 * (u[..., 1:] @ GEARS.to(u))
        return mpc(torch.zeros(2, dtype=torch.float64), noise=noise).actions

    goal = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(planned, goal)
    assert torch.autograd.grad(planned(goal)[..., 1:].pow(2).sum(), goal)[0] != 0


def test_a_mixture_plans_around_an_obstacle_on_both_sides():
    """Straight ahead is blocked: one Gaussian averages left and right, two components keep both."""

    def step(x, u):
        return x + torch.cat([torch.full_like(u, 0.25), u], -1)

    def blocked(x, u):
        return 5 * torch.exp(-8 * (x - torch.tensor([0.5, 0.0])).square().sum(-1)) + 0.3 * x[..., 1].square()

    means = torch.tensor([-0.3, 0.3]).reshape(2, 1, 1).expand(2, 5, 1)
    mpc = MPC(step, blocked, 5, 1, (-1.0, 1.0), dcem.CEM(300, 20, dcem.LML(0.1)), num_iterations=20,
              init=dcem.Mixture(means, 0.4, event_dims=2))  # fmt: skip
    plan = mpc(torch.zeros(2), generator=torch.Generator().manual_seed(0))
    heights = plan.distribution.means.squeeze(-1).cumsum(-1)[:, 1]  # beside the obstacle
    assert heights[0] < -0.2
    assert heights[1] > 0.2
    again = mpc(plan.states[1].detach(), warm_start=plan, generator=torch.Generator().manual_seed(1))
    assert again.status == dcem.Status.OK


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        (torch.zeros(3, 4), TypeError, "init: expected a dcem distribution or None"),
        (dcem.Categorical(torch.zeros(4)), ValueError, r"init: .*over \(3, 4\), got the batch \(\) and events \(4,\)"),
        (dcem.Gaussian(torch.zeros(2, 3, 4), 1.0, 2), ValueError, r"init: .*got the batch \(2,\)"),
    ],
)
def test_a_start_that_does_not_fit_is_named(init, error, message):
    with pytest.raises(error, match=f"^{message}"):
        MPC(drive, cost, 3, 4, init=init)


@pytest.mark.cpu
def test_an_init_is_the_only_start():
    init = dcem.Gaussian(torch.zeros(3, 4), 1.0, 2)
    for options in ({"init_std": 1.0}, {"init_mean": 0.5}):
        with pytest.raises(ValueError, match="^init: expected None, or init_mean and init_std left alone"):
            MPC(drive, cost, 3, 4, init=init, **options)
    mpc = MPC(drive, cost, 3, 4, init=init)
    with pytest.raises(ValueError, match="^init_std: expected to be left alone"):
        mpc.init_std = 2.0
    plain = MPC(drive, cost, 3, 4)
    noise = torch.randn(10, 100, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mpc(torch.zeros(2), noise=noise).actions, plain(torch.zeros(2), noise=noise).actions)


@pytest.mark.parametrize("bounds", [(-0.5, 0.5), (torch.tensor([0.0, 0.5]), None), (0.0, [1.0, 0.9])])
def test_bounds_that_choices_do_not_fit_into_are_refused(bounds):
    """Meant for the numbers beside them, they made halves of choices; the answer was outside of them."""
    init = dcem.Product([dcem.Gaussian(torch.zeros(3, 2), 1.0, 2), dcem.Categorical(torch.zeros(3, 2), 2)])
    sides = [side if side is None or isinstance(side, float) else torch.cat([torch.zeros(2), torch.as_tensor(side)])
             for side in bounds]  # fmt: skip
    mpc = dcem.control.MPC(torch.add, lambda x, u: x.square().sum(-1), 3, 4, tuple(sides), init=init)
    message = r"bounds: expected a box that holds the choices of a Categorical, from 0 to 1, got .*; a logit of -inf"
    with pytest.raises(ValueError, match=f"^{message}"):
        mpc(torch.zeros(4))
    with pytest.raises(ValueError, match=f"^{message}"):
        dcem.minimize(lambda x: x[..., 0], dcem.Categorical(torch.zeros(2)), bounds=bounds)
    wide = dcem.minimize(lambda x: x[..., 0], dcem.Categorical(torch.zeros(2)), bounds=(0.0, torch.ones(2)))
    assert wide.best_x.tolist() == [0.0, 1.0]

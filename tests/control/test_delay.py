"""Actions that are on their way when a plan is made: it starts from where they lead."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

import dcem
from dcem.control import MPC, rollout, run

DT = 0.2


def pushed(x: Tensor, u: Tensor) -> Tensor:
    """A mass on a line: position, velocity."""
    velocity = x[..., 1:] + DT * u
    return torch.cat([x[..., :1] + DT * velocity, velocity], -1)


def cost(x: Tensor, u: Tensor) -> Tensor:
    return x[..., 0].square() + 0.1 * x[..., 1].square() + 0.01 * u[..., 0].square()


class Late(gymnasium.Env[Any, Any]):
    """The mass, on which actions act `delay` steps after they were sent."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-3.0, 3.0, (1,), np.float32)

    def __init__(self, delay: int) -> None:
        self.delay = delay

    def reset(self, **_: Any) -> Any:
        self.x, self.on_its_way, self.t = torch.tensor([2.0, 0.0]), [torch.zeros(1)] * self.delay, 0
        return self.x.numpy(), {}

    def step(self, action: Any) -> Any:
        self.on_its_way.append(torch.as_tensor(action))
        arrived = self.on_its_way.pop(0)
        reward = -float(cost(self.x, arrived))
        self.x, self.t = pushed(self.x, arrived), self.t + 1
        return self.x.numpy(), reward, False, self.t == 25, {}


def controller(**options: Any) -> MPC:
    return MPC(pushed, cost, 8, 1, (-3.0, 3.0), dcem.CEM(60, 8, init_std=1.5), num_iterations=4, **options)


@pytest.mark.cpu
@pytest.mark.parametrize("delay", [1, 2])
def test_a_late_plant_is_controlled_as_well_as_it_can_be(delay: int) -> None:
    """It goes as the plant without delay would from where it is after the first steps, in which nothing acts on it."""
    prompt, late = (run(controller(), Late(delay), seed=0, delay=by, num_steps=25, record=True) for by in (0, delay))
    waited = float(late.rewards[:delay].sum())
    at_once = run(controller(), Late(0), seed=0, num_steps=25 - delay, record=True)
    assert late.returns.sum() == pytest.approx(waited + float(at_once.rewards.sum()), rel=0.02)
    # Who does not know of the delay loses more than twice of what it costs.
    assert float(at_once.rewards.sum()) + waited - float(prompt.rewards.sum()) > 0.1 * delay


@pytest.mark.parametrize("batch", [(), (3,)])
def test_plans_start_from_where_what_was_sent_leads(batch: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    state, sent = torch.randn(*batch, 2, generator=generator), torch.randn(*batch, 2, 1, generator=generator)
    noise = torch.randn(4, *batch, 60, 8, 1, generator=generator)
    plan = controller()(state, sent=sent, noise=noise)
    there = rollout(pushed, state, sent)[..., -1, :]
    expected = controller()(there, noise=noise)
    torch.testing.assert_close(plan.states[..., 0, :], there)
    torch.testing.assert_close(plan.actions, expected.actions)


def test_what_was_sent_is_differentiated_through_the_model() -> None:
    push = torch.tensor(1.0, requires_grad=True)
    mpc = MPC(
        lambda x, u: pushed(x, push * u),
        lambda x, u: x[..., 0],
        1,
        1,
        solver=dcem.CEM(8, 2, init_std=0.0),
        num_iterations=1,
    )
    plan = mpc(torch.zeros(2), sent=torch.ones(2, 1))
    (slope,) = torch.autograd.grad(plan.states[0, 0], push)
    assert slope.item() == pytest.approx(3 * DT**2)


def test_time_goes_on_from_what_was_sent_to_the_plan() -> None:
    times: list[int] = []

    def timed(x: Tensor, u: Tensor, t: int) -> Tensor:
        times.append(t)
        return x + u

    MPC(timed, lambda x, u: x[..., 0], 2, 1, solver=dcem.CEM(4, 2), num_iterations=1)(
        torch.zeros(1), sent=torch.ones(3, 1)
    )
    assert times[:5] == [-3, -2, -1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_what_was_sent_may_be_of_the_precision_of_the_plant(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 1)
    mpc = MPC(lambda x, u: layer(torch.cat([x, u], -1)), lambda x, u: x.square().sum(-1), 3, 1)
    plan = mpc(torch.ones(2, 1), sent=torch.ones(2, 2, 1, dtype=dtype))
    assert plan.actions.dtype == plan.states.dtype == torch.float32


def test_bad_delays() -> None:
    state = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"sent: expected actions \(\*batch, d, \*a\) with batch \(3,\)"):
        controller()(state, sent=torch.zeros(2, 1))
    with pytest.raises(TypeError, match="sent: expected a Tensor"):
        controller()(state, sent=[0.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sent: expected None with several particles"):
        controller(num_particles=2)(state, sent=torch.zeros(3, 1, 1))
    for policy, delay in ((controller(), -1), (lambda state: state[:, :1], 1)):
        with pytest.raises(ValueError, match="delay: expected an int >= 0"):
            run(policy, Late(1), delay=delay)


def test_a_problem_that_is_lost_on_the_way_leaves_the_gradient_of_the_others_alone() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    mpc = MPC(
        lambda x, u: x + 0.1 * u + theta * x.sin(), lambda x, u: x.square().sum(-1), 4, 1, (-1.0, 1.0), dcem.CEM(30, 5),
        num_iterations=3,
    )  # fmt: skip
    noise = torch.randn(3, 2, 30, 4, 1)

    def slope(other: float) -> Tensor:
        plan = mpc(torch.tensor([[1.0], [other]]), sent=torch.zeros(2, 2, 1), noise=noise)
        assert plan.status.tolist() == [0, 2 if other != other else 0]
        return torch.autograd.grad(plan.actions[0].sum(), theta)[0]

    torch.testing.assert_close(slope(float("nan")), slope(0.3))


def test_what_dynamics_write_in_place_does_not_reach_what_was_sent() -> None:
    def clipped(x: Tensor, u: Tensor) -> Tensor:
        u.numpy().clip(-1, 1, out=u.numpy())
        return x + u

    sent, state = torch.full((2, 1, 1), 4.0), torch.ones(2, 1)
    with torch.no_grad():
        plan = MPC(clipped, lambda x, u: x.square().sum(-1), 3, 1, num_iterations=1)(state, sent=sent)
    assert sent.equal(torch.full((2, 1, 1), 4.0))
    assert plan.states[:, 0].equal(torch.full((2, 1), 2.0))


def test_a_number_that_was_infinite_from_the_start_may_stay_so() -> None:
    """A deadline that never comes."""
    theta = torch.tensor(0.5, requires_grad=True)

    def step(state: Any, u: Tensor) -> Any:
        return {"place": state["place"] + theta * u, "deadline": state["deadline"] - 1}

    mpc = MPC(step, lambda s, u: s["place"].square().sum(-1), 3, 1, (-1.0, 1.0), dcem.CEM(30, 5), num_iterations=2)
    state = {"place": torch.ones(2, 1), "deadline": torch.tensor([[torch.inf], [5.0]])}
    plan = mpc(state, sent=torch.full((2, 1, 1), 0.5))
    assert (plan.status == dcem.Status.OK).all()
    (slope,) = torch.autograd.grad(plan.states["place"][0].sum(), theta)
    assert slope.isfinite()
    assert slope != 0

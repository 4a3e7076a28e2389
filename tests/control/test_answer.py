"""The answer of a plan, taken from the search or followed by itself."""

import random

import pytest
import torch

import dcem
from dcem.control import MPC


class Chain(torch.nn.Module):
    """A cart as a tree of tensors, that counts how often it is asked, and is lost where it is pushed too far."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit, self.calls = limit, 0

    def forward(self, body, action):
        self.calls += 1
        speed = body["speed"] + 0.3 * action
        place = body["place"] + speed.sum(-1)
        return {"place": torch.where(place.abs() > self.limit, torch.nan, place), "speed": speed, "name": body["name"]}


class Narrow(dcem.CEM):
    """A subclass."""


class Aside(dcem.CEM):
    """Looks at points that are no candidates."""

    def step(self, objective, state, noise, clip):
        objective(torch.zeros_like(noise))
        return super().step(objective, state, noise, clip)


def cost(body, action):
    return (body["place"] - 1.0).square() + 0.1 * action.square().sum(-1)


def body(batch, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (batch, (*batch, 2))]
    return {"place": draw[0].to(dtype), "speed": 0.3 * draw[1].to(dtype), "name": "cart"}


def controller(solver=None, limit=torch.inf, **options):
    options = {"num_iterations": 4, "state_dims": {"place": 0, "speed": 1, "name": None}} | options
    return MPC(Chain(limit), cost, 5, 2, (-1.0, 1.0), solver or dcem.CEM(20, 4, dcem.HardTopK()), **options)


def close(ours, theirs):
    torch.testing.assert_close(ours.actions, theirs.actions, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.cost, theirs.cost, atol=1e-5, rtol=1e-5, equal_nan=True)
    torch.testing.assert_close(ours.violation, theirs.violation, atol=1e-5, rtol=1e-5, equal_nan=True)
    for name in ("place", "speed"):
        torch.testing.assert_close(ours.states[name], theirs.states[name], atol=1e-5, rtol=1e-5, equal_nan=True)
    assert ours.states["name"] == theirs.states["name"]
    assert torch.equal(ours.status, theirs.status)
    torch.testing.assert_close(ours.distribution.mean, theirs.distribution.mean)


@pytest.mark.parametrize("seed", range(12))
def test_what_the_search_has_seen_is_what_following_the_answer_gives(seed) -> None:
    """Where a gradient may be asked for, the answer is followed by itself: so it was always."""
    chance = random.Random(seed)
    solver = chance.choice([
        dcem.CEM(20, 4, dcem.HardTopK(), keep_elites=0.5), dcem.MPPI(20, 0.1), Narrow(20, 4, dcem.LML(0.5)),
        dcem.CEM(20, 4, dcem.ConstrainedSoftmax(0.2), population_decay=1.5),
    ])  # fmt: skip
    options = {
        "answer": chance.choice(["best", "last"]),
        "chunk_size": chance.choice([None, 7]),
        "terminal_cost": chance.choice([None, lambda body: 3 * body["place"].square()]),
        "constraint": chance.choice([None, lambda body: body["place"] - 0.8]),
        "discount": chance.choice([1.0, 0.9]),
        "action_rate_cost": chance.choice([0.0, 0.3]),
    }
    batch = chance.choice([(), (3,), (2, 2)])
    mpc = controller(solver, chance.choice([torch.inf, 1.5, 0.1]), **options)
    mpc.dynamics.calls = 0
    given = {"generator": torch.Generator().manual_seed(seed)}
    with torch.no_grad():
        ours = mpc(body(batch), **given)
    theirs = mpc(body(batch), generator=torch.Generator().manual_seed(seed))
    close(ours, theirs)


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("answer", ["mean", "best", "last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_answer_in_half_precision_is_the_candidate_that_was_evaluated(dtype, answer, num_particles) -> None:
    net = torch.nn.Linear(3, 1).to(dtype)  # which takes its own dtype alone
    asked = []

    def dynamics(x, u):
        asked.append(u.detach())
        return x + net(torch.cat([x, u], -1))

    mpc = MPC(
        dynamics, lambda x, u: x.square().sum(-1), 1, 2, (-0.3, 0.7), dcem.CEM(12, 4), num_iterations=2, answer=answer,
        num_particles=num_particles,
    )  # fmt: skip
    plans = []
    for has_gradient in (True, False):
        with torch.set_grad_enabled(has_gradient):
            plans.append(mpc(torch.ones(1, dtype=dtype), generator=torch.Generator().manual_seed(0)))
    for plan in plans:
        assert plan.actions.dtype == plan.cost.dtype == dtype
        assert torch.equal(plan.actions, plans[0].actions)
        assert torch.equal(plan.cost, plans[0].cost)
    if answer != "mean":
        candidates = torch.cat([u.reshape(-1, 2) for u in asked if u.shape[-2] == 12])
        assert (candidates == plans[0].action).all(-1).any()


@pytest.mark.cpu
@pytest.mark.parametrize("answer", ["best", "last"])
def test_the_answer_is_not_followed_a_second_time(answer) -> None:
    mpc = controller(answer=answer)
    with torch.no_grad():
        mpc(body((3,)))
    assert mpc.dynamics.calls == 5 * 4
    mpc(body((3,)))  # which may be differentiated
    assert mpc.dynamics.calls == 5 * 4 + 5 * 5


def test_what_a_solver_looks_at_beside_its_candidates_is_no_answer() -> None:
    """Zeros are far better than any candidate, which no bound lets in."""
    mpc = controller(Aside(20, 4, dcem.HardTopK()), answer="best", init_mean=0.9, init_std=0.05)
    start = {"place": torch.ones(()), "speed": torch.zeros(2), "name": "cart"}
    with torch.no_grad():
        plan = mpc(start)
    assert plan.actions.abs().min() > 0.5
    assert plan.cost > 1.0


def test_a_plan_need_not_be_evaluated() -> None:
    mpc = controller()
    noise = torch.randn(4, 3, 20, 5, 2, generator=torch.Generator().manual_seed(0))
    whole, short = mpc(body((3,)), noise=noise), mpc(body((3,)), noise=noise, evaluate=False)
    assert mpc.dynamics.calls == 5 * 5 + 5 * 4
    assert torch.equal(short.actions, whole.actions)
    assert torch.equal(short.status, whole.status)
    assert short.states is None
    assert short.cost.isnan().all()
    assert short.cost.shape == short.violation.shape == (3,)
    after = [mpc(body((3,)), warm_start=plan, noise=noise).actions for plan in (whole, short)]
    assert torch.equal(*after)
    with pytest.raises(TypeError, match="evaluate: expected True or False, got None"):
        mpc(body((3,)), evaluate=None)


@pytest.mark.parametrize("decoded", [False, True])
def test_a_plan_that_is_not_evaluated_has_its_gradient(decoded) -> None:
    speed = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    decoder = (lambda z: z.tanh().unsqueeze(-1).expand(*z.shape, 1)) if decoded else None
    mpc = MPC(lambda x, u: x + speed * u, lambda x, u: x.square().sum(-1) + u.square().sum(-1), 3, 1,
              solver=dcem.CEM(20, 5), num_iterations=3, decoder=decoder, latent_shape=3 if decoded else None)  # fmt: skip
    noise = torch.randn(3, 2, 20, *((3,) if decoded else (3, 1)), dtype=torch.float64)
    state = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    slopes = [
        torch.autograd.grad(mpc(state, noise=noise, evaluate=evaluate).actions.square().sum(), speed)[0]
        for evaluate in (True, False)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)
    assert slopes[0] != 0


def test_actions_that_are_not_finite_are_told_though_nothing_is_evaluated() -> None:
    def decoder(z):  # no candidate is on the spot, but the mean of two on either side is
        return torch.where((z.abs() < 1e-3).all(-1), torch.nan, z.mean(-1)).reshape(*z.shape[:-1], 1, 1)

    mpc = MPC(torch.add, lambda x, u: (u - 3).square().sum(-1), 1, 1, solver=dcem.CEM(2, 2, dcem.HardTopK()), decoder=decoder,
              latent_shape=2, num_iterations=1)  # fmt: skip
    noise = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[1.0, 1.0], [0.5, 0.5]]]).unsqueeze(0)
    plan = mpc(torch.ones(2, 1), noise=noise, evaluate=False)
    assert plan.status.tolist() == [dcem.Status.NONFINITE, dcem.Status.OK]


@pytest.mark.parametrize("evaluate", [True, False])
def test_data_without_the_axis_of_candidates_are_refused_where_no_shape_shows_it(evaluate) -> None:
    """As many problems as candidates: the goal of problem `i` would meet candidate `i` of every problem."""
    goals = torch.randn(5, 1, generator=torch.Generator().manual_seed(0))
    mpc = dcem.control.MPC(
        lambda x, u: x + u, lambda x, u: (x - goals).square().sum(-1), 3, 1, (-1.0, 1.0), dcem.CEM(5, 2)
    )
    with pytest.raises(ValueError, match="cost: expected"):
        mpc(torch.zeros(5, 1), evaluate=evaluate)


@pytest.mark.parametrize("answer", ["best", "last"])
def test_a_plan_does_not_depend_on_a_mate_that_failed(answer):
    """It draws nothing more for it, and follows no more."""

    def pushed(x, u, generator):
        return x + 0.1 * u + 0.3 * torch.randn(x.shape, generator=generator)

    mpc = MPC(
        pushed, lambda x, u: x.square().sum(-1), 6, 1, (-1.0, 1.0), dcem.CEM(64, 8), num_iterations=3, answer=answer
    )

    def planned(mate):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            plan = mpc(torch.tensor([[1.0], [mate]]), generator=generator)
        return plan.actions[0], plan.cost[0], plan.states[0], torch.rand(1, generator=generator)

    assert all(map(torch.equal, planned(0.0), planned(torch.nan)))


@pytest.mark.parametrize("answer", ["mean", "best", "last"])
def test_where_it_leads_is_not_said_unless_asked(answer):
    with torch.no_grad():
        plan = controller(answer=answer)(body((2,)), evaluate=False)
    assert plan.states is None
    assert plan.cost.isnan().all()
    assert plan.violation.isnan().all()
    assert (plan.status == dcem.Status.OK).all()

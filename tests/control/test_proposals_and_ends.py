"""Proposals, discount, termination, time, and decoders that know the state, against sums written out by hand."""

import functools
import random

import pytest
import torch
from torch import nn

import dcem
from dcem.control import MPC, rollout

SOLVERS = [dcem.CEM(20, 5), dcem.CEM(20, 5, dcem.HardTopK(), keep_elites=0.5), dcem.MPPI(20)]


def test_a_proposal_far_from_every_sample_is_found():
    far = torch.tensor([[[50.0, -50.0]], [[-40.0, 7.0]]])

    def objective(x):
        return (x - far).square().sum(-1)

    for solver in SOLVERS:
        solution = dcem.minimize(objective, torch.zeros(2, 2), solver, num_iterations=2, proposals=far)
        assert torch.equal(solution.best_x, far.squeeze(1))
        without = dcem.minimize(objective, torch.zeros(2, 2), solver, num_iterations=2)
        assert (solution.best_value < without.best_value).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_proposals_are_weighed_like_samples(solver):
    noise = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))
    proposals = torch.tensor([[0.3, 0.1], [9.0, 9.0]])

    def objective(x):
        return (x - 0.2).square().sum(-1)

    given = dcem.minimize(
        objective, torch.zeros(2), solver, num_iterations=3, noise=noise, proposals=proposals, record=True
    )
    for iteration in given.history:
        assert torch.equal(iteration.samples[-2:], proposals)
        weights, _ = solver.weigh(iteration.values)
        torch.testing.assert_close(iteration.weights, weights)
    refit = solver.fit(dcem.Gaussian(torch.zeros(2), 1.0), given.history[0].samples, given.history[0].weights)
    torch.testing.assert_close(given.history[0].distribution.mean, refit.mean)


def test_proposals_keep_inside_the_bounds_and_failed_ones_count_as_the_mean():
    proposals = torch.tensor([[float("nan"), 0.0], [9.0, -9.0]])
    solution = dcem.minimize(
        lambda x: -x.sum(-1), torch.zeros(2), dcem.CEM(10, 2), num_iterations=1, bounds=(-1.0, 1.0), proposals=proposals, record=True
    )  # fmt: skip
    assert torch.equal(solution.history[0].samples[-2:], torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
    assert solution.status == dcem.Status.OK


@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(1), dcem.Prune(1.0), dcem.Detach()])
def test_the_gradient_passes_through_a_selection_among_proposals(mode):
    target = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    proposals = torch.tensor([[0.4, -0.4]], dtype=torch.float64)

    def answer(target):
        return dcem.minimize(
            lambda x: (x - target).square().sum(-1), torch.zeros(2, dtype=torch.float64), dcem.CEM(12, 4),
            num_iterations=2, noise=noise, proposals=proposals, gradient=mode,
        ).x  # fmt: skip

    if isinstance(mode, (dcem.Unroll, dcem.Checkpoint)):
        assert torch.autograd.gradcheck(answer, target)
    assert answer(target).requires_grad == (not isinstance(mode, dcem.Detach))


@pytest.mark.parametrize(
    ("proposals", "error"),
    [
        (torch.zeros(3), "got \\(3,\\)"),
        (torch.zeros(1, 3), "got \\(1, 3\\)"),
        (torch.zeros(2, 1, 2), "got \\(2, 1, 2\\)"),
        (torch.zeros(1, 2, dtype=torch.long), "int64"),
        ([[0.0, 0.0]], "list"),
    ],
)
def test_proposals_of_the_wrong_kind_are_refused(proposals, error):
    with pytest.raises((TypeError, ValueError), match=f"proposals: .*{error}"):
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(2), proposals=proposals)


def test_a_solver_without_samples_takes_no_proposals():
    with pytest.raises(ValueError, match="proposals: expected None"):
        dcem.minimize(lambda x: x.sum(-1), torch.zeros(2), dcem.GradientDescent(), proposals=torch.zeros(1, 2))


@pytest.mark.cpu
def test_mpc_finds_the_brute_force_plan_when_it_is_proposed():
    """Eight steps of -1, 0, 1 that only one sequence of 3^8 brings to the goal at no cost; samples do not find it."""
    grid = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 8).unsqueeze(-1)
    secret = torch.tensor([1.0, -1, 1, 1, 0, -1, -1, 1])

    def cost(x, u):
        return (u.squeeze(-1) - secret.reshape(-1, *(1,) * (u.dim() - 2))).abs()

    totals = (grid.squeeze(-1) - secret).abs().sum(-1)
    best = grid[totals.argmin()]
    mpc = MPC(
        lambda x, u: x + u, cost, 8, 1, (-1.0, 1.0), dcem.CEM(32, 4, dcem.HardTopK()), num_iterations=2, answer="best",
        proposals=lambda state, horizon, num: grid[:num].expand(*state.shape[:-1], num, horizon, 1), num_proposals=len(grid),
    )  # fmt: skip
    plan = mpc(torch.zeros(2, 1), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plan.actions, best.expand(2, 8, 1))
    without = mpc(torch.zeros(2, 1), proposals=torch.zeros(2, 1, 8, 1), generator=torch.Generator().manual_seed(0))
    assert (without.cost > 1).all()


def test_the_proposals_of_a_decoder_are_encoded():
    decoder = dcem.embedding.SplineDecoder(6, (6, 1))
    wanted = torch.linspace(-0.9, 0.9, 6).reshape(6, 1)
    mpc = MPC(
        lambda x, u: x, lambda x, u: (u - wanted.reshape(6, *(1,) * (u.dim() - 2), 1)).square().sum(-1), 6, 1,
        solver=dcem.CEM(8, 2, dcem.HardTopK()), decoder=decoder, num_iterations=1, answer="best",
        proposals=lambda state, horizon, num: wanted.expand(*state.shape[:-1], num, 6, 1), num_proposals=1,
    )  # fmt: skip
    torch.testing.assert_close(mpc(torch.zeros(3, 1)).actions, wanted.expand(3, 6, 1), atol=1e-4, rtol=0)
    mpc.decoder = nn.Identity()
    with pytest.raises(ValueError, match="proposals: expected a decoder with a method encode"):
        mpc(torch.zeros(3, 1))


def alive(x):
    return torch.sigmoid(3 - x.sum(-1))


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("continues", [None, alive])
def test_the_cost_of_a_plan_is_the_sum_written_out(num_particles, discount, continues):
    def cost(x, u):
        return x.square().sum(-1) + u.abs().sum(-1)

    def terminal(x):
        return 5 * x.sum(-1)

    mpc = MPC(
        lambda x, u: 1.2 * x + u, cost, 4, 1, terminal_cost=terminal, discount=discount, continues=continues,
        constraint=lambda x: x.sum(-1) - 1, constraint_weight=2.0, num_particles=num_particles, num_iterations=1,
    ).double()  # fmt: skip
    plan = mpc(torch.ones(2, 1, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    total, weight = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    x = torch.ones(2, 1, dtype=torch.float64)
    for t in range(4):
        u = plan.actions[:, t]
        total = total + weight * cost(x, u)
        x = 1.2 * x + u
        weight = weight * discount * (1 if continues is None else alive(x))
        total = total + weight * 2.0 * (x.sum(-1) - 1).clamp(min=0)
    total = total + weight * terminal(x)
    torch.testing.assert_close(plan.cost, total)


def test_nothing_is_charged_after_the_end_whatever_it_would_cost():
    def cost(x, u):
        return torch.where(x.squeeze(-1) > 1.5, torch.inf, 1 + x.squeeze(-1))

    strength = torch.tensor(1.0, requires_grad=True)
    ended = MPC(
        lambda x, u: x + strength, cost, 5, 1, continues=lambda x: (x.squeeze(-1) < 1.5).double(), num_iterations=1,
        terminal_cost=lambda x: torch.full_like(x.squeeze(-1), torch.nan),
    )  # fmt: skip
    plan = ended(torch.zeros(1))
    assert plan.cost == 3.0  # 1 in x = 0, 2 in x = 1, nothing from x = 2 on
    assert plan.status == dcem.Status.FLAT  # whatever the actions
    assert torch.autograd.grad(plan.cost, strength)[0] == 1.0
    assert MPC(lambda x, u: x + 1, cost, 1, 1, continues=lambda x: x.squeeze(-1) * 0)(torch.zeros(1)).cost == 1.0


def test_after_the_end_even_nan_has_no_weight():
    """A learned `continues` answers NaN where the state is NaN."""
    mpc = MPC(
        lambda x, u: torch.where(x > 1.5, torch.nan, x + 1.0), lambda x, u: 1 + 0 * x.squeeze(-1), 5, 1,
        continues=lambda x: torch.sigmoid(1e4 * (1.5 - x.squeeze(-1))), num_iterations=1,
    )  # fmt: skip
    plan = mpc(torch.zeros(1))
    assert plan.cost == 2.0
    assert plan.status == dcem.Status.FLAT


@pytest.mark.parametrize("rollout", [False, True])
def test_a_state_that_is_nan_is_no_end_of_which_a_comparison_says_so(rollout, generator):
    """`nan < 5` is false: the cheapest plans would be those that break the model."""
    options = {"solver": dcem.CEM(64, 8), "bounds": (-1.0, 1.0), "generator": generator}

    def dynamics(x, u):
        return torch.where(u > 0.9, torch.nan, x + 0.1 * u)

    class Model:
        def __call__(self, x, u):
            return dynamics(x, u)

        def rollout(self, x, u):
            return dcem.control.rollout(dynamics, x, u)

    mpc = MPC(
        Model() if rollout else dynamics, lambda x, u: 1 + x.square().sum(-1), 5, 1, bounds=(-1.0, 1.0),
        solver=options["solver"], continues=lambda x: (x.abs() < 5).all(-1).float(),
    )  # fmt: skip
    plan = mpc(torch.ones(1), generator=generator)
    assert plan.status == dcem.Status.OK
    assert plan.states.isfinite().all()
    assert plan.cost > 5


def falling(x, u, drop):
    """From below 0 on it is NaN, like what is computed of it."""
    return x - drop + 0.1 * u + 0 * x.sqrt()


def landing(x, u, drop):
    """Comes to rest at 0, where the slope of a root is infinite."""
    return (x - drop + 0.1 * u).relu()


def sinking(x, u, drop):
    return x - drop + 0.1 * u


@pytest.mark.parametrize("dynamics", [falling, landing, sinking])
@pytest.mark.parametrize(
    "options",
    [{}, {"chunk_size": 3}, {"num_particles": 2}, {"gradient": dcem.Checkpoint()}, {"gradient": dcem.Detach()}],
    ids=["Unroll", "chunks", "particles", "Checkpoint", "Detach"],
)
def test_the_gradient_is_that_of_the_part_before_the_end(dynamics, options):
    """One problem ends at once, one on the way, one never: each as if it were alone, and by finite differences."""
    starts = torch.tensor([[0.1], [0.9], [30.0]], dtype=torch.float64)
    cpu = torch.Generator("cpu").manual_seed(
        0
    )  # with other numbers a path may come so near its end that steps are coarse
    noise = torch.randn(2, 1, 12, 4, 1, generator=cpu, dtype=torch.float64, device="cpu").to(starts.device)

    def planned(drop, starts):
        mpc = MPC(
            lambda x, u: dynamics(x, u, drop), lambda x, u: (drop * x).sqrt().sum(-1) + u.square().sum(-1), 4, 1,
            (-1.0, 1.0), dcem.CEM(12, 4), num_iterations=2, discount=0.9, continues=lambda x: (x[..., 0] > 0).double(),
            terminal_cost=lambda x: (drop * x).log().sum(-1), constraint=lambda x: (drop * x).sqrt() - 0.5,
            init_std=0.5, constraint_weight=2.0, **options,
        ).double()  # fmt: skip
        return mpc(starts, noise=noise.expand(-1, len(starts), -1, -1, -1))

    drop = torch.tensor(0.45, dtype=torch.float64, requires_grad=True)
    plan = planned(drop, starts)
    states = plan.states if "num_particles" not in options else plan.states[0]
    at_once, on_the_way, never = (int((path > 0).sum()) for path in states[..., 0])
    assert at_once == 1 < on_the_way < never == 5
    for i, cost in enumerate(plan.cost):
        gradient = torch.autograd.grad(cost, drop, retain_graph=True)[0]
        alone = torch.autograd.grad(planned(drop, starts[i : i + 1]).cost.sum(), drop)[0]
        torch.testing.assert_close(gradient, alone)
        if "gradient" not in options or not isinstance(options["gradient"], dcem.Detach):
            up, down = (planned(drop.detach() + h, starts).cost[i] for h in (1e-6, -1e-6))
            torch.testing.assert_close(gradient, (up - down) / 2e-6, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        known = planned(drop, starts)
    assert torch.equal(known.cost, plan.cost)
    assert torch.equal(known.actions, plan.actions)
    torch.testing.assert_close(known.states, plan.states, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(known.violation, plan.violation)
    assert not (plan.status == dcem.Status.NONFINITE).any()


def test_random_dynamics_are_followed_again_as_they_were():
    scale = torch.tensor(1.0, requires_grad=True)
    mpc = MPC(
        lambda x, u: x + scale * torch.randn_like(x), lambda x, u: x.sqrt().sum(-1), 6, 1, num_iterations=1,
        continues=lambda x: (x[..., 0] > 0).float(), num_particles=8,
    )  # fmt: skip
    torch.manual_seed(0)
    plan = mpc(torch.ones(2, 1), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        known = mpc(torch.ones(2, 1), generator=torch.Generator().manual_seed(0))
    assert plan.states.isfinite().all()
    assert torch.equal(known.cost, plan.cost)
    assert torch.autograd.grad(plan.cost.sum(), scale)[0].isfinite()


class Simulator:
    """Rolls out by itself, with draws that nobody replays: states of one step do not depend on those before."""

    def __init__(self):
        self.draw = random.Random(0).gauss

    def __call__(self, x, u):
        return self.rollout(x, u.unsqueeze(-2))[..., 1, :]

    def rollout(self, x, u):
        drawn = torch.tensor([self.draw(0.5, 1.0) for _ in range(u.numel())]).reshape(u.shape)
        return torch.cat([x.unsqueeze(-2), drawn], -2)


def test_a_simulator_is_charged_for_the_path_that_it_told_first():
    weight = torch.tensor(2.0, requires_grad=True)

    def planned():
        mpc = MPC(
            Simulator(), lambda x, u: weight * (2 + x.sum(-1)), 6, 1, num_iterations=1, gradient=dcem.Detach(),
            continues=lambda x: (x[..., 0] > 0).float(),
        )  # fmt: skip
        return mpc(torch.ones(50, 1), generator=torch.Generator().manual_seed(0))

    plan = planned()
    with torch.no_grad():
        known = planned()
    assert (plan.states[:, 1:] < 0).any()
    assert torch.equal(plan.states, known.states)
    assert torch.equal(plan.cost, known.cost)
    torch.testing.assert_close(torch.autograd.grad(plan.cost.sum(), weight)[0], known.cost.sum() / 2)


@pytest.mark.parametrize("graded", [True, False])
def test_a_sequence_that_was_lost_is_no_episode_that_ends(graded):
    strength = torch.tensor(1.0, requires_grad=graded)

    def simulate(x, u):
        if u[0] > 0:
            raise ArithmeticError
        return torch.cat([x[None], x - u.abs().cumsum(0)])

    with dcem.distributed.PoolRollout(simulate, 1) as simulator:
        mpc = MPC(
            simulator, lambda x, u: strength + 0 * x.sum(-1), 4, 1, (-1.0, 1.0), dcem.CEM(20, 5), num_iterations=1,
            continues=lambda x: (x[..., 0] > 0).float(), init_mean=-0.3, init_std=0.3, answer="best",
        )  # fmt: skip
        plan = mpc(torch.full((2, 1), 9.0), generator=torch.Generator().manual_seed(0))
    assert (plan.actions[:, 0] <= 0).all()
    assert (plan.cost == 4.0).all()
    assert (plan.states[:, 0] == 9.0).all()


def test_a_weight_that_underflows_is_no_end():
    """In float32 `0.1^60` is 0."""

    def planned(limit):
        mpc = MPC(
            lambda x, u: torch.where(x > limit, torch.nan, x + 1.0), lambda x, u: u.square().sum(-1), 60, 1,
            discount=0.1, constraint=lambda x: x[..., 0] - 50.0, num_iterations=1,
        )  # fmt: skip
        return mpc(torch.zeros(1))

    assert planned(torch.inf).violation == 10.0
    assert planned(49.0).cost.isnan()
    assert planned(49.0).status == dcem.Status.NONFINITE


def test_a_violation_is_told_as_it_is_until_the_end():
    mpc = MPC(
        lambda x, u: x + 1.0, lambda x, u: 0 * x.squeeze(-1), 4, 1, discount=0.5, constraint=lambda x: x.squeeze(-1) - 1,
        continues=lambda x: (x.squeeze(-1) < 2.5).float(), constraint_weight=1.0, num_iterations=1,
    )  # fmt: skip
    plan = mpc(torch.zeros(1))
    assert plan.violation == 1.0  # in x = 2; x = 3 ends the episode and counts no more
    assert plan.cost == 0.25 * 1.0  # charged with its discount


@pytest.mark.parametrize("discount", [0.0, -1.0, 1.5, float("nan")])
def test_a_discount_outside_its_range_is_refused(discount):
    with pytest.raises(ValueError, match="discount: expected a number in"):
        MPC(lambda x, u: x, lambda x, u: u.sum(-1), 2, 1, discount=discount)


def test_continues_of_the_wrong_shape_is_refused():
    mpc = MPC(lambda x, u: x, lambda x, u: u.sum(-1), 3, 1, continues=lambda x: x)
    with pytest.raises(ValueError, match="continues: expected values"):
        mpc(torch.zeros(1))


@pytest.mark.cpu
@pytest.mark.parametrize("continues", [lambda x: 4 * x[..., 0], lambda x: x[..., 0] - 3])  # logits, say
def test_continues_that_is_no_probability_is_refused(continues):
    mpc = MPC(lambda x, u: x + u, lambda x, u: x.square().sum(-1), 3, 1, continues=continues)
    with pytest.raises(ValueError, match=r"continues: expected probabilities in \[0, 1\], got numbers from"):
        mpc(torch.ones(1))


def test_proposals_leave_the_state_as_it_is():
    def proposals(state, horizon, num):
        return state.zero_().expand(num, horizon, 1)

    mpc = MPC(lambda x, u: x + u, lambda x, u: x.square().sum(-1), 3, 1, proposals=proposals)
    with pytest.raises(ValueError, match="proposals: expected to leave states and actions as they are"):
        mpc(torch.ones(1))


class Timed(nn.Module):
    def forward(self, x, u, t):
        return x + u * (t + 1)


class TimedCallable:
    def __call__(self, x, u, *, t):
        return x + u * (t + 1)

    def method(self, x, u, t=0):
        return x + u * (t + 1)


@pytest.mark.parametrize(
    "dynamics",
    [
        Timed(),
        TimedCallable(),
        TimedCallable().method,
        functools.partial(TimedCallable().method),
        lambda x, u, t: x + u * (t + 1),
    ],
)
def test_dynamics_may_know_the_time(dynamics):
    states = rollout(dynamics, torch.zeros(1), torch.ones(4, 1))
    torch.testing.assert_close(states.squeeze(-1), torch.tensor([0.0, 1, 3, 6, 10]))


def test_a_second_argument_named_t_is_the_action():
    assert rollout(lambda s, t: s + t, torch.zeros(1), torch.ones(3, 1))[-1] == 3


def test_a_reference_is_tracked_without_a_clock_in_the_state():
    reference = torch.tensor([0.0, 0.4, -0.2, 0.3, 0.1])

    def cost(x, u, t):
        return (x.squeeze(-1) - reference[t].reshape(-1, *(1,) * (x.dim() - 2))).square()

    mpc = MPC(lambda x, u: x + u, cost, 5, 1, (-1.0, 1.0), dcem.CEM(400, 40, dcem.LML(0.1)), num_iterations=25)
    plan = mpc(torch.zeros(2, 1), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plan.states[:, :5, 0], reference.expand(2, 5), atol=0.02, rtol=0)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("particles", [1, 2])
def test_steps_are_weighed_as_the_docstring_says(batch, particles):
    w = torch.tensor([1.0, 10.0, 100.0])
    cost = lambda x, u, t: torch.einsum("t,t...->t...", w[t], x.square().sum(-1))  # noqa: E731
    plan = MPC(lambda x, u: x + u, cost, 3, 2, num_particles=particles, num_iterations=1)(torch.ones(*batch, 2))
    states = plan.states[0] if particles > 1 else plan.states  # which are alike
    torch.testing.assert_close(plan.cost, (states[..., :3, :].square().sum(-1) * w).sum(-1))


def test_a_plan_with_random_proposals_is_replayed_from_its_generator():
    def propose(state, horizon, num, generator=None):
        return torch.randn(*state.shape[:-1], num, horizon, 1, generator=generator)

    mpc = MPC(lambda x, u: x + u, lambda x, u: (x - 1).square().sum(-1), 3, 1, proposals=propose)
    plans = [mpc(torch.zeros(2, 1), generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(plans[0].actions, plans[1].actions)


class Around(nn.Module):
    """Actions around what a state calls for."""

    latent_shape = (1,)

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, z, *, state):
        assert state.shape[:-1] == z.shape[:-1]
        return (self.gain * -state + 0.1 * z).unsqueeze(-2).expand(*z.shape[:-1], 4, 1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_a_decoder_may_know_the_state(batch):
    mpc = MPC(
        lambda x, u: x + u, lambda x, u: x.square().sum(-1), 4, 1, decoder=Around(), num_iterations=2,
        solver=dcem.CEM(8, 2, dcem.LML(0.5)),
    )  # fmt: skip
    state = torch.randn(*batch, 1, generator=torch.Generator().manual_seed(0))
    plan = mpc(state, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plan.actions, mpc.decoder(plan.solution.x, state=state))
    plan.cost.sum().backward()
    assert mpc.decoder.gain.grad != 0

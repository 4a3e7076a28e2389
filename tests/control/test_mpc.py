"""Controllers: plans against closed forms, gradients against finite differences, and what goes wrong."""

import copy
import dataclasses
import math

import pytest
import torch

import dcem
from dcem.control import MPC, CVaR, Mean, Plan, WorstCase, rollout

HARD = dcem.HardTopK()


def double_integrator(state, action):
    position, speed = state.unbind(-1)
    return torch.stack([position + 0.2 * speed, speed + 0.2 * action[..., 0]], -1)


def quadratic(state, action):
    return state.square().sum(-1) + 0.1 * action.square().sum(-1)


def controller(**options):
    settings = {"solver": dcem.CEM(64, 8, init_std=1.0), "num_iterations": 4, **options}
    return MPC(double_integrator, quadratic, settings.pop("horizon", 5), settings.pop("action_shape", 1), **settings)


def states(*batch, seed=0, dtype=torch.float32):
    return torch.randn(*batch, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def true_cost(state, actions):
    trajectory = rollout(double_integrator, state, actions)
    return quadratic(trajectory[..., :-1, :], actions).sum(-1)


# --- what a plan is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
def test_shapes(batch):
    plan = controller()(states(*batch), generator=seeded())
    assert plan.action.shape == (*batch, 1)
    assert plan.actions.shape == (*batch, 5, 1)
    assert plan.states.shape == (*batch, 6, 2)
    assert plan.cost.shape == plan.violation.shape == plan.status.shape == batch
    assert plan.distribution.mean.shape == (*batch, 5, 1)
    assert torch.equal(plan.action, plan.actions[..., 0, :])


@pytest.mark.parametrize("answer", ["mean", "best", "last"])
@pytest.mark.parametrize("decoded", [False, True])
def test_states_and_cost_are_those_of_the_actions(answer, decoded):
    decoder = {"decoder": torch.nn.Unflatten(-1, (5, 1)), "latent_shape": 5} if decoded else {}
    state = states(3)
    plan = controller(answer=answer, bounds=(-0.5, 0.4), **decoder)(state, generator=seeded())
    assert torch.equal(plan.states, rollout(double_integrator, state, plan.actions))
    torch.testing.assert_close(plan.cost, true_cost(state, plan.actions))
    assert plan.actions.min() >= -0.5
    assert plan.actions.max() <= 0.4


def test_best_is_the_best_sample_and_last_that_of_the_last_iteration():
    state = states(3)
    plans = {a: controller(answer=a)(state, generator=seeded(), record=True) for a in ("best", "last")}
    for plan in plans.values():
        torch.testing.assert_close(plans["best"].solution.best_value, plan.solution.best_value)
    torch.testing.assert_close(plans["best"].cost, plans["best"].solution.best_value)
    torch.testing.assert_close(plans["last"].cost, plans["last"].solution.history[-1].values.min(-1).values)


def test_plans_approach_the_riccati_solution():
    """Linear dynamics and quadratic cost: dynamic programming is exact."""
    a = torch.tensor([[1.0, 0.2], [0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.0], [0.2]], dtype=torch.float64)
    value, gain = torch.zeros(2, 2, dtype=torch.float64), None
    for _ in range(8):
        inverse = torch.linalg.inv(0.1 * torch.eye(1, dtype=torch.float64) + b.T @ value @ b)
        gain = inverse @ b.T @ value @ a
        value = torch.eye(2, dtype=torch.float64) + a.T @ value @ (a - b @ gain)
    state = states(4, dtype=torch.float64)
    mpc = controller(horizon=8, solver=dcem.CEM(400, 40, HARD, init_std=6.0), num_iterations=40, answer="best")
    plan = mpc(state, generator=seeded())
    optimum = torch.einsum("bi,ij,bj->b", state, value, state)
    assert (plan.cost >= optimum - 1e-9).all()
    torch.testing.assert_close(plan.cost, optimum, rtol=1e-4, atol=0)
    torch.testing.assert_close(plan.action, -(state @ gain.T), rtol=0, atol=0.02)


def test_a_problem_does_not_feel_its_batch_mates():
    noise = torch.randn(4, 3, 64, 5, 1, generator=seeded(1))
    state = states(3)
    together = controller()(state, noise=noise)
    poisoned = state.clone()
    poisoned[0] = math.nan
    beside = controller()(poisoned, noise=noise)
    assert beside.status.tolist() == [dcem.Status.NONFINITE, dcem.Status.OK, dcem.Status.OK]
    assert torch.equal(together.actions[1:], beside.actions[1:])
    assert torch.equal(together.cost[1:], beside.cost[1:])


@dataclasses.dataclass
class Body:
    position: torch.Tensor
    speed: dict


def test_states_may_be_trees_of_tensors():
    def dynamics(body, action):
        return Body(body.position + 0.2 * body.speed["v"], {"v": body.speed["v"] + 0.2 * action})

    def cost(body, action):
        return (body.position.square() + body.speed["v"].square() + 0.1 * action.square()).sum(-1)

    state = states(3)
    tree = Body(state[:, :1], {"v": state[:, 1:]})
    flat = controller()(state, generator=seeded())
    plan = MPC(dynamics, cost, 5, 1, None, dcem.CEM(64, 8), num_iterations=4)(tree, generator=seeded())
    torch.testing.assert_close(plan.actions, flat.actions)
    torch.testing.assert_close(plan.states.position, flat.states[..., :1])
    torch.testing.assert_close(plan.states.speed["v"], flat.states[..., 1:])


def test_leaves_of_a_tree_may_have_their_own_numbers_of_axes():
    tree = (torch.zeros(3), torch.zeros(3, 2, 2))
    mpc = MPC(lambda s, a: (s[0] + a, s[1]), lambda s, a: (s[0] - 1).square() + s[1].sum((-1, -2)), 3, (),
              state_dims=(0, 2))  # fmt: skip
    plan = mpc(tree, generator=seeded())
    assert plan.action.shape == (3,)
    assert plan.states[0].shape == (3, 4)
    assert plan.states[1].shape == (3, 4, 2, 2)


def test_dynamics_with_a_rollout_are_asked_once():
    class Simulator:
        calls = 0

        def __call__(self, state, action):
            raise AssertionError

        def rollout(self, state, actions):
            Simulator.calls += 1
            return rollout(double_integrator, state, actions)

    mpc = MPC(Simulator(), quadratic, 5, 1, None, dcem.CEM(64, 8), num_iterations=4)
    plan = mpc(states(3), generator=seeded())
    assert Simulator.calls == 4 + 1
    torch.testing.assert_close(plan.actions, controller()(states(3), generator=seeded()).actions)


# --- options of the problem ------------------------------------------------------------------------------------------


def test_terminal_cost_counts_the_last_state():
    mpc = controller(terminal_cost=lambda s: 7.0 * s.square().sum(-1))
    plan = mpc(states(3), generator=seeded())
    expected = true_cost(states(3), plan.actions) + 7.0 * plan.states[:, -1].square().sum(-1)
    torch.testing.assert_close(plan.cost, expected)


def test_action_rate_cost_counts_changes_since_the_action_applied():
    mpc = controller(action_rate_cost=torch.tensor([3.0]))
    first = mpc(states(2), generator=seeded())
    inside = 3.0 * first.actions.diff(dim=1).square().sum((1, 2))
    torch.testing.assert_close(first.cost, true_cost(states(2), first.actions) + inside)
    plan = mpc(states(2), warm_start=first, reset=torch.tensor([False, True]), generator=seeded())
    inside = 3.0 * plan.actions.diff(dim=1).square().sum((1, 2))
    jump = 3.0 * (plan.action - first.action).square().sum(-1) * torch.tensor([1.0, 0.0])
    torch.testing.assert_close(plan.cost, true_cost(states(2), plan.actions) + inside + jump)


def test_a_soft_constraint_keeps_states_out():
    state = torch.tensor([[1.0, 0.0]])

    def too_slow(state):  # the speed must not fall below -0.1
        return torch.stack([-0.1 - state[..., 1], state[..., 0] - 10.0], -1)

    free = controller()(state, generator=seeded())
    assert free.states[0, :, 1].min() < -0.15
    mpc = controller(constraint=too_slow, num_iterations=20, answer="best")
    held = mpc(state, generator=seeded())
    assert held.states[0, 1:, 1].min() >= -0.1 - 1e-4
    assert held.violation.item() < 1e-4
    torch.testing.assert_close(held.violation, (-0.1 - held.states[:, 1:, 1]).clamp(min=0).amax(1))
    known = mpc._problem().outcome(state, free.actions.unsqueeze(1), None)
    excess = (-0.1 - free.states[:, 1:, 1]).clamp(min=0)
    torch.testing.assert_close(known.cost[:, 0], free.cost + 1000.0 * excess.sum(1))
    torch.testing.assert_close(known.violation[:, 0], excess.amax(1))


@pytest.mark.parametrize("risk", [None, Mean(), WorstCase(), CVaR(0.5), CVaR(0.1)])
def test_particles_are_an_ensemble_judged_by_risk(risk):
    strength = torch.tensor([0.5, 1.0, 1.5, 2.0]).reshape(4, 1, 1)

    def ensemble(state, action):
        assert action.shape[0] == state.shape[0] == 4
        return double_integrator(state, action * strength.unsqueeze(-1))

    mpc = MPC(ensemble, quadratic, 5, 1, None, dcem.CEM(64, 8), num_particles=4, risk=risk, num_iterations=3)
    plan = mpc(states(3), generator=seeded())
    assert plan.states.shape == (4, 3, 6, 2)
    members = torch.stack(
        [
            quadratic(rollout(lambda s, a, k=k: double_integrator(s, a * k), states(3), plan.actions)[:, :-1],
                      plan.actions).sum(-1)
            for k in strength.flatten()
        ]
    )  # fmt: skip
    ranked = members.sort(0, descending=True).values
    count = {WorstCase: 1, CVaR: math.ceil(getattr(risk, "fraction", 0) * 4)}.get(type(risk), 4)
    torch.testing.assert_close(plan.cost, ranked[:count].mean(0))


def test_particles_of_stochastic_dynamics_differ():
    mpc = MPC(lambda s, a: s + a + torch.randn_like(s), lambda s, a: s.square().sum(-1), 3, 2, num_particles=5)
    plan = mpc(torch.zeros(2, 2), generator=seeded())
    assert plan.states[:, 0, 1].std(0).min() > 0
    torch.testing.assert_close(plan.cost, plan.states[:, :, :-1].square().sum((-1, -2)).mean(0))


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 100])
def test_chunks_change_memory_alone(chunk_size):
    sizes = []

    def dynamics(state, action):
        sizes.append(state.shape[1])
        return double_integrator(state, action * theta)

    theta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    results = []
    for size in (None, chunk_size):
        sizes.clear()
        mpc = MPC(dynamics, quadratic, 3, 1, None, dcem.CEM(64, 8), num_iterations=3, chunk_size=size)
        plan = mpc(states(2, dtype=torch.float64), generator=seeded())
        (gradient,) = torch.autograd.grad(plan.action.sum(), theta)
        results.append((plan.actions, gradient))
        assert max(sizes) == min(64, size or 64)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("bounds", [(None, 0.3), (-0.2, None), (torch.tensor([-0.1, -0.3]), torch.tensor([0.1, 9.0]))])
def test_bounds_one_sided_and_by_dimension(bounds):
    low, high = (torch.as_tensor(math.inf * sign if side is None else side)
                 for side, sign in zip(bounds, (-1, 1), strict=True))  # fmt: skip
    mpc = MPC(lambda s, a: s + a, quadratic, 4, 2, bounds, dcem.CEM(64, 8, HARD), num_iterations=5)
    plan = mpc(torch.tensor([[5.0, 5.0], [-5.0, -5.0]]), generator=seeded())
    assert (plan.actions >= low).all()
    assert (plan.actions <= high).all()
    assert torch.minimum(plan.actions - low, high - plan.actions).min() < 0.03  # the bounds were felt


def test_coloured_noise_makes_smooth_candidates():
    smooth, rough = (
        controller(horizon=20, noise=noise)(states(2), generator=seeded(), num_iterations=1, record=True)
        for noise in (dcem.ColoredNoise(2.0, dim=-2), None)
    )

    def roughness(plan):
        return plan.solution.history[0].samples.diff(dim=2).square().mean()

    assert roughness(smooth) < 0.3 * roughness(rough)


# --- warm start ------------------------------------------------------------------------------------------------------


def test_a_warm_start_is_shifted_in_time():
    mpc = controller()
    plan = mpc(states(2), generator=seeded())
    frozen = torch.zeros(1, 2, 64, 5, 1)
    again = mpc(states(2), warm_start=plan, noise=frozen, num_iterations=1)
    torch.testing.assert_close(again.actions, torch.cat([plan.actions[:, 1:], plan.actions[:, -1:]], 1))


def test_reset_starts_afresh_and_leaves_the_others_alone():
    mpc, noise = controller(), torch.randn(4, 3, 64, 5, 1, generator=seeded(2))
    plan = mpc(states(3), generator=seeded())
    reset = torch.tensor([False, True, False])
    mixed = mpc(states(3), warm_start=plan, reset=reset, noise=noise)
    fresh = mpc(states(3), noise=noise)
    warm = mpc(states(3), warm_start=plan, noise=noise)
    assert torch.equal(mixed.actions[reset], fresh.actions[reset])
    assert torch.equal(mixed.actions[~reset], warm.actions[~reset])
    assert not torch.equal(warm.actions, fresh.actions)


def test_a_warm_start_is_a_constant():
    theta = torch.tensor(1.0, requires_grad=True)
    mpc = MPC(lambda s, a: double_integrator(s, a * theta), quadratic, 5, 1, gradient=dcem.Truncate(1))
    plan = mpc(states(2), generator=seeded())
    assert plan.action.requires_grad
    mpc(states(2), warm_start=plan, generator=seeded())  # Truncate would refuse a start with a gradient


class Knots(torch.nn.Module):
    latent_shape, event_shape = (2,), (4, 1)

    def forward(self, z):
        return z.repeat_interleave(2, -1).unsqueeze(-1)


class EncodingKnots(Knots):
    def encode(self, actions):
        return actions.squeeze(-1).unflatten(-1, (2, 2)).mean(-1)


def test_a_latent_warm_start_is_encoded_or_kept():
    frozen = {"noise": torch.zeros(1, 2, 64, 2), "num_iterations": 1}
    kept, encoded = (controller(horizon=4, decoder=decoder) for decoder in (Knots(), EncodingKnots()))
    for mpc in (kept, encoded):
        plan = mpc(states(2), generator=seeded())
        again = mpc(states(2), warm_start=plan, **frozen)
        shifted = torch.cat([plan.actions[:, 1:], plan.actions[:, -1:]], 1)
        mean = plan.distribution.mean if mpc is kept else mpc.decoder.encode(shifted)
        torch.testing.assert_close(again.distribution.mean, mean)


# --- gradients -------------------------------------------------------------------------------------------------------


class Learned(torch.nn.Module):
    """Everything that a controller can learn."""

    def __init__(self, **options):
        super().__init__()
        f64 = {"dtype": torch.float64}
        self.theta = torch.nn.ParameterDict(
            {
                "dynamics": torch.tensor(0.8, **f64),
                "cost": torch.tensor(0.3, **f64),
                "terminal": torch.tensor(1.5, **f64),
                "temperature": torch.tensor(0.7, **f64),
                "rate": torch.tensor([0.05], **f64),
                "mean": torch.tensor(0.1, **f64),
                "std": torch.tensor(0.9, **f64),
                "decoder": torch.linspace(-1, 1, 4, **f64).sin().reshape(2, 2),
            }
        )
        self.options = options

    def forward(self, theta, state, noise):
        decoder = {"decoder": lambda z: (z @ theta["decoder"].T).unsqueeze(-1), "latent_shape": 2}
        mpc = MPC(
            lambda s, a: double_integrator(s, a * theta["dynamics"]),
            lambda s, a: s.square().sum(-1) + theta["cost"] * a.square().sum(-1),
            2,
            1,
            (-1.0, 1.0),
            dcem.CEM(16, 4, dcem.LML(theta["temperature"])),
            terminal_cost=lambda s: theta["terminal"] * s.square().sum(-1),
            action_rate_cost=theta["rate"],
            init_mean=theta["mean"],
            init_std=theta["std"],
            num_iterations=2,
            **decoder,
            **self.options,
        )
        plan = mpc(state, noise=noise)
        return plan.actions, plan.cost


@pytest.mark.parametrize(
    "options",
    [{}, {"answer": "best"}, {"answer": "last"}, {"chunk_size": 5}, {"gradient": dcem.Checkpoint()}],
    ids=str,
)
def test_gradients_into_everything_match_finite_differences(options):
    learned, state = Learned(**options), 2 * states(2, dtype=torch.float64)
    noise = torch.randn(2, 2, 16, 2, dtype=torch.float64, generator=seeded(3))
    names = list(learned.theta)

    def solve(*values):
        return learned(dict(zip(names, values, strict=True)), state, noise)

    values = [learned.theta[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(solve, values, eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_modules_are_registered_and_replaced():
    """`parameters()` trains all of it, and `functional_call` reaches the solver's own tensors."""
    dynamics = torch.nn.Linear(3, 2)
    temperature = torch.nn.Parameter(torch.tensor(1.0))
    mpc = MPC(
        lambda s, a: s, lambda s, a: s.square().sum(-1), 3, 1, None, dcem.CEM(16, 4, dcem.LML(temperature)),
        decoder=torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Unflatten(-1, (3, 1))), latent_shape=2,
        init_std=torch.nn.Parameter(torch.tensor(0.5)),
    )  # fmt: skip
    mpc.dynamics = lambda s, a: dynamics(torch.cat([s, a], -1))
    names = {name for name, _ in mpc.named_parameters()}
    assert {"init_std", "decoder.0.weight", "decoder.0.bias"} < names
    assert any(parameter is temperature for parameter in mpc.parameters())

    def first_action(parameters):
        plan = torch.func.functional_call(mpc, parameters, (states(2),), {"generator": seeded()})
        return plan.action.sum()

    parameters = {name: p.detach() for name, p in mpc.named_parameters()}
    changed = {**parameters, "init_std": torch.tensor(1.5)}
    assert first_action(parameters) != first_action(changed)


def test_a_learned_std_in_the_solver_follows_functional_call():
    mpc = controller(solver=dcem.CEM(64, 8, init_std=torch.nn.Parameter(torch.tensor(0.5))))
    actions = [
        torch.func.functional_call(mpc, {"solver_init_std": torch.tensor(std)}, (states(2),), {"generator": seeded()}
                                   ).actions for std in (0.5, 2.0)
    ]  # fmt: skip
    torch.testing.assert_close(actions[0], mpc(states(2), generator=seeded()).actions)
    assert not torch.equal(*actions)


def test_training_through_the_controller_finds_the_experts_dynamics():
    expert, learner = torch.tensor(1.4), torch.nn.Parameter(torch.tensor(0.6))

    def policy(strength):
        return MPC(lambda s, a: double_integrator(s, a * strength), quadratic, 5, 1, None,
                   dcem.CEM(64, 8, dcem.LML(0.1)), num_iterations=6)  # fmt: skip

    state = 2 * states(32)
    with torch.no_grad():
        target = policy(expert)(state, generator=seeded()).action
    optimizer = torch.optim.Adam([learner], lr=0.1)
    for _ in range(40):
        loss = (policy(learner)(state, generator=seeded()).action - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert learner.item() == pytest.approx(1.4, abs=0.05)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_candidates_that_diverge_are_never_chosen():
    theta = torch.tensor(1.0, requires_grad=True)

    def fragile(state, action):
        return double_integrator(state, action * theta) * (1.25 - action.square()).sqrt().sub(1).sqrt().add(1)

    mpc = MPC(fragile, quadratic, 5, 1, None, dcem.CEM(256, 8, dcem.LML(0.1), init_std=0.4), num_iterations=6)
    plan = mpc(states(3), generator=seeded())
    assert (plan.status == dcem.Status.OK).all()
    assert plan.cost.isfinite().all()
    assert plan.actions[:, :-1].abs().max() <= 0.5  # the last leads to a state that costs nothing
    plan.cost.sum().backward()
    assert theta.grad.isfinite()


def test_single_actions_and_states_of_single_numbers_may_fail():
    """Nothing looks along axes that are not there."""

    def dynamics(state, action):
        speed, place = state
        return torch.where(action > 0.1, torch.nan, speed + action), place + speed.unsqueeze(-1)

    mpc = MPC(
        dynamics, lambda s, a: (s[0] - 1).square() + a.square(), 5, (), (-1, 1), dcem.CEM(500, 8), answer="best",
        state_dims=(0, 1),
    )  # fmt: skip
    plan = mpc((torch.zeros(3), torch.zeros(3, 2)), generator=seeded())
    assert (plan.status == dcem.Status.OK).all()
    assert (plan.actions <= 0.1).all()


@pytest.mark.parametrize("answer", ["mean", "best", "last"])
def test_a_model_that_is_nan_everywhere_gives_finite_actions_and_says_so(answer):
    mpc = MPC(lambda s, a: s * math.nan, quadratic, 5, 1, answer=answer)
    plan = mpc(states(3), generator=seeded())
    assert (plan.status == dcem.Status.NONFINITE).all()
    assert plan.actions.isfinite().all()


def test_implicit_does_not_differentiate_a_sample():
    with pytest.raises(ValueError, match="answer: Implicit differentiates the mean"):
        controller(answer="best", gradient=dcem.Implicit())(states(2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"horizon": 0}, ValueError, "horizon: expected at least 1, got 0"),
        ({"horizon": 2.0}, TypeError, "horizon: expected an int, got 2.0"),
        ({"action_shape": (0,)}, ValueError, "action_shape: expected positive sizes"),
        ({"bounds": (1.0, -1.0)}, ValueError, "bounds: expected low <= high"),
        ({"bounds": (torch.zeros(3), 1.0)}, ValueError, r"bounds\[0\]: expected a shape that broadcasts .* \(5, 1\), got \(3,\)"),
        ({"answer": "median"}, ValueError, "answer: expected one of mean, best, last, got 'median'"),
        ({"decoder": 3}, TypeError, "decoder: expected a callable, got 3"),
        ({"decoder": torch.nn.Identity()}, ValueError, "latent_shape: expected the shape of the decoder's latent"),
        ({"latent_shape": 2}, ValueError, "latent_shape: expected None without a decoder"),
        ({"decoder": Knots()}, ValueError, r"decoder: expected one that gives \(horizon, \*a\) = \(5, 1\), got .*\(4, 1\)"),
        ({"init_mean": torch.zeros(4)}, ValueError, r"init_mean: expected .* \(horizon, \*a\) \(5, 1\), got \(4,\)"),
        ({"chunk_size": 0}, ValueError, "chunk_size: expected at least 1"),
        ({"num_particles": 0}, ValueError, "num_particles: expected at least 1"),
        ({"solver": 3}, TypeError, "solver: expected a dcem solver"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        controller(**options)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"dynamics": lambda s, a: s[..., :1]}, r"dynamics: expected a next state of shape \(3, 64, 2\), got \(3, 64, 1\)"),
        ({"dynamics": lambda s, a: (s, a)}, r"dynamics: expected a next state of shape \(3, 64, 2\), got tuple"),
        ({"cost": lambda s, a: s}, r"cost: expected values .* \(5, 3, 64\) .*, got \(5, 3, 64, 2\)"),
        ({"cost": lambda s, a: 0.0}, r"cost: expected values .*, got float"),
        ({"terminal_cost": lambda s: s}, r"terminal_cost: expected values .* \(3, 64\) .*, got \(3, 64, 2\)"),
        ({"constraint": lambda s: s[0]}, r"constraint: expected values \(...,\) = \(5, 3, 64\) or \(..., m\), got"),
        ({"risk": lambda c: c, "num_particles": 2}, r"risk: expected values .* \(3, 64\) .*, got \(2, 3, 64\)"),
        ({"decoder": torch.nn.Identity(), "latent_shape": 2}, r"decoder: expected actions .*, got \(3, 64, 2\)"),
    ],
)  # fmt: skip
def test_wrong_shapes_from_the_users_functions_are_named(replaced, message):
    arguments = {"dynamics": double_integrator, "cost": quadratic, "horizon": 5, "action_shape": 1,
                 "solver": dcem.CEM(64, 8)}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        MPC(**{**arguments, **replaced})(states(3))


def test_a_state_of_another_structure_is_named():
    mpc = MPC(lambda s, a: s["x"], lambda s, a: a.sum(-1), 3, 1)
    with pytest.raises(ValueError, match="dynamics: expected a next state of the structure of the state"):
        mpc({"x": torch.zeros(2, 1)})


def test_states_of_mixed_batches_are_refused():
    mpc = MPC(lambda s, a: s, lambda s, a: a.sum(-1), 3, 1)
    with pytest.raises(ValueError, match=r"state: expected at least one problem, got a batch of shape \(0,\)"):
        controller()(torch.zeros(0, 1))
    with pytest.raises(ValueError, match=r"state: expected tensors that share their batch axes, .*\(2, 1\), \(3, 1\)"):
        mpc((torch.zeros(2, 1), torch.zeros(3, 1)))
    with pytest.raises(ValueError, match=r"state: expected at least 1 axes"):
        mpc(torch.tensor(0.0))
    with pytest.raises(TypeError, match="state: expected a tensor or a tree of tensors, got None"):
        mpc(None)


@pytest.mark.cpu
def test_warm_starts_that_do_not_fit_are_refused():
    mpc = controller()
    plan = mpc(states(2), generator=seeded())
    with pytest.raises(ValueError, match=r"warm_start: expected a plan with actions .* = \(2, 6, 1\), got \(2, 5, 1\)"):
        controller(horizon=6)(states(2), warm_start=plan)
    with pytest.raises(ValueError, match=r"warm_start: expected a plan with actions .* = \(3, 5, 1\), got \(2, 5, 1\)"):
        mpc(states(3), warm_start=plan)
    with pytest.raises(TypeError, match=r"warm_start: expected a dcem.control.Plan, a WarmStart or None, got Tensor"):
        mpc(states(2), warm_start=plan.actions)
    elsewhere = dataclasses.replace(plan, actions=plan.actions.to("meta"))
    with pytest.raises(ValueError, match="warm_start: expected a plan on cpu like the state, got meta"):
        mpc(states(2), warm_start=elsewhere)
    for before in (plan, None):
        for reset, came in ((torch.zeros(2), "torch.float32"), (torch.zeros(3) > 0, "torch.bool"), ("all", "str")):
            with pytest.raises(ValueError, match=rf"reset: expected .* batch \(2,\), or one for all, got {came}"):
                mpc(states(2), warm_start=before, reset=reset)
    assert isinstance(plan, Plan)


def test_what_is_reset_may_be_an_array_as_environments_give_it():
    mpc = controller()
    plan = mpc(states(2), generator=seeded())
    done = torch.tensor([False, True])
    expected = mpc(states(2), warm_start=plan, reset=done, generator=seeded())
    assert torch.equal(
        mpc(states(2), warm_start=plan, reset=done.cpu().numpy(), generator=seeded()).actions, expected.actions
    )
    single = mpc(states(2)[0], generator=seeded())
    answers = [
        mpc(states(2)[0], warm_start=single, reset=now, generator=seeded()).actions
        for now in (torch.tensor(True), True, done.cpu().numpy()[1])
    ]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    with pytest.raises(ValueError, match="reset: expected a boolean tensor of the batch"):
        mpc(states(2), warm_start=plan, reset=done.cpu().numpy().astype(float))


def test_a_reset_may_be_one_for_all_and_the_first_step_may_have_one():
    mpc = controller()
    first = mpc(states(2), generator=seeded())
    for reset in (True, False, torch.tensor(True), torch.tensor([False, True])):
        assert torch.equal(mpc(states(2), warm_start=None, reset=reset, generator=seeded()).actions, first.actions)
    on = mpc(states(2), warm_start=first, generator=seeded())
    for reset, expected in ((True, first), (torch.tensor(True), first), (False, on), (torch.tensor(False), on)):
        assert torch.equal(mpc(states(2), warm_start=first, reset=reset, generator=seeded()).actions, expected.actions)


@pytest.mark.parametrize("fraction", [0.0, 1.5, math.nan])
def test_cvar_takes_a_fraction(fraction):
    with pytest.raises(ValueError, match=r"fraction: expected a number in \(0, 1\]"):
        CVaR(fraction)


def test_rollout_names_actions_of_another_batch():
    with pytest.raises(ValueError, match=r"actions: expected \(\*batch, H, \*a\) with the state's batch \(3,\)"):
        rollout(double_integrator, states(3), torch.zeros(2, 5, 1))


def test_a_solver_put_in_the_place_of_another_is_used():
    mpc = controller(solver=dcem.CEM(64, 8, dcem.LML(1.0)))
    mpc.solver = dcem.CEM(64, 8, HARD)
    expected = controller(solver=dcem.CEM(64, 8, HARD))
    assert torch.equal(mpc(states(2), generator=seeded()).actions, expected(states(2), generator=seeded()).actions)
    copied = copy.deepcopy(controller(solver=dcem.CEM(64, 8, init_std=torch.tensor(0.5))))
    copied.solver_init_std.fill_(2.0)
    wide = controller(solver=dcem.CEM(64, 8, init_std=2.0))
    assert torch.equal(copied(states(2), generator=seeded()).actions, wide(states(2), generator=seeded()).actions)


class Named(dict):
    """A state of a class of its own."""

    unit = "m"


@pytest.mark.cpu
def test_a_state_of_a_subclass_of_dict_stays_one():
    def pushed(x, u):
        assert type(x) is Named
        return Named(place=x["place"] + u)

    state = Named(place=torch.zeros(2, 1))
    plan = MPC(pushed, lambda x, u: (x["place"] - 1).square().sum(-1), 3, 1, state_dims={"place": 1})(state)
    assert type(plan.states) is Named


@pytest.mark.cpu
def test_in_inference_mode_too_what_is_written_in_place_is_an_error():
    def pushed(x, u):
        return x.add_(u)

    def clipping(x):
        return x.clamp_(-0.1, 0.1).square().sum(-1)

    with torch.inference_mode():
        with pytest.raises(ValueError, match="dynamics: expected a new tensor for each state"):
            MPC(pushed, lambda x, u: x.square().sum(-1), 3, 1)(torch.ones(1))
        with pytest.raises(ValueError, match="objective: expected to leave its candidates as they are"):
            dcem.minimize(clipping, torch.zeros(2))
        assert dcem.minimize(lambda x: (x / 0).abs().sum(-1), torch.zeros(2)).status == dcem.Status.NONFINITE


@pytest.mark.cpu
def test_what_a_plan_through_a_simulator_says_of_its_cost_works():
    """The remedies of the error, each for what it is said of."""
    weight = torch.tensor(2.0, requires_grad=True)

    def simulate(x, u):
        return torch.from_numpy(x.detach().numpy() + 0.1 * u.detach().numpy())

    mpc = MPC(
        simulate, lambda x, u: weight * x.square().sum(-1) + u.square().sum(-1), 3, 1, (-1.0, 1.0), dcem.CEM(30, 5)
    )
    state = torch.ones(1)
    with pytest.raises(RuntimeError, match=r"Truncate\(1\) .* plan.actions has and plan.cost has not, or .*Detach\(\)"):
        mpc(state, gradient=dcem.Truncate(1)).cost.backward()
    (slope,) = torch.autograd.grad(mpc(state, gradient=dcem.Truncate(1)).actions.sum(), weight)
    assert slope != 0
    plan = mpc(state, gradient=dcem.Detach())
    (slope,) = torch.autograd.grad(plan.cost, weight)
    torch.testing.assert_close(slope, plan.states[:-1].square().sum())


@pytest.mark.cpu
def test_the_price_of_violation_is_learned_by_its_magnitude():
    def planned(weight):
        mpc = MPC(
            torch.add, lambda x, u: u.square().sum(-1), 3, 1, (-1.0, 1.0), dcem.CEM(20, 5),
            constraint=lambda x: 1 - x[..., 0], constraint_weight=weight,
        )  # fmt: skip
        return mpc, mpc(torch.zeros(1), noise=torch.randn(10, 20, 3, 1, generator=torch.Generator().manual_seed(0)))

    price = torch.nn.Parameter(torch.tensor(10.0))
    mpc, plan = planned(price)
    assert dict(mpc.named_parameters())["constraint_weight"] is price
    (slope,) = torch.autograd.grad(planned(price)[1].cost, price)
    assert slope != 0
    price.data.neg_()
    assert planned(10.0)[1].cost == plan.cost
    with torch.no_grad():
        assert (
            mpc(torch.zeros(1), noise=torch.randn(10, 20, 3, 1, generator=torch.Generator().manual_seed(0))).cost
            == plan.cost
        )
    with pytest.raises(ValueError, match="constraint_weight: expected"):
        mpc.constraint_weight = -1.0


@pytest.mark.cpu
@pytest.mark.parametrize("actions", [[[0.5], [0.5]], [[0.3], [-0.2]], [[0.0], [0.0]]])
def test_a_simulator_is_seen_whatever_the_single_sequence_that_is_followed(actions):
    """The last state of one that adds up its actions does not tell in which order they were."""

    def simulate(x, u):
        return torch.from_numpy(x.detach().numpy() + u.detach().numpy())

    weight = torch.tensor(2.0, requires_grad=True)
    mpc = MPC(simulate, lambda x, u: weight * x.square().sum(-1), 2, 1, (-1.0, 1.0), dcem.CEM(20, 5), num_iterations=1)
    mpc.init_mean, mpc.init_std = torch.tensor(actions), 1e-4
    noise = torch.randn(1, 20, 2, 1, generator=torch.Generator().manual_seed(0))
    plan = mpc(torch.ones(1), gradient=dcem.Truncate(1), noise=noise)
    with pytest.raises(RuntimeError, match="dynamics: expected states with a gradient"):
        plan.cost.backward()

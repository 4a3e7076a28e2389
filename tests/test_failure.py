"""The failure guard: one contract for every solver, gradient mode and front of the library, eagerly and transformed.

A batch of five problems shares `theta`. One of them, the second, has what the test is about; the gradient of the others'
answers must be what it is without that problem, and each says how it went.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

import dcem
from dcem.control import MPC
from dcem.energy import EnergyModel

B, N, T, BAD = 5, 20, 2, 1
REST = [i for i in range(B) if i != BAD]
HEALTHY, NAN_PROBLEM, NAN_CANDIDATE, STEEP, EQUAL, ROUNDING = range(6)
KINDS = {
    "nan problem": NAN_PROBLEM,
    "nan candidate": NAN_CANDIDATE,
    "steep": STEEP,
    "equal": EQUAL,
    "rounding": ROUNDING,
}


def value(theta: Tensor, data: Tensor, y: Tensor) -> Tensor:
    """`data` `(*batch, 3)`, a centre and a kind; `y` `(*batch, N, 2)`."""
    center, kind = data[..., :2].unsqueeze(-2), data[..., 2:]
    base = (y - theta * center).square().sum(-1)
    # Beside the other kinds stands the root of 1, which has a derivative.
    partly = torch.where(kind == NAN_CANDIDATE, theta[0] - 0.3 - y[..., 0], 1.0).sqrt()  # NaN, derivative too
    root = torch.where(kind == STEEP, theta[0] * y[..., 0], 1.0)
    steep = torch.where(root > 0, root.sqrt(), 0.0)  # finite, but 0 * NaN in the derivative where the root is hidden
    scale = torch.where(kind == EQUAL, 0.0, torch.where(kind == ROUNDING, 1e-10, 1.0))
    return scale * (base + partly + steep) + torch.where(kind == ROUNDING, 1e6, 2.0)


def problems(kind: int) -> Tensor:
    data = torch.randn(B, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    data[:, 2] = HEALTHY
    data[BAD, 2] = kind
    if kind == NAN_PROBLEM:
        data[BAD, :2] = torch.nan
    return data


NOISE = torch.randn(T, B, N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def draws(rows: list[int], num_samples: int) -> Tensor:
    return NOISE[:, rows][:, :, :num_samples]


def by_energy(theta, data, solver, mode, rows, **options):
    model = EnergyModel(lambda x, y: value(theta, x, y), 2, solver, num_iterations=len(NOISE), gradient=mode, **options)
    solution = model.solve(data[rows], noise=draws(rows, solver.num_samples))
    solution.x.solution = solution  # it is written into as long as it is there
    return solution.x, solution.status


def by_decoder(theta, data, solver, mode, rows):
    return by_energy(theta, data, solver, mode, rows, decoder=lambda z: theta * z + 0.1)


def by_control(theta, data, solver, mode, rows, **options):
    mpc = MPC(
        lambda s, u: torch.cat([s[..., :2] * theta, s[..., 2:]], -1), lambda s, u: value(theta, s, u.unsqueeze(-2)).squeeze(-1),
        1, 2, solver=solver, num_iterations=len(NOISE), gradient=mode, **options,
    )  # fmt: skip
    plan = mpc(data[rows], noise=draws(rows, solver.num_samples).unsqueeze(-2))
    return torch.cat([plan.actions.flatten(-2), plan.cost.unsqueeze(-1), plan.states.flatten(-2)], -1), plan.status


def by_chunks(theta, data, solver, mode, rows):
    return by_control(theta, data, solver, mode, rows, chunk_size=7)


def by_particles(theta, data, solver, mode, rows):
    mpc = MPC(
        lambda s, u: torch.cat([s[..., :2] * theta, s[..., 2:]], -1), lambda s, u: value(theta, s, u.unsqueeze(-2)).squeeze(-1),
        1, 2, solver=solver, num_iterations=len(NOISE), gradient=mode, num_particles=2,
    )  # fmt: skip
    plan = mpc(data[rows], noise=draws(rows, solver.num_samples).unsqueeze(-2))
    states = plan.states.movedim(0, 1).flatten(1)
    return torch.cat([plan.actions.flatten(-2), plan.cost.unsqueeze(-1), states], -1), plan.status


def by_function(theta, data, solver, mode, rows):
    solution = dcem.minimize(
        lambda y: value(theta, data[rows], y), torch.zeros(len(rows), 2, dtype=torch.float64), solver, num_iterations=len(NOISE),
        gradient=mode, noise=draws(rows, solver.num_samples),
    )  # fmt: skip
    return solution.x, solution.status


FRONTS = {f.__name__: f for f in (by_energy, by_decoder, by_control, by_chunks, by_particles, by_function)}
SOLVERS = {
    "lml": dcem.CEM(N, 4, dcem.LML(0.5)),
    "softmax": dcem.CEM(N, 4, dcem.ConstrainedSoftmax(0.5), smoothing=0.2),
    "icem": dcem.CEM(N, 4, dcem.ConstrainedSparsemax(2.0), keep_elites=0.5, standardize=False),
    "mppi": dcem.MPPI(N, 1.0),
    "gd": dcem.GradientDescent(0.1, 0.3),
}
MODES = {
    "unroll": dcem.Unroll(), "checkpoint": dcem.Checkpoint(), "truncate": dcem.Truncate(1), "prune": dcem.Prune(0.5),
    "detach": dcem.Detach(), "implicit": dcem.Implicit(tolerance=100.0),
}  # fmt: skip
CASES = [(f, s, "unroll", k) for f in ("by_energy", "by_control") for s in SOLVERS for k in KINDS]
CASES += [(f, s, "unroll", k) for f in ("by_decoder", "by_chunks", "by_particles", "by_function")
          for s in ("lml", "gd") for k in ("nan problem", "nan candidate")]  # fmt: skip
CASES += [(f, s, m, k) for f, s in (("by_energy", "lml"), ("by_control", "gd"), ("by_energy", "gd"))
          for m in MODES if m != "unroll" for k in ("nan problem", "steep", "equal")]  # fmt: skip
# A plain function keeps its data to itself: there the guard ends.
CASES = [
    case for case in CASES if case[1:3] != ("gd", "prune") and (case[0], case[3]) != ("by_function", "nan problem")
]
START = torch.tensor([0.8, 1.1], dtype=torch.float64)


def status_of(kind: int, solver: str) -> int:
    if kind == NAN_PROBLEM or (solver == "gd" and kind == STEEP):
        return dcem.Status.NONFINITE
    if kind in (EQUAL, ROUNDING) and solver != "gd":
        return dcem.Status.FLAT
    return dcem.Status.OK


@pytest.mark.parametrize(("front", "solver", "mode", "kind"), CASES)
def test_the_others_have_the_gradient_that_they_have_alone(front, solver, mode, kind):
    theta = START.clone().requires_grad_()
    solve, kind = FRONTS[front], KINDS[kind]
    data = problems(kind)
    x, status = solve(theta, data, SOLVERS[solver], MODES[mode], list(range(B)))
    alone, alone_status = solve(theta, data, SOLVERS[solver], MODES[mode], REST)
    torch.testing.assert_close(x[REST], alone)
    assert torch.equal(status[REST], alone_status)
    assert x[BAD, :2].isfinite().all()
    if mode != "implicit":
        assert status[BAD] == status_of(kind, solver)
    if not alone.requires_grad:
        assert mode == "detach"
        return
    (expected,) = torch.autograd.grad(alone.square().sum(), theta)
    assert expected.isfinite().all()
    # Where a slope is only computed in the backward pass, what it spoils is spoilt; gradient descent sees it before,
    # but not that of the plan that is followed at the end.
    before = FRONTS[front] in (by_energy, by_decoder) and (solver == "gd" or mode == "implicit")
    steep_in_backward = kind == STEEP and not before
    found = torch.autograd.grad(x[REST].square().sum(), theta, retain_graph=True)[0]
    if steep_in_backward:
        assert status[BAD] == dcem.Status.NONFINITE
        assert torch.equal(status[REST], alone_status)
    else:
        torch.testing.assert_close(found, expected)
        if kind != NAN_PROBLEM:  # whose cost is NaN
            whole = torch.autograd.grad(x.square().sum(), theta)[0]
            assert whole.isfinite().all()


TRANSFORMED = [(f, s, k) for f in ("by_energy", "by_control") for s in ("lml", "mppi", "gd")
               for k in ("nan problem", "nan candidate", "equal")]  # fmt: skip
TRANSFORMED += [(f, s, "nan problem") for f in ("by_decoder", "by_chunks", "by_particles") for s in ("icem", "gd")]


@pytest.mark.parametrize(("front", "solver", "kind"), TRANSFORMED)
def test_so_they_have_under_transforms(front, solver, kind, monkeypatch):
    if kind != "nan problem":  # with which there are two iterations
        monkeypatch.setitem(globals(), "NOISE", NOISE[:1])
    solve, data, mode = FRONTS[front], problems(KINDS[kind]), dcem.Unroll()

    def answer(theta: Tensor) -> Tensor:
        return solve(theta, data, SOLVERS[solver], mode, list(range(B)))[0][REST].square().sum()

    theta = START.clone().requires_grad_()
    alone = solve(theta, data, SOLVERS[solver], mode, REST)[0].square().sum()
    (expected,) = torch.autograd.grad(alone, theta)
    torch.testing.assert_close(torch.func.grad(answer)(START), expected)
    tangent = torch.tensor([0.3, -0.7], dtype=torch.float64)
    torch.testing.assert_close(torch.func.jvp(answer, (START,), (tangent,))[1], expected @ tangent)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(START, tangent)
        forward = torch.autograd.forward_ad.unpack_dual(answer(dual)).tangent
    torch.testing.assert_close(forward, expected @ tangent)
    batched = torch.func.vmap(torch.func.grad(answer))(torch.stack([START, START + 0.1]))
    torch.testing.assert_close(batched[0], expected)
    outside = torch.func.grad(lambda t: torch.func.vmap(answer)(t.unsqueeze(0)).sum())(START)
    torch.testing.assert_close(outside, expected)


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("kind", ["nan problem", "nan candidate"])
def test_so_does_a_contrastive_loss(kind, correction):
    """Its mean is over the problems whose target has a finite energy, and its candidates are those that have one."""
    data, kind = problems(KINDS[kind]), KINDS[kind]
    targets = torch.tensor([-0.5, 0.3], dtype=torch.float64).expand(B, 2)

    def loss(theta: Tensor, rows: list[int]) -> Tensor:
        model = EnergyModel(lambda x, y: value(theta, x, y), 2, SOLVERS["lml"], num_iterations=T)
        options = {"noise": draws(rows, N), "correction": correction, "num_negatives": T * N}
        return dcem.energy.contrastive_loss(model, data[rows], targets[rows], **options)

    theta = START.clone().requires_grad_()
    found, alone = loss(theta, list(range(B))), loss(theta, REST)
    gradients = [torch.autograd.grad(x, theta)[0] for x in (found, alone)]
    assert all(gradient.isfinite().all() for gradient in gradients)
    if kind == NAN_PROBLEM:
        torch.testing.assert_close(found, alone)
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(torch.func.grad(lambda t: loss(t, list(range(B))))(START), gradients[0])
    nothing = loss(theta, [BAD, BAD]) if kind == NAN_PROBLEM else None
    if nothing is not None:
        assert nothing.isnan()


def test_a_problem_that_fails_only_where_the_search_starts_has_no_gradient_from_there():
    """Of a plain function, too: what failed is evaluated at candidates of others, and fails there no more."""
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    init = torch.tensor([[1.0], [-100.0], [1.0]], dtype=torch.float64)
    noise = torch.randn(5, 3, 40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).abs()

    def answer(theta: Tensor, rows: list[int], solver: dcem.Solver) -> Tensor:
        return dcem.minimize(
            lambda x: (x.sum(-1).sqrt() - theta).square(), init[rows], solver, num_iterations=5,
            noise=noise[:, rows, : solver.num_samples],
        ).x  # fmt: skip

    for solver in (dcem.CEM(40, 5), dcem.MPPI(40), dcem.GradientDescent(0.1)):
        (expected,) = torch.autograd.grad(answer(theta, [0, 2], solver).sum(), theta)
        (found,) = torch.autograd.grad(answer(theta, [0, 1, 2], solver).sum(), theta)
        torch.testing.assert_close(found, expected)
        transformed = torch.func.grad(lambda t, s=solver: answer(t, [0, 1, 2], s).sum())(theta.detach())
        torch.testing.assert_close(transformed, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.filterwarnings("ignore:.*isinstance.*Leaf.*:FutureWarning")
@pytest.mark.parametrize("solver", ["mppi", "gd"])
def test_so_they_have_in_one_compiled_graph(solver, backend):
    """The others of the solvers whose whole solves `test_compile` compiles, one of them with its backward pass traced."""
    backend = "eager" if solver == "mppi" and backend.startswith("aot") else backend
    data = problems(NAN_PROBLEM).float()
    solver, noise = SOLVERS[solver], NOISE[:2].float()
    num_iterations = 2 if isinstance(solver, dcem.GradientDescent) else 1  # after which nothing new would be traced

    def answer(theta: Tensor, data: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        options = {"num_iterations": num_iterations, "bounds": (-0.9, 0.9)}
        model = EnergyModel(lambda x, y: value(theta, x, y), 2, solver, **options)
        solution = model.solve(data, noise=noise[:num_iterations, :, : solver.num_samples])
        return solution.x, solution.best_x, solution.status

    theta = START.float().requires_grad_()
    torch._dynamo.reset()
    x, best_x, status = torch.compile(answer, fullgraph=True, backend=backend)(theta, data, noise)
    alone, alone_best_x, _ = answer(theta, data[REST], noise[:, REST])
    torch.testing.assert_close(x[REST], alone)
    torch.testing.assert_close(best_x[REST], alone_best_x)
    assert status.tolist() == [dcem.Status.NONFINITE if i == BAD else dcem.Status.OK for i in range(B)]
    found, expected = (torch.autograd.grad(y.square().sum(), theta)[0] for y in (x[REST], alone))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "gd"])
def test_an_answer_that_is_not_finite_is_never_ok(solver, compiled):
    """A draw that is no number has a weight of 0 as its value has none, but 0 times it is none either."""
    if compiled and solver != "lml":
        pytest.skip("one is enough")
    noise = NOISE.clone()
    noise[-1, BAD, 3] = torch.nan

    def solve(noise):
        objective = lambda x: x.square().sum(-1)  # noqa: E731
        solution = dcem.minimize(objective, torch.zeros(B, 2, dtype=torch.float64), SOLVERS[solver], num_iterations=T, noise=noise)  # fmt: skip
        return solution.x, solution.status

    if compiled:
        torch._dynamo.reset()
    healthy, ok = solve(NOISE)
    x, status = (torch.compile(solve, fullgraph=True, backend="eager") if compiled else solve)(noise)
    assert torch.equal(x[REST], healthy[REST])
    assert ok.tolist() == [dcem.Status.OK] * B
    assert not x[BAD].isfinite().all()
    assert status.tolist() == [dcem.Status.NONFINITE if i == BAD else dcem.Status.OK for i in range(B)]
    by_vmap = torch.func.vmap(solve, in_dims=2, randomness="error")(noise.unsqueeze(2))[1]
    assert torch.equal(by_vmap[0], status)


@pytest.mark.cpu
def test_a_solve_stays_where_its_tensors_are():
    """Not where new ones are made by default."""
    with torch.device("meta"):
        solution = dcem.minimize(
            lambda x: x.square().sum(-1), torch.zeros(B, 2, device="cpu"), SOLVERS["lml"], num_iterations=T,
            noise=NOISE.float(),
        )  # fmt: skip
    assert solution.status.tolist() == [dcem.Status.OK] * B


def test_out_of_memory_says_what_to_turn() -> None:
    def objective(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    with pytest.raises(torch.OutOfMemoryError, match=r"\(100, 3\) candidates: gradient=dcem.Checkpoint\(\).* 80 GiB"):
        dcem.minimize(objective, torch.zeros(3))


@pytest.mark.parametrize("keep_elites", [0.2, 1.0])
def test_elites_are_no_failed_candidates_for_good(keep_elites):
    """Where they fill places, the finite values of one iteration are never enough: those of several have to gather."""
    solution = dcem.minimize(
        lambda x: torch.where(x[..., 0] > 0.3, (x - 1).square().sum(-1), torch.nan), torch.zeros(64, 1),
        dcem.CEM(10, 6, dcem.LML(0.3), keep_elites=keep_elites), num_iterations=50,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert (solution.distribution.std < 1).all()
    torch.testing.assert_close(solution.x, torch.ones(64, 1), atol=0.2, rtol=0)


def outside(x: torch.Tensor) -> torch.Tensor:
    """What autograd does not see, as of a simulator."""
    return torch.from_numpy(np.square(x.detach().cpu().numpy() - 0.3).sum(-1)).to(x.device)


FULL = [dcem.Unroll(), dcem.Checkpoint(), dcem.Prune(0.5)]


@pytest.mark.parametrize(
    ("asks", "mode"),
    [*((asks, mode) for asks in ("init", "noise", "proposals", "temperature") for mode in FULL),
     ("temperature", dcem.Truncate(2))],
    ids=repr,
)  # fmt: skip
def test_no_gradient_of_candidates_is_made_up_where_values_have_none(asks, mode):
    """The samples that are selected have one, which is not that of the answer: 1 for 0.01."""
    given = {
        "init": torch.zeros(2), "noise": torch.randn(5, 20, 2, generator=torch.Generator().manual_seed(0)),
        "proposals": torch.zeros(1, 2), "temperature": torch.tensor(1.0),
    }  # fmt: skip
    given[asks].requires_grad_()
    solver = dcem.CEM(20, 5, dcem.LML(given.pop("temperature")))

    def solve(objective, mode):
        init, options = given["init"], {name: of for name, of in given.items() if name != "init"}
        return dcem.minimize(objective, init, solver, num_iterations=5, gradient=mode, **options)

    solution = solve(outside, mode)
    assert solution.x.isfinite().all()
    with pytest.raises(RuntimeError, match="^objective: expected values with a gradient, which the solution was asked"):
        solution.x.sum().backward()
    assert not solve(outside, dcem.Detach()).x.requires_grad
    steps = solve(lambda x: outside(x).round() + 0.0 * x.sum(-1), mode)  # who says so has values that do not change
    steps.x.sum().backward()


@pytest.mark.parametrize("mode", [*FULL, dcem.Truncate(2)], ids=repr)
@pytest.mark.parametrize("lives_on", ["all", "in_a_part", "nothing"])
def test_nor_where_values_have_a_gradient_of_what_was_learned_alone(mode, lives_on):
    """Of the answer, which moves with what was learned, that is a part, of any size and sign: 3.9 for 1."""
    noise = torch.randn(5, 50, 2, generator=torch.Generator().manual_seed(0))
    solver = dcem.CEM(50, 10, dcem.LML(0.1))

    def answer(goal):
        def objective(x):
            seen = x if lives_on == "all" else x.detach()
            return (seen - goal).square().sum(-1) + (0.0 * x.sum(-1) if lives_on == "in_a_part" else 0.0)

        return dcem.minimize(objective, torch.zeros(2), solver, noise=noise, num_iterations=5, gradient=mode).x.sum()

    def by_autograd(goal, **options):
        goal = goal.clone().requires_grad_()
        return torch.autograd.grad(answer(goal), goal, **options)[0]

    for differentiate in (
        by_autograd,
        lambda goal: by_autograd(goal, create_graph=True),
        torch.func.grad(answer),
        lambda goal: torch.func.vmap(torch.func.grad(answer))(goal.expand(2, 2)),
        torch.func.hessian(answer),
    ):
        if lives_on == "nothing":
            with pytest.raises(RuntimeError, match="^objective: expected values with a gradient"):
                differentiate(torch.tensor([0.5, -0.3]))
        else:
            assert differentiate(torch.tensor([0.5, -0.3])).isfinite().all()


@pytest.mark.parametrize("rolls_out", [False, True])
@pytest.mark.parametrize("mode", [*FULL, dcem.Truncate(1), dcem.Detach()], ids=repr)
def test_nor_of_actions_whose_states_have_none(mode, rolls_out):
    """As of a simulator, beside a cost of the actions and one that was learned: 12.8 for 6.3."""
    goal = torch.tensor(0.7, requires_grad=True)

    class Model:
        def __init__(self, is_simulator):
            self.is_simulator = is_simulator

        def __call__(self, x, u):
            after = x["at"] + 0.3 * u
            return {"at": after.detach() if self.is_simulator else after, "steps": x["steps"] + 1}

    class Whole(Model):
        def rollout(self, x, u):
            return dcem.control.rollout(Model(self.is_simulator).__call__, x, u, state_dims={"at": 1, "steps": 0})

    def plan(is_simulator):
        mpc = dcem.control.MPC(
            (Whole if rolls_out else Model)(is_simulator),
            lambda x, u: (x["at"] - goal).square().sum(-1) + 0.1 * u.square().sum(-1),
            5, 1, (-1, 1), dcem.CEM(50, 10, dcem.LML(0.1)), num_iterations=3, gradient=mode,
            state_dims={"at": 1, "steps": 0},
        )  # fmt: skip
        start = {"at": torch.zeros(2, 1), "steps": torch.zeros(2, dtype=torch.long)}
        return mpc(start, generator=torch.Generator().manual_seed(0))

    says = "^dynamics: expected states with a gradient"
    of_model, of_simulator = plan(False), plan(True)
    torch.testing.assert_close(of_simulator.actions, of_model.actions)
    if isinstance(mode, dcem.Detach):
        of_simulator.cost.sum().backward()  # of the cost as it is, which depends on no action
        return
    slope = torch.autograd.grad(of_model.actions.sum(), goal, retain_graph=True)[0]
    torch.autograd.grad(of_model.cost.sum() + of_model.states["at"].sum(), goal)
    if isinstance(mode, dcem.Truncate):  # the part that it promises has no such path
        assert torch.equal(torch.autograd.grad(of_simulator.actions.sum(), goal, retain_graph=True)[0], slope)
    for lost in (of_simulator.cost, *([] if isinstance(mode, dcem.Truncate) else [of_simulator.actions])):
        with pytest.raises(RuntimeError, match=says):
            torch.autograd.grad(lost.sum(), goal, retain_graph=True)
    assert not of_simulator.states["at"].requires_grad


def test_dynamics_that_leave_actions_alone_have_lost_nothing():
    """A decision may have no consequence but its cost, in a world that changes by itself; and steps say so."""
    goal = torch.tensor(0.7, requires_grad=True)
    for dynamics in (
        lambda x, u: x,
        lambda x, u: x + 0.1 * torch.randn_like(x),  # which is another for each candidate
        lambda x, u: x + 0.1 * (u > 0) + 0.0 * u,
    ):
        for options in ({}, {"num_particles": 2}, {"chunk_size": 30}):
            mpc = dcem.control.MPC(
                dynamics, lambda x, u: (u - x.detach() - goal).square().sum(-1), 2, 1, num_iterations=3, **options
            )
            plan = mpc(torch.tensor([[0.1], [torch.nan]]))
            assert torch.autograd.grad(plan.actions[0].sum() + plan.cost[0], goal)[0] > 0.5


@pytest.mark.parametrize("dtype", [torch.long, torch.complex64, torch.float64], ids=str)
def test_states_of_any_dtype_have_lost_their_actions(dtype):
    goal = torch.tensor(0.7, requires_grad=True)

    def dynamics(x, u):
        return (x + (10 * u).round().to(dtype)).detach()

    def cost(x, u):
        return (x.abs().float() - goal).square().sum(-1) + 0.1 * u.square().sum(-1)

    mpc = dcem.control.MPC(dynamics, cost, 2, 1, (-1, 1), num_iterations=3)
    plan = mpc(torch.ones(1, 1, dtype=dtype))
    with pytest.raises(RuntimeError, match="^dynamics: expected states with a gradient"):
        plan.actions.sum().backward()


def test_a_choice_has_no_gradient_to_lose():
    """Of a product the numbers require a gradient, and what is chosen by them leads to other states by steps."""
    table = torch.tensor([[0.1], [0.5], [1.0]], requires_grad=True)
    init = dcem.Product([dcem.Gaussian(torch.zeros(2, 1), 1.0, 2), dcem.Categorical(torch.zeros(2, 3), event_dims=2)])
    mpc = dcem.control.MPC(
        lambda x, u: x + table[u[..., 1:].argmax(-1)],
        lambda x, u: (x - 1).square().sum(-1) + u[..., 0].square(),
        2, 4, init=init, num_iterations=3,
    )  # fmt: skip
    assert torch.autograd.grad(mpc(torch.zeros(1, 1)).cost.sum(), table)[0].isfinite().all()


@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Checkpoint(), dcem.Prune(0.5)], ids=repr)
@pytest.mark.parametrize("has_features", [False, True])
def test_a_slope_that_is_not_finite_is_told_after_a_second_evaluation(mode, has_features):
    """What failed is evaluated a second time, and the graph of the first is gone."""
    steep = torch.tensor(1.0, requires_grad=True)
    features = steep * torch.ones(1) if has_features else steep
    noise = torch.randn(1, 20, 2, generator=torch.Generator().manual_seed(0))

    def objective(x):  # the lowest candidate has failed, and no slope of the others is finite
        values = (x - 0.3).square().sum(-1) + (features * 0.0 * x.sum(-1)).square().sqrt()
        return torch.where(x[..., 0] <= noise[..., 0].min(), torch.nan, values)

    solution = dcem.minimize(objective, torch.zeros(2), dcem.CEM(20, 5), noise=noise, num_iterations=1, gradient=mode)
    assert solution.status != dcem.Status.NONFINITE
    solution.x.sum().backward()
    assert solution.status == dcem.Status.NONFINITE


def test_nothing_is_missing_where_nothing_comes_back():
    """Of iterations whose values are all infinite, or equal; and a graph is compiled without being asked for one."""
    calls = []

    def at_times(x):
        calls.append(x)
        missing = {1: torch.inf, 2: 0.0}.get(len(calls))
        return (x - 0.3).square().sum(-1) if missing is None else torch.full(x.shape[:-1], missing)

    init = torch.zeros(2, requires_grad=True)
    solution = dcem.minimize(at_times, init, dcem.CEM(20, 5), num_iterations=4)
    assert torch.autograd.grad(solution.x.sum(), init)[0].isfinite().all()
    noise = torch.randn(3, 100, 2, generator=torch.Generator().manual_seed(0))

    def solve():
        return dcem.minimize(lambda x: x.detach().square().sum(-1), init, noise=noise, num_iterations=3).x

    solve_compiled = torch.compile(solve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(solve_compiled(), solve())


@pytest.mark.parametrize("selection", [dcem.LML(1.0), dcem.HardTopK()], ids=repr)
@pytest.mark.parametrize("mode", FULL, ids=repr)
def test_nothing_is_missing_either_where_what_comes_back_has_a_gradient_itself(mode, selection):
    """As all has in a transform, and with `create_graph`: zero is what it was. What would be missing still is."""
    noise = torch.randn(2, 20, 2, generator=torch.Generator().manual_seed(0))

    def loss(init, value, scale=1.0):
        solver, objective = dcem.CEM(20, 5, selection), lambda x: value(x.detach())
        x = dcem.minimize(objective, init, solver, noise=noise, num_iterations=2, gradient=mode).x
        return scale * (x - 1).square().sum()

    flat, init = lambda x: (x.norm(dim=-1) > 99).float(), torch.zeros(2, requires_grad=True)
    expected = torch.full((2,), -2.0)
    assert torch.equal(torch.autograd.grad(loss(init, flat), init, create_graph=True)[0], expected)
    assert torch.equal(torch.func.grad(loss)(init.detach(), flat), expected)
    many = torch.func.vmap(torch.func.grad(loss), (0, None))(torch.zeros(3, 2), flat)
    assert torch.equal(many, expected.expand(3, 2))
    scaled = torch.func.jvp(
        lambda scale: torch.func.grad(loss)(init.detach(), flat, scale), (torch.ones(()),), (torch.ones(()),)
    )
    assert torch.equal(scaled[1], expected)
    for differentiate in (
        lambda loss: torch.autograd.grad(loss(init), init, create_graph=True),
        lambda loss: torch.func.grad(loss)(init.detach()),
    ):
        with pytest.raises(RuntimeError, match="^objective: expected values with a gradient|^HardTopK has no gradient"):
            differentiate(lambda init: loss(init, lambda x: (x - 0.3).square().sum(-1)))


def test_implicit_says_of_an_objective_without_a_gradient_what_it_did():
    with pytest.raises(ValueError, match="^objective: expected a function of x, got one that does not depend on x"):
        dcem.minimize(lambda x: x.detach().square().sum(-1), torch.zeros(2), gradient=dcem.Implicit())


def test_nor_in_forward_mode():
    with pytest.raises(RuntimeError, match="^objective: expected values with a gradient"):
        torch.func.jvp(
            lambda init: dcem.minimize(lambda x: (x - 0.3).square().sum(-1).detach(), init, dcem.CEM(20, 5)).x,
            (torch.zeros(2),), (torch.ones(2),),
        )  # fmt: skip


RECORDED = [
    dcem.CEM(20, 5), dcem.CEM(20, 15), dcem.CEM(20, 5, dcem.HardTopK()), dcem.CEM(20, 5, dcem.ConstrainedSparsemax()),
    dcem.CEM(20, 5, keep_elites=0.4), dcem.MPPI(20),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("finite", [0, 1, 4, 20])
@pytest.mark.parametrize("solver", RECORDED, ids=repr)
def test_what_failed_has_no_weight_in_the_record(solver, finite, dtype) -> None:
    """Nor is anything selected of too few finite values, or of equal ones: the finite candidates count alike."""
    sent = torch.arange(20) < finite
    scale = torch.tensor([[1.0], [1e-12]])  # the second problem is flat, up to rounding

    def objective(x):
        values = scale * x.square().sum(-1) + 1
        return torch.where(sent[: x.shape[-2]], values, torch.nan).to(dtype)

    solution = dcem.minimize(
        objective, torch.zeros(2, 3), solver, num_iterations=1, record=True, generator=torch.Generator().manual_seed(0)
    )
    (iteration,) = solution.history
    weights, failed = iteration.weights.detach(), ~iteration.values.isfinite()
    assert (weights[failed] == 0).all()
    assert ((weights >= 0) & (weights <= 1 + 1e-5)).all()
    assert iteration.effective_elites.isfinite().all()
    unselected = [1] if finite >= getattr(solver, "num_elites", 2) else [0, 1]
    for i in unselected:
        alike = weights[i][~failed[i]]
        assert (alike == alike[:1]).all()
        torch.testing.assert_close(iteration.effective_elites[i].item(), float(finite))


def test_the_record_of_gradient_descent_gives_a_candidate_that_failed_no_weight():
    """Whether its value failed or its slope alone."""
    init = torch.tensor([[1.0], [-1.0], [0.0]])

    def objective(x):  # NaN below 0, an infinite slope at 0
        return x.squeeze(-1).sqrt()

    solution = dcem.minimize(objective, init, dcem.GradientDescent(0.1), num_iterations=1, record=True)
    assert solution.history[0].weights.tolist() == [[1.0], [0.0], [0.0]]
    assert solution.history[0].effective_elites.tolist() == [1.0, 0.0, 0.0]

"""`dcem.capture`: one iteration compiled and replayed, with the numbers of the solver."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import dcem
from dcem import capturing

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.*Leaf.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]

CEM = dcem.CEM(20, 5, dcem.LML(0.5))
NOISE = torch.randn(4, 2, 20, 2, generator=torch.Generator().manual_seed(0))


def solve(theta, solver, gradient=None, **options):
    """Failed candidates among the others."""

    def objective(x):
        values = (x - theta.unsqueeze(-2)).square().sum(-1)
        return torch.where(x[..., 0] > 1.5, torch.nan, values)

    gradient = dcem.Unroll() if gradient is None else gradient
    options = {"noise": NOISE, "num_iterations": 4, "bounds": (-2.0, 2.0)} | options
    return dcem.minimize(objective, torch.zeros(2, 2), solver, gradient=gradient, **options)


def close(ours, theirs):
    for name in ("x", "best_x", "best_value"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.status, theirs.status)


@pytest.fixture(scope="module")
def counted():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    return dcem.capture(CEM, backend=counter), counter


def test_every_gradient_mode_uses_what_was_captured_once(counted) -> None:
    """Two graphs, with a gradient and without one, for six modes; Prune evaluates otherwise."""
    captured, counter = counted
    theta = torch.tensor([[1.0, -1.0], [0.5, 3.0]], requires_grad=True)
    for gradient, graphs in [
        (dcem.Detach(), 1), (dcem.Unroll(), 3), (dcem.Checkpoint(), 3), (dcem.Truncate(2), 3), (dcem.Prune(0.5), 5)
    ]:  # fmt: skip
        theirs, ours = solve(theta, CEM, gradient), solve(theta, captured, gradient)
        close(ours, theirs)
        assert ours.x.requires_grad == theirs.x.requires_grad
        if ours.x.requires_grad:
            slopes = [torch.autograd.grad(solution.x.square().sum(), theta)[0] for solution in (ours, theirs)]
            torch.testing.assert_close(*slopes, atol=1e-4, rtol=1e-4)
        assert counter.frame_count <= graphs
    with torch.no_grad():
        many = {"num_iterations": 9, "noise": NOISE[:1].expand(9, *NOISE.shape[1:])}
        close(solve(theta, captured, **many), solve(theta, CEM, **many))
    generator = torch.Generator().manual_seed(0)
    solve(theta, captured, dcem.Detach(), noise=None, generator=generator)
    assert counter.frame_count <= 5


class Rescaled(dcem.CEM):
    """A subclass with steps of its own."""

    def weigh(self, values):
        weights, valid = super().weigh(values)
        return weights.square(), valid


@pytest.mark.parametrize(
    "solver",
    [
        dcem.CEM(20, 5, dcem.ConstrainedSoftmax(0.5), keep_elites=0.4, smoothing=0.1),
        dcem.CEM(20, 5, dcem.HardTopK()),
        dcem.MPPI(20, 0.3),
        dcem.GradientDescent(lr=0.1, momentum=0.5),
        Rescaled(20, 5, dcem.LML(0.5)),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_every_solver_has_its_own_numbers(solver) -> None:
    torch._dynamo.reset()
    theta = torch.tensor([[1.0, -1.0], [0.5, 1.0]])
    options = {"noise": None, "generator": None} if isinstance(solver, dcem.GradientDescent) else {}
    captured = dcem.capture(solver, backend="eager")
    assert isinstance(captured, type(solver))
    with torch.no_grad():
        ours, theirs = solve(theta, captured, **options), solve(theta, solver, **options)
    if isinstance(solver, dcem.GradientDescent):
        torch.testing.assert_close(ours.x, theirs.x)
    else:
        close(ours, theirs)


def test_a_learned_temperature_has_its_gradient(backend) -> None:
    torch._dynamo.reset()
    theta, temperature = torch.ones(2, 2), torch.tensor(0.5, requires_grad=True)
    solver = dcem.CEM(20, 5, dcem.LML(temperature))
    slopes = [
        torch.autograd.grad(solve(theta, each, num_iterations=1, noise=NOISE[:1]).x.sum(), temperature)[0]
        for each in (dcem.capture(solver, backend=backend), solver)
    ]
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=1e-4)
    assert slopes[0] != 0


def test_more_shapes_than_are_compiled_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three: more than torch's own limit, which is not ours to change, is worth compiling for."""
    monkeypatch.setattr(capturing, "NUM_VARIANTS", 3)
    captured = dcem.capture(dcem.CEM(10, 4), backend="eager")

    def solve_all(sizes):
        for size in sizes:
            dcem.minimize(lambda x: x.square().sum(-1), torch.zeros(size), captured, num_iterations=1)

    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2):
        solve_all((1, 2, 3, 1, 3, 2))
        assert torch._dynamo.config.recompile_limit == 2
        with pytest.raises(RuntimeError, match="for few shapes; or leave the solver as it is"):
            solve_all((4,))


@pytest.mark.parametrize("is_tree", [False, True])
def test_a_controller_is_captured_once(is_tree) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    plain = dcem.CEM(20, 4, dcem.HardTopK())
    speed = torch.nn.Linear(1, 1)

    def controller(solver):
        def dynamics(x, u):
            return {"place": x["place"] + 0.1 * speed(u)} if is_tree else x + 0.1 * speed(u)

        def cost(x, u):
            return ((x["place"] if is_tree else x) - 1).square().sum(-1)

        return dcem.control.MPC(
            dynamics, cost, 2, 1, (-1.0, 1.0), solver, num_iterations=2, answer="best"
        )  # fmt: skip

    mpc, same = controller(dcem.capture(plain, backend=counter)), controller(plain)
    state, plans = {"place": torch.zeros(2, 1)} if is_tree else torch.zeros(2, 1), [None, None]
    with torch.no_grad():
        for step in range(3):
            for i, each in enumerate((mpc, same)):
                generator = torch.Generator().manual_seed(step)
                warm = {} if plans[i] is None else {"warm_start": plans[i]}
                plans[i] = each(state, generator=generator, **warm)
            torch.testing.assert_close(plans[0].actions, plans[1].actions)
            torch.testing.assert_close(plans[0].cost, plans[1].cost)
            states = plans[1].states
            state = {"place": states["place"][:, 1]} if is_tree else states[:, 1]
    assert counter.frame_count <= 2


def test_a_compiled_model_is_compiled_with_what_stands_around_it() -> None:
    torch._dynamo.reset()
    system = dcem.control.systems.Pendulum()
    model, state = dcem.control.Compiled(system), system.sample_states(2, generator=torch.Generator().manual_seed(0))
    plain = dcem.CEM(20, 4, dcem.HardTopK())
    noise = torch.randn(1, 2, 20, 3, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (
            dcem.control.MPC(of, system.cost, 3, 1, system.bounds, solver, num_iterations=1)(
                state, noise=noise, evaluate=False
            )
            for of, solver in ((model, dcem.capture(plain, backend="eager")), (system, plain))
        )
    torch.testing.assert_close(ours.actions, theirs.actions)
    assert model._compiled is None


def test_copies_and_settings_are_captured_too() -> None:
    captured = dcem.capture(CEM, backend="eager")
    for same in (
        copy.deepcopy(captured), pickle.loads(pickle.dumps(captured)), dcem.capture(captured, backend="eager"),
        dataclasses.replace(captured, num_samples=20), dcem.Argmin(2, captured).solver,
    ):  # fmt: skip
        assert type(same).__name__ == "CapturedCEM"
        assert isinstance(same, dcem.CEM)
        assert (same.num_samples, same.num_elites) == (20, 5)
    assert type(dcem.capture(captured))._kind is dcem.CEM


def test_where_nothing_can_be_compiled_the_solver_is_as_it_was() -> None:
    """In transforms, in forward mode, in an export and in another compiled function."""
    counter = CompileCounterWithBackend("eager")
    captured = dcem.capture(CEM, backend=counter)
    theta = torch.tensor([[1.0, -1.0], [0.5, 3.0]])
    tangents = [
        torch.func.jvp(lambda theta, solver=solver: solve(theta, solver).x, (theta,), (torch.ones_like(theta),))
        for solver in (CEM, captured)
    ]
    torch.testing.assert_close(tangents[1], tangents[0])
    assert counter.frame_count == 0
    torch._dynamo.reset()
    outer = torch.compile(lambda theta: solve(theta, captured, num_iterations=1, noise=NOISE[:1]).x, backend="eager")
    torch.testing.assert_close(outer(theta), solve(theta, CEM, num_iterations=1, noise=NOISE[:1]).x)
    assert counter.frame_count == 0


class Counts(dcem.CEM):
    """Does something else from the third iteration on."""

    def sample(self, state, noise):
        return super().sample(state, noise if state.iteration < 2 else 0 * noise)


def test_what_cannot_be_captured_is_named() -> None:
    with pytest.raises(TypeError, match="solver: expected a dcem solver such as dcem.CEM.., got 3"):
        dcem.capture(3)
    with pytest.raises(ValueError, match="solver: expected iterations that are alike, of population_decay=1"):
        dcem.capture(dcem.CEM(20, 5, population_decay=1.25))
    with pytest.raises(ValueError, match="solver: expected iterations that are alike"):
        dcem.capture(dcem.GradientDescent(lr=torch.tensor([0.1, 0.2])))
    captured = dcem.capture(CEM, backend="eager")

    def looks(x):
        return x.sum(-1) if x.sum() > 0 else x.square().sum(-1)

    with pytest.raises(RuntimeError, match=r"capture: expected an iteration that torch.compile can trace, got"):
        dcem.minimize(looks, torch.zeros(2), captured)
    with pytest.raises(ValueError, match=r"objective: expected values of shape"):  # and not that it cannot be traced
        dcem.minimize(lambda x: x, torch.zeros(2), captured)
    counts = dcem.capture(Counts(20, 5), backend="eager")
    with pytest.raises(RuntimeError, match=r"capture: expected an iteration that torch.compile can trace"):
        dcem.minimize(lambda x: x.square().sum(-1), torch.zeros(2), counts)


@pytest.mark.filterwarnings("ignore:.*\\.grad attribute of a Tensor that is not a leaf:UserWarning")
def test_an_actor_with_a_captured_controller_acts_and_learns_as_without() -> None:
    pytest.importorskip("torchrl")
    from dcem.control.systems import Pendulum
    from dcem.rl import Actor, SystemEnv

    found = []
    for solver in (dcem.CEM(16, 4), dcem.capture(dcem.CEM(16, 4), backend="eager")):
        model = Pendulum(mass=torch.nn.Parameter(torch.tensor(1.3)))
        actor = Actor(dcem.control.MPC(model, model.cost, 4, 1, model.bounds, solver, num_iterations=2), std=0.2)
        env = SystemEnv(Pendulum(), 2, 0).append_transform(actor.make_tensordict_primer())
        torch.manual_seed(0)
        steps = env.rollout(3, actor)
        log_prob = actor.get_dist(steps.reshape(-1)).log_prob(steps["action"].reshape(-1, 1)).sum()
        found.append([steps["action"], steps["loc"], torch.autograd.grad(log_prob, model.mass)[0]])
    assert found[0][2].abs() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_refused_where_there_are_none() -> None:
    theta = torch.tensor([[1.0, -1.0], [0.5, 3.0]], requires_grad=True)
    for backend, has_them in (("eager", True), ("aot_eager", False)):
        x = solve(theta, dcem.capture(CEM, backend=backend), num_iterations=2, noise=NOISE[:2]).x
        (slope,) = torch.autograd.grad(x.square().sum(), theta, create_graph=True)
        if has_them:
            assert torch.autograd.grad(slope.sum(), theta)[0].isfinite().all()
        else:
            with pytest.raises(RuntimeError, match=r"capture: expected first derivatives alone.* got a second one"):
                torch.autograd.grad(slope.sum(), theta)

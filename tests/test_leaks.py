"""Nothing of a solve outlives it: what an objective closes over is freed with the solution, and so is its graph.

Python's garbage collector does not see the edges of autograd's graph. A node that keeps what keeps the node is never
found, and with it stays all that the objective closes over.
"""

import copy
import gc
import itertools
import types
import weakref

import pytest
import torch

import dcem
from dcem import _guard
from dcem.control import MPC
from dcem.energy import EnergyModel, MLPEnergy

MODES = [
    dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(1), dcem.Truncate(2), dcem.Prune(0.5),
    dcem.Prune(0.5, unbiased=True), dcem.Implicit(), dcem.Detach(),
]  # fmt: skip
CEM = dcem.CEM(20, 5, dcem.LML(1.0))
SOLVERS = [CEM, dcem.MPPI(20, 1.0), dcem.GradientDescent(0.1)]


class Nearest:
    """A cost of the distance to features, which come from a layer with a gradient."""

    def __init__(self, features, fails=False):
        self.features, self.fails = features, fails

    def __call__(self, x):
        values = (x - self.features).square().sum(-1)
        return torch.where(x[..., 0] > 0.5, torch.nan, values) if self.fails else values


def encoded():
    return torch.nn.Linear(3, 2)(torch.ones(3))


def in_minimize(mode, solver, **options):
    fails = options.pop("fails", False)
    objective = Nearest(encoded(), fails)
    solution = dcem.minimize(objective, torch.zeros(2), solver, num_iterations=2, gradient=mode, **options)
    return [objective, objective.features, solution], solution.x


def in_argmin(mode):
    objective = Nearest(encoded())
    layer = dcem.Argmin(2, CEM, num_iterations=2, gradient=mode)
    solution = layer(objective, ())
    return [objective, objective.features, layer, solution], solution.x


def in_an_energy(mode):
    energy, x = MLPEnergy(2, 1), encoded()
    model = EnergyModel(energy, 1, CEM, num_iterations=2, gradient=mode)
    y = model(x.unsqueeze(0))
    return [energy, model, x, y], y


def in_control(mode, **options):
    dynamics, state = torch.nn.Linear(3, 2), encoded()
    mpc = MPC(
        lambda x, u: x + dynamics(torch.cat([x, u], -1)), lambda x, u: x.square().sum(-1) + u.square().sum(-1),
        3, 1, (-1, 1), CEM, num_iterations=2, gradient=mode, **options,
    )  # fmt: skip
    plan = mpc(state)
    return [mpc, dynamics, state, plan], plan.actions.sum() + plan.cost


def left_by(make, differentiate):
    kept, answer = make()
    if answer.requires_grad:
        differentiate(answer.sum(), kept)
    watched = [(type(of).__name__, weakref.ref(of)) for of in (*kept, answer)]
    del kept, answer
    gc.collect()
    return [name for name, of in watched if of() is not None]


def backward(loss, kept):
    loss.backward()


def not_at_all(loss, kept):
    pass


def twice(loss, kept):
    features = next(of for of in kept if isinstance(of, torch.Tensor) and of.requires_grad)
    (slope,) = torch.autograd.grad(loss, features, create_graph=True)
    if slope.requires_grad:
        slope.sum().backward()


CASES = {
    **{
        f"minimize-{mode}-{solver}-{name}": lambda mode=mode, solver=solver, options=options: in_minimize(
            mode, solver, **options
        )
        for mode, solver, (name, options) in itertools.product(
            MODES, SOLVERS, {"plain": {}, "record": {"record": True}, "fails": {"fails": True}}.items()
        )
        if not (isinstance(mode, dcem.Prune) and isinstance(solver, dcem.GradientDescent))
    },
    **{f"argmin-{mode}": lambda mode=mode: in_argmin(mode) for mode in MODES},
    **{f"energy-{mode}": lambda mode=mode: in_an_energy(mode) for mode in MODES},
    **{f"control-{mode}": lambda mode=mode: in_control(mode) for mode in MODES},
    "control-chunks": lambda: in_control(dcem.Unroll(), chunk_size=10),
    "control-best": lambda: in_control(dcem.Unroll(), answer="best"),
    "control-ends": lambda: in_control(dcem.Unroll(), continues=lambda x: (x[..., 0] < 0.1).to(x.dtype)),
    "control-particles": lambda: in_control(dcem.Unroll(), num_particles=2),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("differentiate", [backward, not_at_all])
def test_nothing_of_a_solve_outlives_it(name, differentiate):
    assert left_by(CASES[name], differentiate) == []


@pytest.mark.parametrize("mode", MODES[:6], ids=repr)
def test_nor_of_one_that_is_differentiated_twice(mode):
    assert left_by(lambda: in_minimize(mode, CEM), twice) == []


class Keeping(Nearest):
    """One that keeps what it returned, and its solution."""

    def __call__(self, x):
        self.candidates, self.last = x, super().__call__(x)
        return self.last


@pytest.mark.parametrize("differentiate", [backward, not_at_all])
@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Truncate(1), dcem.Detach()], ids=repr)
def test_nor_of_one_whose_objective_keeps_its_values_and_its_solution(mode, differentiate):
    def make():
        objective = Keeping(encoded())
        objective.solution = dcem.minimize(objective, torch.zeros(2), CEM, num_iterations=2, gradient=mode)
        return [objective, objective.features, objective.solution], objective.solution.x

    assert left_by(make, differentiate) == []


@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Detach()], ids=repr)
def test_nor_of_an_agent_that_keeps_its_plan(mode):
    class Agent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
            self.mpc = MPC(self.step, self.cost, 3, 1, (-1, 1), CEM, num_iterations=2, gradient=mode)
            self.plan = None

        def step(self, x, u):
            return x + self.model(torch.cat([x, u], -1))

        def cost(self, x, u):
            return x.square().sum(-1) + u.square().sum(-1)

        def act(self, observation):
            self.plan = self.mpc(self.encoder(observation), warm_start=self.plan)
            return self.plan.cost

    def make():
        agent = Agent()
        agent.act(torch.ones(3))
        return [agent, agent.model, agent.plan], agent.act(torch.ones(3))

    assert left_by(make, backward) == []


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_what_was_given_is_left_as_it_was(solver):
    """A solve looks at slopes of its own tensors, not of those that it was given."""
    mean, std = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    features = encoded()
    for _ in range(3):
        solution = dcem.minimize(Nearest(features), dcem.Gaussian(mean * 1, std), solver, num_iterations=3, record=True)
        solution.x.sum().backward(retain_graph=True)
        moved = mean * 1
        dcem.minimize(Nearest(features), dcem.Gaussian(moved, std), solver, num_iterations=3)
    for given in (mean, std, moved, features):
        assert not given._backward_hooks
    assert (torch.autograd.grad((moved * torch.nan).sum(), mean)[0]).isnan().all()
    assert (torch.autograd.grad((std * torch.nan).sum(), std)[0]).isnan().all()


def test_a_solution_is_written_into_and_its_copies_and_files_are_of_numbers(tmp_path):
    features = encoded()
    steep = lambda x: (x - features).square().sum(-1) + (0.0 * features.sum() * x.sum(-1)).square().sqrt()  # noqa: E731
    solution = dcem.minimize(steep, torch.zeros(2), CEM, num_iterations=1)
    torch.save(solution, tmp_path / "solution.pt")
    copied = copy.deepcopy(solution)
    solution.x.sum().backward()
    assert solution.status == dcem.Status.NONFINITE
    assert copied.status == dcem.Status.OK
    assert torch.equal(torch.load(tmp_path / "solution.pt", weights_only=True).status, copied.status)


def test_the_history_of_a_state_is_searched_by_no_solve():
    """In a closed loop that is differentiated each solve would search, and hook into, all that came before."""
    asked = []

    class Node(types.SimpleNamespace):
        __hash__ = object.__hash__

        @property
        def next_functions(self):
            asked.append(self.name)
            return [(child, 0) for child in self.after]

        def register_hook(self, hook):
            asked.append(f"hook into {self.name}")
            self.hook = hook
            return types.SimpleNamespace(remove=lambda: asked.append(f"no hook into {self.name}"))

    leaf = Node(name="leaf", after=[], variable=None)
    history = Node(name="history", after=[leaf])
    state = Node(name="state", after=[history])
    root = Node(name="root", after=[Node(name="cost", after=[state]), Node(name="learned", after=[leaf])])

    def call():
        pass

    _guard._before_leaves([types.SimpleNamespace(grad_fn=root)], [], call)
    assert {"history", "hook into history", "hook into learned"} <= set(asked)
    asked.clear()
    given = torch.zeros(2, requires_grad=True) * 1
    root.after[0].after[0] = given.grad_fn
    _guard._before_leaves([types.SimpleNamespace(grad_fn=root)], [given], call)
    assert sorted(set(asked)) == ["cost", "hook into cost", "hook into learned", "learned", "root"]
    asked.clear()
    del call
    gc.collect()
    assert {"no hook into cost", "no hook into learned"} <= set(asked)


def test_a_leak_would_be_seen():
    """By a node that keeps what keeps the node."""

    def make():
        objective = Nearest(encoded())
        answer = objective(torch.zeros(2))
        objective.features.grad_fn.register_hook(lambda slopes, _, kept=objective: None)
        return [objective, objective.features], answer

    assert left_by(make, backward) == ["Nearest", "Tensor"]


@pytest.mark.parametrize(
    "kept_as",
    [lambda found: found.detach(), copy.deepcopy, lambda found: found.detach().to(torch.float64), lambda found: found.x.detach()],
    ids=["detach", "deepcopy", "to", "tensor"],
)  # fmt: skip
def test_a_result_that_is_kept_keeps_numbers_alone(kept_as):
    def solved():
        features = encoded()
        solution = dcem.minimize(Nearest(features), torch.zeros(2), CEM, num_iterations=2)
        solution.x.sum().backward()
        return kept_as(solution), weakref.ref(features)

    kept, features = solved()
    gc.collect()
    assert features() is None, kept


def test_a_step_of_a_decoder_keeps_numbers_alone():
    decoder = dcem.embedding.MLPDecoder(2, 3, (8,))

    def stepped():
        features = torch.randn(3)
        optimizer = torch.optim.Adam(decoder.parameters())
        objective = Nearest(features)
        step = dcem.embedding.decoder_step(objective, decoder, optimizer, torch.zeros(2), CEM, num_iterations=2)
        return step, weakref.ref(features)

    step, features = stepped()
    gc.collect()
    assert features() is None, step

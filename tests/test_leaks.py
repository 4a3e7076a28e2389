"""Nothing of a solve outlives it: what an objective closes over is freed with the solution, and so is its graph.

Python's garbage collector does not see the edges of autograd's graph. A node that keeps what keeps the node is never
found, and with it stays all that the objective closes over.
"""

import gc
import itertools
import weakref

import pytest
import torch

import dcem
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


def test_a_leak_would_be_seen():
    """By a node that keeps what keeps the node."""

    def make():
        objective = Nearest(encoded())
        answer = objective(torch.zeros(2))
        objective.features.grad_fn.register_hook(lambda slopes, _, kept=objective: None)
        return [objective, objective.features], answer

    assert left_by(make, backward) == ["Nearest", "Tensor"]
